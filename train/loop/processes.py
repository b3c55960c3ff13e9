"""The processes that train one student together, as torchrun starts them.

Everything here is a no-op in a process that is alone, so that the loop reads the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

_Thing = TypeVar("_Thing")

_TIMEOUT = timedelta(hours=1)
"""Longer than any write of a checkpoint or opening of a cache, for which the others wait."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Which of this machine's processes, and so which of its GPUs, this is."""

    @classmethod
    def from_environment(cls) -> Processes:
        """Return what torchrun said, or a process that is alone."""
        env = os.environ
        if "RANK" not in env or "WORLD_SIZE" not in env:
            return cls()
        return cls(
            rank=int(env["RANK"]),
            world_size=int(env["WORLD_SIZE"]),
            local_rank=int(env.get("LOCAL_RANK", "0")),
        )

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Join the others while the block runs: NCCL between GPUs, gloo between CPUs."""
        if self.world_size == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_TIMEOUT)
        try:
            yield
        finally:
            dist.destroy_process_group()

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean of the processes' tensors."""
        if self.world_size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.world_size

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether the flag is set in any process."""
        return (
            flag
            if self.world_size == 1
            else bool(self.mean(torch.tensor(float(flag), device=device)))
        )

    def gather(self, thing: _Thing) -> list[_Thing]:
        """Return every process's thing, in rank order."""
        if self.world_size == 1:
            return [thing]
        things: list[_Thing | None] = [None] * self.world_size
        dist.all_gather_object(things, thing)
        return things  # type: ignore[return-value]
