"""A copy is the cache, or a smaller cache in its own right, or it is not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner
from samples import files_of, tiny_build
from small_student import SMALL_STUDENT

from clipocr.cli import main
from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.upkeep.config import CopyConfig
from clipocr.precompute.upkeep.copy import copy_cache
from clipocr.shared.cache.memory import Bytes
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.storage import LocalStorage, PendingFile
from clipocr.shared.errors import (
    CacheCorruptError,
    CacheMismatchError,
    CacheMissingError,
    CacheUnavailableError,
    UsageError,
)
from clipocr.train.loop.config import TrainConfig, TrainPlace
from clipocr.train.loop.run import train
from clipocr.train.methods.clip_ocr.settings import ClipOcr


@pytest.fixture(scope="module")
def two_views(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("views") / "cache"
    build_cache(tiny_build(data_root, out, augment="randaugment", views=2))
    return out


def copy(source: str | Path, out: Path, **changes: object) -> FeatureCache:
    return copy_cache(CopyConfig(source=source, out=out, **changes)).cache


def train_on(cache: Path, out: Path) -> None:
    method = ClipOcr(student=SMALL_STUDENT, image_taps=(1, 2, 3), text_taps=(1, 2, 3))
    config = TrainConfig(method=method, epochs=1, batch_size=16)
    train(config, TrainPlace(cache=cache, out=out, device="cpu"))


@pytest.mark.parametrize("kind", ["folder", "address"])
def test_a_whole_copy_is_the_same_bytes(kind: str, two_views: Path, tmp_path: Path) -> None:
    source: str | Path = two_views
    if kind == "address":
        source = "memory://copied.cache"
        fsspec.filesystem("memory").put(f"{two_views}/", "/copied.cache/", recursive=True)
    summary = copy_cache(CopyConfig(source=source, out=tmp_path / "copy"))
    assert files_of(tmp_path / "copy") == files_of(two_views)
    assert summary.num_bytes_kept == 0
    again = copy_cache(CopyConfig(source=source, out=tmp_path / "copy"))
    assert again.num_bytes_copied == 0
    assert again.num_bytes_kept == summary.num_bytes_copied


def test_a_file_of_many_blocks_arrives_whole(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipocr.precompute.upkeep.copy._BLOCK_BYTES", 1000)
    copy(cache_path, tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(cache_path)


def test_a_half_built_cache_stays_half_built(cache_path: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(cache_path, half)
    for name in ("sealed.json", "commits/view0/unit-00001.json"):
        (half / name).unlink()
    copied = copy(half, tmp_path / "copy")
    assert copied.units() == [0, 2]
    assert not copied.is_sealed
    assert FeatureCache.open(tmp_path / "copy").units() == [0, 2]


@pytest.mark.parametrize("nth", range(1, 60, 7))
def test_a_killed_copy_goes_on_where_it_stopped(
    nth: int, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, calls = tmp_path / "copy", PendingFile.publish, []

    def publish(self: PendingFile, *args: str) -> object:
        calls.append(self.name)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(PendingFile, "publish", publish)
    with pytest.raises(KeyboardInterrupt):
        copy(cache_path, out)
    before = files_of(out)
    source = files_of(cache_path)
    assert {name: source[name] for name in before} == before  # Nothing half, nothing wrong.
    calls.clear()
    monkeypatch.setattr(PendingFile, "publish", lambda *args: (calls.append(0), real(*args))[1])
    copy(cache_path, out)
    assert files_of(out) == source
    assert len(calls) == len(source) - len(before)


def test_a_download_that_fails_says_what_to_bring_and_leaves_no_folder(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stops_at = LocalStorage.read_into, [""]

    def read_into(self: LocalStorage, block: Bytes, name: str, *args: object) -> None:
        if name.startswith(stops_at[0]):
            raise CacheUnavailableError(f"{self}/{name} cannot be read: 503")
        real(self, block, name, *args)

    monkeypatch.setattr(LocalStorage, "read_into", read_into)
    with pytest.raises(CacheUnavailableError):
        copy(cache_path, tmp_path / "new" / "copy")
    assert not (tmp_path / "new").exists()
    stops_at[0] = "image/view0/block2/c/1"
    file = "image/view0/block2/c/1/0/0"
    size = f"{(cache_path / file).stat().st_size / 1000:.1f} kB"
    by_hand = tmp_path / "new" / "copy" / file
    with pytest.raises(
        CacheUnavailableError,
        match=f"{cache_path}/{file} cannot be read: 503. That file has {size}; brought by hand to "
        f"{by_hand}, it is checked and taken",
    ):
        copy(cache_path, tmp_path / "new" / "copy")
    by_hand.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(cache_path / file, by_hand)
    copy(cache_path, tmp_path / "new" / "copy")
    assert files_of(tmp_path / "new" / "copy") == files_of(cache_path)


def test_every_damaged_file_is_refused_by_name(cache_path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(cache_path, damaged)
    cache = FeatureCache.open(cache_path)
    files = [cache.manifest.files, *(record.files for record in cache.committed)]
    names = sorted({name for group in files for name in group})
    assert len(names) > 30
    sound = files_of(cache_path)
    for idx, name in enumerate(names):
        data = bytearray(sound[name])
        if idx % 2:
            data[len(data) // 2] ^= 4
        else:
            del data[-1]
        (damaged / name).write_bytes(data)
        out = tmp_path / "copy"
        with pytest.raises(CacheCorruptError, match=f"{damaged}/{name} is not what was committed"):
            copy(damaged, out)
        arrived = files_of(out)
        assert name not in arrived
        assert {key: sound[key] for key in arrived} == arrived
        (damaged / name).write_bytes(sound[name])
        shutil.rmtree(out, ignore_errors=True)
    (damaged / names[0]).unlink()
    with pytest.raises(CacheMissingError, match=f"{names[0]} is missing"):
        copy(damaged, tmp_path / "copy")


def test_a_damaged_file_in_the_copy_is_replaced(cache_path: Path, tmp_path: Path) -> None:
    copy(cache_path, tmp_path / "copy")
    shard = tmp_path / "copy/image/view0/block3/c/1/0/0"
    shard.write_bytes(bytes(shard.stat().st_size))
    copy(cache_path, tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(cache_path)


def test_a_share_is_of_whole_units(cache_path: Path, data_root: Path, tmp_path: Path) -> None:
    part = copy(cache_path, tmp_path / "part", fraction=0.8)
    source = FeatureCache.open(cache_path)
    assert part.units() == FeatureCache.open(tmp_path / "part").units() == [0, 1]
    assert part.is_sealed
    assert part.manifest == source.manifest
    for unit_idx in (0, 1):
        for key in ("pixels", "block1", "block3"):
            first, stop = part.spec.unit_range(unit_idx)
            rows = [c.image_reader(0, key).rows(first, stop) for c in (part, source)]
            np.testing.assert_array_equal(*rows)
    train_on(tmp_path / "part", tmp_path / "run")
    # More can be copied, and the rest can be built.
    assert copy(cache_path, tmp_path / "part", fraction=0.4).units() == [0, 1]
    assert copy(cache_path, tmp_path / "more", fraction=0.4).units() == [0]
    copy(cache_path, tmp_path / "more")
    assert files_of(tmp_path / "more") == files_of(cache_path)
    build_cache(tiny_build(data_root, tmp_path / "part"))
    assert files_of(tmp_path / "part") == files_of(cache_path)


def test_fewer_views(two_views: Path, data_root: Path, tmp_path: Path) -> None:
    part = copy(two_views, tmp_path / "part", views=1, fraction=0.4)
    assert part.num_views == 1
    assert part.units() == [0]
    image_names = [name for name in files_of(tmp_path / "part") if name.startswith("image/")]
    assert image_names
    assert not [name for name in image_names if "view1" in name]
    first = [c.image_reader(0, "block2").rows(0, 32) for c in (part, FeatureCache.open(two_views))]
    np.testing.assert_array_equal(*first)
    build_cache(tiny_build(data_root, tmp_path / "part", augment="randaugment", views=2))
    assert files_of(tmp_path / "part") == files_of(two_views)


def test_what_cannot_be_copied_is_refused(
    cache_path: Path, two_views: Path, tmp_path: Path
) -> None:
    for changes, error, said in (
        ({"views": 2}, CacheMismatchError, "has 1 views, not 2; pass --views 1"),
        ({"fraction": 0.0}, UsageError, r"fraction is 0\.0, expected a number above 0 to 1"),
        ({"views": 0}, UsageError, "views is 0, expected a whole number from 1"),
    ):
        with pytest.raises(error, match=said):
            copy(cache_path, tmp_path / "new", **changes)
    with pytest.raises(CacheMissingError, match="is not a feature cache"):
        copy(tmp_path, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"is not a cache and holds thesis\.tex"):
        copy(cache_path, tmp_path / "other")
    copy(cache_path, tmp_path / "cache")
    with pytest.raises(CacheMismatchError, match="holds another cache"):
        copy(two_views, tmp_path / "cache")
    assert files_of(tmp_path / "cache") == files_of(cache_path)


def test_the_command(cache_path: Path, two_views: Path, tmp_path: Path) -> None:
    def invoke(*args: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(main, ["cache", "copy", *map(str, args)])
        return result.exit_code, result.stdout, result.stderr

    out = tmp_path / "part"
    code, said, _ = invoke(cache_path, out, "--fraction", 0.8, "--views", 1)
    assert code == 0
    assert said.startswith(f"Wrote {out}: 64 of 73 rows, which are 2 units of 3, in 1 view, ")
    assert said.endswith(" copied, 0 bytes were there already.\n")
    code, _, said = invoke(cache_path, "s3://bucket/words.cache")
    assert code == 2
    assert "s3://bucket/words.cache is an address, and caches are only written to folders" in said
    code, _, said = invoke(two_views, out)
    assert code == 1
    assert said.splitlines()[-1].startswith(f"Error: {out} holds another cache")
