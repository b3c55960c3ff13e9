"""Help texts: options in groups, summaries whole, and no word broken in two."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

import click

_MAX_FIRST_COLUMN = 30
_MIN_SECOND_COLUMN = 32
"""A second column that would be narrower goes below the first."""


class HelpFormatter(click.HelpFormatter):
    """Click's, but for its wrapping, which breaks paths and options at hyphens and wherever."""

    def write_text(self, text: str) -> None:
        """Write paragraphs, wrapped; one after a line of ``\\b`` as it stands."""
        pad = " " * self.current_indent
        paragraphs = []
        for paragraph in text.strip().split("\n\n"):
            if paragraph.startswith("\b\n"):
                paragraphs.append(textwrap.indent(paragraph[2:], pad))
            else:
                paragraphs.append("\n".join(_wrapped(paragraph, self.width, pad)))
        self.write("\n\n".join(paragraphs) + "\n")

    def write_dl(
        self,
        rows: Iterable[tuple[str, str]],
        col_max: int = _MAX_FIRST_COLUMN,
        col_spacing: int = 2,
    ) -> None:
        """Write terms and what is said of them, in two columns if there is room."""
        rows = list(rows)
        first = min(max((len(term) for term, _ in rows), default=0), col_max) + col_spacing
        pad = " " * self.current_indent
        is_narrow = self.width - self.current_indent - first < _MIN_SECOND_COLUMN
        margin = pad + " " * (4 if is_narrow else first)
        for term, text in rows:
            lines = _wrapped(text, self.width, margin)
            if is_narrow or len(term) > first - col_spacing:
                lines = [pad + term, *lines]
            elif lines:
                lines[0] = (pad + term).ljust(len(margin)) + lines[0].strip()
            else:
                lines = [pad + term]
            self.write("\n".join(lines) + "\n")


def _wrapped(text: str, width: int, pad: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=pad,
        subsequent_indent=pad,
        break_long_words=False,
        break_on_hyphens=False,
    )


class Group(click.Group):
    """Commands with the first sentence of each."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                paragraph = (command.help or "").partition("\n\n")[0]
                rows.append((name, " ".join(paragraph.split()).partition(". ")[0].rstrip(".")))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class GroupedOption(click.Option):
    """An option that stands among others of its kind."""

    def __init__(self, *args: Any, group: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose options stand in groups, in the order in which these come up first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups; what has none comes last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                groups.setdefault(getattr(param, "group", ""), []).append(record)
        others = groups.pop("", [])
        for title, records in {**groups, "Options": others}.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
