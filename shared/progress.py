"""Progress on stderr: a bar on a terminal, and a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

if TYPE_CHECKING:
    _Bar = tqdm[Any]
else:
    _Bar = tqdm

_LINE_EVERY_S = 60.0
_LINE = "{desc}{n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left{postfix}"
_LINE_WITHOUT_TOTAL = "{desc}{n_fmt}, {rate_fmt}{postfix}"


class _ProgressLines(_Bar):
    """A bar for a log, where no line can be drawn over: a line of its own a minute."""

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        *,
        total: float | None = None,
        initial: float = 0,
        desc: str,
        **look: Any,
    ) -> None:
        super().__init__(iterable, total=total, initial=initial, disable=True)
        self._initial, self._postfix = initial, ""
        self._look = look | {"prefix": f"{desc}: "}
        self._began_at = self._said_at = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self.update()

    def update(self, n: float | None = 1) -> bool:
        """Count what was done, and say so if the last line is a minute old."""
        self.n += n or 0
        now = time.monotonic()
        if is_due := now - self._said_at >= _LINE_EVERY_S:
            self._said_at = now
            text = self.format_meter(
                self.n, self.total or 0, now - self._began_at, initial=self._initial,
                postfix=self._postfix, bar_format=_LINE if self.total else _LINE_WITHOUT_TOTAL,
                **self._look,
            )  # fmt: skip
            click.echo(text, err=True)
        return is_due

    def set_postfix(self, *_: Any, **values: Any) -> None:
        """Say values beside the progress."""
        self._postfix = ", ".join(f"{name} {value}" for name, value in values.items())


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    total: float | None = None,
    desc: str,
    unit: str,
    unit_scale: bool = False,
    initial: float = 0,
    is_shown: bool = True,
) -> tqdm[Any]:
    """Return tqdm's bar on stderr; where that is no terminal, lines now and then; or nothing."""
    attributes: dict[str, Any] = {"total": total, "initial": initial}
    if not is_shown:
        return tqdm(iterable, disable=True, **attributes)
    kind: type[tqdm[Any]] = tqdm if sys.stderr.isatty() else _ProgressLines
    return kind(iterable, desc=desc, unit=unit, unit_scale=unit_scale, **attributes)
