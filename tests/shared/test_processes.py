from __future__ import annotations

import os

import pytest

from clipocr.shared.errors import UsageError
from clipocr.shared.processes import Process


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (5, 8, 1)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "10"}, (7, 10, 0)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "9",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_STEP": "4",
            },
            (2, 4, 0),
        ),
        (
            {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"},
            (3, 4, 1),
        ),
        # A job script outside of srun runs once, whatever the job's number of tasks.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": ""}, (0, 1, 0)),
    ],
)
def test_which_process_this_is(
    variables: dict[str, str], expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    rank, world_size, local_rank = expected
    process = Process(rank=rank, world_size=world_size, local_rank=local_rank)
    assert Process.of_torchrun_or_slurm() == process
    # A Slurm array trains several students, each alone.
    assert Process.of_torchrun() == (process if "RANK" in variables else Process())


def test_each_piece_of_work_is_one_processs() -> None:
    processes = [Process(rank=rank, world_size=3) for rank in range(3)]
    assert [[p.takes(i) for p in processes].count(True) for i in range(7)] == [1] * 7
    with pytest.raises(UsageError, match="rank is 3 of 3 processes"):
        Process(rank=3, world_size=3)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "1"}, "WORLD_SIZE is None, expected a whole number"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK is '', expected a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a whole number"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": ""}, "SLURM_STEP_NUM_TASKS is ''"),
        ({"SLURM_ARRAY_TASK_ID": "x", "SLURM_ARRAY_TASK_COUNT": "2"}, "TASK_ID is 'x'"),
    ],
)
def test_half_a_launcher_is_refused(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        Process.of_torchrun_or_slurm()


def test_a_share_says_why_it_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Process.of_torchrun().describe_share("the units") == (
        "This process takes share 2 of 4 of the units, because of RANK=1 and WORLD_SIZE=4; to take "
        "all of it, run the command by: env -u RANK -u WORLD_SIZE"
    )
