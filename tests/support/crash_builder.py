"""Builds that meet a fault at their n-th write operation; a program for `test_crash`.

It imports everything once and forks a child per build, which is fifty times cheaper than fifty
starts of torch. One JSON object a line comes in, the arguments of clipocr and the fault; one goes
out. Nothing here may start a thread before a fork.

    operations: each write to a file of the cache, fsync, rename and folder made
"""

from __future__ import annotations

import errno
import fcntl
import gc
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tqdm
from samples import register_tiny_clip

from clipocr.cli import main
from clipocr.precompute.builder import build, text, weights
from clipocr.shared.cache.storage import PendingFile


class Fault:
    """What happens at the n-th operation, from 0."""

    def __init__(self, *, kind: str = "none", at: int = -1, path: str = "", num_bytes: int = 0):
        self._kind, self._at, self._path = kind, at, path
        self._num_bytes = num_bytes

    def before(self, num: int) -> None:
        """Strike, or let the operation be done."""
        if self._at < 0 or num < self._at:
            return
        if self._kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._kind == "vanish":
            shutil.rmtree(self._path, ignore_errors=True)
        elif self._kind in ("ENOSPC", "EROFS", "EIO"):
            # From now on: a full disk stays full.
            number = getattr(errno, self._kind)
            raise OSError(number, os.strerror(number), self._path or None)

    def at_start(self) -> None:
        """Limit the size of files, which a shell does by ``ulimit -f``."""
        if self._kind == "file size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._num_bytes, resource.RLIM_INFINITY))


def watch_writes(fault: Fault, log: int) -> None:
    """Count every operation, note it in the file `log`, and let `fault` strike."""
    # Arrays are written at once, so a number and its line belong to one thread at a time.
    numbers, lock = itertools.count(), threading.Lock()

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            if name == "mkdir" and os.path.exists(args[0]):
                return real(*args, **options)
            detail = Path(args[1]).name if name == "replace" else ""
            with lock:
                num = next(numbers)
                os.write(log, f"{name} {detail}\n".encode())
            fault.before(num)
            return real(*args, **options)

        return watched

    real_write = PendingFile.write

    def torn_write(file: PendingFile, data: bytes | memoryview) -> None:
        # Half of it reaches the disk, then the operation is counted, and perhaps struck.
        half = len(data) // 2
        real_write(file, data[:half])
        file._file.flush()
        rest(file, data[half:])

    rest = wrap("write", real_write)
    PendingFile.write = torn_write  # type: ignore[method-assign]
    for name in ("fsync", "replace", "mkdir"):
        setattr(os, name, wrap(name, getattr(os, name)))


def run(args: list[str], fault: Fault) -> dict[str, Any]:
    """Run clipocr in a forked child; return its exit code, output and operations."""
    # Pipes, not files: a limit on files must not limit them.
    pipes = {name: os.pipe() for name in ("stdout", "stderr", "operations")}
    for _, writing in pipes.values():
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
    child = os.fork()
    if child == 0:
        os.dup2(pipes["stdout"][1], 1)
        os.dup2(pipes["stderr"][1], 2)
        code = 99
        try:
            watch_writes(fault, pipes["operations"][1])
            fault.at_start()
            main(args)
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 99
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    answer: dict[str, Any] = {"exit_code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}
    for name, (reading, writing) in pipes.items():
        os.close(writing)
        with os.fdopen(reading) as file:
            answer[name] = file.read()
    return answer | {"operations": answer["operations"].splitlines()}


def serve(folder: Path) -> None:
    """Answer one request a line until there are no more."""
    register_tiny_clip(folder)
    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0  # Its monitor is a thread.
    # Teacher and tokenizer are loaded before the forks; how they are has tests of its own.
    config = {"image_taps": (1, 2, 3), "text_taps": (1, 2, 3), "precision": "fp32"}
    cpu = torch.device("cpu")
    teacher = build.load_teacher("ViT-tiny-test/random:0", **config, device=cpu)
    build.load_teacher = lambda *_, **__: teacher
    tokenizer = text.TeacherTokenizer("char", 25)
    text.TeacherTokenizer = lambda *_: tokenizer
    loaded = weights.load_weights("ViT-tiny-test/random:0", "fp32")
    weights.load_weights = lambda *_: loaded
    teacher.image_features(torch.zeros(8, 32, 128, 3, dtype=torch.uint8))
    gc.freeze()  # So that children need not copy what they never change.
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(run(request["args"], Fault(**request["fault"]))), flush=True)
    gc.unfreeze()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        serve(Path(temporary))
