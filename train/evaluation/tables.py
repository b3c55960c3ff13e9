"""A table of text: Markdown on the screen and in files, HTML on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate


@dataclass(frozen=True, kw_only=True)
class ShownTable:
    """A table of text, as it is shown; converted to `str`, it is Markdown."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: str = ""
    """What its columns are, where that is not plain."""

    def __str__(self) -> str:
        markdown = as_markdown(self.headers, self.rows)
        return f"{markdown}\n\n{self.notes}" if self.notes else markdown


def as_markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], num_names: int = 1) -> str:
    """Return a Markdown table: the first columns are names, to the left, the others figures."""
    return tabulate(
        rows,
        headers=headers,
        tablefmt="github",
        colalign=[*["left"] * num_names, *["right"] * (len(headers) - num_names)],
        disable_numparse=True,
    )
