"""`cache verify`: no false alarms, repairs, tables, recomputed rows, and what the command says."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from damage import KINDS, World, batches_of, files_of, inflict, is_same, train_on
from samples import WORDS, draw_word, tiny_build, write_words

from clipocr.cli import main
from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.teacher.clip import Teacher
from clipocr.precompute.upkeep import recompute
from clipocr.precompute.upkeep.config import CopyConfig, VerifyConfig
from clipocr.precompute.upkeep.copy import copy_cache
from clipocr.precompute.upkeep.recompute import recompute_rows
from clipocr.precompute.upkeep.verify import repair_cache, verify_cache
from clipocr.shared.cache.json_record import decode_record, encode_record
from clipocr.shared.cache.names import unit_of_record
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.records import Manifest, TextRecord, parse_record
from clipocr.shared.cache.shards import ArrayReader, write_array
from clipocr.shared.cache.storage import LocalStorage
from clipocr.shared.errors import CacheCorruptError, CacheMismatchError, CacheMissingError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def copy(world: World, tmp_path: Path) -> Path:
    """A copy of the cache, to be damaged."""
    out = tmp_path / "words.cache"
    shutil.copytree(world.path, out)
    return out


# ------------------------------------------------------------------------------- no false alarm


def test_a_sound_cache_has_no_faults(world: World) -> None:
    report = verify_cache(world.path, jobs=3)
    assert (report.faults, report.is_sealed) == ([], True)
    records = {f"commits/{record.name}.json" for record in report.committed}
    records |= {"manifest.json", "sealed.json"}
    assert len(report.files) + len(records) == len(world.files)
    assert report.num_bytes == sum(len(d) for n, d in world.files.items() if n not in records)


def test_a_half_built_cache_is_sound(world: World, copy: Path) -> None:
    (copy / "sealed.json").unlink()
    (copy / "commits/view1/unit-00001.json").unlink()
    (copy / ".tmp/left").write_bytes(b"by a killed builder")
    assert verify_cache(copy).faults == []
    build_cache(world.config(copy))
    (copy / ".tmp/left").unlink()
    assert files_of(copy) == world.files


def test_a_copy_of_some_units_is_sound(world: World, tmp_path: Path) -> None:
    copy_cache(CopyConfig(source=world.path, out=tmp_path / "c", fraction=0.5, views=1))
    report = verify_cache(tmp_path / "c")
    assert report.faults == []
    assert list(report.committed.by_name) == ["text/char-36", "view0/unit-00000"]


def test_a_cache_without_its_seal_is_sound_and_the_next_build_makes_it(
    world: World, copy: Path
) -> None:
    (copy / "sealed.json").unlink()
    report = verify_cache(copy)
    assert (report.faults, report.is_sealed) == ([], False)
    assert train_on(world, copy, {}) == "right rows"
    build_cache(world.config(copy))
    assert files_of(copy) == world.files


def test_an_older_seal_stays_true(world: World, tmp_path: Path) -> None:
    out = tmp_path / "c"
    build_cache(world.config(out, views=1))
    older = (out / "sealed.json").read_bytes()
    build_cache(world.config(out))
    (out / "sealed.json").write_bytes(older)
    assert verify_cache(out).faults == []
    batches = list(batches_of(out))
    assert all(is_same(a, b) for a, b in zip(batches, world.batches, strict=False))
    build_cache(world.config(out))
    assert files_of(out) == world.files


def test_what_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheMissingError, match=r"not a feature cache \(no manifest.json\)"):
        verify_cache(tmp_path)


def test_a_file_that_cannot_be_read_is_a_fault(copy: Path) -> None:
    for name in ("rows/label/c/0", "commits/text/char-36.json", "text/char-36/eot/c/0/0"):
        (copy / name).unlink()
        (copy / name).mkdir()
    faults = {fault.file: fault.problem for fault in verify_cache(copy).faults}
    assert faults["rows/label/c/0"].startswith("cannot be read: Is a directory")
    assert "is missing, though" in faults["commits/text/char-36.json"]


# --------------------------------------------------------------------------------------- repair


@pytest.mark.parametrize(
    ("damaged", "taken_back", "rewritten"),
    [
        (["image/view1/block2/c/1/0/0"], ["view1/unit-00001"], []),
        (["image/view0/pixels/c/0/0/0/0", "commits/view1/unit-00000.json"],
         ["view0/unit-00000", "view1/unit-00000"], []),
        (["text/char-36/nodes/c/0/0"], ["text/char-36"], []),
        (["commits/text/char-36.json", "image/view0/block1/c/1/0/0"],
         ["text/char-36", "view0/unit-00001"], []),
        (["sealed.json"], [], []),
        (["zarr.json", "image/view1/zarr.json", "image/view0/pixels/zarr.json",
          "text/char-36/utf8/zarr.json", "rejected/reason/zarr.json"], [],
         ["image/view0/pixels/zarr.json", "image/view1/zarr.json", "rejected/reason/zarr.json",
          "text/char-36/utf8/zarr.json", "zarr.json"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["flip a bit at 1/2", "delete"])
def test_after_a_repair_the_build_makes_just_that_again(
    world: World, copy: Path, damaged: list[str], taken_back: list[str], rewritten: list[str],
    kind: str,
) -> None:  # fmt: skip
    for file in damaged:
        for damage in KINDS[kind](world, file):
            inflict(copy, damage)
    repair = repair_cache(copy, verify_cache(copy))
    assert repair.taken_back == tuple(taken_back)
    assert repair.rewritten == tuple(rewritten)
    assert verify_cache(copy).faults == []
    build = build_cache(world.config(copy))
    assert build.num_rows_built == sum(
        15 if name.endswith("1") else 16 for name in taken_back if name.startswith("view")
    )
    assert files_of(copy) == world.files


@pytest.mark.parametrize("is_sealed", [True, False])
@pytest.mark.parametrize("kind", ["flip a bit at 1/2", "cut in half", "delete"])
def test_a_damaged_index_is_made_again_from_the_sources(
    world: World, copy: Path, kind: str, is_sealed: bool
) -> None:
    if not is_sealed:
        (copy / "sealed.json").unlink()
    index = [
        name for name in world.files
        if name.startswith(("rows/", "labels/", "rejected/")) and not name.endswith("zarr.json")
    ]  # fmt: skip
    assert len(index) == 8
    for file in [*index, "image/view1/block2/c/1/0/0"]:
        for damage in KINDS[kind](world, file):
            inflict(copy, damage)
    repair = repair_cache(copy, verify_cache(copy))
    assert repair.taken_back == ("index", "view1/unit-00001")
    # Until then the files are missing, and said to be.
    assert {fault.problem for fault in verify_cache(copy).faults} == {"is missing"}
    assert train_on(world, copy, dict.fromkeys(index)) == "stopped"
    assert build_cache(world.config(copy)).num_rows_built == 15
    assert files_of(copy) == world.files


@pytest.mark.parametrize("is_sealed", [True, False])
@pytest.mark.parametrize("content", [b"?", None, b"another's"])
def test_a_lost_manifest_is_made_again_and_the_units_stay(
    world: World, copy: Path, content: bytes | None, is_sealed: bool
) -> None:
    if not is_sealed:
        (copy / "sealed.json").unlink()
        (copy / "commits/view0/unit-00001.json").unlink()
    content = world.other["manifest.json"] if content == b"another's" else content
    inflict(copy, {"manifest.json": content, "rows/label/c/0": b"?"})
    repair = repair_cache(copy, verify_cache(copy))
    assert repair.taken_back == ("index",)
    assert not (copy / "manifest.json").exists()
    # Only the very request it was begun with can put it there again.
    before = files_of(copy)
    with pytest.raises(CacheMismatchError, match=r"holds cache \w+; .* the very command"):
        build_cache(world.config(copy, seed=1))
    assert files_of(copy) == before
    assert build_cache(world.config(copy)).num_rows_built == (0 if is_sealed else 15)
    assert files_of(copy) == world.files


def test_an_index_that_comes_out_otherwise_is_not_put_back(
    world: World, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inflict(copy, {"labels/utf8/c/0": None})
    before = files_of(copy)
    # As another zstd might compress.
    monkeypatch.setattr("clipocr.shared.cache.shards._ZSTD_LEVEL", 19)
    with pytest.raises(CacheMismatchError, match=r"lost files of its index .* from a copy"):
        build_cache(world.config(copy))
    assert files_of(copy) == before


def test_a_manifest_that_was_written_wrong_is_beyond_repair(world: World, copy: Path) -> None:
    manifest = decode_record(world.files["manifest.json"], "x")
    del manifest["files"]["rows/label/c/0"]
    wrong = Manifest.from_json(manifest)
    inflict(copy, {"manifest.json": encode_record(wrong.to_json()), "sealed.json": None})
    for record in copy.rglob("commits/**/*.json"):
        unit = unit_of_record(record.relative_to(copy).as_posix())
        data = decode_record(record.read_bytes(), "x")
        commit = parse_record(unit, data, data["cache_id"])
        record.write_bytes(encode_record(replace(commit, cache_id=wrong.cache_id)))
    with pytest.raises(CacheCorruptError, match=r"manifest\.json does not vouch .* a copy"):
        verify_cache(copy)


def test_a_killed_repair_is_finished_by_the_next(
    world: World, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LocalStorage.remove
    for num_removed in range(4):
        left = iter(range(num_removed))

        def remove(self: LocalStorage, name: str, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            real(self, name)

        inflict(copy, {"image/view1/block2/c/1/0/0": b"?"})
        monkeypatch.setattr(LocalStorage, "remove", remove)
        with contextlib.suppress(KeyboardInterrupt):
            repair_cache(copy, verify_cache(copy))
        monkeypatch.setattr(LocalStorage, "remove", real)
        repair_cache(copy, verify_cache(copy))
        build_cache(world.config(copy))
        assert files_of(copy) == world.files


# ------------------------------------------------------------------------- what tables must say


def rewrite(path: Path, unit: str, array: str, change: Callable[[np.ndarray], None]) -> None:
    """Change an array of the only unit of a view, or of a text table, and its record with it."""
    cache = FeatureCache.open(path)
    commit = cache.committed.by_name[unit]
    layouts = cache.spec.image_layouts(0)
    if isinstance(commit, TextRecord):
        layouts = commit.spec.layouts(cache.manifest.num_labels)
    values = ArrayReader(cache.storage, layouts[array], commit.files).all().copy()
    change(values)
    files = {**commit.files, **write_array(cache.folder, layouts[array], values)}
    (path / "sealed.json").unlink(missing_ok=True)
    cache.publish(replace(commit, files=files))


def put(index: tuple[int, ...], value: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[index] = value

    return change


@pytest.mark.parametrize(
    ("array", "change", "said"),
    [
        ("nodes", put((3, 2), 10_000), "holds numbers from 0 to 10000, expected 0 to"),
        ("nodes", put((0, 0), -1), "holds numbers from -1 to"),
        ("of_label", put((1,), -2), "holds numbers from -2 to 29, expected -1 to 29"),
        ("offsets", put((4,), 0), "holds offsets that do not grow from 0"),
        ("offsets", put((0,), 1), "holds offsets that do not grow from 0"),
        ("offsets", put((-1,), 200), "holds offsets that do not grow from 0 to"),
    ],
)
def test_a_text_table_that_points_nowhere_is_a_fault(
    copy: Path, array: str, change: Callable[[np.ndarray], None], said: str
) -> None:
    rewrite(copy, "text/char-36", array, change)
    [fault] = verify_cache(copy).faults
    assert (fault.part, fault.file) == ("text/char-36", f"text/char-36/{array}")
    assert said in fault.problem


def test_a_unit_made_of_other_rows_is_a_fault(copy: Path) -> None:
    cache = FeatureCache.open(copy)
    cache.publish(replace(cache.unit(1, 0), keys_sha256=cache.unit(1, 1).keys_sha256))
    (copy / "sealed.json").unlink()
    [fault] = verify_cache(copy).faults
    assert fault.part == "view1/unit-00000"
    assert fault.problem == "was made of other rows than the index has there"


# ------------------------------------------------------------------------------------ recompute


def test_recomputed_rows_are_what_the_codec_promises(world: World) -> None:
    report = recompute_rows(VerifyConfig(cache=world.path, data=(world.data,), recompute=1000))
    assert report.num_rows == 2 * (31 - 1)  # All but the bad one, of both views.
    assert report.is_sound
    assert not report.differing_views
    assert sorted(report.arrays) == ["block1", "block2", "block3"]
    for array in report.arrays.values():
        assert 0 < array.max_abs < 0.01
        assert 0.5 < array.worst_share <= 1  # As good as half precision gets, and no better.


@pytest.mark.parametrize("codec", ["int8", "int4", "klt:24"])
def test_recomputed_rows_are_what_a_lossy_codec_promises(
    world: World, tmp_path: Path, codec: str
) -> None:
    build_cache(tiny_build(world.data, tmp_path / "cache", codec=codec))
    config = VerifyConfig(cache=tmp_path / "cache", data=(world.data,), recompute=31)
    report = recompute_rows(config)
    assert report.is_sound
    for array in report.arrays.values():
        assert array.worst_share == 1  # To the bit what the codec does to these features.
        assert 0 < array.max_abs < {"int8": 0.02, "int4": 0.5, "klt:24": 2.0}[codec]
    # A code off by the least there is, of a token in the middle.
    rewrite(tmp_path / "cache", "view0/unit-00000", "block2", put((5, 3, -20), 0x77))
    report = recompute_rows(config)
    assert not report.is_sound
    assert report.arrays["block2"].worst_share > 1
    assert report.arrays["block1"].worst_share == 1


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4", "klt:24"])
@pytest.mark.parametrize(("change", "is_sound"), [(2e-5, True), (2e-2, False)])
def test_another_device_may_have_other_last_bits(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, change: float,
    is_sound: bool,
) -> None:  # fmt: skip
    build_cache(tiny_build(world.data, tmp_path / "cache", codec=codec))
    real = Teacher.chunk_features

    def nearly(teacher: Teacher, *args: object) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        features = real(teacher, *args)
        return {name: x * (1 + change * torch.randn_like(x)) for name, x in features.items()}

    monkeypatch.setattr(Teacher, "chunk_features", nearly)
    config = VerifyConfig(cache=tmp_path / "cache", data=(world.data,), recompute=31)
    if codec == "fp16":  # Of the others no code may have changed.
        assert not recompute_rows(config).is_sound
    monkeypatch.setattr(recompute, "describe_device", lambda _: "another one")
    report = recompute_rows(config)
    assert report.is_sound == is_sound
    assert report.versions["device"][0].startswith("cpu with ")


@pytest.fixture
def one_unit(world: World, tmp_path: Path) -> Path:
    build_cache(tiny_build(world.data, tmp_path / "one"))
    return tmp_path / "one"


@pytest.mark.parametrize(("value", "share"), [(9.0, 1000), (np.nan, np.inf)])
def test_a_wrong_feature_is_found(world: World, one_unit: Path, value: float, share: float) -> None:
    rewrite(one_unit, "view0/unit-00000", "block2", put((5, 3, 7), value))
    assert not verify_cache(one_unit).faults  # Its record says the same.
    config = VerifyConfig(cache=one_unit, data=(world.data,), recompute=31)
    report = recompute_rows(config)
    assert not report.is_sound
    assert report.arrays["block2"].worst_share >= share
    assert report.arrays["block1"].worst_share <= 1


def test_changed_pictures_are_reported_apart(
    one_unit: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(world.data, data)
    with lmdb.open(str(data / "MJ"), map_size=1 << 26) as env, env.begin(write=True) as txn:
        txn.put(b"image-000000007", draw_word("another"))
        txn.put(b"image-000000008", b"")
    config = VerifyConfig(cache=one_unit, data=(data,), recompute=31)
    report = recompute_rows(config)
    assert len(report.differing_views) == 2
    said = " ".join(report.differing_views)
    assert re.search(r"view 0 of row \d+ \(MJ, 7\): \d+ pixels, by up to \d+ of 255", said)
    assert re.search(r"\(MJ, 8\): now empty image", said)
    assert all(array.worst_share <= 1 for array in report.arrays.values())  # Of the stored pixels.
    assert not report.is_sound
    # Another Pillow may decode otherwise.
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.1")
    assert recompute_rows(config).is_sound
    # A cache from before simplejpeg came does not name its version.
    for versions, explained in (
        ({"pillow": ("1", "1"), "simplejpeg": ("1", "2")}, True),
        ({"pillow": ("1", "2"), "simplejpeg": ("1", "1")}, True),
        ({"pillow": ("1", "1"), "simplejpeg": ("unknown", "1")}, False),
    ):
        assert replace(report, versions=versions).is_sound == explained


def test_other_sources_or_teachers_are_refused(world: World, tmp_path: Path) -> None:
    write_words(tmp_path / "data" / "MJ", WORDS[:4])
    config = VerifyConfig(cache=world.path, data=(tmp_path / "data",), recompute=3)
    with pytest.raises(CacheMismatchError, match=r"built from .*'MJ': 30, 'ST'.* holds .'MJ': 4"):
        recompute_rows(config)
    teacher = "ViT-tiny-test/random:1"
    config = replace(config, data=(world.data,), teacher=teacher)
    with pytest.raises(CacheMismatchError, match="other weights"):
        recompute_rows(config)


# ---------------------------------------------------------------------------------- the command


def verify(*args: object) -> Result:
    return CliRunner().invoke(main, ["cache", "verify", *map(str, args)])


def test_the_command_says_what_it_found(world: World, copy: Path) -> None:
    result = verify(copy)
    assert result.exit_code == 0, result.stderr
    num_files = len(verify_cache(copy).files)
    said = f"{copy} is sound: {num_files} files, 1.0 MB; 4 units, 1 text table, sealed.\n"
    assert result.stdout == said

    inflict(copy, next(KINDS["flip a bit at 1/2"](world, "image/view1/block2/c/1/0/0")))
    result = verify(copy)
    assert result.exit_code == 1
    fault, last = result.stdout.splitlines()
    assert fault == ("view1/unit-00001\timage/view1/block2/c/1/0/0\tis not what was committed")
    assert last.startswith(f"{copy} is damaged: 1 fault in 1 part, of {num_files} files")

    result = verify(copy, "--repair")
    assert result.exit_code == 0
    assert f"Repaired {copy}: 1 part taken back, 0 metadata files written again" in result.stdout
    result = verify(copy)
    assert result.exit_code == 0
    assert "3 units, 1 text table, not sealed.\n" in result.stdout


def test_the_command_recomputes(world: World, one_unit: Path) -> None:
    result = verify(world.path, "--recompute", 5, "--data", world.data, "--seed", 3)
    assert result.exit_code == 0, result.stderr
    assert "5 rows recomputed, drawn by seed 3\n" in result.stdout
    assert "| block3  | " in result.stdout
    assert "0 views came out differently\nclipocr " in result.stdout
    assert f"{world.path} is sound" in result.stdout
    rewrite(one_unit, "view0/unit-00000", "block2", put((5, 3, 7), 9))
    result = verify(one_unit, "--recompute", 31, "--data", world.data)
    assert result.exit_code == 1
    assert "is whole, but not what is made of its sources now" in result.stdout


def test_the_command_takes_back_the_index(copy: Path) -> None:
    inflict(copy, {"rows/label/c/0": b"", "rows/source/c/0": b""})
    result = verify(copy, "--repair")
    assert result.exit_code == 0
    assert f"Repaired {copy}: 1 part taken back" in result.stdout
    assert "for its teacher's; of a pool, cache pool).\n" in result.stdout
    inflict(copy, {"manifest.json": b""})
    result = verify(copy, "--repair")
    assert "Repaired" in result.stdout
    assert "for its teacher's; of a pool, cache pool), and verify again.\n" in result.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--recompute", 3], "pass --data"),
        (["--data", "."], "pass --recompute N, too"),
        (["--repair", "--recompute", 3, "--data", "."], "leave out --recompute"),
    ],
)
def test_options_that_contradict_each_other(copy: Path, args: list[object], said: str) -> None:
    result = verify(copy, *args)
    assert result.exit_code == 2
    assert said in result.stderr
