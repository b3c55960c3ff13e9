"""What latency, operations and parameters are, and of which pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import Oracle, painted, write_painted
from torch import Tensor, nn

from clipocr.shared.charset import Charset
from clipocr.train.evaluation.latency import (
    Latency,
    Spread,
    count_gmacs,
    load_pictures,
    measure_latency,
)
from clipocr.train.evaluation.test_sets import TestSet, open_test_sets
from clipocr.train.models.recogniser import Recogniser
from clipocr.train.models.tokenizer import LabelTokenizer
from clipocr.train.reading.readers import Reader


@pytest.fixture
def test_sets(tmp_path: Path) -> list[TestSet]:
    write_painted(tmp_path / "SVT", ["a"])
    write_painted(tmp_path / "mine", ["a", "bb", "c"])
    return open_test_sets([tmp_path], Charset.load("36"), 25)


def test_it_states_what_was_measured(test_sets: list[TestSet]) -> None:
    pictures = load_pictures(test_sets, 3)
    # Evenly from all sets: samples 1, 2 and 3 of the four.
    assert pictures == [painted(0), painted(0), painted(1)]
    readers = [Reader(Oracle(["a", "bbb"])), Reader(Oracle(["a", "b"]))]
    report = measure_latency(readers, pictures, (1, 4))
    table = report.table
    assert [row[0] for row in table.rows] == ["Oracle"] * 2 + ["Oracle (2)"] * 2
    assert [row[3] for row in table.rows] == ["1", "4"] * 2
    for row in report.rows:
        for spread in (row.preprocessing_ms, row.reading_ms):
            assert 0 < spread.p10 <= spread.median <= spread.p90
        assert row.num_parameters == sum(p.numel() for p in readers[0].recogniser.parameters())
    assert "in 10 batches at least, after 3 to warm up" in table.notes
    assert " CPU, " in table.notes
    # Both were measured alike.
    assert len(report.settings) == 1
    record = report.to_json()
    assert record["num_images"] == 3
    assert record["rows"][1]["reading_ms"].keys() == {"p10", "median", "p90"}


def test_spreads_are_percentiles_and_totals_are_of_medians() -> None:
    # Between the 11 values are ten steps, so that percentiles are values.
    spread = Spread.of_seconds([0.001 * i for i in (10, 0, 9, 1, 8, 2, 7, 3, 6, 4, 5)])
    assert (spread.p10, spread.median, spread.p90) == pytest.approx((1, 5, 9))
    assert str(spread) == "5.00 (1.00-9.00)"
    row = Latency(
        model="m", num_parameters=None, gmacs=None, batch_size=1,
        preprocessing_ms=spread, reading_ms=spread,
    )  # fmt: skip
    assert row.together_ms == pytest.approx(10)
    assert row.images_per_s == pytest.approx(100)


class Counted(Recogniser):
    """A convolution, a projection that is made twice, and attention: few enough to count."""

    view_px = (8, 16)

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = LabelTokenizer(Charset.load("36"), 1)
        self.patches = nn.Conv2d(3, 8, kernel_size=4, stride=4)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 37)
        self.scale = nn.Parameter(torch.ones(1, 1, 8))

    @torch.no_grad()
    def decode(self, images: Tensor, max_length: int | None = None) -> Tensor:
        del max_length
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = self.mix(self.mix(tokens))
        # A parameter goes through a module, where gradients would be asked for.
        query = nn.Identity()(self.scale).expand(len(tokens), 1, 8)
        attended = nn.functional.scaled_dot_product_attention(query, tokens, tokens)
        return self.head(attended)


def test_multiplications_are_those_counted_by_hand() -> None:
    recogniser = Counted().eval()
    views = [np.full((8, 16, 3), level, np.uint8) for level in (1, 2, 3)]
    num = 2 * 4 * 8 * (3 * 4 * 4)  # 2 x 4 patches, 8 channels, each of 3 x 4 x 4 pixels
    num += 2 * (8 * 8 * 8)  # 8 tokens, twice
    num += 2 * (1 * 8 * 8)  # 1 query of 8 with 8 tokens, and the weighted sum
    num += 1 * 8 * 37
    # The same for each picture, so the mean is that of one.
    assert count_gmacs(Reader(recogniser), views) == pytest.approx(num / 1e9, rel=1e-12)
    assert all(parameter.requires_grad for parameter in recogniser.parameters())
