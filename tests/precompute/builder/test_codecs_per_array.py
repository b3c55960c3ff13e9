"""Each image array may have a codec of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from samples import tiny_build

from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.upkeep.verify import verify_cache
from clipocr.shared.cache.codecs.codecs import measure_fidelity
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.errors import UsageError


def test_codecs_are_named_array_by_array(
    data_root: Path, tmp_path: Path, cache: FeatureCache
) -> None:
    out = tmp_path / "cache"
    build_cache(tiny_build(data_root, out, codec="fp16,int8,klt:40"))
    mixed = FeatureCache.open(out)
    assert mixed.spec.codec == "fp16,int8,klt:40"
    assert mixed.image_reader(0, "block2").layout.row_shape == (17, 64 + 18)
    assert list(mixed.manifest.codec_layouts()) == ["block3"]
    for tap, least in ((1, 0.9999999), (2, 0.999), (3, 0.98)):
        features = torch.from_numpy(cache.image_reader(0, f"block{tap}").rows(0, 8)).float()
        stored = torch.from_numpy(mixed.image_reader(0, f"block{tap}").rows(0, 8))
        codec = mixed.codec(f"block{tap}")
        found = measure_fidelity(codec.target(features), codec.decode(stored))
        assert found["cosine_p50"] > least
    assert not verify_cache(out).faults


def test_there_are_as_many_codecs_as_arrays(data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is of 2 image arrays, there are 3"):
        tiny_build(data_root, tmp_path / "cache", codec="fp16,int8")
