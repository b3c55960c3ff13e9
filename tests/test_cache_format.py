"""`docs/cache-format.md` is true: its program reads a real cache with plain Zarr."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clipocr.shared.cache import FeatureCache
from clipocr.shared.codecs import unfilter_pixels
from clipocr.shared.schema import REJECTION_REASONS

PAGE = (Path(__file__).parents[1] / "docs" / "cache-format.md").read_text(encoding="utf-8")


def test_the_program_reads_what_clipocr_reads(cache_path: Path, cache: FeatureCache) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program, str(cache_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    printed = [line.split() for line in done.stdout.splitlines()]
    assert len(printed) == 72  # 73 rows, one of them bad.
    labels, text = cache.labels(), cache.text_table("char-36")
    pixels = unfilter_pixels(torch.from_numpy(cache.view_reader(0, "pixels").all().copy()))
    features = cache.view_reader(0, "block1").all()
    all_labels = np.concatenate([cache.rows(u)["label"] for u in cache.units()])
    for row, label, word, pixel_mean, feature_mean, text_mean in printed:
        label_id = all_labels[int(row)]
        text_id = text.of_label[label_id]
        assert label == labels[label_id]
        assert word == text.strings[text_id]
        assert float(pixel_mean) == pixels[int(row)].numpy().mean()
        assert float(feature_mean) == features[int(row)].mean()
        assert float(text_mean) == text.taps[1][text.nodes[text_id, 0]].mean()


@pytest.mark.parametrize("reason", REJECTION_REASONS)
def test_rejection_codes_are_listed(reason: str) -> None:
    assert f"{REJECTION_REASONS.index(reason)} {reason}" in PAGE


def test_every_test_it_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", PAGE)
    assert named
    assert not [name for name in named if not (Path(__file__).parents[1] / name).is_file()]
