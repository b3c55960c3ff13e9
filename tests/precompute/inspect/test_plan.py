"""The plan: what it promises to the byte is what a build then makes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from samples import TINY_TEACHER, WORDS, draw_word, tiny_build, write_words

from clipocr.cli import main
from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.inspect import measure, plan
from clipocr.precompute.inspect.options import PlanConfig
from clipocr.precompute.inspect.plan import Plan, plan_cache
from clipocr.shared.cache.codecs.codec import Codec
from clipocr.shared.cache.codecs.klt import num_table_rows
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.shards import weigh_array
from clipocr.shared.cache.spec import CacheSpec, ImageArraySpec, TeacherSpec, ViewSpec
from clipocr.shared.charset import Charset, LabelRules
from clipocr.shared.data.word_lmdb import WordLmdbWriter
from clipocr.shared.errors import DataError, UsageError

CODECS = ["fp16", "int8", "int4"]
"""Tokens of the tiny teacher have too few values for the usual klt."""
VIEWS = np.zeros((4, 32, 128, 3), np.uint8)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_BATCH_BUDGET_S", 0.01)


def tiny_plan(data_root: Path, **changes: object) -> Plan:
    settings: dict[str, object] = {
        "data": (data_root,),
        "teacher": TINY_TEACHER,
        "image_taps": (1, 2, 3),
        "text_taps": (1, 2, 3),
        "charsets": (Charset.load("36"), Charset.load("94")),
        "unit_rows": 32,
        "chunk_rows": 8,
        "device": "cpu",
    }
    return plan_cache(PlanConfig(**(settings | changes)))


def bytes_below(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("c/**/*") if p.is_file())


def test_sizes_are_those_of_the_build(cache_path: Path, data_root: Path) -> None:
    planned = tiny_plan(data_root)
    one = planned.costs[0]
    assert (one.codec, one.num_views, one.augment) == ("fp16", 1, "clean")
    taps = [bytes_below(cache_path / f"image/view0/block{tap}") for tap in (1, 2, 3)]
    assert one.bytes_by_part["features"] == sum(taps)
    assert one.bytes_by_part["text/char-36"] == bytes_below(cache_path / "text/char-36")
    folders = ("rows", "labels", "rejected")
    assert one.bytes_by_part["index"] == sum(bytes_below(cache_path / f) for f in folders)
    # 16 of 73 rows were looked at, in chunks of 8.
    pixels = bytes_below(cache_path / "image/view0/pixels")
    assert one.bytes_by_part["pixels"] == pytest.approx(pixels, rel=0.15)
    assert one.num_bytes == sum(one.bytes_by_part.values())


def test_weights_are_files_to_the_byte(cache: FeatureCache) -> None:
    for key, layout in cache.spec.image_layouts(0).items():
        values = cache.image_reader(0, key).all()
        written = sum(
            file.num_bytes
            for unit_idx in cache.units()
            for name, file in cache.unit(0, unit_idx).files.items()
            if name.startswith(f"image/view0/{key}/c/")
        )
        assert weigh_array(layout, values) == written


def test_counts_are_those_of_the_build(cache_path: Path, data_root: Path) -> None:
    planned, cache = tiny_plan(data_root), FeatureCache.open(cache_path)
    assert planned.spec.num_rows == cache.spec.num_rows
    assert planned.spec.sources == cache.spec.sources
    assert planned.num_labels == len(cache.labels())
    assert planned.texts[:1] == tuple(cache.text_specs())
    assert "from 16 real views" in planned.assumptions[0]


def test_rejects_are_counted_by_reason(tmp_path: Path) -> None:
    with WordLmdbWriter(tmp_path / "set") as writer:
        writer.add_all([(draw_word("a"), "a"), (b"", "b"), (draw_word("c"), " "),
                        (draw_word("d"), "d" * 26), (draw_word("-"), "-")])  # fmt: skip
    planned = tiny_plan(tmp_path, charsets=(Charset.load("36"),))
    assert planned.rejected == {"empty label": 1, "label too long": 1}
    assert planned.spec.num_rows == 3
    assert planned.texts[0].num_strings == planned.num_labels - 1


def test_every_codec_and_number_of_views_has_its_cost(data_root: Path) -> None:
    planned = tiny_plan(data_root, views=(1, 3))
    assert [(c.codec, c.num_views, c.augment) for c in planned.costs] == [
        (codec, k, augment)
        for codec in [*CODECS, planned.advised_codec]
        for k, augment in ((1, "clean"), (3, "randaugment"))
    ]
    num_shards, chunks = 3, 10  # 73 rows in units of 32 and chunks of 8: 4 + 4 + 2.
    fixed = planned.costs[: 2 * len(CODECS) : 2]
    for cost, token_bytes in zip(fixed, (64 * 2, 64 + 18, 32 + 18), strict=True):
        index_bytes = chunks * 4 + num_shards * (4 * 16 + 4)
        of_tap = chunks * 8 * 17 * token_bytes + index_bytes
        assert cost.bytes_by_part["features"] == 3 * of_tap, cost.codec
    one, three = planned.costs[:2]
    assert three.bytes_by_part["features"] == 3 * one.bytes_by_part["features"]
    assert three.bytes_by_part["index"] == one.bytes_by_part["index"]
    assert three.seconds > one.seconds > 0
    assert set(planned.rates.views_per_s) == {"clean", "randaugment"}


def spec_with(codec: str, num_rows: int) -> CacheSpec:
    teacher = TeacherSpec(
        model="m", weights="w", weights_sha256="", activation="gelu", precision="fp32",
    )  # fmt: skip
    image = ImageArraySpec(name="block3", num_tokens=17, width=768, codec=Codec.parse(codec))
    return CacheSpec(
        teacher=teacher, view=ViewSpec(), labels=LabelRules(), text_taps=(3,), seed=0,
        images=(image,), sources=(), num_rows=num_rows, unit_rows=256, chunk_rows=256,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("device", "views_per_s", "disk_s", "expected"),
    [
        # 1000 rows: 5 s of teacher, 5 s of encoding; two cores also make 100 views/s each.
        ("cpu", 100.0, 1, (15.0, "teacher")),
        ("cpu", 1e9, 20, (20.0, "disk")),
        # On a GPU each waits for the slowest only; two workers.
        ("cuda", 100.0, 1, (10.0, "teacher")),
        ("cuda", 25.0, 1, (20.0, "views")),
        ("cuda", 100.0, 20, (20.0, "disk")),
    ],
)
def test_time_is_that_of_the_slowest(
    device: str, views_per_s: float, disk_s: float, expected: tuple[float, str]
) -> None:
    config = PlanConfig(data=(), charsets=(), num_cores=2, workers=2)
    spec = spec_with("fp16", num_rows=1000)
    rates = plan.Rates(
        views_per_s={"clean": views_per_s}, images_per_s=200.0,
        encoded_per_s={"fp16": 200.0}, labels_per_s=1, written_bytes_per_s=1.0,
    )  # fmt: skip
    num_bytes = plan.plan_views(config, rates, device, spec, VIEWS, 1).num_bytes
    rates = replace(rates, written_bytes_per_s=num_bytes / disk_s)
    cost = plan.plan_views(config, rates, device, spec, VIEWS, 1)
    assert (pytest.approx(cost.seconds), cost.bottleneck) == expected


def test_codecs_with_tables_pay_for_their_sample() -> None:
    rates = plan.Rates(
        views_per_s={"clean": 200.0}, images_per_s=100.0,
        encoded_per_s={"fp16": 1e12, "klt:96": 1e12}, labels_per_s=1, written_bytes_per_s=1e12,
    )  # fmt: skip
    config = PlanConfig(data=(), charsets=(), num_cores=1)
    fp16, klt = (
        plan.plan_views(config, rates, "cpu", spec_with(codec, num_rows=10_000), VIEWS, 1)
        for codec in ("fp16", "klt:96")
    )
    # 10,000 rows at 100/s of teacher and 200/s of views; 2,304 of them twice.
    assert fp16.seconds == pytest.approx(150)
    assert klt.seconds == pytest.approx(150 + 34.56)
    table_bytes = 4 * 768 * num_table_rows(17, 768)
    assert klt.bytes_by_part["index"] == pytest.approx(table_bytes, abs=100)
    assert fp16.bytes_by_part["index"] == 0


def test_the_codec_it_advises_takes_what_it_says(tmp_path: Path) -> None:
    write_words(tmp_path / "data" / "set", WORDS * 4)
    planned = tiny_plan(
        tmp_path / "data", charsets=(Charset.load("36"),), views=(1,), fidelity=0.97
    )
    codec = planned.advised_codec
    assert codec is not None
    build_cache(tiny_build(tmp_path / "data", tmp_path / "cache", codec=codec))
    cost = planned.costs[-1]
    assert cost.codec == codec
    built = sum(bytes_below(tmp_path / f"cache/image/view0/block{tap}") for tap in (1, 2, 3))
    assert cost.bytes_by_part["features"] == built
    tables = bytes_below(tmp_path / "cache/codec")
    assert cost.bytes_by_part["index"] == planned.costs[0].bytes_by_part["index"] + tables
    # What it measured is what the build states, whose rows are others: 64 of the unit's.
    kept = FeatureCache.open(tmp_path / "cache").unit(0, 0).fidelity
    for curve in planned.curves:
        found = curve.advised.kept["cosine_p50"]
        assert kept[curve.array]["cosine_p50"] == pytest.approx(found, abs=0.02)


def test_without_weights_there_is_a_plan_but_no_advice(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    real = plan.load_teacher
    monkeypatch.setattr(
        plan,
        "load_teacher",
        lambda name, **options: (loaded.append(name), real(name, **options))[1],
    )
    planned = tiny_plan(
        data_root,
        teacher="ViT-tiny-test/missing-weights.pt",
        out=tmp_path / "new" / "words.cache",
    )
    assert loaded == ["ViT-tiny-test/missing-weights.pt", "ViT-tiny-test/random:0"]
    assert planned.curves == ()
    assert planned.advised_codec is None
    assert any(
        "codecs are not judged: " in line and "missing-weights" in line
        for line in planned.assumptions
    )
    assert not list(tmp_path.iterdir())
    assert any(str(tmp_path) in line for line in planned.assumptions)


def test_without_a_picture_to_judge_by_there_is_a_plan_but_no_advice(tmp_path: Path) -> None:
    images = dict.fromkeys(range(1, len(WORDS) + 1), b"broken")
    write_words(tmp_path / "data" / "set", WORDS, images)
    planned = tiny_plan(tmp_path / "data", charsets=(Charset.load("36"),), views=(1,))
    assert planned.curves == ()
    assert any("no good image" in line for line in planned.assumptions)


def test_what_a_build_would_refuse_is_refused(data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has room for 75 characters"):
        tiny_plan(data_root, labels=LabelRules(max_label_length=76))
    with pytest.raises(UsageError, match="unit rows 30 is not a multiple of chunk rows 8"):
        tiny_plan(data_root, unit_rows=30)
    with pytest.raises(UsageError, match="image taps 9 are not possible"):
        tiny_plan(data_root, image_taps=(9,))
    with pytest.raises(DataError, match="no LMDB"):
        tiny_plan(tmp_path)
    with pytest.raises(DataError, match="charset kana leaves nothing"):
        tiny_plan(data_root, charsets=(Charset(name="kana", characters="あ"),))


def test_the_command_prints_tables(data_root: Path, tmp_path: Path) -> None:
    args = ["cache", "plan", "--data", data_root, "--teacher", TINY_TEACHER, "--image-taps", "1,2",
            "--text-taps", 1, "--unit-rows", 32, "--chunk-rows", 8, "--device", "cpu",
            "--plot", tmp_path / "codecs.png"]  # fmt: skip
    result = CliRunner().invoke(main, list(map(str, args)))
    assert result.exit_code == 0, result.stderr
    assert "has random weights" in result.stderr
    lines = result.stdout.splitlines()
    found = re.fullmatch(
        r"--codec (\S+) keeps a median .* of 0\.99 in [\d,]+ bytes a row\.", lines[-2]
    )
    assert found is not None
    assert lines[-1].startswith(f"Building K=1 with --codec {found[1]} here takes about ")
    assert ["unique", "labels", str(len(set(WORDS)))] in [line.split() for line in lines]
    assert sum(line.startswith("| fp16 ") for line in lines) == 3 + 2  # Costs, then arrays.
    assert sum(line.rstrip(" |").endswith("advised") for line in lines) == 2
    with Image.open(tmp_path / "codecs.png") as picture:
        assert picture.format == "PNG"


def test_a_plan_and_its_build_agree_beyond_one_shard(tmp_path: Path) -> None:
    write_words(tmp_path / "data" / "set", WORDS * 5)
    planned = tiny_plan(tmp_path / "data", charsets=(Charset.load("36"),), unit_rows=8)
    build_cache(tiny_build(tmp_path / "data", tmp_path / "cache", unit_rows=8))
    parts = planned.costs[0].bytes_by_part
    assert parts["text/char-36"] == bytes_below(tmp_path / "cache/text")
    built = sum(bytes_below(tmp_path / f"cache/image/view0/block{tap}") for tap in (1, 2, 3))
    assert parts["features"] == built
