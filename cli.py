"""The command ``clipocr``: which commands there are, and which failures print a line.

Whatever is heavy (torch, open_clip, numpy, PIL, lmdb) is imported inside the commands, so that
``--help`` answers at once. Progress goes to stderr, results to stdout, and the last line says what
was written, where and how much.
"""

from __future__ import annotations

import errno
import signal
from typing import Any

import click

from . import __version__, let_threads_sleep
from .precompute.commands.cache import cache
from .precompute.commands.data import data
from .precompute.commands.inspect import align_command, show_command
from .precompute.commands.upkeep import copy_command, info_command, verify_command
from .shared.errors import ClipocrError, explained_memory
from .shared.help import Group, HelpFormatter
from .shared.interrupts import ending, working
from .shared.terminal import how_to_go_on
from .train.commands.evaluation import eval_command, latency
from .train.commands.hub import pull, push
from .train.commands.student import export, read
from .train.commands.train import ablate, train

_LESS_MEMORY = (
    "end other programs, or pass less at once where the command has it: --batch-size, "
    "--chunk-rows, --workers, --jobs"
)


class _Commands(Group):
    """The one place that decides which failures print a line and which keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with working(), explained_memory(_LESS_MEMORY):
                return super().invoke(ctx)
        except ClipocrError as e:
            raise click.ClickException(str(e)) from e
        except OSError as e:
            # Click ends quietly when nobody reads on. A descriptor that is none is a bug.
            if e.errno in (None, errno.EPIPE, errno.EBADF):
                raise
            # Of a rename, the second name is the one that matters.
            name = e.filename2 or e.filename
            place = f"{name}: " if name else ""
            raise click.ClickException(f"{place}{e.strerror}") from e
        except KeyboardInterrupt as e:
            line, code = ending(getattr(e, "signal_number", signal.SIGINT))
            click.echo(f"{line} {how_to_go_on(ctx)}".rstrip(), err=True)
            ctx.exit(code)


click.Context.formatter_class = HelpFormatter


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="clipocr")
def main() -> None:
    """Distil scene-text recognisers from CLIP through an offline feature cache.

    \b
    Example:
      clipocr cache build --data data/train --out words.cache
      clipocr train --cache words.cache --out run
      clipocr eval run --data data/test
    """
    let_threads_sleep()


for of_cache in (info_command, show_command, align_command, verify_command, copy_command):
    cache.add_command(of_cache)
for command in (data, cache, train, ablate, eval_command, latency, read, export, push, pull):
    main.add_command(command)
