"""Kinds of arguments, and options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class CachePlace(click.Path):
    """An existing folder, or an address, which is passed on as it is."""

    def __init__(self) -> None:
        super().__init__(exists=True, file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check a folder; leave an address alone."""
        return value if "://" in str(value) else super().convert(value, param, ctx)


class NewCache(click.Path):
    """The folder of a cache that is to be written."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an address."""
        if "://" in str(value):
            self.fail(
                f"{value} is an address, and caches are only written to folders. Write it to a "
                "folder, then upload that (aws s3 sync, hf upload, ...)",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
PATH = click.Path(exists=True, path_type=Path)
NEW_PATH = click.Path(path_type=Path)
CACHE = CachePlace()
NEW_CACHE = NewCache()


def num_cores() -> int:
    """Return the cores this process may use: under Slurm and in containers fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--jobs``."""
    return click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=num_cores,
        show_default="every core",
        help="Processes to work with.",
    )(command)


def device_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--device``, passed on as ``device_name``."""
    return click.option(
        "--device",
        "device_name",
        default="auto",
        show_default="CUDA if there is one, else the CPU",
        help="auto, cpu, cuda or cuda:N.",
    )(command)


def copies_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--cache-dir`` and ``--cache-bytes``, for what is read from an address."""
    command = click.option(
        "--cache-bytes",
        type=click.IntRange(min=0),
        default=20_000_000_000,
        show_default=True,
        help="Most bytes of such copies; the least recently used go first. 0 keeps none.",
    )(command)
    return click.option(
        "--cache-dir",
        type=NEW_PATH,
        show_default="~/.cache/clipocr",
        help="Where copies of what is read from an address are kept.",
    )(command)


def parse_taps(
    _ctx: click.Context, _option: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Read block numbers, counted from 1, separated by commas."""
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a list of block numbers such as 3,6,9"
        ) from None
