"""Help in groups, whole and unbroken, and what a shell completes."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from commands import invoke

from clipocr.cli import main
from clipocr.shared.help import GroupedCommand, GroupedOption, HelpFormatter


def lines_of(command: str, columns: int) -> list[str]:
    args = [*command.split(), "--help"]
    shown = CliRunner().invoke(main, args, terminal_width=columns, max_content_width=columns)
    assert shown.exit_code == 0, shown.output
    return shown.output.splitlines()


def test_summaries_are_whole() -> None:
    listed = " ".join(" ".join(lines_of("", 80)).split())
    assert "eval Measure word accuracy on test sets, by PARSeq's protocol" in listed
    assert "..." not in listed.partition("Commands:")[2]


@pytest.mark.parametrize("command", ["train", "cache build", "eval", "cache align", "ablate"])
@pytest.mark.parametrize("columns", [50, 80])
def test_no_word_is_broken(command: str, columns: int) -> None:
    """Every word of the help at a width stands in that of a terminal without end."""
    wide = set(" ".join(lines_of(command, 10_000)).split())
    narrow = lines_of(command, columns)
    assert {word for line in narrow for word in line.split()} <= wide
    examples = " ".join(narrow).partition("Example")[2]
    assert all(len(line) <= columns for line in narrow if line.strip() not in examples)


def test_options_stand_in_groups_those_without_last() -> None:
    command = GroupedCommand(
        "some",
        params=[
            GroupedOption(["--plain"], help="Has none."),
            GroupedOption(["--lr"], group="Steps", help="Rate."),
            GroupedOption(["--out"], group="Places", help="Where to write some/very-long/path."),
            GroupedOption(["--epochs"], group="Steps", help="Passes."),
        ],
    )
    context = click.Context(command)
    formatter = HelpFormatter(width=34)
    command.format_options(context, formatter)
    assert formatter.getvalue().splitlines() == [
        "Steps:",
        "  --lr TEXT",
        "      Rate.",
        "  --epochs TEXT",
        "      Passes.",
        "",
        "Places:",
        "  --out TEXT",
        "      Where to write",
        "      some/very-long/path.",
        "",
        "Options:",
        "  --plain TEXT",
        "      Has none.",
        "  --help",
        "      Show this message and exit.",
    ]


def test_the_help_of_train_has_groups_and_the_field_s_short_names() -> None:
    text = "\n".join(lines_of("train", 80))
    titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert titles[:3] == ["Input and output", "Starting point", "Method"]
    assert {"Training steps", "Student", "Loss", "Method clip-ocr", "Options"} < {*titles}
    assert titles[-1] == "Methods"
    assert "--learning-rate, --lr X" in text


def test_lr_is_the_learning_rate(cache_path: Path, tmp_path: Path) -> None:
    result = invoke("train", "--cache", cache_path, "--out", tmp_path / "run", "--lr", 0)
    assert result.exit_code == 2
    assert "0.0 is not in the range x>0" in result.stderr


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("clipocr ablate table", {"table1", "table7", "table12"}),
        ("clipocr ablate cl", {"clip4str"}),
        ("clipocr train --method d", {"dptr"}),
        ("clipocr train --recipe ", {"paper", "small-gpu"}),
        ("clipocr cache build --teacher ViT-B-16/op", {"ViT-B-16/openai"}),
    ],
)
def test_a_shell_completes(words: str, found: set[str]) -> None:
    environment = {
        "_CLIPOCR_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    shown = CliRunner().invoke(main, [], env=environment, prog_name="clipocr")
    completed = {line.partition(",")[2] for line in shown.output.splitlines()}
    assert found <= completed
    begun = words.rpartition(" ")[2]
    assert all(text.startswith(begun) for text in completed)
