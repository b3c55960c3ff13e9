"""Write docs/options.md: every command and every option, from the program itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from clipocr.cli import main

PAGE = Path(__file__).with_name("options.md")
_HEAD = """# Every command and option

Made from the program by `make docs`; a test compares the two. Every command says the same with
`--help`.
"""
_EXTRA = re.compile(
    r"(?:default: (?P<default>.*?))?"  # Lazy, for the limits and "required" may follow it.
    r"(?:(?:^|; )[-\d.<=]*x[-\d.<>=]*)?"
    r"(?P<required>(?:^|; )required)?"
)
"""What click puts into brackets after an option's text."""


def options_page() -> str:
    """Return the whole page."""
    commands = list(_commands(main, click.Context(main, info_name="clipocr")))
    listed = "\n".join(
        f"| [`{context.command_path}`](#{_anchor(context.command_path)}) | {_first_line(command)} |"
        for command, context in commands
    )
    sections = "\n".join(_section(command, context) for command, context in commands)
    return f"{_HEAD}\n| command | |\n|---|---|\n{listed}\n\n{sections}"


def _commands(
    command: click.Command, context: click.Context
) -> Iterator[tuple[click.Command, click.Context]]:
    """Yield every command that does something, groups opened up, in the order of their use."""
    if not isinstance(command, click.Group):
        yield command, context
        return
    for name, child in command.commands.items():
        yield from _commands(child, click.Context(child, info_name=name, parent=context))


def _section(command: click.Command, context: click.Context) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    about, _, example = inspect.cleandoc(command.help or "").partition("\b\nExample:\n")
    parts = [f"## {context.command_path}\n", f"```text\n{usage}\n```\n", f"{about.strip()}\n"]
    if example:
        parts.append(f"```console\n{_prompted(example)}\n```\n")
    rows = [_row(option, context) for option in command.params if isinstance(option, click.Option)]
    parts.append("| option | default | what |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _prompted(example: str) -> str:
    return "\n".join(f"$ {line}" for line in inspect.cleandoc(example).splitlines())


def _row(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    assert record is not None, option
    names, text = record
    what, _, extra = text.partition("  [")
    found = _EXTRA.fullmatch(extra.removesuffix("]"))
    assert found is not None, f"{context.command_path} {names}: {extra!r}"
    default = found["default"] or ""
    if default.startswith("("):  # A text in the place of a value.
        default = default[1:-1]
    elif default:
        default = f"`{default}`"
    if found["required"]:
        default = "**required**"
    names = names.replace(" RANGE", "")
    return f"| `{_cell(names)}` | {_cell(default)} | {_cell(what + _limits(option.type))} |"


def _limits(kind: click.ParamType) -> str:
    if not isinstance(kind, click.IntRange | click.FloatRange):
        return ""
    if kind.max is None:
        return f" {'More than' if kind.min_open else 'At least'} {kind.min}."
    if kind.min_open or kind.max_open:
        return f" Between {kind.min} and {kind.max}."
    return f" From {kind.min} to {kind.max}."


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _first_line(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").splitlines()[0]


def _anchor(title: str) -> str:
    return title.replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(options_page(), encoding="utf-8")
    print(f"Wrote {PAGE}.")
