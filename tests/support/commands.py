"""The command line, called in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from clipocr.cli import main


def invoke(*args: object, stdin: bytes | None = None) -> Result:
    """Run clipocr with arguments; an error that is not expected is raised, as a shell shows it."""
    result = CliRunner().invoke(main, [str(arg) for arg in args], input=stdin, prog_name="clipocr")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
