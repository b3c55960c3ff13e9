"""The commands ``clipocr cache info|show|verify|copy``, for a cache that is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...shared.options import (
    CACHE,
    FOLDER,
    NEW_CACHE,
    NEW_PATH,
    device_option,
    num_cores,
    parse_taps,
)
from ...shared.terminal import MAX_LISTED, byte_size, counted, warn_of_random_teacher

if TYPE_CHECKING:
    from ..upkeep.verify import VerifyReport


@click.command("info")
@click.argument("cache_path", metavar="CACHE", type=CACHE)
@click.option(
    "--bad",
    "lists_bad",
    is_flag=True,
    help="List bad images and rejected samples instead: source, LMDB key and reason, by tabs.",
)
def info_command(cache_path: str | Path, lists_bad: bool) -> None:
    """Say what a cache is, from what it was made, and what it weighs.

    CACHE is a folder, or an address such as s3://bucket/mjst.cache.

    \b
    Example:
      clipocr cache info mjst.cache
      clipocr cache info mjst.cache --bad
    """
    from tabulate import tabulate

    from ..inspect.info import describe_cache, list_bad_samples

    if lists_bad:
        for bad in list_bad_samples(cache_path):
            click.echo(f"{bad.source}\t{bad.lmdb_key}\t{bad.reason}")
        return
    description = describe_cache(cache_path)
    click.echo(tabulate(description.facts, tablefmt="plain", disable_numparse=True))
    click.echo()
    parts = [
        (name, f"{num_bytes:,}", f"{num_bytes / max(description.num_rows_built, 1):,.0f}")
        for name, num_bytes in description.bytes_by_part.items()
    ]
    click.echo(
        tabulate(
            parts,
            headers=["part", "bytes", "bytes per row"],
            tablefmt="github",
            colalign=("left", "right", "right"),
            disable_numparse=True,
        )
    )
    click.echo()
    click.echo(
        f"{cache_path}: {description.num_rows_built:,} of "
        f"{counted(description.num_rows, 'row')} built, "
        f"{byte_size(sum(description.bytes_by_part.values()))}."
    )


@click.command("show")
@click.argument("cache_path", metavar="CACHE", type=CACHE)
@click.option("--out", type=NEW_PATH, required=True, help="PNG to write.")
@click.option(
    "--rows",
    "num_rows",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    help="Rows to draw.",
)
@click.option(
    "--view-count",
    "num_views",
    type=click.IntRange(min=1),
    show_default="all, up to 5",
    help="Views of each row, from the first on.",
)
@click.option("--tap", type=int, show_default="the last", help="Image block to colour.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which rows."
)
def show_command(
    cache_path: str | Path,
    out: Path,
    num_rows: int,
    num_views: int | None,
    tap: int | None,
    seed: int,
) -> None:
    """Draw a contact sheet: rows by views, and what the teacher sees in each.

    Beside each view are the first three principal components of a tap's patch tokens, as colours:
    patches of one colour are alike to the teacher. Rows are random; bad ones say why they are.

    \b
    Example:
      clipocr cache show mjst.cache --out sheet.png --tap 6
    """
    from ..inspect.show import ShowConfig, show_cache

    summary = show_cache(
        ShowConfig(
            cache=cache_path,
            out=out,
            num_rows=num_rows,
            num_views=num_views,
            tap=tap,
            seed=seed,
        )
    )
    warn_of_random_teacher(summary.teacher_is_random, summary.teacher_name)
    width_px, height_px = summary.size_px
    click.echo(
        f"Wrote {out}: {counted(summary.num_rows, 'row')} by {counted(summary.num_views, 'view')}, "
        f"block {summary.tap}, {width_px}x{height_px} pixels."
    )


@click.command("verify")
@click.argument("cache_path", metavar="CACHE", type=CACHE)
@click.option(
    "--repair",
    is_flag=True,
    help="Take back what is damaged, so that the same cache build command makes just that again.",
)
@click.option(
    "--recompute",
    "num_recomputed",
    metavar="N",
    type=click.IntRange(min=1),
    show_default="none",
    help="Draw N rows, make their views from the LMDBs again and run the teacher on them.",
)
@click.option(
    "--data",
    "roots",
    metavar="ROOT",
    type=FOLDER,
    multiple=True,
    help="For --recompute: a root that the cache was built from; may be given more than once.",
)
@click.option(
    "--teacher",
    metavar="MODEL/WEIGHTS",
    show_default="the cache's own",
    help="For --recompute: where its weights are now; needed if they were a file.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="For --recompute: decides the rows."
)
@device_option
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=num_cores,
    show_default="every core",
    help="Threads that read.",
)
def verify_command(
    cache_path: str | Path,
    repair: bool,
    num_recomputed: int | None,
    roots: tuple[Path, ...],
    teacher: str | None,
    seed: int,
    device_name: str,
    jobs: int,
) -> None:
    """Check that every byte of a cache is what was committed.

    Prints unit, file and problem of each fault, by tabs, and exits with 1 if there is one; with
    --repair only if one is left. CACHE may be half built, or an address such as
    s3://bucket/mjst.cache.

    \b
    Example:
      clipocr cache verify mjst.cache
      clipocr cache verify mjst.cache --recompute 200 --data data/train/synth
    """
    from ..upkeep.verify import verify_cache

    if repair and not isinstance(cache_path, Path):
        raise click.UsageError(f"{cache_path} can only be read; --repair needs a folder")
    if repair and num_recomputed:
        raise click.UsageError("--repair takes back damaged files, not rows; leave out --recompute")
    if (roots or teacher) and not num_recomputed:
        raise click.UsageError("--data and --teacher are for --recompute; pass --recompute N, too")
    if num_recomputed and not roots:
        raise click.UsageError("--recompute needs the LMDBs the cache was built from; pass --data")
    report = verify_cache(cache_path, jobs=jobs)
    for fault in report.faults:
        click.echo(f"{fault.unit}\t{fault.file}\t{fault.problem}")
    for note in report.notes:
        click.echo(f"Note: {note}", err=True)
    checked = f"{counted(len(report.files), 'file')}, {byte_size(report.num_bytes)}"
    if report.faults and repair:
        assert isinstance(cache_path, Path), cache_path
        _repair(cache_path, report)
    elif report.faults:
        num_units = len({fault.unit for fault in report.faults})
        click.echo(
            f"{cache_path} is damaged: {counted(len(report.faults), 'fault')} in "
            f"{counted(num_units, 'part')}, of {checked}. Take them back with: "
            f"clipocr cache verify {cache_path} --repair"
        )
        raise SystemExit(1)
    else:
        is_sound = num_recomputed is None or _recompute(
            cache_path, roots, num_recomputed, seed, teacher, device_name
        )
        num_units = sum(not name.startswith("text/") for name in report.commits)
        state = "sealed" if report.is_sealed else "not sealed"
        finding = "is sound" if is_sound else "is whole, but not what is made of its sources now"
        click.echo(
            f"{cache_path} {finding}: {checked}; {counted(num_units, 'unit')}, "
            f"{counted(len(report.commits) - num_units, 'text table')}, {state}."
        )
        if not is_sound:
            raise SystemExit(1)


def _repair(path: Path, report: VerifyReport) -> None:
    from ..upkeep.verify import repair_cache

    repair = repair_cache(path, report)
    if repair.beyond:
        files = ", ".join(sorted({fault.file for fault in repair.beyond}))
        is_untouched = not (repair.uncommitted or repair.rewritten or repair.index_files)
        done = "; nothing was changed" if is_untouched else ""
        raise click.ClickException(
            f"{path}: {files} cannot be made again in place{done}. Put it there from a copy of "
            "the cache, or delete the folder and build it anew"
        )
    num_parts = len(repair.uncommitted) + bool(repair.index_files)
    # Without its manifest nothing else could be judged.
    again = "" if report.num_units_planned else ", and verify again"
    click.echo(
        f"Repaired {path}: {counted(num_parts, 'part')} taken back, "
        f"{counted(len(repair.rewritten), 'metadata file')} written again. Now run its cache build "
        f"command (and cache text, for further charsets){again}."
    )


def _recompute(
    cache_path: str | Path,
    roots: tuple[Path, ...],
    num_rows: int,
    seed: int,
    teacher: str | None,
    device_name: str,
) -> bool:
    """Print how far rows are from what is made of their sources now; return whether it is right."""
    from tabulate import tabulate

    from ...shared.device import choose_device
    from ..upkeep.recompute import RecomputeConfig, recompute_rows

    report = recompute_rows(
        RecomputeConfig(
            cache=cache_path,
            data=roots,
            num_rows=num_rows,
            seed=seed,
            teacher=teacher,
            device=choose_device(device_name),
        )
    )
    rows = [
        (
            name,
            f"{tap.max_abs:.3e}",
            f"{tap.worst_share:.3f}",
            f"{tap.cosine_min:.7f}",
        )
        for name, tap in report.taps.items()
    ]
    headers = ["tap", "largest difference", "of what the codec promises", "smallest centred cosine"]
    click.echo(f"{counted(report.num_rows, 'row')} recomputed, drawn by seed {seed}")
    click.echo(
        tabulate(
            rows,
            headers=headers,
            tablefmt="github",
            colalign=("left", "right", "right", "right"),
            disable_numparse=True,
        )
    )
    for difference in report.differing_views[:MAX_LISTED]:
        click.echo(difference)
    click.echo(f"{counted(len(report.differing_views), 'view')} came out differently")
    click.echo(
        "; ".join(
            f"{package} {here}" + (f" (built with {built})" if built != here else "")
            for package, (built, here) in report.versions.items()
        )
    )
    return report.is_sound


@click.command("copy")
@click.argument("source", metavar="SRC", type=CACHE)
@click.argument("out", metavar="DST", type=NEW_CACHE)
@click.option(
    "--fraction",
    type=float,
    default=1.0,
    show_default=True,
    help="Share of the units to copy; the same ones that train --fraction takes.",
)
@click.option(
    "--views",
    "num_views",
    type=click.IntRange(min=1),
    show_default="all of them",
    help="Views to copy, from the first on.",
)
@click.option(
    "--taps",
    "image_taps",
    callback=parse_taps,
    show_default="all of them",
    help="Image blocks to copy.",
)
def copy_command(
    source: str | Path,
    out: Path,
    fraction: float,
    num_views: int | None,
    image_taps: tuple[int, ...] | None,
) -> None:
    """Copy the cache SRC, or a part of it, to the folder DST.

    SRC is a folder, or an address such as s3://bucket/mjst.cache. Every file is checked against
    its record before it appears in DST. Running the same command again finishes what is missing.

    \b
    Example:
      clipocr cache copy s3://bucket/mjst.cache tenth.cache --fraction 0.1
    """
    from ..upkeep.copy import CopyConfig, copy_cache

    summary = copy_cache(
        CopyConfig(
            source=source,
            out=out,
            fraction=fraction,
            views=num_views,
            image_taps=image_taps,
        )
    )
    cache = summary.cache
    click.echo(
        f"Wrote {out}: {counted(len(cache.units()), 'unit')} of {cache.spec.num_units:,} in "
        f"{counted(cache.num_views, 'view')}, {byte_size(summary.num_bytes_copied)} copied, "
        f"{byte_size(summary.num_bytes_kept)} were there already."
    )
