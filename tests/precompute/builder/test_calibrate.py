"""A codec's tables: one set for all builders of a cache, whatever happens to them."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from damage import fill_disk_after
from samples import files_of, tiny_build

from clipocr.precompute.builder import build
from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.builder.calibrate import CodecSample
from clipocr.precompute.builder.index import publish_table
from clipocr.precompute.upkeep.verify import repair_cache, verify_cache
from clipocr.shared.cache.codecs.codecs import measure_fidelity
from clipocr.shared.cache.codecs.klt import KltTable
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.shards import Array, ArrayLayout
from clipocr.shared.cache.storage import LocalStorage
from clipocr.shared.errors import CacheMismatchError, UsageError
from clipocr.shared.processes import Process

CODEC = "klt:32"


@pytest.fixture(scope="module")
def klt_path(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed cache that tests only read."""
    out = tmp_path_factory.mktemp("klt") / "words.cache"
    build_cache(tiny_build(data_root, out, codec=CODEC))
    return out


@pytest.fixture
def copied(klt_path: Path, tmp_path: Path) -> Path:
    out = tmp_path / "copied.cache"
    shutil.copytree(klt_path, out)
    return out


def none_of_it(*_: object) -> CodecSample:
    """Stand in for `CodecSample` where all that it would make is there."""
    return CodecSample.__new__(CodecSample)


def tables_of(path: Path) -> list[str]:
    return sorted(name for name in files_of(path) if name.startswith("codec/") and "/c/" in name)


def test_what_is_decoded_is_what_the_teacher_said(klt_path: Path, cache: FeatureCache) -> None:
    klt = FeatureCache.open(klt_path)
    assert klt.image_reader(0, "block2").layout.row_shape == (17, 32)
    for tap in (1, 2, 3):
        features = torch.from_numpy(cache.image_reader(0, f"block{tap}").all().copy()).float()
        stored = torch.from_numpy(klt.image_reader(0, f"block{tap}").all().copy())
        bad = [row for u in klt.units() for row in klt.unit(0, u).bad_rows]
        assert not stored[bad].any()
        good = [row for row in range(73) if row not in bad]
        codec = klt.codec(f"block{tap}")
        measured = measure_fidelity(codec.target(features[good]), codec.decode(stored[good]))
        assert measured["cosine_p50"] > 0.98
        for unit_idx in klt.units():
            assert klt.unit(0, unit_idx).fidelity[f"block{tap}"]["cosine_p50"] > 0.98


def test_plain_zarr_and_numpy_decode_it(klt_path: Path) -> None:
    group = zarr.open_group(klt_path, mode="r")
    (folder,) = group["codec"]
    table = group[f"codec/{folder}/block2"][:]
    records = group["image/view0/block2"][:]
    cache = FeatureCache.open(klt_path)
    decoded = KltTable(table, 32, torch.device("cpu")).decode(torch.from_numpy(records))
    own = cache.codec("block2").decode(
        torch.from_numpy(cache.image_reader(0, "block2").all().copy())
    )
    assert torch.equal(decoded, own)


def test_bytes_do_not_depend_on_processes_or_interruptions(
    klt_path: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared.cache"
    for rank in (1, 0):
        config = tiny_build(
            data_root, shared, codec=CODEC, process=Process(rank=rank, world_size=2)
        )
        build_cache(config)
    build_cache(tiny_build(data_root, shared, codec=CODEC))
    assert files_of(shared) == files_of(klt_path)

    broken = tmp_path / "broken.cache"
    with monkeypatch.context() as patch:
        fill_disk_after(6, patch)
        with pytest.raises(OSError, match="No space left"):
            build_cache(tiny_build(data_root, broken, codec=CODEC))
    monkeypatch.setattr(build, "CodecSample", none_of_it)
    build_cache(tiny_build(data_root, broken, codec=CODEC))
    assert files_of(broken) == files_of(klt_path)


def test_whoever_comes_first_decides_for_all(
    klt_path: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two builders at once, on devices that differ in the last bits."""
    out, real = tmp_path / "cache", CodecSample.table

    def other_makes_it_meanwhile(sample: CodecSample, array: str, record_bytes: int) -> Array:
        monkeypatch.setattr(CodecSample, "table", real)
        build_cache(tiny_build(data_root, out, codec=CODEC))
        return np.nextafter(real(sample, array, record_bytes), np.float32(9))

    monkeypatch.setattr(CodecSample, "table", other_makes_it_meanwhile)
    build_cache(tiny_build(data_root, out, codec=CODEC))
    assert files_of(out) == files_of(klt_path)


def test_of_many_at_once_one_is_kept(tmp_path: Path) -> None:
    shape = (30, 8)
    layout = ArrayLayout(
        name="codec/x/block1", shape=shape, dtype="float32", chunk_rows=30, shard_rows=30
    )
    storage = LocalStorage(tmp_path)

    def publish(value: int) -> object:
        return publish_table(storage, layout, lambda: np.full(shape, value, np.float32))

    with ThreadPoolExecutor(8) as executor:
        records = list(executor.map(publish, range(8)))
    assert all(record == records[0] for record in records)
    assert not list((tmp_path / ".tmp").iterdir())


def test_what_a_killed_build_of_something_else_left_is_not_taken(
    klt_path: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cache"
    for changes in ({"codec": "klt:20"}, {"seed": 5}, {"augment": "randaugment"}):
        with monkeypatch.context() as patched:
            patched.setattr("clipocr.precompute.builder.index.encode_record", None)
            with pytest.raises(TypeError):
                build_cache(tiny_build(data_root, out, **({"codec": CODEC} | changes)))
    assert len(tables_of(out)) == 9
    build_cache(tiny_build(data_root, out, codec=CODEC))
    mine, right = files_of(out), files_of(klt_path)
    assert {name: mine[name] for name in right} == right


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_damaged_table_is_made_again(
    klt_path: Path, copied: Path, data_root: Path, damage: str, has_manifest: bool
) -> None:
    name = tables_of(copied)[1]
    content = bytearray((copied / name).read_bytes())
    content[100] ^= 1
    if damage == "gone":
        (copied / name).unlink()
    else:
        (copied / name).write_bytes(content if damage == "flip" else content[:-9])
    if has_manifest:
        faults = verify_cache(copied).faults
        assert [(fault.part, fault.file) for fault in faults] == [("index", name)]
        repair_cache(copied, verify_cache(copied))
    else:
        (copied / "manifest.json").unlink()
    build_cache(tiny_build(data_root, copied, codec=CODEC))
    assert files_of(copied) == files_of(klt_path)


def test_another_rate_is_another_cache(copied: Path, data_root: Path) -> None:
    with pytest.raises(
        CacheMismatchError, match=r"block1\].codec is 'klt:32', wanted 'klt:16'.*--codec klt:32 "
    ):
        build_cache(tiny_build(data_root, copied, codec="klt:16"))


def test_a_rate_that_does_not_fit_is_refused_before_anything_is_made(
    data_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="klt:192 does not fit tokens of 64"):
        build_cache(tiny_build(data_root, tmp_path / "cache", codec="klt"))
    assert not files_of(tmp_path / "cache")
