"""What a step will take is said before it, and what cannot fit is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_student import SMALL_METHOD
from torch import nn

from clipocr.shared.errors import OutOfMemoryError
from clipocr.train.data.batch import Batch
from clipocr.train.loop import run as run_module
from clipocr.train.loop.config import TrainConfig, TrainPlace
from clipocr.train.loop.memory import StepEstimate, check_step, estimate_step, free_memory
from clipocr.train.loop.run import train
from clipocr.train.methods.trainee import Trainee

ESTIMATE = StepEstimate(
    num_rows=320,
    optimizer_bytes=400_000_000,
    bytes_at_rest=0,
    bytes_per_row=45_000_000,
    seconds_per_row=0.5,
)


class Layers(Trainee):
    """Two linear layers, whose backward pass needs what goes into each, and a dropout's mask."""

    recogniser = None
    term_names = ("loss",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(100, 200), nn.Linear(200, 50)
        self.norm = nn.BatchNorm1d(200)
        self.dropout = nn.Dropout(0.5)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        hidden = self.norm(self.first(batch.images["x"]))
        return {"loss": self.second(self.dropout(hidden)).sum()}


def batch(num_rows: int) -> Batch:
    return Batch(
        labels=["a"] * num_rows,
        token_ids=torch.zeros(num_rows, 3, dtype=torch.long),
        views=None,
        images={"x": torch.randn(num_rows, 100)},
        text={},
        device=torch.device("cpu"),
    )


def test_an_estimate_counts_what_is_kept_and_leaves_all_as_it_was() -> None:
    trainee = Layers().eval()
    before = {name: value.clone() for name, value in trainee.state_dict().items()}
    rows, state = batch(64), torch.get_rng_state()
    estimate = estimate_step(trainee, rows, "fp32")
    assert torch.equal(torch.get_rng_state(), state)
    assert not trainee.training
    for name, value in trainee.state_dict().items():
        assert torch.equal(value, before[name]), name
    # float32: what goes into the layers (100), the norm (200), the second layer (200); a mask of
    # a byte each (200).
    assert estimate.bytes_per_row == pytest.approx(1.15 * (4 * (100 + 200 + 200) + 200), rel=0.1)
    assert estimate.optimizer_bytes == 3 * 4 * (100 * 200 + 200 + 200 * 50 + 50 + 2 * 200)
    assert estimate.num_rows == 64


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    # 0.4 GB and 320 rows of 45 MB: 14.8 GB.
    said = (
        r"320 samples at once takes about 14\.8 GB, and 6\.0 GB are free: pass a smaller "
        r"--batch-size or a larger --accumulate, or --student tiny; --accumulate 4 would fit"
    )  # 124 rows fit, so 3 parts, of which 320 is no multiple.
    with pytest.raises(OutOfMemoryError, match=said):
        check_step(ESTIMATE, 320, 6_000_000_000, has_student=True)
    with pytest.raises(OutOfMemoryError) as caught:
        check_step(ESTIMATE, 320, 300_000_000)
    assert "would fit" not in str(caught.value)
    assert "--student" not in str(caught.value)


def test_what_takes_long_or_much_is_said() -> None:
    said = check_step(ESTIMATE, 320, 100_000_000_000)
    assert said.startswith("Note: a step takes roughly 3 min and 14.8 GB on this CPU;")
    quick = replace(ESTIMATE, seconds_per_row=0.001)
    assert check_step(quick, 320, 20_000_000_000).startswith("Note: a step takes roughly 0 s")
    assert check_step(quick, 320, 100_000_000_000) == ""
    assert check_step(quick, 320, None) == ""


def test_a_run_is_refused_before_its_first_step_and_begins_with_less(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(method=SMALL_METHOD, epochs=1, batch_size=24, precision="fp32")
    place = TrainPlace(cache=cache_path, out=tmp_path / "run", device="cpu")
    monkeypatch.setattr(run_module, "free_memory", lambda: 2_000_000)
    with pytest.raises(OutOfMemoryError, match="--batch-size"):
        train(config, place)
    assert not (place.out / "last.pt").exists()
    monkeypatch.setattr(run_module, "free_memory", free_memory)
    assert train(config, place).num_steps == 3


def test_free_memory_is_what_the_machine_says() -> None:
    free = free_memory()
    assert free is None or 1_000_000 < free < 1 << 50
