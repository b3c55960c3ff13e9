"""Runs that are looked at step by step, or stopped and gone on with."""

from __future__ import annotations

import pytest
import torch

from clipocr.train.loop import run as run_module
from clipocr.train.loop.config import TrainConfig, TrainPlace
from clipocr.train.loop.log import Meter
from clipocr.train.loop.run import train


def note_steps(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return a list that takes the values of every step that is trained from now on."""
    steps: list[torch.Tensor] = []
    add = Meter.add

    def note(meter: Meter, values: torch.Tensor) -> None:
        steps.append(values)
        add(meter, values)

    monkeypatch.setattr(Meter, "add", note)
    return steps


def train_in_two_parts(
    config: TrainConfig, place: TrainPlace, monkeypatch: pytest.MonkeyPatch, *, num_steps: int
) -> None:
    """Train some steps, saving after each, stop before the next, and go on with the rest."""
    take_step, taken = run_module._Run._take_step, 0

    def stops(*args: object) -> None:
        nonlocal taken
        if taken == num_steps:
            raise KeyboardInterrupt
        taken += 1
        take_step(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(run_module._Run, "_take_step", stops)
        patched.setattr(run_module._Run, "_after_step", lambda run, *_args, **_kw: run.save())
        with pytest.raises(KeyboardInterrupt):
            train(config, place)
    train(config, place, resume=True)
