"""clipocr in processes forked from one that has imported torch and open_clip.

Each is a real process, with its own environment, output and signals; only the 5 s of imports are
shared. How the program itself starts is tested where an interpreter is started.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["open_clip", "clipocr.precompute.builder.build", "clipocr.train.loop.run"]
)
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM")


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class Forked:
    """A command that runs."""

    def __init__(self, *args: object, stdin: bytes = b"", **variables: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        (folder / "stdin").write_bytes(stdin)
        self._process = _context.Process(
            target=_run, args=([str(arg) for arg in args], folder, variables)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def finish(self, timeout_s: float = 100) -> Finished:
        """Wait for the end and return it."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"still running after {timeout_s} s: {self._read('stderr')}")
        done = Finished(self._process.exitcode, self._read("stdout"), self._read("stderr"))
        self._folder.cleanup()
        return done

    def _read(self, stream: str) -> str:
        return os.fsdecode((Path(self._folder.name) / stream).read_bytes())


def forked(*args: object, stdin: bytes = b"", **variables: str) -> Finished:
    """Run a command to its end; without the variables of a launcher but those given."""
    return Forked(*args, stdin=stdin, **variables).finish()


def as_processes(number: int, *args: object) -> list[Forked]:
    """Start a command as torchrun starts its processes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    group = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [Forked(*args, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(number)]


def _run(args: list[str], folder: Path, variables: Mapping[str, str]) -> NoReturn:
    for name in [name for name in os.environ if name.startswith(_LAUNCHER)]:
        del os.environ[name]
    os.environ.update(variables)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY
        file = os.open(folder / name, flags)
        os.dup2(file, number)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing has put another in its place.
    import torch
    from samples import register_tiny_clip

    from clipocr.__main__ import main

    torch.set_num_threads(1)
    register_tiny_clip(folder)
    sys.argv = ["clipocr", *args]
    main()
    raise AssertionError("a command of click exits")
