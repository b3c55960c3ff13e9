"""A table of text: Markdown on the screen and in files, CSV, LaTeX, HTML on a page."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...shared.terminal import markdown_table

FORMATS = ("markdown", "csv", "latex")

_GROUPED = re.compile(r"(?<=\d),(?=\d{3})")


@dataclass(frozen=True, kw_only=True)
class ShownTable:
    """A table of text; converted to `str`, it is Markdown."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: str = ""
    """What its columns are, where that is not plain."""
    num_left: int = 1
    """Leading columns that are texts; the others are numbers."""
    title: str = ""

    def __str__(self) -> str:
        return self.formatted("markdown")

    def formatted(self, table_format: str) -> str:
        """Return the table in one of `FORMATS`.

        CSV has neither notes nor commas in its numbers; LaTeX, for the package booktabs, has title
        and notes as comments.
        """
        if table_format == "csv":
            return self._as_csv()
        if table_format == "latex":
            comments = [f"% {line}\n" for line in (self.title, self.notes) if line]
            return "".join(comments) + self._as_latex()
        markdown = markdown_table(self.rows, self.headers, self.num_left)
        return "\n\n".join(filter(None, (self.title, markdown, self.notes)))

    def _as_csv(self) -> str:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        rows = [[_GROUPED.sub("", cell) for cell in row] for row in self.rows]
        writer.writerows([*([[self.title]] if self.title else []), self.headers, *rows])
        return file.getvalue().rstrip("\n")

    def _as_latex(self) -> str:
        from tabulate import tabulate

        align = ["left"] * self.num_left + ["right"] * (len(self.headers) - self.num_left)
        latex = tabulate(
            self.rows,
            self.headers,
            tablefmt="latex_booktabs",
            colalign=align,
            disable_numparse=True,
        )
        return latex.replace("±", r"$\pm$")
