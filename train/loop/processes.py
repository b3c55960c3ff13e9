"""The processes that train together, as torchrun starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from ...shared.device import choose_device
from ...shared.errors import UsageError
from ...shared.processes import Process

_Thing = TypeVar("_Thing")

_TIMEOUT = timedelta(hours=1)
"""Longer than any write of a checkpoint or opening of a cache, for which the others wait."""


@dataclass(frozen=True, kw_only=True)
class Processes(Process):
    """This process among those of the run. Where it is alone, no method waits for anything."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def choose_device(self, name: str) -> torch.device:
        """Return the device of that name; of a machine's GPUs each process has its own.

        Raises:
            UsageError: no such device here, or one GPU for several processes.
        """
        if self.world_size > 1 and name.startswith("cuda:"):
            raise UsageError(
                f"--device {name} would put all {self.world_size} processes on one GPU; pass "
                "--device cuda"
            )
        return choose_device(name, self)

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Join the others while the block runs: NCCL between GPUs, gloo between CPUs."""
        if self.world_size == 1:
            yield
            return
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=_TIMEOUT)
        except ValueError as e:  # A variable of torchrun's is missing.
            raise UsageError(
                f"the {self.world_size} processes that RANK and WORLD_SIZE speak of cannot find "
                f"each other ({e}); start the command by torchrun --nproc-per-node N -m clipocr "
                "train ..., or run it alone by: env -u RANK -u WORLD_SIZE"
            ) from None
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
        if self.world_size == 1:
            return flag
        return bool(self.mean(torch.tensor(float(flag), device=device)))

    def gather(self, thing: _Thing) -> list[_Thing]:
        """Return every process's thing, in rank order."""
        if self.world_size == 1:
            return [thing]
        things: list[_Thing | None] = [None] * self.world_size
        dist.all_gather_object(things, thing)
        return things  # type: ignore[return-value]
