"""What the parts of `make gpu` find, on disk as soon as it is found."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
"""Figures by name."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    part: int
    name: str
    rows: list[Row]
    """What was measured, as the rows of a table; none: only that it holds."""
    error: str
    """Why it does not hold, or could not be measured; empty if it does."""
    seconds: float


class Results:
    """The checks of one part, appended to its file one by one."""

    def __init__(self, folder: Path, part: int) -> None:
        """Go on with a part, or begin it: what is there stays."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._part = results_file(folder, part), part
        self._path.touch()

    def check(self, name: str, work: Callable[..., Any], *args: Any) -> Any:
        """Do some work; an exception makes the check one that failed, and stops nothing.

        Args:
            name: Of the check.
            work: Returns a row or rows of figures, or None.
            args: Of the work.

        Returns:
            What the work returned; None if it failed.
        """
        started = time.perf_counter()
        found, error = None, ""
        try:
            found = work(*args)
        except Exception as e:
            error = f"{type(e).__name__}: {e}"
            traceback.print_exc()
        rows = [found] if isinstance(found, Mapping) else found or []
        seconds = time.perf_counter() - started
        self.add(Check(part=self._part, name=name, rows=rows, error=error, seconds=seconds))
        return found

    def add(self, check: Check) -> None:
        """Append a check and say it."""
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(check), default=str) + "\n")
        verdict = f"FAILED {check.error}" if check.error else "ok"
        print(f"[part {check.part}] {check.name}: {verdict}, {check.seconds:.1f} s", flush=True)
        for row in check.rows:
            print("    " + ", ".join(f"{k} {v}" for k, v in row.items()), flush=True)


def results_file(folder: Path, part: int) -> Path:
    """Return where the checks of a part are."""
    return folder / f"part{part}.jsonl"


def read_results(folders: Iterable[Path]) -> dict[int, list[Check]]:
    """Return the checks of each part there is in some folders; a later folder's replace others."""
    found = {}
    for folder in folders:
        for path in sorted(folder.glob("part?.jsonl")):
            lines = path.read_text().splitlines()
            found[int(path.stem[4:])] = [Check(**json.loads(line)) for line in lines]
    return found
