"""The builder: what is cached is what the teacher says, and running it again is always safe."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import lmdb
import numpy as np
import pytest
import torch
import zarr
from commands import invoke
from damage import fill_disk_after
from PIL import Image
from samples import TINY_TEACHER, WORDS, draw_word, files_of, tiny_build, write_words

from clipocr.precompute.builder import units
from clipocr.precompute.builder.augment import Draws, augment, view_keys
from clipocr.precompute.builder.build import build_cache, build_labels, build_pool
from clipocr.precompute.builder.config import LabelsConfig, PoolConfig
from clipocr.precompute.builder.scan import sample_hashes
from clipocr.precompute.teacher.clip import Teacher, load_teacher
from clipocr.precompute.teacher.tokens import TeacherTokenizer
from clipocr.shared.cache.codecs.codecs import unfilter_pixels
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.charset import Charset, LabelRules
from clipocr.shared.data.word_lmdb import WordLmdb
from clipocr.shared.errors import CacheMismatchError, DataError, TeacherError, UsageError
from clipocr.shared.geometry import ViewSize
from clipocr.shared.processes import Process


@pytest.fixture(scope="module")
def teacher():
    return load_teacher(
        TINY_TEACHER,
        image_taps=(1, 2, 3),
        text_taps=(1, 2, 3),
        precision="fp32",
        device=torch.device("cpu"),
    )


def row_table(cache: FeatureCache) -> list[tuple[int, int, str]]:
    """Return (source, LMDB index, label) of all rows."""
    labels = cache.labels()
    table = []
    for unit_idx in cache.units():
        rows = cache.rows(unit_idx)
        columns = (rows[key].tolist() for key in ("source", "lmdb_index", "label"))
        table += [(s, i, labels[label]) for s, i, label in zip(*columns, strict=True)]
    return table


def test_rows_are_all_samples_in_another_order(cache: FeatureCache) -> None:
    table = row_table(cache)
    samples = [(0, i, WORDS[(i - 1) % len(WORDS)]) for i in range(1, 61)]
    samples += [(1, i, WORDS[i - 1]) for i in range(1, 14)]
    assert sorted(table) == samples
    assert table != samples
    assert cache.units() == [0, 1, 2]
    assert cache.is_sealed


def test_pixels_are_the_stretched_images(cache: FeatureCache, data_root: Path) -> None:
    stored = cache.image_reader(0, "pixels").all()
    views = unfilter_pixels(torch.from_numpy(stored.copy())).numpy()
    sources = [WordLmdb(data_root / "MJ" / "train"), WordLmdb(data_root / "ST")]
    for (source, index, _), view in zip(row_table(cache), views, strict=True):
        if (source, index) == (1, 3):
            assert not view.any()
            continue
        image = Image.open(io.BytesIO(sources[source].image(index)))
        np.testing.assert_array_equal(view, np.asarray(image.resize((128, 32), Image.BICUBIC)))


def test_features_are_what_the_teacher_says(cache: FeatureCache, teacher) -> None:
    stored = cache.image_reader(0, "pixels").all()
    views = unfilter_pixels(torch.from_numpy(stored.copy()))
    bad = row_table(cache).index((1, 3, "charlie"))
    good = [row for row in range(len(views)) if row != bad]
    for array, expected in teacher.image_features(views).items():
        features = torch.from_numpy(cache.image_reader(0, array).all().copy()).float()
        # Half precision: 11 bits of mantissa.
        torch.testing.assert_close(features[good], expected[good], rtol=2**-11, atol=1e-4)
        assert not features[bad].any()


def test_text_is_what_the_teacher_says(cache: FeatureCache, teacher) -> None:
    table = cache.text_table("char-36")
    assert sorted(table.strings) == sorted({Charset.load("36").adapt(w) for w in WORDS})
    tokenizer = TeacherTokenizer("char", 25)
    for text_idx, label in enumerate(table.strings):
        ids = tokenizer.tokenize(label).ids
        tokens = torch.zeros(1, 27, dtype=torch.int32)
        tokens[0, : len(ids)] = torch.tensor(ids)
        features = teacher.text_features(tokens, torch.tensor([len(ids) - 1]))
        eot = features.pop("eot")
        for array, expected in features.items():
            stored = table.arrays[array][table.nodes[text_idx]]
            # All 26 positions after SOT: characters, EOT and the padding of the official loss.
            np.testing.assert_allclose(stored, expected[0, 1:], rtol=2**-10, atol=1e-4)
        np.testing.assert_allclose(table.arrays["eot"][text_idx], eot[0], rtol=2**-10, atol=1e-4)


def test_labels_find_their_text(cache: FeatureCache) -> None:
    table = cache.text_table("char-36")
    for label, text_idx in zip(cache.labels(), table.of_label, strict=True):
        assert table.strings[text_idx] == label.lower().replace("-", "")


def test_bad_images_are_rows_with_a_reason(cache: FeatureCache) -> None:
    bad = {row: why for u in cache.units() for row, why in cache.unit(0, u).bad_rows.items()}
    assert bad == {row_table(cache).index((1, 3, "charlie")): "not an image"}


def test_commits_state_the_fidelity_they_measured(cache: FeatureCache) -> None:
    for unit_idx in cache.units():
        fidelity = cache.unit(0, unit_idx).fidelity
        assert sorted(fidelity) == ["block1", "block2", "block3"]
        assert all(f["cosine_p01"] > 0.9999 for f in fidelity.values())


def test_plain_zarr_opens_it(cache_path: Path, cache: FeatureCache) -> None:
    group = zarr.open_group(cache_path, mode="r")
    np.testing.assert_array_equal(
        group["image/view0/block2"][:], cache.image_reader(0, "block2").all()
    )
    assert group["text/char-36/nodes"].shape == (len(set(map(str.lower, WORDS))), 26)


@pytest.mark.parametrize("what", ["cache", "labels", "pool"])
def test_weights_that_cannot_be_had_leave_no_folder(
    what: str, data_root: Path, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_teacher(*_: object, **__: object) -> NoReturn:
        raise TeacherError("they cannot be downloaded")

    monkeypatch.setattr("clipocr.precompute.builder.build.load_teacher", load_teacher)
    words, place = tmp_path / "words.txt", tmp_path / "new" / "deep"
    words.write_text("one")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "one.png").write_bytes(draw_word("one"))
    if what == "pool":
        place = tmp_path / "copy"
        shutil.copytree(cache_path, place)
    there = sorted(tmp_path.rglob("*"))
    builds = {
        "cache": lambda: build_cache(tiny_build(data_root, place)),
        "labels": lambda: build_labels(LabelsConfig(words=words, out=place)),
        "pool": lambda: build_pool(PoolConfig(cache=place, images=pictures)),
    }
    with pytest.raises(TeacherError):
        builds[what]()
    assert sorted(tmp_path.rglob("*")) == there


def test_building_again_changes_nothing(
    cache_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.stat().st_mtime_ns for p in cache_path.rglob("*")}
    monkeypatch.setattr("clipocr.precompute.builder.build.load_teacher", None)  # Not even loaded.
    summary = build_cache(tiny_build(data_root, cache_path))
    assert summary.num_rows_built == 0
    assert {p: p.stat().st_mtime_ns for p in cache_path.rglob("*")} == before


def test_bytes_do_not_depend_on_where_it_was_interrupted(
    cache_path: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cache"
    # Chunks until the disk is full: within the first unit, the second, and the third.
    for allowed in (1, 6, 5):
        with monkeypatch.context() as patch:
            fill_disk_after(allowed, patch)
            with pytest.raises(OSError, match="No space left"):
                build_cache(tiny_build(data_root, out))
        committed = FeatureCache.open(out).units()
        assert not FeatureCache.open(out).is_sealed
        assert not list((out / ".tmp").iterdir())
    assert committed == [0, 1]
    assert build_cache(tiny_build(data_root, out)).num_rows_built == 73 - 64
    assert files_of(out) == files_of(cache_path)


def test_the_teacher_only_ever_sees_batches_of_one_shape(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the shape of a batch decides the last bits, so no number of rows may change it."""
    shapes: dict[str, set[tuple[int, ...]]] = {"image_features": set(), "text_features": set()}
    for name, seen in shapes.items():
        real = getattr(Teacher, name)

        def watched(
            self: Teacher,
            batch: torch.Tensor,
            *rest: torch.Tensor,
            real: Callable[..., object] = real,
            seen: set[tuple[int, ...]] = seen,
        ) -> object:
            seen.add(tuple(batch.shape))
            return real(self, batch, *rest)

        monkeypatch.setattr(Teacher, name, watched)
    # 73 rows and 30 labels in chunks of 8: neither comes out even.
    build_cache(tiny_build(data_root, tmp_path / "cache"))
    assert shapes == {"image_features": {(8, 32, 128, 3)}, "text_features": {(8, 27)}}


def test_features_do_not_depend_on_unit_boundaries(
    cache: FeatureCache, data_root: Path, tmp_path: Path
) -> None:
    for unit_rows in (8, 64):
        build_cache(tiny_build(data_root, tmp_path / str(unit_rows), unit_rows=unit_rows))
        other = FeatureCache.open(tmp_path / str(unit_rows))
        for key in cache.spec.image_layouts(0):
            stored = (c.image_reader(0, key).all().tobytes() for c in (cache, other))
            assert len(set(stored)) == 1, (unit_rows, key)
        assert other.committed.texts["char-36"].files == cache.committed.texts["char-36"].files


def test_bytes_do_not_depend_on_workers(cache_path: Path, data_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    build_cache(tiny_build(data_root, out, workers=2))
    assert files_of(out) == files_of(cache_path)


def test_views_are_the_augmented_pictures(data_root: Path, tmp_path: Path) -> None:
    build_cache(tiny_build(data_root, tmp_path / "cache", augment="randaugment", views=2))
    cache = FeatureCache.open(tmp_path / "cache")
    assert cache.num_views == 2
    sources = [WordLmdb(data_root / "MJ" / "train"), WordLmdb(data_root / "ST")]
    names = [source.name for source in cache.spec.sources]
    table = row_table(cache)
    hashes = sample_hashes(
        0, names, np.array([s for s, _, _ in table]), np.array([i for _, i, _ in table])
    )
    views = [
        unfilter_pixels(torch.from_numpy(cache.image_reader(v, "pixels").all().copy())).numpy()
        for v in range(2)
    ]
    assert sum(not np.array_equal(a, b) for a, b in zip(*views, strict=True)) > 40
    for row, (source, index, _) in enumerate(table):
        if (source, index) == (1, 3):
            continue
        for view_idx in range(2):
            image = Image.open(io.BytesIO(sources[source].image(index)))
            image = augment(image, Draws(view_keys(0, hashes, view_idx)[row]))
            expected = np.asarray(image.resize((128, 32), Image.BICUBIC))
            np.testing.assert_array_equal(views[view_idx][row], expected)


def test_views_can_be_added_to_a_finished_cache(data_root: Path, tmp_path: Path) -> None:
    both, grown = tmp_path / "both", tmp_path / "grown"
    build_cache(tiny_build(data_root, both, augment="randaugment", views=2))
    build_cache(tiny_build(data_root, grown, augment="randaugment"))
    before = files_of(grown)
    summary = build_cache(tiny_build(data_root, grown, augment="randaugment", views=2))
    assert summary.num_rows_built == 73
    after = files_of(grown)
    assert after == files_of(both)
    assert {n for n in before if before[n] != after[n]} == {"sealed.json"}


def test_several_clean_views_are_refused(data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 clean views would all be the same"):
        tiny_build(data_root, tmp_path, views=2)


def test_processes_share_the_work_and_make_the_same_bytes(
    cache_path: Path, data_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cache"
    built = [
        build_cache(tiny_build(data_root, out, process=Process(rank=rank, world_size=2)))
        for rank in (1, 0)
    ]
    # Rank 1 first: it has no text table yet and cannot seal; rank 0 finishes.
    assert [summary.is_complete for summary in built] == [False, True]
    assert sum(summary.num_rows_built for summary in built) == 73
    assert files_of(out) == files_of(cache_path)


@pytest.mark.parametrize(
    ("changes", "said", "option"),
    [
        ({"seed": 1}, "seed is 0, wanted 1", "--seed 0"),
        ({"image_taps": (1, 2)},
         r"images is \('block1', 'block2', 'block3'\), wanted \('block1', 'block2'\)",
         "--image-taps 1,2,3"),
        ({"text_taps": (2,)}, r"text_taps is \(1, 2, 3\), wanted \(2,\)",
         "--text-taps 1,2,3"),
        ({"teacher": "ViT-tiny-test/random:1"}, "weights is 'random:0', wanted 'random:1'",
         "--teacher ViT-tiny-test/random:0"),
        ({"teacher": "ViT-B-16/openai"}, "model is 'ViT-tiny-test', wanted 'ViT-B-16'",
         "--teacher ViT-tiny-test/random:0"),
        ({"activation": "quickgelu"}, "activation is 'gelu', wanted 'quickgelu'",
         "--activation gelu"),
        ({"precision": "bf16"}, "precision is 'fp32', wanted 'bf16'", "--precision fp32"),
        ({"unit_rows": 64}, "unit_rows is 32, wanted 64", "--unit-rows 32"),
        ({"chunk_rows": 16}, "chunk_rows is 8, wanted 16", "--chunk-rows 8"),
        ({"labels": LabelRules(max_label_length=20)}, "max_label_length is 25, wanted 20",
         "--max-label-length 25"),
        ({"labels": LabelRules(keep_unicode=True)}, "keep_unicode is False",
         r"\(without --keep-unicode\)"),
        ({"codec": "int8"}, r"images\[block2\].codec is 'fp16', wanted 'int8'", "--codec fp16"),
        ({"augment": "randaugment"}, "view.augment is 'clean', wanted 'randaugment'",
         "--augment clean"),
        ({"tall": "rotate"}, "view.tall is 'stretch', wanted 'rotate'", "--tall stretch"),
        ({"view_size": ViewSize(32, 64)}, "view.width_px is 128, wanted 64", "--view-size 32x128"),
        ({"pixels": False}, "pixels is True, wanted False", "--pixels"),
        ({"image_taps": (1, 2, "final")}, "images is .*'final'", "--image-taps 1,2,3"),
    ],
)  # fmt: skip
def test_another_request_is_refused_by_field_with_the_command_that_goes_on(
    cache_path: Path, data_root: Path, changes: dict[str, object], said: str, option: str
) -> None:
    command = rf"clipocr cache build --out {cache_path} {option} \.\.\.;"
    with pytest.raises(CacheMismatchError, match=rf"{said}.* {command} .* another folder .*--out"):
        build_cache(tiny_build(data_root, cache_path, **changes))


def test_a_source_that_changed_is_refused(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "cache"
    path = write_words(root / "set", WORDS)
    build_cache(tiny_build(root, out))
    write_words(root / "more", ["extra"])
    with pytest.raises(
        CacheMismatchError, match=r"sources is \('set',\), wanted \('more', 'set'\)"
    ):
        build_cache(tiny_build(root, out))
    shutil.rmtree(root / "more")
    (out / "commits/view0/unit-00000.json").unlink()
    (out / "sealed.json").unlink()
    with lmdb.open(str(path), map_size=1 << 26) as env, env.begin(write=True) as txn:
        txn.put(b"label-000000005", b"changed")
    with pytest.raises(
        CacheMismatchError, match=r"sources\[set\].digest is '\w+', wanted .*--data"
    ):
        build_cache(tiny_build(root, out))


def test_another_charset_is_added_without_touching_the_rest(
    cache_path: Path, data_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cache"
    shutil.copytree(cache_path, out)
    before = files_of(out)
    summary = build_cache(tiny_build(data_root, out, charset=Charset.load("94")))
    assert summary.num_rows_built == 0
    after = files_of(out)
    changed = {name for name in after if before.get(name) != after[name]}
    assert {name.split("/")[0] for name in changed} == {"text", "commits", "sealed.json"}
    assert "One" in FeatureCache.open(out).text_table("char-94").strings
    assert "four-4" in FeatureCache.open(out).text_table("char-94").strings


def test_a_charset_that_leaves_nothing_is_refused(data_root: Path, tmp_path: Path) -> None:
    charset = Charset(name="hiragana", characters="あいう")
    with pytest.raises(DataError, match="charset hiragana leaves nothing"):
        build_cache(tiny_build(data_root, tmp_path / "cache", charset=charset))


def test_labels_longer_than_the_text_encoder_are_refused_before_anything_is_written(
    data_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="has room for 75 characters"):
        build_cache(
            tiny_build(data_root, tmp_path / "cache", labels=LabelRules(max_label_length=76))
        )
    assert not (tmp_path / "cache").exists()


def test_labels_that_their_charset_makes_too_long_are_left_out(tmp_path: Path) -> None:
    write_words(tmp_path / "data" / "set", ["ß" * 3 + "A" * 22, "STRAßE"])
    upper = Charset(name="upper", characters="ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    labels = LabelRules(keep_unicode=True)
    build_cache(tiny_build(tmp_path / "data", tmp_path / "cache", charset=upper, labels=labels))
    assert FeatureCache.open(tmp_path / "cache").text_table("char-upper").strings == ["STRASSE"]


def test_a_builder_that_finishes_first_seals_nothing(
    data_root: Path, cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cache"
    shutil.copytree(cache_path, out)
    (out / "sealed.json").unlink()
    record = (out / "commits/view0/unit-00002.json").read_bytes()
    (out / "commits/view0/unit-00002.json").unlink()
    real = units.UnitBuilder.build
    monkeypatch.setattr(units.UnitBuilder, "build", lambda self, _units: real(self, []))
    build_cache(tiny_build(data_root, out))
    assert not (out / "sealed.json").exists()
    (out / "commits/view0/unit-00002.json").write_bytes(record)
    build_cache(tiny_build(data_root, out))
    assert files_of(out) == files_of(cache_path)


def test_a_folder_with_other_things_is_refused(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"not a cache and holds thesis\.tex"):
        build_cache(tiny_build(data_root, tmp_path))


def test_a_build_of_which_no_picture_can_be_decoded_fails_with_the_reasons(tmp_path: Path) -> None:
    words = WORDS[:4]
    images = {1: b"", 2: b"no image", 3: b"no image", 4: b"no image"}
    write_words(tmp_path / "data" / "A", words, images)
    config = tiny_build(tmp_path / "data", tmp_path / "cache")
    for _ in range(2):  # The same command again says the same.
        with pytest.raises(
            DataError, match=r"none of the 4 pictures .* \(not an image: 3, empty image: 1\)"
        ):
            build_cache(config)
    assert not (tmp_path / "cache" / "sealed.json").exists()


def test_a_share_and_a_cache_that_is_not_finished_are_said(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    out = tmp_path / "cache"
    command = (
        *("cache", "build", "--data", data_root, "--out", out, "--teacher", TINY_TEACHER),
        *("--image-taps", "1,2,3", "--text-taps", "1,2,3", "--unit-rows", 32, "--chunk-rows", 8),
    )
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    assert "takes share 1 of 3 of the units, because of RANK=0 and WORLD_SIZE=3" in result.stderr
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    run = ("train", "--cache", out, "--out", tmp_path / "run", "--student", "tiny", "--epochs", 1)
    taps = ("--image-taps", "1,2,3", "--text-taps", "1,2,3", "--batch-size", 8)
    result = invoke(*run, *taps)
    assert result.exit_code == 0, result.stderr
    assert f"Note: 32 of 73 rows: {out} is not finished" in result.stderr
    assert invoke(*command).exit_code == 0
    result = invoke(*run[:4], tmp_path / "whole", *run[5:], *taps)
    assert "not finished" not in result.stderr
