"""Whatever is in the LMDBs: the build ends, the sound rows are right, the others have a reason."""

from __future__ import annotations

import io
import resource
import struct
import time
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageOps
from samples import TINY_TEACHER, draw_word, tiny_build

from clipocr.cli import main
from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.inspect.info import list_bad_samples
from clipocr.precompute.teacher.clip import load_teacher
from clipocr.shared.cache.codecs.codecs import unfilter_pixels
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.data.images import ImageProblemError, decode_image
from clipocr.shared.data.word_lmdb import image_key, label_key
from clipocr.shared.errors import DataError


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, *{"RGB": [3], "RGBA": [4], "CMYK": [4], "L": []}[mode])
    pixels = np.random.default_rng(width).integers(0, 256, shape, np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def bomb(side_px: int) -> bytes:
    """Return a sound PNG of `side_px` squared grey pixels, a thousandth of its size."""
    num_bytes = side_px * (side_px + 1)  # A filter byte before each line.
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(bytes(num_bytes % (1 << 20))) + packer.flush()
    adler = struct.pack(">I", (num_bytes % 65521) << 16 | 1)
    data = b"\x78\xda" + block * (num_bytes >> 20) + rest + adler

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data)
            + chunk(b"IEND", b""))  # fmt: skip


def palette_image() -> Image.Image:
    image = noise(40, 16, "L").convert("P")
    image.putpalette(np.random.default_rng(5).integers(0, 256, 768, np.uint8).tobytes())
    return image


def rotated_by_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn it by a quarter.
    return encode(noise(60, 20), "JPEG", exif=exif)


DEEP = np.random.default_rng(7).integers(0, 1 << 16, (20, 50), np.uint16)

GOOD = {
    "sound": draw_word("sound"),
    "one pixel": encode(Image.new("RGB", (1, 1), (9, 80, 200))),
    "wide": encode(noise(20_000, 20)),
    "high": encode(noise(3, 5000)),
    "CMYK JPEG": encode(noise(64, 24, "CMYK"), "JPEG"),
    "alpha": encode(noise(64, 24, "RGBA")),
    "16-bit grey": encode(Image.fromarray(DEEP)),
    "palette": encode(palette_image(), transparency=bytes(range(256))),
    "EXIF-rotated": rotated_by_exif(),
    "animation": encode(palette_image(), "GIF", save_all=True, append_images=[noise(40, 16)]),
}
"""What becomes a view."""

BAD = {
    "truncated JPEG": (encode(noise(100, 32), "JPEG")[:-600], "damaged image"),
    "truncated PNG": (encode(noise(100, 32))[:-600], "damaged image"),
    "JPEG header only": (encode(noise(100, 32), "JPEG")[:20], "not an image"),
    "zero bytes": (b"", "empty image"),
    "zeros": (bytes(500), "not an image"),
    "text": (b"alpha bravo charlie", "not an image"),
    "HTML": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not an image"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9"/></svg>', "not an image"),
    # Pillow would hand it to Ghostscript.
    "PostScript": (encode(noise(20, 20), "EPS"), "not an image"),
    "bomb Pillow refuses": (bomb(30_000), "image too large"),
    "bomb Pillow warns of": (bomb(10_000), "image too large"),
    "bomb Pillow opens": (bomb(6000), "image too large"),
}

LABELS = {
    b"plain": "plain",
    b"two words": "twowords",
    "  Caf\u00e9\t": "Cafe",
    "e\u0301clair": "eclair",
    "ok\U0001f600": "ok",
    "\ufb03ne": "ffine",
    b"x" * 25: "x" * 25,
    b"": "empty label",
    b" \t\n": "empty label",
    "\U0001f600": "empty label",
    "\u200b": "empty label",
    b"x" * 26: "label too long",
    "\ufb03" * 9: "label too long",  # The ligature is three letters.
    b"\xff\xfeabc": "label not UTF-8",
}
"""Raw label -> what is kept of it, or why it is not."""
KEPT_LABELS = 7


def write_lmdb(path: Path, items: Mapping[bytes, bytes]) -> None:
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=1 << 27) as env, env.begin(write=True) as txn:
        for key, value in items.items():
            txn.put(key, value)


def samples(count: int) -> dict[bytes, bytes]:
    items = {}
    for idx in range(1, count + 1):
        items |= {image_key(idx): draw_word(f"word{idx}"), label_key(idx): b"word%d" % idx}
    return items


@pytest.fixture(scope="module")
def bad_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bad")
    images = {b"num-samples": b"%d" % (len(GOOD) + len(BAD))}
    for idx, encoded in enumerate([*GOOD.values(), *(e for e, _ in BAD.values())], start=1):
        images |= {image_key(idx): encoded, label_key(idx): b"image%d" % idx}
    write_lmdb(root / "images", images)
    labels = {b"num-samples": b"%d" % len(LABELS)}
    for idx, raw in enumerate(LABELS, start=1):
        raw_bytes = raw if isinstance(raw, bytes) else raw.encode()
        labels |= {image_key(idx): draw_word("label"), label_key(idx): raw_bytes}
    write_lmdb(root / "labels", labels)
    write_lmdb(root / "count too big", samples(5) | {b"num-samples": b"7"})
    write_lmdb(root / "count too small", samples(5) | {b"num-samples": b"3"})
    holed = samples(5) | {b"num-samples": b"5"}
    del holed[image_key(2)], holed[label_key(4)], holed[image_key(5)], holed[label_key(5)]
    write_lmdb(root / "missing keys", holed)
    return root


@pytest.fixture(scope="module")
def bad_cache(bad_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bad_cache") / "bad.cache"
    build_cache(tiny_build(bad_root, out))
    return out


EXPECTED_BAD = [
    ("count too big", "label-000000006", "missing label"),
    ("count too big", "label-000000007", "missing label"),
    *(
        ("images", f"image-{idx:09d}", reason)
        for idx, (_, reason) in enumerate(BAD.values(), start=len(GOOD) + 1)
    ),
    *(
        ("labels", f"label-{idx:09d}", kept_or_reason)
        for idx, kept_or_reason in enumerate(LABELS.values(), start=1)
        if idx > KEPT_LABELS
    ),
    ("missing keys", "image-000000002", "missing image"),
    ("missing keys", "label-000000004", "missing label"),
    ("missing keys", "label-000000005", "missing label"),
]


def table(cache: FeatureCache) -> list[tuple[str, int, str]]:
    """Return (source name, LMDB index, label) of all rows."""
    labels, names = cache.labels(), [source.name for source in cache.spec.sources]
    rows = []
    for unit_idx in cache.units():
        keys = cache.rows(unit_idx)
        columns = (keys[key].tolist() for key in ("source", "lmdb_index", "label"))
        rows += [(names[s], i, labels[label]) for s, i, label in zip(*columns, strict=True)]
    return rows


def test_everything_else_became_a_row_with_its_label(bad_cache: Path) -> None:
    expected = [("images", i, f"image{i}") for i in range(1, len(GOOD) + len(BAD) + 1)]
    expected += [("labels", i, kept) for i, kept in enumerate(LABELS.values(), start=1)
                 if i <= KEPT_LABELS]  # fmt: skip
    expected += [("count too big", i, f"word{i}") for i in range(1, 6)]
    expected += [("count too small", i, f"word{i}") for i in range(1, 4)]
    expected += [("missing keys", i, f"word{i}") for i in (1, 3)]
    assert sorted(table(FeatureCache.open(bad_cache))) == sorted(expected)


def test_sound_rows_hold_their_picture_and_what_the_teacher_says_of_it(bad_cache: Path) -> None:
    cache = FeatureCache.open(bad_cache)
    stored = cache.image_reader(0, "pixels").all()
    views = unfilter_pixels(torch.from_numpy(stored.copy()))
    rows = table(cache)
    for idx, (name, encoded) in enumerate(GOOD.items(), start=1):
        with Image.open(io.BytesIO(encoded)) as image:
            if name == "16-bit grey":
                picture = Image.fromarray((DEEP >> 8).astype(np.uint8)).convert("RGB")
            elif name == "palette":
                picture = image.convert("RGBA").convert("RGB")
            else:
                picture = ImageOps.exif_transpose(image).convert("RGB")
        expected = np.asarray(picture.resize((128, 32), Image.Resampling.BICUBIC))
        row = rows.index(("images", idx, f"image{idx}"))
        np.testing.assert_array_equal(views[row], expected, err_msg=name)

    bad = {row for unit in cache.units() for row in cache.unit(0, unit).bad_rows}
    good = [row for row in range(len(rows)) if row not in bad]
    assert len(good) == len(GOOD) + KEPT_LABELS + 5 + 3 + 2
    teacher = load_teacher(
        TINY_TEACHER, image_taps=(1, 2, 3), text_taps=(1, 2, 3), precision="fp32",
        device=torch.device("cpu"),
    )  # fmt: skip
    for array, expected in teacher.image_features(views).items():
        features = torch.from_numpy(cache.image_reader(0, array).all().copy()).float()
        torch.testing.assert_close(features[good], expected[good], rtol=2**-11, atol=1e-4)
        assert not features[sorted(bad)].any()


def test_each_bad_sample_is_listed_with_its_reason(bad_cache: Path) -> None:
    found = list_bad_samples(bad_cache)
    assert sorted(found) == sorted(EXPECTED_BAD)
    assert [source for source, _, _ in found] == sorted(source for source, _, _ in found)


def test_info_counts_them_and_prints_plain_lines(bad_cache: Path) -> None:
    info = CliRunner().invoke(main, ["cache", "info", str(bad_cache)])
    lines = dict(line.split("  ", 1) for line in info.stdout.splitlines() if "  " in line)
    assert lines["bad images"].strip() == (
        "12 (6 not an image, 3 image too large, 2 damaged image, 1 empty image)"
    )
    assert lines["rejected samples"].strip().startswith("12 (4 missing label, 4 empty label, ")
    listed = CliRunner().invoke(main, ["cache", "info", str(bad_cache), "--bad"])
    assert listed.exit_code == 0
    assert sorted(listed.stdout.splitlines()) == ["\t".join(bad) for bad in sorted(EXPECTED_BAD)]


def test_a_sound_cache_lists_nothing(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "set", samples(3) | {b"num-samples": b"3"})
    build_cache(tiny_build(tmp_path / "set", tmp_path / "cache"))
    listed = CliRunner().invoke(main, ["cache", "info", str(tmp_path / "cache"), "--bad"])
    assert (listed.exit_code, listed.stdout) == (0, "")


def test_augmented_views_and_workers_find_the_same(
    bad_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_build(bad_root, tmp_path / "cache", augment="randaugment", views=2, workers=1)
    summary = build_cache(config)
    assert (summary.is_complete, summary.num_bad_rows) == (True, len(BAD))
    assert sorted(list_bad_samples(tmp_path / "cache")) == sorted(EXPECTED_BAD)
    assert "Warning" not in capfd.readouterr().err  # Of Pillow, in the worker.


@pytest.mark.parametrize("side_px", [30_000, 10_000, 6000])
def test_bombs_are_refused_before_decoding(side_px: int) -> None:
    encoded = bomb(side_px)
    assert len(encoded) < 1_100_000
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    with pytest.raises(ImageProblemError, match=r"^image too large$"):
        decode_image(encoded)
    assert time.perf_counter() - started < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 16_000


def test_a_bomb_just_small_enough_is_a_picture() -> None:
    """The bombs are sound PNGs: what refuses them is their size and nothing else."""
    assert decode_image(bomb(1500)).size == (1500, 1500)


def test_pillows_warning_is_silenced_once() -> None:
    decode_image(GOOD["sound"])
    filters = list(warnings.filters)
    decode_image(GOOD["sound"])
    assert list(warnings.filters) == filters


@pytest.mark.parametrize(
    ("num_samples", "said"),
    [
        (None, r"set is an LMDB without the key 'num-samples'"),
        (b"100", r"set: num-samples is 100, but the LMDB has only 11 keys"),
        (b"five", r"set: num-samples is b'five', expected a decimal number"),
        (b"-5", r"set: num-samples is b'-5', expected a decimal number"),
        (b"", r"set: num-samples is b'', expected a decimal number"),
        (b"9" * 12, r"set: num-samples is b'999999999999', expected a decimal number"),
    ],
)
def test_an_lmdb_that_lies_of_itself_is_refused_by_path(
    tmp_path: Path, num_samples: bytes | None, said: str
) -> None:
    items = samples(5)
    if num_samples is not None:
        items[b"num-samples"] = num_samples
    write_lmdb(tmp_path / "data" / "set", items)
    with pytest.raises(DataError, match=said):
        build_cache(tiny_build(tmp_path / "data", tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_an_lmdb_of_nothing_usable_is_refused(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "data" / "set", {b"num-samples": b"0"})
    with pytest.raises(DataError, match="no usable sample"):
        build_cache(tiny_build(tmp_path / "data", tmp_path / "cache"))
