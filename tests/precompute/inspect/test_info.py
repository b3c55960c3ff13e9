"""What is said of a cache of which something is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import invoke
from samples import tiny_build

from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.inspect.info import describe_cache
from clipocr.precompute.upkeep.config import CopyConfig
from clipocr.precompute.upkeep.copy import copy_cache
from clipocr.shared.cache import names
from clipocr.shared.cache.storage import LocalStorage


@pytest.fixture
def two_views(data_root: Path, tmp_path: Path) -> Path:
    out = tmp_path / "cache"
    config = tiny_build(data_root, out, augment="randaugment", views=2, image_taps=(names.FINAL,))
    build_cache(config)
    return out


def test_a_half_built_cache_says_what_is_missing(two_views: Path) -> None:
    assert ("state", "sealed") in describe_cache(two_views).facts
    unwanted = ("view1/unit-00000", "view1/unit-00002", "text/char-36", names.TEACHER)
    for file in (names.SEAL_NAME, *map(names.record_file, unwanted)):
        (two_views / file).unlink()
    facts = describe_cache(two_views).facts
    assert facts[1:6] == [
        ("state", "half built; the command that began it goes on with it"),
        ("view 0", "3 of 3 units, 73 of 73 rows"),
        ("view 1", "1 of 3 units, 32 of 73 rows"),
        ("text table", "missing"),
        ("teacher's weights", "missing"),
    ]
    for first_string in (0, 64):
        part = names.text_part("char-36", "0" * 16, first_string)
        LocalStorage(two_views).write(part, b"")
    assert ("text table", "missing (2 parts of it computed)") in describe_cache(two_views).facts


def test_a_copied_part_says_that_it_is_one(two_views: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    copy_cache(CopyConfig(source=two_views, out=part, fraction=0.3))
    assert describe_cache(part).facts[:4] == [
        describe_cache(two_views).facts[0],
        ("state", "a copied part of the whole cache, which has the same id"),
        ("view 0", "1 of 3 units, 32 of 73 rows"),
        ("view 1", "1 of 3 units, 32 of 73 rows"),
    ]
    copy_cache(CopyConfig(source=two_views, out=part))
    assert describe_cache(part).facts == describe_cache(two_views).facts


def test_sizes_are_for_people(two_views: Path) -> None:
    said = invoke("cache", "info", two_views).stdout
    table = re.findall(r"^\| (image/view1/final|index) +\| +(.*?) \| +(.*?) \|$", said, re.M)
    shards = (two_views / "image/view1/final/c").rglob("*")
    num_bytes = sum(path.stat().st_size for path in shards if path.is_file())
    assert table[0] == (
        "image/view1/final", f"{num_bytes / 1000:.1f} kB", f"{num_bytes / 73:.0f} bytes"
    )  # fmt: skip
    assert re.search(r": 73 of 73 rows built in 2 views, \d+\.\d MB\.$", said.strip())
