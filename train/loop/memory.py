"""What a step takes, estimated before the first one: on a CPU running out of memory has no message.

The kernel kills the process there. A GPU's allocator says at the first step what it lacks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ...shared.device import autocast
from ...shared.errors import OutOfMemoryError
from ...shared.terminal import byte_size, duration
from ..data.batch import Batch
from ..methods.trainee import Trainee

_PROBE_ROWS = (2, 10)
_PEAK_RATIO = 1.15
"""Of a step's peak to what it keeps for its backward pass, as measured."""
_STEP_RATIO = 3.0
"""Of a step's time to its forward pass's: the backward pass takes twice as long."""
_LONG_STEP_S = 30.0
_SURE_SHARE = 0.85
"""Of an estimate, what a step takes at least: as measured, estimates are up to 15 % too high."""
_ADAM_TENSORS = 3
"""Gradient and two moments, as large as the weights each."""


@dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """What a step will take."""

    num_rows: int
    """Samples that go through forward and backward together."""
    optimizer_bytes: int
    """Of gradients and moments; the weights themselves are there already."""
    bytes_at_rest: float
    """What a batch keeps whatever its size."""
    bytes_per_row: float
    """What each row adds."""
    seconds_per_row: float

    @property
    def num_bytes(self) -> float:
        """Memory that has to be free."""
        return self.optimizer_bytes + self.bytes_at_rest + self.num_rows * self.bytes_per_row

    def rows_within(self, num_bytes: float) -> int:
        """Return how many rows would fit, 0 if none."""
        return max(
            int((num_bytes - self.optimizer_bytes - self.bytes_at_rest) / self.bytes_per_row), 0
        )


def estimate_step(trainee: Trainee, batch: Batch, precision: str) -> StepEstimate:
    """Run a few rows of a batch forward, and reckon what all of it will take.

    The trainee, its random numbers and the batch are left as they were.
    """
    device = batch.device
    few, more = (min(n, len(batch.labels)) for n in _PROBE_ROWS)
    with _left_alone(trainee, device):
        _forward_bytes(trainee, batch.first(few), precision)  # It may make what is kept for good.
        kept_few = _forward_bytes(trainee, batch.first(few), precision)
        started = time.perf_counter()
        kept_more = _forward_bytes(trainee, batch.first(more), precision)
        seconds = time.perf_counter() - started
    per_row = (kept_more - kept_few) / (more - few) if more > few else kept_few / few
    trained = [p for p in trainee.parameters() if p.requires_grad]
    return StepEstimate(
        num_rows=len(batch.labels),
        optimizer_bytes=_ADAM_TENSORS * sum(p.nbytes for p in trained),
        bytes_at_rest=max(kept_few - few * per_row, 0),
        bytes_per_row=_PEAK_RATIO * per_row,
        seconds_per_row=_STEP_RATIO * seconds / more,
    )


def check_step(
    estimate: StepEstimate, batch_size: int, free_bytes: int | None, *, has_student: bool = False
) -> str:
    """Return what is to be known of a step that takes long or much; nothing of others.

    Args:
        estimate: Of a step's part that is computed at once.
        batch_size: Of the whole step.
        free_bytes: Memory that there is; None: not known.
        has_student: Whether the method has students of several sizes.

    Raises:
        OutOfMemoryError: it cannot fit.
    """
    needed = byte_size(estimate.num_bytes)
    smaller = "--batch-size or a larger --accumulate"
    if has_student:
        smaller += ", or --student tiny"
    if free_bytes is not None and _SURE_SHARE * estimate.num_bytes > free_bytes:
        fitting = estimate.rows_within(free_bytes)
        parts = -(-batch_size // fitting) if fitting else 0
        while parts and batch_size % parts:
            parts += 1
        way = f"; --accumulate {parts} would fit" if parts else ""
        raise OutOfMemoryError(
            f"a step on {estimate.num_rows:,} samples at once takes about {needed}, and "
            f"{byte_size(free_bytes)} are free: pass a smaller {smaller}{way}"
        )
    seconds = estimate.seconds_per_row * batch_size
    is_much = free_bytes is not None and estimate.num_bytes > free_bytes / 2
    if seconds < _LONG_STEP_S and not is_much:
        return ""
    return (
        f"Note: a step takes roughly {duration(seconds)} and {needed} on this CPU; pass a smaller "
        f"{smaller} for less."
    )


def free_memory() -> int | None:
    """Return the bytes that this process may still take on the machine or in its container."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kb = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        found.append(int(kb) * 1024)
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            found.append(int(limit) - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, StopIteration, ValueError):
        pass  # No Linux, or no such group.
    return min(found, default=None)


def _forward_bytes(trainee: Trainee, batch: Batch, precision: str) -> int:
    """Run a batch forward; return the bytes that it keeps for the backward pass."""
    there = {p.untyped_storage().data_ptr() for p in trainee.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, autocast(batch.device, precision):
        terms = trainee(batch)  # Held, so that no storage is freed and its place taken by another.
    del terms
    return sum(kept.values())


@contextmanager
def _left_alone(trainee: Trainee, device: torch.device) -> Iterator[None]:
    """Leave random numbers, running means and the mode as they were before the block."""
    buffers = {name: buffer.clone() for name, buffer in trainee.named_buffers()}
    modes = {module: module.training for module in trainee.modules()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        trainee.train()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for name, buffer in trainee.named_buffers():
                    buffer.copy_(buffers[name])
