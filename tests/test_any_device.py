"""From pictures to what is read in them, on the device under test; see `devices`.

What a GPU computes is compared with what a CPU does. On a CPU the two are one, and these tests hold
that everything else works with a device that is named.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import invoke
from loading import loader_of, needing
from samples import tiny_build

from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.builder.config import TextConfig
from clipocr.precompute.builder.text import add_text_table
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.charset import Charset

CODECS = ("fp16", "int8", "int4", "klt:24")
NEEDS = needing(("block1", "block2", "block3"), ("block2", "eot"))


@pytest.fixture(scope="module")
def on_cpu(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return built(data_root, tmp_path_factory.mktemp("cpu"), "cpu")


@pytest.fixture(scope="module")
def on_device(
    data_root: Path, tmp_path_factory: pytest.TempPathFactory, device: str
) -> dict[str, Path]:
    return built(data_root, tmp_path_factory.mktemp("device"), device)


def built(data_root: Path, folder: Path, device: str) -> dict[str, Path]:
    """Return a cache by each codec, of two views."""
    caches = {}
    for codec in CODECS:
        caches[codec] = folder / codec.replace(":", "-")
        config = tiny_build(
            data_root, caches[codec], codec=codec, device=device, precision="fp32",
            augment="randaugment", views=2,
        )  # fmt: skip
        build_cache(config)
    return caches


@pytest.mark.parametrize("codec", CODECS)
def test_a_cache_is_that_of_a_cpu(
    on_cpu: dict[str, Path], on_device: dict[str, Path], codec: str
) -> None:
    ours, theirs = (FeatureCache.open(caches[codec]) for caches in (on_device, on_cpu))
    assert ours.units(1) == theirs.units(1) == [0, 1, 2]
    assert ours.spec == theirs.spec
    for view in (0, 1):
        pixels = [c.image_reader(view, "pixels").all() for c in (ours, theirs)]
        np.testing.assert_array_equal(*pixels)
        for array in ("block1", "block3"):
            kept = [c.unit(view, 0).fidelity[array]["cosine_p50"] for c in (ours, theirs)]
            assert kept[0] == pytest.approx(kept[1], abs=1e-3)
            if codec.startswith("klt"):  # Its table is fitted to features, and not determined by
                continue  # them where two directions vary alike.
            decoded = [
                c.codec(array).decode(torch.tensor(c.image_reader(view, array).all())).float()
                for c in (ours, theirs)
            ]
            assert relative_error(*decoded) < 2e-3, (view, array)
    text = [c.text_table("char-36") for c in (ours, theirs)]
    assert text[0].strings == text[1].strings
    for array, rows in text[1].arrays.items():
        np.testing.assert_allclose(text[0].arrays[array][:], rows[:], rtol=2e-3, atol=2e-3)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("codec", CODECS)
def test_batches_are_those_of_a_cpu(on_cpu: dict[str, Path], device: str, codec: str) -> None:
    cache = FeatureCache.open(on_cpu[codec])
    here, there = (loader_of(cache, NEEDS, device=torch.device(d)) for d in (device, "cpu"))
    for epoch in (0, 1):
        for ours, theirs in zip(here.epoch(epoch), there.epoch(epoch), strict=True):
            assert ours.labels == theirs.labels
            assert ours.device.type == ours.views.device.type == torch.device(device).type
            assert torch.equal(ours.views.cpu(), theirs.views)
            assert torch.equal(ours.token_ids.cpu(), theirs.token_ids)
            assert ours.images.keys() == theirs.images.keys()
            for name, features in theirs.images.items():
                torch.testing.assert_close(ours.images[name].cpu(), features, rtol=1e-4, atol=1e-4)
            for name, features in theirs.text.items():
                assert torch.equal(ours.text[name].cpu(), features), name


@pytest.mark.parametrize("checked_on", ["device", "cpu"])
def test_rows_are_recomputed(
    on_cpu: dict[str, Path], on_device: dict[str, Path], data_root: Path, device: str,
    checked_on: str,
) -> None:  # fmt: skip
    """Also those that another device computed."""
    caches, by = (on_cpu, device) if checked_on == "device" else (on_device, "cpu")
    result = invoke("cache", "verify", caches["fp16"], "--recompute", 20, "--data", data_root,
                    "--device", by)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "20 rows" in result.stdout


def test_a_text_table_is_added(on_device: dict[str, Path], device: str) -> None:
    charset = Charset.load("94")
    _, record, was_there = add_text_table(
        TextConfig(cache=on_device["int8"], charset=charset, device=device)
    )
    assert (record.spec.name, was_there) == ("char-94", False)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_run_trains_reads_and_is_exported(
    on_device: dict[str, Path], data_root: Path, tmp_path: Path, device: str, precision: str
) -> None:
    run = tmp_path / "run"
    options = ("--cache", on_device["klt:24"], "--out", run, "--student", "tiny",
               "--image-taps", "1,2,3", "--text-taps", "1,2,3", "--epochs", 2, "--batch-size", 16,
               "--val-data", data_root, "--device", device, "--precision", precision,
               "--compile", "off")  # fmt: skip
    result = invoke("train", *options)
    assert result.exit_code == 0, result.output
    record = json.loads((run / "run.json").read_text())
    losses = [entry["loss/total"] for entry in record["history"]]
    assert losses[1] < losses[0]
    result = invoke("eval", run, "--data", data_root, "--device", device)
    assert result.exit_code == 0, result.output
    on_it = json.loads((run / "eval.json").read_text())["sets"]
    result = invoke("eval", run, "--data", data_root, "--device", "cpu", "--precision", "fp32")
    assert result.exit_code == 0, result.output
    assert json.loads((run / "eval.json").read_text())["sets"].keys() == on_it.keys()
    result = invoke("latency", run, "--data", data_root, "--device", device)
    assert result.exit_code == 0, result.output
    # Not as ONNX, which a machine that is lent without a network need not have.
    result = invoke("export", run, "--format", "safetensors", "--out", tmp_path / "model.st")
    assert result.exit_code == 0, result.output
