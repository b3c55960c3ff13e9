"""A table of text: Markdown on the screen and in files, HTML on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...shared.terminal import markdown_table


@dataclass(frozen=True, kw_only=True)
class ShownTable:
    """A table of text; converted to `str`, it is Markdown."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: str = ""
    """What its columns are, where that is not plain."""

    def __str__(self) -> str:
        markdown = markdown_table(self.rows, self.headers)
        return f"{markdown}\n\n{self.notes}" if self.notes else markdown
