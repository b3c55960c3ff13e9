"""Which of the processes that were started together this one is. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
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
    variables: tuple[str, ...] = field(default=(), compare=False)
    """The environment's variables that say so; none if the process is alone."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"rank is {self.rank} of {self.world_size} processes")

    def describe_share(self, work: str) -> str:
        """Say which share of some work this process takes, why, and how to take all of it."""
        said = " and ".join(f"{name}={os.environ[name]}" for name in self.variables)
        unset = " ".join(f"-u {name}" for name in self.variables)
        return (
            f"This process takes share {self.rank + 1} of {self.world_size} of {work}, because of "
            f"{said}; to take all of it, run the command by: env {unset}"
        )

    def takes(self, number: int) -> bool:
        """Return whether a numbered piece of the work is this process's."""
        return number % self.world_size == self.rank

    @classmethod
    def of_torchrun(cls) -> Self:
        """Return which process this is as torchrun says, else a process that is alone.

        Raises:
            UsageError: the launcher's variables are no numbers, or one is missing.
        """
        if "RANK" not in os.environ:
            return cls()
        return cls._of("RANK", "WORLD_SIZE", "LOCAL_RANK")

    @classmethod
    def of_torchrun_or_slurm(cls) -> Self:
        """Return which process this is as torchrun, a Slurm array or srun says.

        Only for work whose parts need not know of one another: tasks of an array may run at
        different times. A job script has ``SLURM_PROCID`` and ``SLURM_NTASKS`` as well, but runs
        once, so that a process is one of several only in a step, as srun starts it.

        Raises:
            UsageError: as of `of_torchrun`.
        """
        if "RANK" in os.environ:
            return cls.of_torchrun()
        if "SLURM_ARRAY_TASK_ID" in os.environ:
            first = _number("SLURM_ARRAY_TASK_MIN", 0)
            step = _number("SLURM_ARRAY_TASK_STEP", 1)
            return cls(
                rank=(_number("SLURM_ARRAY_TASK_ID") - first) // step,
                world_size=_number("SLURM_ARRAY_TASK_COUNT"),
                variables=("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
            )
        if "SLURM_STEP_NUM_TASKS" in os.environ:
            return cls._of("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        return cls()

    @classmethod
    def _of(cls, rank: str, world_size: str, local_rank: str) -> Self:
        return cls(
            rank=_number(rank),
            world_size=_number(world_size),
            local_rank=_number(local_rank, 0),
            variables=(rank, world_size),
        )


def _number(variable: str, default: int | None = None) -> int:
    """Return the value of a launcher's variable.

    Raises:
        UsageError: it is no number, or missing where there is no default.
    """
    value = os.environ.get(variable, default)
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UsageError(
            f"{variable} is {value!r}, expected a whole number; a launcher such as torchrun or "
            f"srun sets it. Start the command by one, or unset its variables to run it alone"
        ) from None
