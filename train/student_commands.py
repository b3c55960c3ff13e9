"""The command ``clipocr read``, which uses a trained student."""

from __future__ import annotations

from pathlib import Path

import click

from ..shared.errors import ClipocrError
from ..shared.options import NEW_PATH, PATH, device_option


@click.command()
@click.argument("run_or_checkpoint", metavar="RUN-OR-CHECKPOINT", type=PATH)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=NEW_PATH)
@device_option
def read(run_or_checkpoint: Path, images: tuple[Path, ...], device_name: str) -> None:
    """Read cropped words: prints file, text and confidence, separated by tabs.

    Each IMAGE is one word, not a page. Exits with 1 if one of them cannot be read.

    \b
    Example:
      clipocr read run word1.png word2.jpg
    """
    from ..shared.device import choose_device
    from .checkpoint import find_checkpoint, load_student
    from .evaluation.evaluate import read_images

    student = load_student(find_checkpoint(run_or_checkpoint), choose_device(device_name))
    num_problems = 0
    for path, outcome in read_images(student, images):
        if isinstance(outcome, ClipocrError):
            num_problems += 1
            click.echo(f"{path}: {outcome}", err=True)
        else:
            click.echo(f"{path}\t{outcome.text}\t{outcome.confidence:.4f}")
    if num_problems:
        raise SystemExit(1)
