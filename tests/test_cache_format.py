"""`docs/cache-format.md` is true: its program reads a real cache with plain Zarr."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from samples import tiny_build

from clipocr.precompute.builder.build import build_cache
from clipocr.shared.cache.codecs.codec import Codec
from clipocr.shared.cache.codecs.codecs import feature_codec, unfilter_pixels
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.records import REJECTION_REASONS

PAGE = (Path(__file__).parents[1] / "docs" / "cache-format.md").read_text(encoding="utf-8")


def test_the_program_reads_what_clipocr_reads(cache_path: Path, cache: FeatureCache) -> None:
    (program,) = re.findall(r"```python\n(import json.*?)```", PAGE, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program, str(cache_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    printed = [line.split() for line in done.stdout.splitlines()]
    assert len(printed) == 72  # 73 rows, one of them bad.
    labels, text = cache.labels(), cache.text_table("char-36")
    pixels = unfilter_pixels(torch.from_numpy(cache.image_reader(0, "pixels").all().copy()))
    features = cache.image_reader(0, "block1").all()
    all_labels = np.concatenate([cache.rows(u)["label"] for u in cache.units()])
    for row, label, word, pixel_mean, feature_mean, text_mean in printed:
        label_id = all_labels[int(row)]
        text_id = text.of_label[label_id]
        assert label == labels[label_id]
        assert word == text.strings[text_id]
        assert float(pixel_mean) == pixels[int(row)].numpy().mean()
        assert float(feature_mean) == features[int(row)].mean()
        assert float(text_mean) == text.arrays["block1"][text.nodes[text_id, 0]].mean()


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_its_lines_decode_records(name: str) -> None:
    (lines,) = re.findall(r"```text\n(head = .*?)```", PAGE, flags=re.DOTALL)
    other = {"int8": "int4:", "int4": "int8:"}[name]
    code, is_other = [], False
    for line in lines.splitlines():
        is_other = line.startswith(other) or (is_other and line.startswith(" "))
        if not is_other:
            code.append(re.sub(r"^(int[84]:)? +", "", line))
    positive = [
        float(v) for v in re.findall(r"Gaussian: ([\d., \n]+?) for codes", PAGE)[0].split(",")
    ]
    codec = feature_codec(Codec.parse(name))
    features = torch.randn(3, 17, 64, generator=torch.Generator().manual_seed(0))
    stored = codec.encode(features)
    levels = np.asarray([-v for v in reversed(positive)] + positive, np.float32)
    scope = {"np": np, "tokens": stored.numpy(), "levels": levels}
    exec("\n".join(code), scope)
    decoded = codec.decode(stored).numpy()
    np.testing.assert_allclose(scope["features"], decoded, rtol=1e-6)


def test_its_function_decodes_klt(data_root: Path, tmp_path: Path) -> None:
    (function,) = re.findall(r"```python\n(def decode_klt.*?)```", PAGE, flags=re.DOTALL)
    scope: dict[str, Any] = {"np": np}
    exec(function, scope)
    build_cache(tiny_build(data_root, tmp_path / "cache", codec="klt:24"))
    cache, group = FeatureCache.open(tmp_path / "cache"), zarr.open_group(tmp_path / "cache")
    (digest,) = group["codec"]
    for tap in (1, 2, 3):
        records = group[f"image/view0/block{tap}"][:20]
        expected = cache.codec(f"block{tap}").decode(torch.from_numpy(records))
        decoded = scope["decode_klt"](records, group["codec"][digest][f"block{tap}"][:])
        np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reason", REJECTION_REASONS)
def test_rejection_codes_are_listed(reason: str) -> None:
    assert f"{REJECTION_REASONS.index(reason)} {reason}" in PAGE


def test_every_test_it_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", PAGE)
    assert named
    assert not [name for name in named if not (Path(__file__).parents[1] / name).is_file()]
