"""Several processes build one cache: torchrun, a Slurm array, and two people at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Finished, Forked, as_processes, forked
from samples import TINY_CLI, WORDS, files_of, write_words

pytestmark = pytest.mark.slow


def build_command(data: Path, out: Path) -> list[str]:
    return [
        *("cache", "build", "--data", str(data), "--out", str(out)),
        *("--teacher", "ViT-tiny-test/random:0", "--image-taps", "1,2,3", "--text-taps", "1,2,3"),
        *("--unit-rows", "16", "--chunk-rows", "8", "--device", "cpu"),
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_words(root / "set", WORDS * 4)
    return root


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes: 120 rows in eight units."""
    out = tmp_path_factory.mktemp("alone") / "cache"
    done = forked(*build_command(data, out))
    assert done.returncode == 0, done.stderr
    assert (out / "commits/view0/unit-00007.json").exists()
    return files_of(out)


def torchrun(data: Path, out: Path) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, "--master-port", "0", str(TINY_CLI), *build_command(data, out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def put_in_the_way_of(unit_idx: int, out: Path) -> Path:
    """Put a file where a unit needs a folder, so that the process that builds it fails."""
    obstacle = out / "image/view0/block1/c" / str(unit_idx)
    obstacle.parent.mkdir(parents=True)
    obstacle.write_bytes(b"in the way")
    return obstacle


def check_only_whole_files(out: Path, obstacle: Path, alone: dict[str, bytes]) -> set[str]:
    """Check that what was published is what one process makes; return the names."""
    own = obstacle.relative_to(out).as_posix()
    found = {n: d for n, d in files_of(out).items() if n != own and not n.startswith(".tmp/")}
    assert found == {name: alone[name] for name in found}
    return set(found)


def test_two_processes(data: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "cache"
    done = [process.finish() for process in as_processes(2, *build_command(data, out))]
    assert [process.returncode for process in done] == [0, 0]
    built = sorted(process.stdout.split("; ")[1] for process in done)
    # 120 rows in units of 16, the last of 8: units 0, 2, 4, 6 and units 1, 3, 5, 7.
    assert [text.split(" at ")[0] for text in built] == ["56 views built", "64 views built"]
    assert files_of(out) == alone


def test_torchrun_of_which_a_process_fails_is_finished_by_the_next(
    data: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "cache"
    obstacle = put_in_the_way_of(3, out)
    done = torchrun(data, out)
    # It ends: the agent of torchrun stops the other process, wherever that is.
    assert done.returncode != 0
    assert f"Error: {obstacle}" in done.stderr
    assert "commits/view0/unit-00003.json" not in check_only_whole_files(out, obstacle, alone)
    obstacle.unlink()
    for process in as_processes(2, *build_command(data, out)):
        done_again = process.finish()
        assert done_again.returncode == 0, done_again.stderr
    assert files_of(out) == alone


def test_a_task_of_a_slurm_array_that_fails_stops_no_other(
    data: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "cache"

    def task(number: int) -> Finished:
        variables = {
            "SLURM_ARRAY_TASK_ID": str(number),
            "SLURM_ARRAY_TASK_COUNT": "2",
            "SLURM_ARRAY_TASK_MIN": "3",
        }
        return forked(*build_command(data, out), **variables)

    obstacle = put_in_the_way_of(2, out)
    failed = task(3)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith(f"Error: {obstacle}")
    assert "units of other processes are still missing" in task(4).stdout
    found = check_only_whole_files(out, obstacle, alone)
    assert {f"commits/view0/unit-0000{i}.json" for i in (0, 1, 3, 5, 7)} <= found
    assert not (out / "sealed.json").exists()
    obstacle.unlink()
    requeued = task(3)
    assert requeued.returncode == 0, requeued.stderr
    assert "still missing" not in requeued.stdout
    assert files_of(out) == alone


def test_two_people_start_the_same_build(
    data: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "cache"
    for build in [Forked(*build_command(data, out)) for _ in range(2)]:
        done = build.finish()
        assert done.returncode == 0, done.stderr
    assert files_of(out) == alone
