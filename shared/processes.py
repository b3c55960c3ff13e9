"""Which of the processes that were started together this one is. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self

from .errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Process:
    """One of the processes that share a piece of work; by default the only one."""

    rank: int = 0
    """Its number, from 0."""
    world_size: int = 1
    """How many there are."""
    local_rank: int = 0
    """Its number among those of this machine, and so which of the machine's GPUs is its own."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"rank is {self.rank} of {self.world_size} processes")

    def takes(self, number: int) -> bool:
        """Return whether a numbered piece of the work is this process's."""
        return number % self.world_size == self.rank

    @classmethod
    def of_torchrun(cls) -> Self:
        """Return which process this is as torchrun says, else a process that is alone."""
        return cls._of("RANK", "WORLD_SIZE", "LOCAL_RANK") or cls()

    @classmethod
    def of_torchrun_or_slurm(cls) -> Self:
        """Return which process this is as torchrun, a Slurm array or srun says.

        Only for work whose parts need not know of one another: tasks of an array may run at
        different times.
        """
        env = os.environ
        if torchrun := cls._of("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            return torchrun
        if "SLURM_ARRAY_TASK_ID" in env and "SLURM_ARRAY_TASK_COUNT" in env:
            first = int(env.get("SLURM_ARRAY_TASK_MIN", "0"))
            step = int(env.get("SLURM_ARRAY_TASK_STEP", "1"))
            return cls(
                rank=(int(env["SLURM_ARRAY_TASK_ID"]) - first) // step,
                world_size=int(env["SLURM_ARRAY_TASK_COUNT"]),
            )
        return cls._of("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID") or cls()

    @classmethod
    def _of(cls, rank: str, world_size: str, local_rank: str) -> Self | None:
        env = os.environ
        if rank not in env or world_size not in env:
            return None
        return cls(
            rank=int(env[rank]),
            world_size=int(env[world_size]),
            local_rank=int(env.get(local_rank, "0")),
        )
