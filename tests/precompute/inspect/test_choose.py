"""Codec auto: it takes the fewest bytes that will do, once, for every builder of a cache."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from samples import TINY_TEACHER, WORDS, files_of, tiny_build, write_words

from clipocr.cli import main
from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.builder.calibrate import Calibration, fit_rows
from clipocr.precompute.inspect.choose import choose_codec
from clipocr.precompute.upkeep.copy import CopyConfig, copy_cache
from clipocr.precompute.upkeep.verify import repair_cache, verify_cache
from clipocr.shared.cache.codecs.choice import CodecChoice, Fidelity
from clipocr.shared.cache.codecs.codecs import measure_fidelity
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.schema import Manifest
from clipocr.shared.errors import CacheMismatchError, UsageError

CODEC = "auto:0.97"


@pytest.fixture(scope="module")
def auto_path(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed cache that tests only read."""
    out = tmp_path_factory.mktemp("auto") / "words.cache"
    build_cache(tiny_build(data_root, out, codec=CODEC))
    return out


@pytest.fixture
def copied(auto_path: Path, tmp_path: Path) -> Path:
    out = tmp_path / "copied.cache"
    shutil.copytree(auto_path, out)
    return out


def choice_files_of(path: Path) -> list[str]:
    return sorted(name for name in files_of(path) if name.startswith("choice/"))


def never(*_: object) -> CodecChoice:
    raise AssertionError("it was chosen already")


# ----------------------------------------------------------------------------------- the choice


def test_the_smallest_that_meets_the_target_is_taken(auto_path: Path) -> None:
    cache = FeatureCache.open(auto_path)
    assert cache.spec.tap_codecs == {
        tap: cache.manifest.choices[f"block{tap}"].codec for tap in (1, 2, 3)
    }
    for choice in cache.manifest.choices.values():
        assert choice.target == Fidelity.at(0.97)
        assert choice.num_judged == 8  # One row in nine of 73.
        curve = {point.codec: point for point in choice.curve}
        assert set(curve) >= {"fp16", "int8", "int4", "klt:1", "klt:8", "klt:64"}
        good = [p.row_bytes for p in choice.curve if p.fidelity.meets(choice.target)]
        assert choice.chosen.row_bytes == min(good)
        # To the byte: with one less it would not do.
        rate = int(choice.codec.removeprefix("klt:"))
        assert not curve[f"klt:{rate - 1}"].fidelity.meets(choice.target)


def test_the_curve_holds_for_what_is_stored(auto_path: Path, cache: FeatureCache) -> None:
    """The judged rows are the first of the cache; fp16 has what the teacher said of them."""
    auto = FeatureCache.open(auto_path)
    good = [row for row in range(8) if row not in auto.unit(0, 0).bad_rows]
    for tap in (1, 2, 3):
        features = torch.from_numpy(cache.view_reader(0, f"block{tap}").rows(0, 8)).float()
        stored = torch.from_numpy(auto.view_reader(0, f"block{tap}").rows(0, 8))
        codec, choice = auto.tap_codec(tap), auto.manifest.choices[f"block{tap}"]
        assert stored.shape[1:].numel() == choice.chosen.row_bytes
        found = measure_fidelity(codec.target(features[good]), codec.decode(stored[good]))
        assert found["cosine_p50"] == pytest.approx(choice.chosen.fidelity.cosine_p50, abs=1e-4)
        assert found["cosine_p01"] == pytest.approx(choice.chosen.fidelity.cosine_p01, abs=1e-3)
        assert found["gram_l1"] == pytest.approx(choice.chosen.fidelity.gram_l1, rel=0.01)


def falling_features(num_rows: int, seed: int, width: int = 32) -> torch.Tensor:
    """Return tokens whose variance falls along fixed directions."""
    basis = np.linalg.qr(np.random.default_rng(7).normal(size=(width, width)))[0]
    rows = np.random.default_rng(seed).normal(size=(num_rows, 4, width))
    return torch.from_numpy((rows * np.arange(1, width + 1) ** -1.0) @ basis).float()


def test_a_higher_fidelity_takes_more() -> None:
    basis, judged = fit_rows(falling_features(300, 0)), falling_features(60, 1)
    chosen = [choose_codec(judged, basis, fidelity) for fidelity in (0.9, 0.99, 0.999, 0.999999)]
    taken = [choice.chosen.row_bytes for choice in chosen]
    assert taken == sorted(set(taken))
    assert chosen[-1].codec == "fp16"
    rates = [point.row_bytes for point in chosen[0].curve]
    assert rates == sorted(rates)


def test_a_target_that_nothing_meets_is_refused() -> None:
    basis, judged = fit_rows(falling_features(50, 0)), falling_features(9, 1)
    with pytest.raises(
        UsageError, match=r"the best is fp16 .* Pass a lower --fidelity, or --codec"
    ):
        choose_codec(judged, basis, 1 - 1e-12)


def test_a_codec_that_cannot_hold_the_features_is_none_to_choose() -> None:
    large = falling_features(40, 0, width=33) * 1e6  # Beyond half precision; of an odd width.
    choice = choose_codec(large[:9], fit_rows(large[9:]), 0.9)
    assert not {"fp16", "int4"} & {point.codec for point in choice.curve}
    assert choice.codec.startswith("klt:")


def test_without_a_row_to_judge_by_there_is_no_choice(tmp_path: Path) -> None:
    write_words(tmp_path / "data" / "set", WORDS[:5])
    with pytest.raises(UsageError, match=r"no good image among them; name a codec"):
        build_cache(tiny_build(tmp_path / "data", tmp_path / "cache", codec=CODEC))


# ------------------------------------------------------------------------------ one for everybody


def test_the_same_request_is_the_same_cache(copied: Path, data_root: Path) -> None:
    before = files_of(copied)
    assert build_cache(tiny_build(data_root, copied, codec=CODEC)).num_rows_built == 0
    assert files_of(copied) == before


@pytest.mark.parametrize("codec", ["auto", "fp16", "klt:9,klt:8,klt:7"])
def test_another_request_is_refused_with_the_one_that_goes_on(
    auto_path: Path, data_root: Path, codec: str
) -> None:
    wanted = "auto:0.99" if codec == "auto" else codec
    message = rf"codec is 'auto:0.97', wanted '{wanted}'.*--codec auto --fidelity 0.97 \.\.\."
    with pytest.raises(CacheMismatchError, match=message):
        build_cache(tiny_build(data_root, auto_path, codec=codec))


def test_a_named_codec_is_not_what_auto_goes_on_with(cache_path: Path, data_root: Path) -> None:
    with pytest.raises(CacheMismatchError, match=r"codec is 'fp16', wanted 'auto:0.97'"):
        build_cache(tiny_build(data_root, cache_path, codec=CODEC))


def test_whoever_chooses_first_decides_for_all(
    auto_path: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two builders at once, on devices that would not agree."""
    out, real = tmp_path / "cache", Calibration.choose

    def other_chooses_meanwhile(sample: Calibration, tap: int, fidelity: float) -> CodecChoice:
        monkeypatch.setattr(Calibration, "choose", real)
        build_cache(tiny_build(data_root, out, codec=CODEC))
        return replace(real(sample, tap, fidelity), codec="int8")

    monkeypatch.setattr(Calibration, "choose", other_chooses_meanwhile)
    build_cache(tiny_build(data_root, out, codec=CODEC))
    assert files_of(out) == files_of(auto_path)


@pytest.mark.parametrize("step", ["publish_table", "encode_record"])
def test_a_build_killed_after_the_choice_goes_on_with_it(
    auto_path: Path,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    out = tmp_path / "cache"
    with monkeypatch.context() as patched:
        patched.setattr(f"clipocr.precompute.builder.index.{step}", None)
        with pytest.raises(TypeError):
            build_cache(tiny_build(data_root, out, codec=CODEC))
    assert choice_files_of(out) == choice_files_of(auto_path)
    monkeypatch.setattr(Calibration, "choose", never)
    build_cache(tiny_build(data_root, out, codec=CODEC))
    assert files_of(out) == files_of(auto_path)


@pytest.mark.parametrize("damage", ["flip", "gone"])
@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_damaged_choice_is_put_back(
    auto_path: Path,
    copied: Path,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
    has_manifest: bool,
) -> None:
    name = choice_files_of(copied)[1]
    content = bytearray((copied / name).read_bytes())
    content[100] ^= 1
    if damage == "gone":
        (copied / name).unlink()
    else:
        (copied / name).write_bytes(content)
    if has_manifest:
        report = verify_cache(copied)
        assert [(fault.unit, fault.file) for fault in report.faults] == [("index", name)]
        assert repair_cache(copied, report).index_files == (name,)
        monkeypatch.setattr(Calibration, "choose", never)
    else:
        (copied / "manifest.json").unlink()
    build_cache(tiny_build(data_root, copied, codec=CODEC))
    assert files_of(copied) == files_of(auto_path)
    assert not verify_cache(copied).faults


def test_a_copy_of_fewer_taps_has_their_choices(
    auto_path: Path, data_root: Path, tmp_path: Path
) -> None:
    out, built = tmp_path / "small.cache", tmp_path / "built.cache"
    copy_cache(CopyConfig(source=auto_path, out=out, image_taps=(1, 3)))
    report = verify_cache(out)
    assert not report.faults
    assert not report.notes
    build_cache(tiny_build(data_root, built, codec=CODEC, image_taps=(1, 3)))
    assert files_of(out) == files_of(built)


def test_a_manifest_from_before_choices_is_read(auto_path: Path, cache_path: Path) -> None:
    data = json.loads((auto_path / "manifest.json").read_text())
    del data["sha256"]
    assert Manifest.from_json(data).to_json() == FeatureCache.open(auto_path).manifest.to_json()
    data = json.loads((cache_path / "manifest.json").read_text())
    del data["sha256"], data["choices"]
    assert Manifest.from_json(data) == FeatureCache.open(cache_path).manifest


def test_choices_stand_in_the_order_of_their_taps(auto_path: Path) -> None:
    """JSON has them sorted by name, where block12 comes before block2."""
    data = json.loads((auto_path / "manifest.json").read_text())
    del data["sha256"]
    data["spec"]["teacher"]["image_taps"] = [2, 12]
    data["choices"] = dict.fromkeys(("block12", "block2"), data["choices"]["block2"])
    assert list(Manifest.from_json(data).choices) == ["block2", "block12"]


# ------------------------------------------------------------------------------------ tap by tap


def test_codecs_can_be_named_tap_by_tap(
    data_root: Path, tmp_path: Path, cache: FeatureCache
) -> None:
    out = tmp_path / "cache"
    build_cache(tiny_build(data_root, out, codec="fp16,int8,klt:40"))
    mixed = FeatureCache.open(out)
    assert mixed.spec.codec == "fp16,int8,klt:40"
    assert mixed.view_reader(0, "block2").layout.row_shape == (17, 64 + 18)
    assert list(mixed.manifest.codec_layouts()) == ["block3"]
    for tap, least in ((1, 0.9999999), (2, 0.999), (3, 0.98)):
        features = torch.from_numpy(cache.view_reader(0, f"block{tap}").rows(0, 8)).float()
        stored = torch.from_numpy(mixed.view_reader(0, f"block{tap}").rows(0, 8))
        codec = mixed.tap_codec(tap)
        found = measure_fidelity(codec.target(features), codec.decode(stored))
        assert found["cosine_p50"] > least
    assert not verify_cache(out).faults
    copy_cache(CopyConfig(source=out, out=tmp_path / "two", image_taps=(1, 2)))
    assert FeatureCache.open(tmp_path / "two").spec.codec == "fp16,int8"
    assert not [name for name in files_of(tmp_path / "two") if name.startswith("codec")]


def test_as_many_codecs_as_taps(data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is of 2 image taps, there are 3"):
        tiny_build(data_root, tmp_path / "cache", codec="fp16,int8")


# -------------------------------------------------------------------------------------- commands


def run(*args: object) -> str:
    result = CliRunner().invoke(main, list(map(str, args)))
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_commands(auto_path: Path, data_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "words.cache"
    run("cache", "build", "--data", data_root, "--out", out, "--teacher", TINY_TEACHER,
        "--image-taps", "1,2,3", "--text-taps", "1,2,3", "--unit-rows", 32, "--chunk-rows", 8,
        "--codec", "auto", "--fidelity", "0.97", "--device", "cpu")  # fmt: skip
    assert files_of(out) == files_of(auto_path)
    choices = FeatureCache.open(out).manifest.choices.values()
    row_bytes = " + ".join(str(choice.chosen.row_bytes) for choice in choices)
    printed = run("cache", "info", out)
    assert f"auto, fidelity 0.97: {row_bytes} bytes a row, 2,176 each in fp16" in printed
    assert "0.97 (median), 0.7 (1st percentile)" in printed
    picture = tmp_path / "curve.png"
    assert str(picture) in run("cache", "info", out, "--plot", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_cache_without_a_curve_says_how_to_get_one(cache_path: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["cache", "info", str(cache_path), "--plot", str(tmp_path / "curve.png")]
    )
    assert result.exit_code == 1
    assert "fp16, was named, not chosen" in result.stderr
    assert "--codec auto" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_fidelity_is_for_auto(data_root: Path, tmp_path: Path) -> None:
    args = ["cache", "build", "--data", data_root, "--out", tmp_path, "--fidelity", "0.9"]
    result = CliRunner().invoke(main, list(map(str, args)))
    assert result.exit_code == 2
    assert "--fidelity is for --codec auto, not for --codec fp16" in result.stderr
