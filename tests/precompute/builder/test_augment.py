"""RandAugment: each operation against numbers worked out by hand, and the draws for good."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from clipocr.precompute.builder import augment as module
from clipocr.precompute.builder.augment import (
    OPERATIONS,
    Draws,
    augment,
    draw_operations,
    view_keys,
)
from clipocr.shared.hashing import mix

GREY = (128, 128, 128)
WHITE = (255, 255, 255)


class Scripted(Draws):
    """Draws given numbers in turn; 1 is a positive sign, then 1 is bicubic resampling."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(mix(0, (0, 1)))
        self._numbers = list(numbers)

    def below(self, limit: int) -> int:
        assert self._numbers[0] < limit
        return self._numbers.pop(0)


def view_draws(cache_seed: int, sample_hash: int, view_idx: int) -> Draws:
    return Draws(view_keys(cache_seed, [sample_hash], view_idx)[0])


def random_image(width: int = 60, height: int = 20) -> Image.Image:
    pixels = np.random.default_rng(width).integers(10, 240, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def row(*values: int) -> Image.Image:
    return Image.fromarray(np.repeat(np.array([values], np.uint8)[..., None], 3, axis=2))


def values(image: Image.Image) -> list[int]:
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (module.invert, [255, 155, 128, 127, 126, 55, 0]),
        (module.posterize, [0, 64, 64, 128, 128, 192, 192]),
        (module.solarize, [0, 100, 127, 127, 126, 55, 0]),
        (module.solarize_add, [55, 155, 182, 128, 129, 200, 255]),
    ],
)
def test_value_tables(operation, expected: list[int]) -> None:
    assert values(operation(row(0, 100, 127, 128, 129, 200, 255), Scripted())) == expected


def test_auto_contrast_and_equalize_are_pillows() -> None:
    image = random_image()
    assert same(module.auto_contrast(image, Scripted()), ImageOps.autocontrast(image))
    assert same(module.equalize(image, Scripted()), ImageOps.equalize(image))
    assert values(module.auto_contrast(row(100, 110, 120), Scripted())) == [0, 127, 255]


def varied_images() -> dict[str, Image.Image]:
    rng = np.random.default_rng(0)

    def of(pixels) -> Image.Image:
        return Image.fromarray(np.asarray(pixels).astype(np.uint8))

    values = np.arange(256).repeat(3).reshape(16, 16, 3)
    return {
        "noise": of(rng.integers(0, 256, (31, 118, 3))),
        "grey": of(rng.integers(90, 160, (31, 118, 1)).repeat(3, axis=2)),
        "each value": of(values),
        "each value in another channel": of(values * [1, 0, 0] + [0, 9, 255]),
        "ramps": of(values // [1, 2, 5] + [0, 30, 200]),
        "two values": of(rng.integers(0, 2, (31, 118, 3)) * [255, 1, 90] + [0, 7, 100]),
        "neighbours": of(rng.integers(127, 129, (20, 30, 3))),
        "one outlier": of(np.pad([[[255, 0, 131]]], ((9, 9), (9, 9), (0, 0)), constant_values=130)),
        "mostly white": of(255 - rng.integers(0, 256, (31, 118, 3)) // 250 * 200),
        "black": Image.new("RGB", (40, 10), (0, 0, 0)),
        "white": Image.new("RGB", (40, 10), WHITE),
        "one colour": Image.new("RGB", (40, 10), (3, 128, 254)),
        "1 x 1": Image.new("RGB", (1, 1), (0, 77, 255)),
        "1 x 50": of(rng.integers(0, 256, (50, 1, 3))),
        "50 x 1": of(rng.integers(0, 256, (1, 50, 3))),
        "256 x 1": of(values.reshape(1, 256, 3)),
        "3 x 2": of(rng.integers(0, 256, (2, 3, 3))),
        "large": of(rng.normal(120, 40, (400, 600, 3)).clip(0, 255)),
    }


def enhanced(kind) -> dict[int, object]:
    return {
        coin: lambda image, factor=factor: kind(image).enhance(factor)
        for coin, factor in ((0, 1 - 0.45), (1, 1 + 0.45))
    }


PILLOWS = {
    module.auto_contrast: ImageOps.autocontrast,
    module.equalize: ImageOps.equalize,
    module.invert: ImageOps.invert,
    module.posterize: lambda image: ImageOps.posterize(image, 2),
    module.solarize: lambda image: ImageOps.solarize(image, 128),
    module.solarize_add: lambda image: image.point(lambda v: min(255, v + 55) if v < 128 else v),
}
ENHANCEMENTS = {
    module.color: enhanced(ImageEnhance.Color),
    module.contrast: enhanced(ImageEnhance.Contrast),
    module.brightness: enhanced(ImageEnhance.Brightness),
}


@pytest.mark.parametrize("name", varied_images())
def test_values_become_what_pillow_makes_of_them(name: str) -> None:
    image = varied_images()[name]
    before = image.tobytes()
    for operation, pillows in PILLOWS.items():
        assert same(operation(image, Scripted()), pillows(image)), operation
    for operation, of_coin in ENHANCEMENTS.items():
        for coin, pillows in of_coin.items():
            assert same(operation(image, Scripted(coin)), pillows(image)), operation
    assert image.tobytes() == before


def test_every_table_of_auto_contrast_is_pillows() -> None:
    for low in range(0, 256, 5):
        for high in range(low, 256, 3):
            image = row(*range(low, high + 1))
            assert same(module.auto_contrast(image, Scripted()), ImageOps.autocontrast(image))


@pytest.mark.parametrize("num_pixels", [255, 256, 257, 509, 510, 511, 765, 3000])
def test_equalize_is_pillows_where_its_step_changes(num_pixels: int) -> None:
    rng = np.random.default_rng(num_pixels)
    for last in (1, 2, 255):
        some = np.full((1, num_pixels, 3), last, np.uint8)
        some[0, 1:] = rng.integers(0, last, (num_pixels - 1, 3))
        image = Image.fromarray(some)
        assert same(module.equalize(image, Scripted()), ImageOps.equalize(image))


@pytest.mark.parametrize(("coin", "factor"), [(0, 0.55), (1, 1.45)])
def test_enhancements(coin: int, factor: float) -> None:
    assert values(module.brightness(row(10, 100, 170), Scripted(coin))) == [
        int(10 * factor),
        int(100 * factor),
        int(170 * factor),
    ]
    # The mean grey is 100.
    assert values(module.contrast(row(60, 100, 140), Scripted(coin))) == [
        100 - int(40 * factor),
        100,
        100 + int(40 * factor),
    ]
    image = random_image()
    saturated = module.color(image, Scripted(coin))
    assert same(saturated, ImageEnhance.Color(image).enhance(factor))
    assert values(module.color(row(10, 100), Scripted(coin))) == [10, 100]


@pytest.mark.parametrize("bicubic", [0, 1])
@pytest.mark.parametrize("positive", [0, 1])
def test_rotation_grows_the_canvas_and_cuts_nothing(positive: int, bicubic: int) -> None:
    image = Image.new("RGB", (100, 32), WHITE)
    image.paste((255, 0, 0), (90, 0, 100, 32))
    rotated = module.rotate(image, Scripted(positive, bicubic))
    cos, sin = math.cos(math.radians(15)), math.sin(math.radians(15))
    wanted = (100 * cos + 32 * sin, 100 * sin + 32 * cos)
    assert all(0 <= have - want <= 2 for have, want in zip(rotated.size, wanted, strict=True))

    pixels = np.asarray(rotated).astype(int)
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 128).all()
    white, red = (pixels.min(axis=2) > 250), (pixels[..., 0] > 250) & (pixels[..., 1] < 5)
    assert white.sum() == pytest.approx(90 * 32, rel=0.05)
    assert red.sum() == pytest.approx(10 * 32, rel=0.25)
    slope = np.argwhere(red).mean(axis=0) - np.argwhere(white).mean(axis=0)
    angle = math.degrees(math.atan2(-slope[0], slope[1]))  # Counter-clockwise, as Pillow counts.
    assert angle == pytest.approx(15 if positive else -15, abs=1)


@pytest.mark.parametrize(
    ("operation", "positive", "seen_at"),
    [
        # A positive number fetches from further right or down: the picture moves left or up.
        (module.translate_x, 1, (45, 20)),
        (module.translate_x, 0, (55, 20)),
        (module.translate_y, 1, (50, 14)),
        (module.translate_y, 0, (50, 26)),
        (module.shear_x, 1, (41, 20)),
        (module.shear_x, 0, (59, 20)),
        (module.shear_y, 1, (50, 15)),
        (module.shear_y, 0, (50, 25)),
    ],
)
@pytest.mark.parametrize("bicubic", [0, 1])
def test_moves(operation, positive: int, seen_at: tuple[int, int], bicubic: int) -> None:
    image = Image.new("RGB", (100, 40), WHITE)
    image.paste((0, 0, 0), (49, 19, 52, 22))  # Three pixels wide around (50, 20).
    moved = operation(image, Scripted(positive, bicubic))
    assert moved.size == image.size
    darkness = 255 - np.asarray(moved)[..., 0].astype(float)
    darkness[np.asarray(moved)[..., 0] == 128] = 0
    y, x = np.indices(darkness.shape)
    center = [(darkness * axis).sum() / darkness.sum() for axis in (x, y)]
    assert center == pytest.approx(seen_at, abs=0.75)
    # What came in from outside lies where the picture left.
    left, top = (0, 0) if not positive else (99, 39)
    corner = {
        module.translate_x: (left, 20),
        module.translate_y: (50, top),
        module.shear_x: (left, 39),
        module.shear_y: (99, top),
    }[operation]
    assert moved.getpixel(corner) == GREY


@pytest.mark.parametrize(
    ("width", "radius"),
    [(2, 1), (74, 1), (75, 2), (76, 2), (400, 2)],
)
def test_blur_radius_depends_on_the_longer_side(width: int, radius: int) -> None:
    image = random_image(width, 9)
    assert same(
        module.gaussian_blur(image, Scripted()), image.filter(ImageFilter.GaussianBlur(radius))
    )
    assert same(
        module.gaussian_blur(image.transpose(Image.Transpose.TRANSPOSE), Scripted()),
        image.transpose(Image.Transpose.TRANSPOSE).filter(ImageFilter.GaussianBlur(radius)),
    )


@pytest.mark.parametrize(("width", "mean"), [(3, 1), (50, 11), (60, 13), (99, 21), (400, 21)])
def test_noise_is_poisson_of_random_sign_and_the_same_in_all_channels(
    width: int, mean: int
) -> None:
    size = (width, 3) if width == 3 else (3, width)
    noise = []
    for view_idx in range(math.ceil(30_000 / (3 * width))):
        draws = view_draws(0, width, view_idx)
        pixels = np.asarray(module.poisson_noise(Image.new("RGB", size, GREY), draws))
        assert (pixels == pixels[..., :1]).all()
        noise.append(pixels[..., 0].astype(int).ravel() - 128)
    sample = np.concatenate(noise)
    assert abs(sample.mean()) < 5 * mean / len(sample) ** 0.5 + 0.01
    assert np.abs(sample).mean() == pytest.approx(mean, rel=0.02)
    assert np.abs(sample).var() == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("mean", range(1, 22, 2))
def test_noise_table_holds_the_poisson_distribution(mean: int) -> None:
    table = module._noise_table(mean)
    shares = np.bincount(np.abs(table)) / len(table)
    exact = [math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(len(shares))]
    np.testing.assert_allclose(shares, exact, atol=2**-15)
    assert np.array_equal(np.sort(table), np.sort(-table))


def test_noise_does_not_wrap_around() -> None:
    for value in (0, 255):
        image = Image.new("RGB", (200, 20), (value,) * 3)
        noisy = np.asarray(module.poisson_noise(image, view_draws(0, 0, 0))).astype(int)
        assert 0 < np.abs(noisy - value).max() < 80


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2000, 3), (3, 500)])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_odd_sizes_survive(operation, size: tuple[int, int]) -> None:
    image = random_image(*size)
    before = image.tobytes()
    for view_idx in range(2):
        changed = operation(image, view_draws(0, 1, view_idx))
        assert changed.mode == "RGB"
        assert operation is module.rotate or changed.size == size
    assert image.tobytes() == before


def test_a_line_too_long_to_rotate_in_memory_stays() -> None:
    image = Image.new("RGB", (100_000, 3))
    assert module.rotate(image, Scripted(1, 1)) is image


def test_augment_applies_the_drawn_operations_in_turn() -> None:
    # Of the sixteen: invert; then solarize (5, the third being gone: 4); then a dropped one.
    draws = Scripted(2, 4, 0, 1, 1, 0)
    assert values(augment(row(0, 100, 255), draws)) == [0, 100, 0]
    assert same(augment(random_image(), Scripted(0, 0, 0, 0, 0, 0)), random_image())


def test_every_operation_is_drawn_and_applied_as_often() -> None:
    num_views = 4000
    drawn, first, applied, lengths = Counter(), Counter(), Counter(), Counter()
    for view_idx in range(num_views):
        sample = view_draws(1, 2, view_idx).sample(len(OPERATIONS), 3)
        assert len(set(sample)) == 3
        drawn.update(sample)
        first[sample[0]] += 1
        operations = draw_operations(view_draws(1, 2, view_idx))
        applied.update(operations)
        lengths[len(operations)] += 1

    def expect(counts: Counter, share: float, num_kinds: int) -> None:
        deviation = (num_views * share * (1 - share)) ** 0.5
        assert len(counts) == num_kinds
        assert all(abs(n - num_views * share) < 4 * deviation for n in counts.values()), counts

    expect(drawn, 3 / 16, 16)
    expect(first, 1 / 16, 16)
    expect(applied, 3 / 32, 16)
    expect(Counter({n: lengths[n] for n in (0, 3)}), 1 / 8, 2)
    expect(Counter({n: lengths[n] for n in (1, 2)}), 3 / 8, 2)


def test_signs_and_resampling_are_balanced() -> None:
    draws = view_draws(3, 4, 5)
    coins = np.array([draws.coin() for _ in range(10_000)])
    assert abs(coins.mean() - 0.5) < 0.02
    assert abs((coins[1:] == coins[:-1]).mean() - 0.5) < 0.02
    assert {draws.signed(0.45) for _ in range(100)} == {0.45, -0.45}


def philox4x64(counter: int, key: tuple[int, int]) -> list[int]:
    """One block of Philox4x64-10 as published (Salmon et al. 2011)."""
    word = 2**64 - 1
    c0, c1, c2, c3 = ((counter >> 64 * i) & word for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & word, (p0 >> 64) ^ c3 ^ k1, p0 & word
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & word, (k1 + 0xBB67AE8584CAA73B) & word
    return [c0, c1, c2, c3]


def test_draws_are_the_published_philox_stream() -> None:
    # The authors' own known answer.
    assert philox4x64(0, (0, 0))[0] == 0x16554D9ECA36314C
    key = mix(7, 2**63 + 5, 1, (0, 1))
    # NumPy counts up before it makes a block.
    stream = [n for block in (1, 2, 3) for n in philox4x64(block, (int(key[0]), int(key[1])))]

    draws = view_draws(7, 2**63 + 5, 1)
    assert [draws.below(2**64) for _ in range(3)] == stream[:3]
    assert draws.below(10) == stream[3] * 10 >> 64
    sixteens = [stream[4 + i // 4] >> 16 * (i % 4) & 0xFFFF for i in range(6)]
    assert draws.sixteen_bits(6).tolist() == sixteens
    assert draws.below(2**64) == stream[6]


def test_keys_of_a_chunk_are_those_of_its_rows() -> None:
    hashes = [0, 1, 2**63 + 5, 2**64 - 1]
    for seed, view_idx in ((0, 0), (7, 3)):
        keys = view_keys(seed, hashes, view_idx)
        alone = [mix(seed, sample_hash, view_idx, (0, 1)) for sample_hash in hashes]
        assert np.array_equal(keys, alone)
        for key, sample_hash in zip(keys, hashes, strict=True):
            numpys = np.random.Philox(counter=0, key=key)
            draws = view_draws(seed, sample_hash, view_idx)
            assert [draws.below(2**64) for _ in range(9)] == numpys.random_raw(9).tolist()
    assert view_keys(0, [], 0).shape == (0, 2)


def test_the_drawn_operations_stay_the_same_for_good() -> None:
    # Changing these makes views of old caches impossible to rebuild.
    names = [[op.__name__ for op in draw_operations(view_draws(0, 12345, v))] for v in range(8)]
    assert names == [
        ["translate_y", "solarize_add"],
        ["solarize_add", "translate_y"],
        ["solarize_add"],
        ["invert", "color"],
        ["gaussian_blur"],
        ["rotate"],
        ["shear_y"],
        ["contrast"],
    ]
    assert view_draws(0, 12345, 0).sample(16, 3) == [13, 0, 6]


def test_a_view_belongs_to_its_seed_sample_and_number() -> None:
    image = random_image(100, 30)
    views = {
        keys: module.poisson_noise(image, view_draws(*keys)).tobytes()
        for keys in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2**64 - 1, 0)]
    }
    assert len(set(views.values())) == len(views)
    for keys, view in views.items():
        assert module.poisson_noise(image, view_draws(*keys)).tobytes() == view

    def augmented() -> list[bytes]:
        return [augment(image, view_draws(5, 6, v)).tobytes() for v in range(40)]

    assert augmented() == augmented()
    assert len(set(augmented())) > 30  # One in eight stays as it is.


def test_global_random_states_are_untouched() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002 (that it is used is the fear)
    for view_idx in range(50):
        augment(random_image(), view_draws(0, 0, view_idx))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_import_is_light() -> None:
    script = "import clipocr.precompute.builder.augment, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
