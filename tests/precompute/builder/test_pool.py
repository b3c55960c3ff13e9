"""The pool of natural images: a cache within a cache, with all that caches promise."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from commands import invoke
from killing import killed_after
from natural_images import NUM_IMAGES, write_images
from PIL import Image
from samples import TINY_TEACHER, files_of

from clipocr.precompute.builder.build import build_pool
from clipocr.precompute.builder.config import PoolConfig
from clipocr.precompute.teacher.clip import load_teacher
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.data.images import center_crop
from clipocr.shared.errors import CacheCorruptError, CacheMismatchError, DataError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pool") / "images")


@pytest.fixture
def own_cache(cache_path: Path, tmp_path: Path) -> Path:
    shutil.copytree(cache_path, tmp_path / "own.cache")
    return tmp_path / "own.cache"


def add_pool(cache: Path, images: Path, **changes: object) -> None:
    build_pool(PoolConfig(cache=cache, images=images, device="cpu", **changes))  # type: ignore[arg-type]


def labels_of_pool(cache: Path) -> set[str]:
    pool = FeatureCache.open(cache).pool
    assert pool is not None
    return set(pool.labels())


def test_a_row_is_what_clip_says_of_the_image(own_cache: Path, images: Path) -> None:
    """By open_clip's own preprocessing, and its own projection of every token."""
    add_pool(own_cache, images)
    cache = FeatureCache.open(own_cache)
    pool = cache.pool
    assert pool is not None
    assert pool.spec.num_rows == NUM_IMAGES
    assert pool.spec.images[0].row_shape == (197, 24)
    table, good = cache.pool_rows(10)
    assert len(good) == NUM_IMAGES - 1
    teacher = load_teacher(
        TINY_TEACHER, image_taps=(), text_taps=(1,), precision="fp32", device=torch.device("cpu")
    )
    preprocess = open_clip.image_transform(224, is_train=False)
    visual = teacher._model.visual
    names, rows = pool.labels(), pool.rows(0)
    for row in good[:5]:
        with Image.open(images / names[rows["label"][row]]) as image:
            pixels = preprocess(image)[None]
        with torch.no_grad():
            x = visual._embeds(pixels)
            tokens = visual.ln_post(visual.transformer(x)) @ visual.proj
        found = torch.from_numpy(table[np.array([row])]).float()
        torch.testing.assert_close(found, tokens, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (224, 224), (50, 80), (1000, 31)])
def test_the_middle_is_what_torchvision_crops(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    transform = open_clip.image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    expected = (transform(image) * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(center_crop(image, 224), expected)


def test_a_pool_is_added_beside_what_is_there(own_cache: Path, images: Path) -> None:
    before = files_of(own_cache)
    result = invoke("cache", "pool", own_cache, "--images", images)
    assert result.exit_code == 0, result.output
    assert f"{NUM_IMAGES} images (1 bad) of 197 tokens" in result.output
    assert {k: v for k, v in files_of(own_cache).items() if not k.startswith("pool/")} == before
    assert "nothing was missing" in invoke("cache", "pool", own_cache, "--images", images).output
    bad = invoke("cache", "info", own_cache / "pool", "--bad").output
    assert bad == "images\tbroken.jpg\tnot an image\n"


def test_count_and_seed_say_which_images(own_cache: Path, images: Path) -> None:
    add_pool(own_cache, images, count=7, seed=3)
    drawn = labels_of_pool(own_cache)
    assert len(drawn) == 7
    with pytest.raises(CacheMismatchError, match=r"holds another cache.*remove .*pool, which"):
        add_pool(own_cache, images, count=8, seed=3)
    shutil.rmtree(own_cache / "pool")
    add_pool(own_cache, images, count=7, seed=4)
    assert labels_of_pool(own_cache) != drawn


def test_killed_anywhere_it_goes_on_to_the_same_bytes(own_cache: Path, images: Path) -> None:
    add_pool(own_cache, images)
    expected = files_of(own_cache)
    num_files = sum(name.startswith("pool/") for name in expected)
    for at in range(0, num_files, 9):
        shutil.rmtree(own_cache / "pool")
        killed_after(at, lambda: add_pool(own_cache, images))
        with pytest.raises(CacheMismatchError, match=r"no pool|not finished"):
            FeatureCache.open(own_cache).pool_rows(1)
        add_pool(own_cache, images)
        assert files_of(own_cache) == expected


def test_damage_is_found_and_mended(own_cache: Path, images: Path) -> None:
    add_pool(own_cache, images)
    expected = files_of(own_cache)
    shard = own_cache / "pool/image/view0/final/c/0/0/0"
    damaged = bytearray(shard.read_bytes())
    damaged[1000] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(CacheCorruptError):
        FeatureCache.open(own_cache).pool_rows(1)
    found = invoke("cache", "verify", own_cache)
    assert found.exit_code == 1
    assert f"{own_cache} is sound" in found.output
    assert f"{own_cache / 'pool'} is damaged: 1 fault in 1 part" in found.output
    assert invoke("cache", "verify", own_cache, "--repair").exit_code == 0
    add_pool(own_cache, images)
    assert files_of(own_cache) == expected


def test_a_copy_takes_the_pool_along(own_cache: Path, images: Path, tmp_path: Path) -> None:
    add_pool(own_cache, images)
    assert invoke("cache", "copy", own_cache, tmp_path / "copy").exit_code == 0
    assert files_of(tmp_path / "copy") == files_of(own_cache)
    again = invoke("cache", "copy", own_cache, tmp_path / "copy")
    assert ", 0 bytes copied" in again.output


def test_other_images_of_the_same_number_are_another_pool(
    own_cache: Path, images: Path, tmp_path: Path
) -> None:
    add_pool(own_cache, images)
    shutil.copytree(images, tmp_path / "other")
    (tmp_path / "other" / "01.jpg").write_bytes(b"other")
    with pytest.raises(CacheMismatchError, match="holds another cache"):
        add_pool(own_cache, tmp_path / "other")


def test_a_link_to_nothing_is_a_bad_image(own_cache: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "other")
    (tmp_path / "other" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    add_pool(own_cache, tmp_path / "other")
    assert len(FeatureCache.open(own_cache).pool_rows(1)[1]) == NUM_IMAGES - 1


def test_a_pool_that_was_only_begun_is_not_copied(
    own_cache: Path, images: Path, tmp_path: Path
) -> None:
    add_pool(own_cache, images)
    shutil.rmtree(own_cache / "pool" / "commits")
    (own_cache / "pool" / "sealed.json").unlink()
    assert invoke("cache", "copy", own_cache, tmp_path / "copy").exit_code == 0
    assert not (tmp_path / "copy" / "pool").exists()


def test_what_is_no_pool(own_cache: Path, images: Path, tmp_path: Path) -> None:
    cache = FeatureCache.open(own_cache)
    with pytest.raises(CacheMismatchError, match="has no pool of natural images"):
        cache.pool_rows(1)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        add_pool(own_cache, tmp_path / "none")
    with pytest.raises(CacheMismatchError, match="has other weights"):
        add_pool(own_cache, images, teacher="ViT-tiny-test/random:1")
    add_pool(own_cache, images)
    with pytest.raises(CacheMismatchError, match="has 29 images that could be read"):
        FeatureCache.open(own_cache).pool_rows(30)
