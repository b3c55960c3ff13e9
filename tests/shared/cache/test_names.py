"""Names are built and parsed in one place, and mean the same both ways."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clipocr.shared.cache import names
from clipocr.shared.cache.reader import FeatureCache

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("key", [(0, 0), (3, 7), (12, 99_999), (0, 123_456)])
def test_units(key: tuple[int, int]) -> None:
    name = names.unit_name(*key)
    assert names.unit_of_record(names.record_file(name)) == name


def test_blocks() -> None:
    assert names.block_names((3, 12)) == ("block3", "block12")
    assert names.block_of("block12") == 12
    for other in ("final", "eot", "block", "block0", "block03", "blocks3"):
        assert names.block_of(other) is None


def test_files_know_their_array_and_part() -> None:
    assert names.array_of("codec/12ab/block3/c/0/0") == "codec/12ab/block3"
    assert names.array_of("rows/label/zarr.json") == "rows/label"
    assert names.array_of("zarr.json") == ""
    assert names.parents("codec/12ab/block3") == ["codec/12ab", "codec"]
    assert names.part_of("text/char-36/eot/c/0/0") == "text/char-36"
    assert names.part_of("image/view0/block3/c/5/0/0") == "image/view0/block3"


def test_a_real_cache_has_just_these_names(cache: FeatureCache) -> None:
    files = {name for record in cache.committed for name in record.files}
    arrays = {layout.name for layout in cache.spec.image_layouts(0).values()}
    images = {name for name in files if names.array_of(name) in arrays}
    texts = {name for name in files if names.part_of(name) == names.text_group("char-36")}
    assert files - images - texts == {names.metadata_file(names.view_group(0))}
    names.require_free(cache.folder.root)


def test_no_name_is_built_or_parsed_elsewhere() -> None:
    built = re.compile(
        r"""f"[^"]*(block\{|/view\{|view\{|unit-\{|text/\{|codec/\{|commits/\{|/zarr\.json|/c/\{)|"""
        r"""\.split\("/"\)"""
    )
    found = []
    for package in ("shared", "precompute", "train"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name != "names.py":
                lines = path.read_text(encoding="utf-8").splitlines()
                found += [f"{path.name}: {line.strip()}" for line in lines if built.search(line)]
    assert not found
