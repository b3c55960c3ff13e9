"""The commands ``clipocr cache info|verify|copy``, for a cache that is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...shared.errors import UsageError
from ...shared.options import CACHE, NEW_CACHE, num_cores, takes
from ...shared.terminal import (
    MAX_LISTED,
    byte_size,
    counted,
    goes_on,
    markdown_table,
    plain_table,
)
from ..inspect.options import InfoOptions
from ..upkeep.config import CopyConfig, VerifyConfig

if TYPE_CHECKING:
    from ..upkeep.verify import VerifyReport


@click.command("info")
@click.argument("cache_path", metavar="CACHE", type=CACHE)
@click.option(
    "--bad",
    "lists_bad",
    is_flag=True,
    help="List bad images and rejected samples instead: source, LMDB key (or file, or line) and "
    "reason, separated by tabs.",
)
@takes(InfoOptions)
def info_command(cache_path: str | Path, lists_bad: bool, given: Mapping[str, Any]) -> None:
    """Describe a cache: what is in it, what built it, and its size.

    CACHE is a folder, or an address such as s3://bucket/mjst.cache.

    \b
    Example:
      clipocr cache info mjst.cache
      clipocr cache info mjst.cache --bad
      clipocr cache info mjst.cache --json
    """
    from ..inspect.info import cache_figures, describe_cache, list_bad_samples

    if InfoOptions.from_values(given).json:
        if lists_bad:
            raise click.UsageError("--bad prints a list, --json figures; leave one of them out")
        click.echo(json.dumps(cache_figures(cache_path), indent=1))
        return
    if lists_bad:
        for bad in list_bad_samples(cache_path):
            click.echo("\t".join(bad))
        return
    description = describe_cache(cache_path)
    click.echo(plain_table(description.facts) + "\n")
    parts = [
        (name, byte_size(num_bytes), byte_size(num_bytes / max(description.num_rows_built, 1)))
        for name, num_bytes in description.bytes_by_part.items()
    ]
    click.echo(markdown_table(parts, ["part", "size", "per row"]) + "\n")
    rows = f"{description.num_rows_built:,} of {counted(description.num_rows, 'row')}"
    click.echo(
        f"{cache_path}: {rows} built in {counted(description.num_views, 'view')}, "
        f"{byte_size(sum(description.bytes_by_part.values()))}."
    )


@click.command("verify")
@click.argument("cache", metavar="CACHE", type=CACHE)
@takes(VerifyConfig)
def verify_command(cache: str | Path, given: Mapping[str, Any]) -> None:
    """Check every byte of a cache against its records.

    CACHE is a folder, or an address such as s3://bucket/mjst.cache. It may be half built. Each
    fault is printed as part, file and problem, separated by tabs. The exit code is 1 if there is
    any fault or, with --repair, if any is left.

    \b
    Example:
      clipocr cache verify mjst.cache
      clipocr cache verify mjst.cache --recompute 200 --data data/train/synth
    """
    try:
        config = VerifyConfig.from_values(given, cache=cache)
    except UsageError as e:
        raise click.UsageError(str(e)) from e  # Exits with 2: 1 means damage here.
    from ...shared.cache.names import MANIFEST_NAME
    from ...shared.cache.reader import pool_of
    from ...shared.cache.remote import open_storage

    is_sound, pool = _verify(cache, config), pool_of(cache)
    if open_storage(pool).exists(MANIFEST_NAME):
        is_sound = _verify(pool, replace(config, recompute=None)) and is_sound
    if not is_sound:
        raise SystemExit(1)


def _verify(cache: str | Path, config: VerifyConfig) -> bool:
    """Check a cache, or the pool of one, and say what was found; return whether it is sound now."""
    from ..upkeep.verify import verify_cache

    report = verify_cache(cache, jobs=config.jobs or num_cores())
    for fault in report.faults:
        click.echo(f"{fault.part}\t{fault.file}\t{fault.problem}")
    checked = f"{counted(len(report.files), 'file')}, {byte_size(report.num_bytes)}"
    if report.faults and isinstance(cache, Path) and config.repair:
        _repair(cache, report)
        return True
    if report.faults:
        num_parts = len({fault.part for fault in report.faults})
        click.echo(
            f"{cache} is damaged: {counted(len(report.faults), 'fault')} in "
            f"{counted(num_parts, 'part')}, of {checked}. Take them back with: "
            f"clipocr cache verify {cache} --repair"
        )
        return False
    is_sound = config.recompute is None or _recompute(config)
    state = "sealed" if report.is_sealed else "not sealed"
    finding = "is sound" if is_sound else "is whole, but not what is made of its sources now"
    click.echo(
        f"{cache} {finding}: {checked}; {counted(len(report.committed.units), 'unit')}, "
        f"{counted(len(report.committed.texts), 'text table')}"
        f"{', weights of the teacher' if report.committed.weights else ''}, {state}."
    )
    return is_sound


def _repair(path: Path, report: VerifyReport) -> None:
    from ..upkeep.verify import repair_cache

    repair = repair_cache(path, report)
    # Without its manifest nothing else could be judged.
    again = "" if report.manifest else ", and verify again"
    click.echo(
        f"Repaired {path}: {counted(len(repair.taken_back), 'part')} taken back, "
        f"{counted(len(repair.rewritten), 'metadata file')} written again. Now run its cache build "
        f"command (and cache text, for further charsets; cache weights, for its teacher's; of a "
        f"pool, cache pool){again}."
    )


def _recompute(config: VerifyConfig) -> bool:
    """Print how far rows are from what is made of their sources now; return whether it is right."""
    from ..upkeep.recompute import recompute_rows

    report = recompute_rows(config)
    click.echo(f"{counted(report.num_rows, 'row')} recomputed, drawn by seed {config.seed}")
    arrays = [
        (name, f"{array.max_abs:.3e}", f"{array.worst_share:.3f}")
        for name, array in report.arrays.items()
    ]
    click.echo(
        markdown_table(arrays, ["array", "largest difference", "of what the codec promises"])
    )
    for difference in report.differing_views[:MAX_LISTED]:
        click.echo(difference)
    click.echo(f"{counted(len(report.differing_views), 'view')} came out differently")
    versions = (
        f"{package} {here}" + (f" (built with {built})" if built != here else "")
        for package, (built, here) in report.versions.items()
    )
    click.echo("; ".join(versions))
    return report.is_sound


@click.command("copy")
@click.argument("source", metavar="SRC", type=CACHE)
@click.argument("out", metavar="DST", type=NEW_CACHE)
@takes(CopyConfig)
@goes_on
def copy_command(source: str | Path, out: Path, given: Mapping[str, Any]) -> None:
    """Copy the cache SRC, or a part of it, to the folder DST.

    SRC is a folder, or an address such as s3://bucket/mjst.cache. Every file is checked against
    its record before it appears in DST. Run the same command again to finish an interrupted copy.

    \b
    Example:
      clipocr cache copy s3://bucket/mjst.cache tenth.cache --fraction 0.1
    """
    config = CopyConfig.from_values(given, source=source, out=out)
    from ..upkeep.copy import copy_cache

    summary = copy_cache(config)
    cache = summary.cache
    num_rows = sum(map(cache.spec.unit_size, cache.units()))
    click.echo(
        f"Wrote {out}: {num_rows:,} of {counted(cache.spec.num_rows, 'row')}, which are "
        f"{counted(len(cache.units()), 'unit')} of {cache.spec.num_units:,}, in "
        f"{counted(cache.num_views, 'view')}, {byte_size(summary.num_bytes_copied)} copied, "
        f"{byte_size(summary.num_bytes_kept)} were there already."
    )
