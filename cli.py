"""The commands: parse, call one function, report.

Whatever is heavy (torch, open_clip, numpy, PIL, lmdb) is imported inside the commands, so that
``--help`` answers at once. Progress goes to stderr, results to stdout, and the last line says what
was written, where and how much.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .shared.errors import ClipocrError

if TYPE_CHECKING:
    from .precompute.check import LmdbReport
    from .precompute.plan import Plan
    from .precompute.verify import VerifyReport
    from .shared.charset import Charset
    from .train.run import TrainSummary

_MAX_LISTED = 20
_OUTSIDE_TROUBLE = frozenset(
    # The disk is full, or the path is not one we may write.
    (
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOENT, errno.EISDIR),
        *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
    )
)

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_PATH = click.Path(exists=True, path_type=Path)
_NEW_PATH = click.Path(path_type=Path)


class _CachePlace(click.Path):
    """An existing folder, or an address, which is passed on as it is."""

    def __init__(self) -> None:
        super().__init__(exists=True, file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if "://" in str(value) else super().convert(value, param, ctx)


class _NewCache(click.Path):
    """The folder of a cache that is to be written."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(
                f"{value} is an address, and caches are only written to folders. Write it to a "
                "folder, then upload that (aws s3 sync, hf upload, ...)",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


_CACHE = _CachePlace()
_NEW_CACHE = _NewCache()


class _Commands(click.Group):
    """The one place that decides which failures print a line and which keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ClipocrError as e:
            raise click.ClickException(str(e)) from e
        except OSError as e:
            if e.errno in _OUTSIDE_TROUBLE:
                # Of a rename, the second name is the one that matters.
                name = e.filename2 or e.filename
                place = f"{name}: " if name else ""
                raise click.ClickException(f"{place}{e.strerror}") from e
            raise
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="clipocr", prog_name="clipocr")
def main() -> None:
    """Distil scene-text recognisers from CLIP through an offline feature cache.

    \b
    Example:
      clipocr cache build --data data/train --out words.cache
      clipocr train --cache words.cache --out run
      clipocr eval run --data data/test
    """
    # Before torch is imported: its threads wait by spinning, and beside any other busy process a
    # CPU run then takes twenty times as long (0.5 steps/s for 10, measured on two cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _num_cores() -> int:
    # Under Slurm and in containers a process may use fewer cores than there are.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _jobs_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=_num_cores,
        show_default="every core",
        help="Processes to work with.",
    )(command)


# ---------------------------------------------------------------------------------------- data


@main.group()
def data() -> None:
    """Make word LMDBs, and check them."""


@data.command("import")
@click.argument("source", metavar="SRC", type=_FOLDER)
@click.argument("out", metavar="OUT.lmdb", type=_NEW_PATH)
@click.option(
    "--labels",
    "label_file",
    type=_FILE,
    show_default="found in SRC: gt.tsv, gt.txt, labels.tsv, labels.txt or labels.json",
    help="Label file: lines of 'file<TAB>label' or 'file label', or JSON {\"file\": \"label\"}.",
)
@click.option("--strict", is_flag=True, help="Write nothing if any entry cannot be used.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.lmdb if it exists.")
def import_command(
    source: Path, out: Path, label_file: Path | None, strict: bool, overwrite: bool
) -> None:
    """Pack the word images of the folder SRC and their labels into OUT.lmdb.

    Image bytes go in as they are. Entries that cannot be used are listed with their reason.

    \b
    Example:
      clipocr data import iiit5k_test iiit5k_test.lmdb --labels iiit5k_test/gt.tsv
    """
    from .precompute.import_words import import_words

    with _listed_problems() as on_problem:
        report = import_words(
            source,
            out,
            label_file=label_file,
            strict=strict,
            overwrite=overwrite,
            on_problem=on_problem,
        )
    click.echo(
        f"Wrote {out}: {_count(report.num_samples, 'sample')}, {_size(out)}; "
        f"{_count(report.num_rejected, 'entry', 'entries')} rejected, "
        f"{_count(report.num_unlabelled, 'image')} without a label."
    )


@data.command("render")
@click.argument("out", metavar="OUT.lmdb", type=_NEW_PATH)
@click.option(
    "--words", "words_file", type=_FILE, required=True, help="UTF-8 text file, one word a line."
)
@click.option(
    "--count", type=click.IntRange(1, 999_999_999), required=True, help="Samples to render."
)
@click.option(
    "--style",
    type=click.Choice(["mjsynth", "color", "plain"]),
    default="mjsynth",
    show_default=True,
    help="Grey like MJSynth's crops, the same in colour, or clean dark print on light paper.",
)
@click.option(
    "--case",
    type=click.Choice(["mixed", "lower", "upper", "as-is"]),
    default="mixed",
    show_default=True,
    help="mixed: lower case, Capitalised or UPPER CASE by chance.",
)
@click.option(
    "--fonts",
    "fonts_folder",
    type=_FOLDER,
    show_default="the text fonts that come with matplotlib",
    help="Folder with .ttf and .otf fonts, at any depth.",
)
@click.option("--min-height-px", type=int, default=31, show_default=True, help="Lowest crop.")
@click.option("--max-height-px", type=int, default=31, show_default=True, help="Highest crop.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all chance."
)
@_jobs_option
@click.option("--overwrite", is_flag=True, help="Replace OUT.lmdb if it exists.")
def render_command(
    out: Path,
    words_file: Path,
    count: int,
    style: str,
    case: str,
    fonts_folder: Path | None,
    min_height_px: int,
    max_height_px: int,
    seed: int,
    jobs: int,
    overwrite: bool,
) -> None:
    """Render synthetic word crops into OUT.lmdb.

    Each word is used about equally often. The same options give the same bytes, whatever --jobs.

    \b
    Example:
      clipocr data render train.lmdb --words words.txt --count 10000 --seed 1
    """
    from .precompute.render import RenderOptions, load_fonts, load_words, render_words

    options = RenderOptions(
        seed=seed,
        style=style,
        case=case,
        min_height_px=min_height_px,
        max_height_px=max_height_px,
    )
    words = load_words(words_file)
    fonts, unusable = load_fonts(fonts_folder)
    with _listed_problems() as on_problem:
        for path, reason in unusable.items():
            on_problem(f"{path}: {reason}")
    render_words(
        words, out, count=count, fonts=fonts, options=options, jobs=jobs, overwrite=overwrite
    )
    click.echo(
        f"Wrote {out}: {_count(count, 'sample')} of {_count(len(words), 'word')} "
        f"in {_count(len(fonts), 'font')}, {_size(out)}."
    )


@data.command("check")
@click.argument("roots", metavar="PATH...", nargs=-1, required=True, type=_FOLDER)
@click.option(
    "--charset", "charset_name", default="36", show_default=True, help="36, 62, 94 or a text file."
)
@click.option(
    "--max-label-length", type=int, default=25, show_default=True, help="Longest label kept."
)
@click.option("--keep-unicode", is_flag=True, help="Do not reduce labels to ASCII.")
@_jobs_option
def check_command(
    roots: tuple[Path, ...],
    charset_name: str,
    max_label_length: int,
    keep_unicode: bool,
    jobs: int,
) -> None:
    """Decode every image and filter every label of the LMDBs at or below PATH.

    Exits with 1 if anything is broken: an image or label that is missing or damaged, or an LMDB
    that cannot be used. Labels that a cache or the charset leaves out are counted, not broken.

    \b
    Example:
      clipocr data check train.lmdb iiit5k_test.lmdb --charset 36
    """
    from .precompute.check import check_lmdbs
    from .shared.charset import Charset, LabelRules

    charset = Charset.load(charset_name)
    rules = LabelRules(normalize_unicode=not keep_unicode, max_label_length=max_label_length)
    reports = check_lmdbs(roots, charset=charset, rules=rules, jobs=jobs)
    for report in reports:
        _print_check(report, charset)
    num_samples = sum(report.num_samples for report in reports)
    num_broken = sum(report.num_broken for report in reports)
    num_unusable = sum(report.problem is not None for report in reports)
    click.echo(
        f"Checked {_count(len(reports), 'LMDB')}, {_count(num_samples, 'sample')}: "
        f"{num_broken:,} broken, {_count(num_unusable, 'LMDB')} unusable."
    )
    if not all(report.is_sound for report in reports):
        raise SystemExit(1)


def _print_check(report: LmdbReport, charset: Charset) -> None:
    from tabulate import tabulate

    rows = [("samples", f"{report.num_samples:,}"), ("broken", f"{report.num_broken:,}")]
    rows += [(reason, f"{n:,}") for reason, n in sorted(report.label_problems.items())]
    rows.append(("label lengths", _histogram(report.label_lengths)))
    outside = report.outside(charset).most_common()
    listed = "  ".join(
        f"{c if c.isprintable() else f'U+{ord(c):04X}'} {n:,}" for c, n in outside[:_MAX_LISTED]
    )
    more = f"  and {len(outside) - _MAX_LISTED} others" if len(outside) > _MAX_LISTED else ""
    rows.append((f"outside charset {charset.name}", listed + more or "none"))
    click.echo(report.path)
    if report.problem is None:
        click.echo(tabulate(rows, tablefmt="plain", disable_numparse=True))
    else:
        click.echo(f"unusable: {report.problem}")
    for key, reason in report.broken:
        click.echo(f"{key}: {reason}")
    if report.num_extra:
        click.echo(
            f"Warning: {report.path} holds {_count(report.num_extra, 'key')} numbered beyond "
            f"num-samples ({report.num_samples:,}); nothing reads them",
            err=True,
        )
    click.echo()


# --------------------------------------------------------------------------------------- cache


def _parse_taps(
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


def _parse_stages(
    ctx: click.Context, option: click.Parameter, value: str
) -> tuple[int, ...] | None:
    """Read stage numbers as `_parse_taps` reads blocks, or ``none``."""
    return () if value == "none" else _parse_taps(ctx, option, value)


def _setting(*names: str, **attributes: Any) -> Callable[..., Any]:
    """Declare an option that `train_config` knows by the same name."""
    return click.option(*names, **{"show_default": True, **attributes})


def _parse_settings(
    _ctx: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    """Read NAME=VALUE; what is no TOML value is a text."""
    import tomllib

    settings = {}
    for assignment in values:
        name, separator, value = assignment.partition("=")
        if not separator:
            raise click.BadParameter(f"{assignment!r} is not NAME=VALUE")
        try:
            settings[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[name] = value
    return settings


def _parse_seeds(
    ctx: click.Context, option: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    try:
        return _parse_taps(ctx, option, value)
    except click.BadParameter:
        raise click.BadParameter(f"{value!r} is not a list of seeds such as 0,1,2") from None


def _parse_share(_ctx: click.Context, _option: click.Parameter, value: str) -> tuple[int, int]:
    """Read I/N, I counted from 1; return (I - 1, N)."""
    index, _, count = value.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise click.BadParameter(f"{value!r} is not I/N with I from 1 to N, such as 1/4")
    return int(index) - 1, int(count)


def _copies_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--cache-bytes",
        type=click.IntRange(min=0),
        default=20_000_000_000,
        show_default=True,
        help="Most bytes of such copies; the least recently used go first. 0 keeps none.",
    )(command)
    return click.option(
        "--cache-dir",
        type=_NEW_PATH,
        show_default="~/.cache/clipocr",
        help="Where copies of what is read from an address are kept.",
    )(command)


def _device_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--device",
        "device_name",
        default="auto",
        show_default="CUDA if there is one, else the CPU",
        help="auto, cpu, cuda or cuda:N.",
    )(command)


@main.group()
def cache() -> None:
    """Build a feature cache, and look at one."""


@cache.command("build")
@click.option(
    "--data",
    "roots",
    metavar="ROOT",
    type=_FOLDER,
    required=True,
    multiple=True,
    help="Folder with LMDBs at any depth; may be given more than once.",
)
@click.option("--out", type=_NEW_CACHE, required=True, help="Folder of the cache.")
@click.option(
    "--teacher",
    metavar="MODEL/WEIGHTS",
    default="ViT-B-16/openai",
    show_default=True,
    help="open_clip model; weights are a pretrained tag, a file's path, or random:SEED.",
)
@click.option(
    "--activation",
    type=click.Choice(["quickgelu", "gelu"]),
    show_default="what the weights were trained with",
    help="Only for a weights file that does not say: OpenAI's are quickgelu.",
)
@click.option(
    "--image-taps",
    callback=_parse_taps,
    default="3,6,9",
    show_default=True,
    help="Image blocks to keep.",
)
@click.option(
    "--text-taps",
    callback=_parse_taps,
    default="3,6,9",
    show_default=True,
    help="Text blocks to keep.",
)
@click.option(
    "--charset",
    "charset_name",
    default="36",
    show_default=True,
    help="Charset of the text table: 36, 62, 94 or a text file. The images do not depend on it.",
)
@click.option(
    "--max-label-length", type=int, default=25, show_default=True, help="Longest label kept."
)
@click.option(
    "--keep-unicode", is_flag=True, help="Do not reduce labels to ASCII; for non-Latin scripts."
)
@click.option(
    "--codec",
    default="fp16",
    show_default=True,
    help="How image features are stored: fp16 exactly; int8 and int4 standardised, in a half and a "
    "quarter of its bytes; klt:BYTES in that many bytes a token, by tables fit to the features.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    show_default="fp16 on CUDA, fp32 on the CPU",
    help="Arithmetic of the teacher.",
)
@click.option(
    "--augment",
    type=click.Choice(["clean", "randaugment"]),
    default="clean",
    show_default=True,
    help="What happens to a picture before it is stretched; randaugment is PARSeq's recipe.",
)
@click.option(
    "--views",
    "num_views",
    type=int,
    default=1,
    show_default=True,
    help="Views of each sample; epoch e trains on view e mod K. More can be added later.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Keys the order of the rows and the augmentation.",
)
@click.option(
    "--unit-rows",
    type=int,
    default=16384,
    show_default=True,
    help="Rows per unit, which is what a killed build loses at most.",
)
@click.option(
    "--chunk-rows", type=int, default=256, show_default=True, help="Rows per teacher batch."
)
@_device_option
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    show_default="a core less than there are on CUDA, else 0",
    help="Processes that decode images; 0 decodes in a thread.",
)
def build_command(
    roots: tuple[Path, ...],
    out: Path,
    teacher: str,
    activation: str | None,
    image_taps: tuple[int, ...],
    text_taps: tuple[int, ...],
    charset_name: str,
    max_label_length: int,
    keep_unicode: bool,
    codec: str,
    precision: str | None,
    augment: str,
    num_views: int,
    seed: int,
    unit_rows: int,
    chunk_rows: int,
    device_name: str,
    workers: int | None,
) -> None:
    """Run frozen CLIP over all LMDBs at or below ROOT and keep its features.

    Running the same command again finishes what is missing, or finds that nothing is. With another
    --charset it adds the text table of that charset to the cache, with more --views the views.

    Under torchrun, srun or a Slurm array each process builds its share of the units; any of them
    may fail or come late without harm.

    \b
    Example:
      clipocr cache build --data data/train/synth --out mjst.cache --teacher ViT-B-16/openai
    """
    from .precompute.build import BuildConfig, build_cache
    from .shared.charset import Charset, LabelRules
    from .shared.device import choose_device

    rank, world_size, local_rank = _process_of()
    device = choose_device(device_name)
    if device.type == "cuda" and device.index is None and world_size > 1:
        device = choose_device(f"cuda:{local_rank}")
    summary = build_cache(
        BuildConfig(
            data=roots,
            out=out,
            teacher=teacher,
            activation=activation,
            device=device,
            precision=precision,
            image_taps=image_taps,
            text_taps=text_taps,
            charset=Charset.load(charset_name),
            labels=LabelRules(
                normalize_unicode=not keep_unicode, max_label_length=max_label_length
            ),
            codec=codec,
            augment=augment,
            num_views=num_views,
            seed=seed,
            rank=rank,
            world_size=world_size,
            unit_rows=unit_rows,
            chunk_rows=chunk_rows,
            num_workers=_default_workers(device.type) if workers is None else workers,
        )
    )
    spec = summary.cache.spec
    _warn_of_random_teacher(spec.teacher.is_random, spec.teacher.name)
    size = _bytes(summary.cache.num_bytes())
    rate = summary.num_rows_built / max(summary.image_seconds, 1e-9)
    done = (
        f"{_count(summary.num_rows_built, 'row')} built at {rate:,.0f} images/s"
        if summary.num_rows_built
        else "nothing was missing"
    )
    rest = "" if summary.is_complete else "; units of other processes are still missing"
    click.echo(
        f"Wrote {out}: {_count(spec.num_rows, 'row')} ({summary.num_bad_rows:,} bad), {size}; "
        f"{done}{rest}."
    )


def _process_of() -> tuple[int, int, int]:
    """Return (rank, number of processes, rank on this machine) as torchrun or Slurm set them."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0"))
    if "SLURM_ARRAY_TASK_ID" in env and "SLURM_ARRAY_TASK_COUNT" in env:
        first = int(env.get("SLURM_ARRAY_TASK_MIN", "0"))
        step = int(env.get("SLURM_ARRAY_TASK_STEP", "1"))
        rank = (int(env["SLURM_ARRAY_TASK_ID"]) - first) // step
        return rank, int(env["SLURM_ARRAY_TASK_COUNT"]), 0
    if "SLURM_PROCID" in env and "SLURM_NTASKS" in env:
        return (
            int(env["SLURM_PROCID"]),
            int(env["SLURM_NTASKS"]),
            int(env.get("SLURM_LOCALID", "0")),
        )
    return 0, 1, 0


def _default_workers(device_type: str) -> int:
    # Beside a CPU teacher a decoder only takes its cores; a GPU wants all it can get.
    return 0 if device_type == "cpu" else max(1, _num_cores() - 1)


def _warn_of_random_teacher(is_random: bool, name: str) -> None:
    if is_random:
        click.echo(
            f"Note: the teacher {name} has random weights. Its features try out the pipeline; "
            "a student learns nothing of CLIP from them.",
            err=True,
        )


@cache.command("info")
@click.argument("cache_path", metavar="CACHE", type=_CACHE)
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

    from .precompute.info import describe_cache, list_bad_samples

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
        f"{_count(description.num_rows, 'row')} built, "
        f"{_bytes(sum(description.bytes_by_part.values()))}."
    )


@cache.command("verify")
@click.argument("cache_path", metavar="CACHE", type=_CACHE)
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
    type=_FOLDER,
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
@_device_option
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=_num_cores,
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
    from .precompute.verify import verify_cache

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
    checked = f"{_count(len(report.files), 'file')}, {_bytes(report.num_bytes)}"
    if report.faults and repair:
        assert isinstance(cache_path, Path), cache_path
        _repair(cache_path, report)
    elif report.faults:
        num_units = len({fault.unit for fault in report.faults})
        click.echo(
            f"{cache_path} is damaged: {_count(len(report.faults), 'fault')} in "
            f"{_count(num_units, 'part')}, of {checked}. Take them back with: "
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
            f"{cache_path} {finding}: {checked}; {_count(num_units, 'unit')}, "
            f"{_count(len(report.commits) - num_units, 'text table')}, {state}."
        )
        if not is_sound:
            raise SystemExit(1)


def _repair(path: Path, report: VerifyReport) -> None:
    from .precompute.verify import repair_cache

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
        f"Repaired {path}: {_count(num_parts, 'part')} taken back, "
        f"{_count(len(repair.rewritten), 'metadata file')} written again. Now run its cache build "
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

    from .precompute.recompute import RecomputeConfig, recompute_rows
    from .shared.device import choose_device

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
    click.echo(f"{_count(report.num_rows, 'row')} recomputed, drawn by seed {seed}")
    click.echo(
        tabulate(
            rows,
            headers=headers,
            tablefmt="github",
            colalign=("left", "right", "right", "right"),
            disable_numparse=True,
        )
    )
    for difference in report.differing_views[:_MAX_LISTED]:
        click.echo(difference)
    click.echo(f"{_count(len(report.differing_views), 'view')} came out differently")
    click.echo(
        "; ".join(
            f"{package} {here}" + (f" (built with {built})" if built != here else "")
            for package, (built, here) in report.versions.items()
        )
    )
    return report.is_sound


@cache.command("copy")
@click.argument("source", metavar="SRC", type=_CACHE)
@click.argument("out", metavar="DST", type=_NEW_CACHE)
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
    callback=_parse_taps,
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
    from .precompute.copy import CopyConfig, copy_cache

    summary = copy_cache(
        CopyConfig(
            source=source,
            out=out,
            fraction=fraction,
            num_views=num_views,
            image_taps=image_taps,
        )
    )
    cache = summary.cache
    click.echo(
        f"Wrote {out}: {_count(len(cache.units()), 'unit')} of {cache.spec.num_units:,} in "
        f"{_count(cache.num_views, 'view')}, {_bytes(summary.num_bytes_copied)} copied, "
        f"{_bytes(summary.num_bytes_kept)} were there already."
    )


@cache.command("text")
@click.argument("cache_path", metavar="CACHE", type=_FOLDER)
@click.option("--charset", "charset_name", required=True, help="36, 62, 94 or a text file.")
@click.option(
    "--tokens",
    type=click.Choice(["char", "word"]),
    default="char",
    show_default=True,
    help="char: one token per character, as CLIP-OCR does; word: the label whole (table 7).",
)
@click.option(
    "--teacher",
    metavar="MODEL/WEIGHTS",
    show_default="the cache's own",
    help="Where its weights are now; needed if they were a file.",
)
@_device_option
def text_command(
    cache_path: Path, charset_name: str, tokens: str, teacher: str | None, device_name: str
) -> None:
    """Add the text features of another charset, or of whole words, to a cache.

    The labels are in the cache, so the sources are not needed, but the teacher's weights are: the
    very same, or they are refused. Images are not touched.

    \b
    Example:
      clipocr cache text mjst.cache --charset 94
    """
    from .precompute.text import TextConfig, add_text_table
    from .shared.charset import Charset
    from .shared.device import choose_device

    summary = add_text_table(
        TextConfig(
            cache=cache_path,
            charset=Charset.load(charset_name),
            tokens=tokens,
            teacher=teacher,
            device=choose_device(device_name),
        )
    )
    _warn_of_random_teacher(summary.teacher.is_random, summary.teacher.name)
    spec = summary.spec
    click.echo(
        f"{'Found' if summary.was_there else 'Wrote'} {cache_path}/text/{spec.name}: "
        f"{_count(spec.num_strings, 'label')}, {_count(spec.num_nodes, 'prefix', 'prefixes')}, "
        f"{_bytes(summary.num_bytes)}{'; nothing was missing' if summary.was_there else ''}."
    )


@cache.command("show")
@click.argument("cache_path", metavar="CACHE", type=_CACHE)
@click.option("--out", type=_NEW_PATH, required=True, help="PNG to write.")
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
    from .precompute.show import ShowConfig, show_cache

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
    _warn_of_random_teacher(summary.teacher_is_random, summary.teacher_name)
    width_px, height_px = summary.size_px
    click.echo(
        f"Wrote {out}: {_count(summary.num_rows, 'row')} by {_count(summary.num_views, 'view')}, "
        f"block {summary.tap}, {width_px}x{height_px} pixels."
    )


@cache.command("plan")
@click.option(
    "--data",
    "roots",
    metavar="ROOT",
    type=_FOLDER,
    required=True,
    multiple=True,
    help="Folder with LMDBs at any depth; may be given more than once.",
)
@click.option(
    "--out",
    type=_NEW_CACHE,
    show_default="the disk of temporary files",
    help="Folder of the cache to be; only its disk is measured.",
)
@click.option(
    "--teacher",
    metavar="MODEL/WEIGHTS",
    default="ViT-B-16/openai",
    show_default=True,
    help="As for cache build; its weights are not loaded.",
)
@click.option(
    "--image-taps",
    callback=_parse_taps,
    default="3,6,9",
    show_default=True,
    help="Image blocks to keep.",
)
@click.option(
    "--text-taps",
    callback=_parse_taps,
    default="3,6,9",
    show_default=True,
    help="Text blocks to keep.",
)
@click.option(
    "--charset",
    "charset_names",
    default=("36",),
    show_default="36",
    multiple=True,
    help="Charset of a text table: 36, 62, 94 or a text file; may be given more than once.",
)
@click.option(
    "--max-label-length", type=int, default=25, show_default=True, help="Longest label kept."
)
@click.option(
    "--keep-unicode", is_flag=True, help="Do not reduce labels to ASCII; for non-Latin scripts."
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    show_default="fp16 on CUDA, fp32 on the CPU",
    help="Arithmetic of the teacher.",
)
@click.option(
    "--augment",
    type=click.Choice(["clean", "randaugment"]),
    default="clean",
    show_default=True,
    help="For a single view; several are always randaugment.",
)
@click.option(
    "--views",
    type=click.IntRange(min=1),
    default=(1, 2, 5),
    show_default="1, 2 and 5",
    multiple=True,
    help="Number of views to plan for; may be given more than once.",
)
@click.option("--unit-rows", type=int, default=16384, show_default=True, help="As for cache build.")
@click.option(
    "--chunk-rows", type=int, default=256, show_default=True, help="Rows per teacher batch."
)
@_device_option
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    show_default="a core less than there are on CUDA, else 0",
    help="Processes that decode images; 0 decodes in a thread.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def plan_command(
    roots: tuple[Path, ...],
    out: Path | None,
    teacher: str,
    image_taps: tuple[int, ...],
    text_taps: tuple[int, ...],
    charset_names: tuple[str, ...],
    max_label_length: int,
    keep_unicode: bool,
    precision: str | None,
    augment: str,
    views: tuple[int, ...],
    unit_rows: int,
    chunk_rows: int,
    device_name: str,
    workers: int | None,
    as_json: bool,
) -> None:
    """Say what a cache would take, in rows, bytes and time, before anything is built.

    The sources are scanned, and a few seconds of each part of the work are timed on this machine.
    No cache is written and no weights are downloaded.

    \b
    Example:
      clipocr cache plan --data data/train/synth --out mjst.cache
    """
    import json

    from .precompute.plan import PlanConfig, plan_cache
    from .shared.charset import Charset, LabelRules
    from .shared.device import choose_device

    device = choose_device(device_name)
    plan = plan_cache(
        PlanConfig(
            data=roots,
            out=out,
            teacher=teacher,
            device=device,
            precision=precision,
            image_taps=image_taps,
            text_taps=text_taps,
            charsets=tuple(Charset.load(name) for name in charset_names),
            labels=LabelRules(
                normalize_unicode=not keep_unicode, max_label_length=max_label_length
            ),
            augment=augment,
            views=views,
            unit_rows=unit_rows,
            chunk_rows=chunk_rows,
            num_workers=_default_workers(device.type) if workers is None else workers,
            num_cores=_num_cores(),
        )
    )
    if as_json:
        click.echo(json.dumps(plan.to_json(), indent=1))
    else:
        _print_plan(plan)


def _print_plan(plan: Plan) -> None:
    from tabulate import tabulate

    def counts(by_reason: Mapping[str, int]) -> str:
        listed = ", ".join(f"{n:,} {reason}" for reason, n in by_reason.items())
        return f"{sum(by_reason.values()):,}" + (f" ({listed})" if listed else "")

    rates = plan.rates
    facts = [
        *(("source", f"{name}: {_count(n, 'sample')}") for name, n in plan.sources.items()),
        ("rows", f"{plan.num_rows:,}"),
        ("rejected samples", counts(plan.rejected)),
        ("unique labels", f"{plan.num_labels:,}"),
        *(
            (
                f"text/{text.name}",
                f"{_count(text.num_strings, 'string')}, {text.num_nodes:,} prefixes; nothing is "
                f"left of {_count(text.num_left_out, 'label')}",
            )
            for text in plan.texts
        ),
        ("bad images", f"{counts(plan.sampled_bad)} among {plan.num_sampled:,} looked at"),
        ("scan", f"{rates.scan_s:.1f} s"),
        *(
            (f"{augment} views", f"{rate:,.0f}/s on one core")
            for augment, rate in rates.views_per_s.items()
        ),
        ("teacher", f"{rates.images_per_s:,.0f} images/s, {rates.labels_per_s:,.0f} labels/s "
                    f"({plan.teacher} on {plan.device} in {plan.precision})"),
        ("disk", f"{_bytes(rates.written_bytes_per_s)}/s"),
    ]  # fmt: skip
    click.echo(tabulate(facts, tablefmt="plain", disable_numparse=True))
    click.echo()
    parts = list(plan.costs[0].bytes_by_part)
    rows = [
        (cost.codec, f"K={cost.num_views} {cost.augment}",
         *(_bytes(cost.bytes_by_part[part]) for part in parts),
         _bytes(cost.num_bytes), _duration(cost.seconds), cost.bottleneck)
        for cost in plan.costs
    ]  # fmt: skip
    headers = ["codec", "views", *parts, "total", "time", "waits for"]
    align = ("left", "left", *["right"] * (len(parts) + 2), "left")
    click.echo(
        tabulate(rows, headers=headers, tablefmt="github", colalign=align, disable_numparse=True)
    )
    click.echo()
    for assumption in plan.assumptions:
        click.echo(f"- {assumption}")
    click.echo()
    first = plan.costs[0]
    click.echo(
        f"Building K={first.num_views} here takes about {_duration(first.seconds)} "
        f"and {_bytes(first.num_bytes)}."
    )


# ------------------------------------------------------------------------------------- student


@main.command()
@click.option(
    "--cache",
    "cache_path",
    type=_CACHE,
    required=True,
    help="Feature cache: a folder, or an address such as s3://bucket/mjst.cache.",
)
@click.option("--out", type=_NEW_PATH, required=True, help="Folder of the run.")
@_copies_options
@_setting(
    "--recipe",
    type=click.Choice(["paper", "small-gpu"]),
    default="paper",
    help="Defaults of the settings below: the paper's, or the same in parts, for 4 to 6 GB.",
)
@_setting(
    "--student",
    type=click.Choice(["tiny", "small", "base"]),
    default="small",
    help="Size of the student; small is the paper's.",
)
@_setting("--charset", default="36", help="36, 62, 94 or a text file.")
@_setting("--max-label-length", type=int, default=25, help="Longest label learned.")
@_setting("--image-taps", callback=_parse_taps, default="3,6,9", help="Image blocks to follow.")
@_setting("--text-taps", callback=_parse_taps, default="3,6,9", help="Text blocks to follow.")
@_setting(
    "--image-stages",
    callback=_parse_stages,
    default="1,2,3",
    help="Encoder stages that follow them; none: no image distillation (table 1).",
)
@_setting(
    "--text-stages",
    callback=_parse_stages,
    default="1,2,3",
    help="Decoder layers that follow them, the last tap first; none: no text (tables 1, 12).",
)
@_setting(
    "--word/--no-word",
    default=True,
    help="Whether the class token follows the teacher's EOT embedding.",
)
@_setting(
    "--tokens",
    type=click.Choice(["char", "word"]),
    default="char",
    help="Text features to follow: of characters, or of the label whole (table 7).",
)
@_setting(
    "--mask-pads/--keep-pads",
    default=False,
    help="Whether label positions after EOS stay out of the text terms; officially they are in.",
)
@_setting(
    "--loss",
    type=click.Choice(["lcl", "l1", "cosine", "kl"]),
    default="lcl",
    help="What compares features (table 3).",
)
@_setting("--intra-weight", type=float, default=5.0, help="lambda_1 of LCL (tables 2, 5).")
@_setting("--inter-weight", type=float, default=0.1, help="lambda_2 of LCL (tables 2, 6).")
@_setting("--temperature", type=float, default=0.03, help="tau of LCL (table 4).")
@_setting(
    "--scope",
    type=click.Choice(["batch", "sample"]),
    default="batch",
    help="Rows that LCL relates: of the whole batch, as officially, or of each sample, as printed.",
)
@_setting(
    "--gather",
    type=click.Choice(["none", "inter", "all"]),
    default="inter",
    help="LCL terms that see rows of other processes: inter officially; all is the loss of one.",
)
@_setting("--epochs", type=click.IntRange(min=1), default=5, help="Passes over the cache.")
@_setting(
    "--batch-size",
    type=click.IntRange(min=1),
    default=320,
    help="Samples per optimizer step, of all processes together.",
)
@_setting(
    "--accumulate",
    type=click.IntRange(min=1),
    default=1,
    help="Parts to cut each batch into, to need less memory; LCL relates the rows of a part.",
)
@_setting(
    "--learning-rate",
    type=float,
    default=1.2374e-3,
    help="Peak of the OneCycle schedule; the default is the paper's for batches of 320.",
)
@_setting("--warmup-fraction", type=float, default=0.075, help="Share of the steps before it.")
@_setting("--weight-decay", type=float, default=0.0, help="On matrices only.")
@_setting("--grad-clip-norm", type=float, default=20.0, help="Largest norm of the gradient.")
@_setting(
    "--max-skipped-steps",
    type=click.IntRange(min=0),
    default=25,
    help="Steps in a row that may be skipped because their gradient is not finite.",
)
@_setting("--fraction", type=float, default=1.0, help="Share of the cache to train on.")
@_setting(
    "--views",
    type=click.IntRange(min=1),
    show_default="all the cache has",
    help="Views to train on; epoch e sees view e mod K.",
)
@_setting(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    help="Arithmetic of the student; auto is mixed precision where the device has it.",
)
@_setting(
    "--compile/--no-compile",
    default=False,
    help="Whether torch.compile fuses the encoder; takes minutes at the start.",
)
@_setting("--seed", type=int, default=0, help="Of weights, order, dropout.")
@click.option(
    "--val-data",
    "val_roots",
    metavar="ROOT",
    type=_FOLDER,
    multiple=True,
    help="Folder with validation LMDBs; best.pt is chosen by them.",
)
@click.option(
    "--checkpoint-every-steps",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Steps between writes of last.pt, besides the end of each epoch.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out where it stopped.")
@_device_option
def train(
    cache_path: str | Path,
    out: Path,
    cache_dir: Path | None,
    cache_bytes: int,
    val_roots: tuple[Path, ...],
    checkpoint_every_steps: int,
    resume: bool,
    device_name: str,
    **settings: Any,
) -> None:
    """Train a student from a cache. CLIP is not loaded, not even imported.

    Ctrl-C and SIGTERM write a checkpoint first; --resume goes on as if nothing had happened.
    Several GPUs share each batch under torchrun --nproc-per-node N -m clipocr train ...

    \b
    Example:
      clipocr train --cache mjst.cache --out run --val-data data/val
    """
    from .shared.device import choose_device, choose_precision
    from .train.config import TrainPlace
    from .train.distributed import Processes
    from .train.run import train as train_run
    from .train.settings import asked_precision, train_config
    from .train.stopping import StopRequestedError

    processes = Processes.from_environment()
    device = choose_device(device_name)
    if device.type == "cuda" and processes.world_size > 1:
        if device.index is not None:
            raise click.UsageError(
                f"--device {device_name} would put all {processes.world_size} processes on one "
                "GPU; pass --device cuda"
            )
        device = choose_device(f"cuda:{processes.local_rank}")
    given = {name: value for name, value in settings.items() if _is_given(name)}
    config = train_config(given, device)
    place = TrainPlace(
        cache=cache_path,
        cache_dir=cache_dir,
        max_cache_bytes=cache_bytes,
        out=out,
        device=device,
        processes=processes,
        val_data=val_roots,
        val_charset=config.charset,
        command=tuple(sys.argv),
        checkpoint_every_steps=checkpoint_every_steps,
    )
    if processes.is_first:
        _, reason = choose_precision(asked_precision(given), device)
        click.echo(f"Training on {device} in {config.precision} ({reason}).", err=True)
    try:
        summary = train_run(config, place, resume=resume)
    except StopRequestedError as e:
        click.echo(f"Stopped; {out / 'last.pt'} holds the run, go on with --resume.", err=True)
        raise SystemExit(128 + e.signal_number) from None
    if processes.is_first:
        _report_training(out, summary)


def _is_given(name: str) -> bool:
    """Whether an option stood on the command line; a recipe gives way only to those."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def _report_training(out: Path, summary: TrainSummary) -> None:
    from .train.curves import draw_curves

    _warn_of_random_teacher(summary.teacher_is_random, "of this cache")
    if summary.num_skipped:
        click.echo(
            f"Note: {_count(summary.num_skipped, 'step')} had no finite gradient and did nothing.",
            err=True,
        )
    try:
        draw_curves(out)
    except ImportError as e:
        click.echo(f"Note: {out / 'curves.png'} was not drawn: {e}.", err=True)
    best = "" if summary.best_accuracy is None else f", best accuracy {summary.best_accuracy:.1f} %"
    speed = (
        f"; {summary.samples_per_second:,.0f} samples/s, "
        f"{100 * summary.data_wait_fraction:.1f} % of the time waiting for data"
        if summary.samples_per_second
        else "; it was finished already"
    )
    click.echo(
        f"Wrote {summary.checkpoint}: {_count(summary.num_steps, 'step')}, loss "
        f"{summary.first_loss:.3f} in the first epoch and {summary.last_loss:.3f} in the last"
        f"{best}{speed}."
    )


@main.command()
@click.argument("table_name", metavar="TABLE")
@click.option(
    "--cache", "cache_path", type=_CACHE, required=True, help="Feature cache of all runs."
)
@_copies_options
@click.option("--out", type=_NEW_PATH, required=True, help="Folder of the runs and of the table.")
@click.option(
    "--data",
    "roots",
    metavar="ROOT",
    type=_FOLDER,
    multiple=True,
    required=True,
    help="Folder with test LMDBs, at any depth.",
)
@click.option(
    "--set",
    "overrides",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_parse_settings,
    help="A setting of every run, as in the table: student=tiny, epochs=3, image_taps=[1,2,3].",
)
@click.option(
    "--seeds", type=str, show_default="the table's", callback=_parse_seeds, help="Such as 0,1,2."
)
@click.option(
    "--only",
    metavar="I/N",
    default="1/1",
    callback=_parse_share,
    show_default=True,
    help="Train the I-th of N shares of the runs, as with one process per GPU.",
)
@click.option(
    "--val-data",
    "val_roots",
    metavar="ROOT",
    type=_FOLDER,
    multiple=True,
    help="Validation LMDBs; each run is then judged by its best.pt.",
)
@_device_option
def ablate(
    table_name: str,
    cache_path: str | Path,
    cache_dir: Path | None,
    cache_bytes: int,
    out: Path,
    roots: tuple[Path, ...],
    overrides: Mapping[str, Any],
    seeds: tuple[int, ...] | None,
    only: tuple[int, int],
    val_roots: tuple[Path, ...],
    device_name: str,
) -> None:
    """Train and evaluate a table of runs over one cache.

    TABLE is a TOML file, or a table of the paper: table1 to table7, table12. Finished runs are left
    alone, interrupted ones go on, so the same command may be repeated. OUT then holds a run folder
    per variant and seed, and the table as table.md, table.csv and table.png.

    \b
    Example:
      clipocr ablate table1 --cache mjst.cache --out table1 --data data/test
      clipocr ablate table2 --cache words.cache --out t2 --data data/test --set student=tiny
    """
    from dataclasses import replace

    from .shared.charset import Charset
    from .shared.device import choose_device
    from .train.ablate import ablate as ablate_table
    from .train.ablation import load_table
    from .train.config import TrainPlace
    from .train.distributed import Processes
    from .train.stopping import StopRequestedError

    if Processes.from_environment().world_size > 1:
        raise click.UsageError("ablate is one process per GPU, each with its share: --only I/N")
    table = load_table(table_name)
    table = replace(table, settings={**table.settings, **overrides}, seeds=seeds or table.seeds)
    place = TrainPlace(
        cache=cache_path,
        cache_dir=cache_dir,
        max_cache_bytes=cache_bytes,
        out=out,
        device=choose_device(device_name),
        val_data=val_roots,
        val_charset=Charset.load("36"),
        command=tuple(sys.argv),
    )
    try:
        result = ablate_table(table, place, roots, only=only)
    except StopRequestedError as e:
        click.echo("Stopped; the same command goes on from here.", err=True)
        raise SystemExit(128 + e.signal_number) from None
    click.echo((out / "table.md").read_text(encoding="utf-8"))
    for name, reason in result.failed.items():
        click.echo(f"{name} failed: {reason}", err=True)
    click.echo(
        f"Wrote {out / 'table.md'}, .csv and .png: {result.num_finished} of "
        f"{_count(result.num_runs, 'run')} finished."
    )
    if result.failed:
        raise SystemExit(1)


@main.command("eval")
@click.argument("run_or_checkpoint", metavar="RUN-OR-CHECKPOINT", type=_PATH)
@click.option(
    "--data",
    "roots",
    metavar="ROOT",
    type=_FOLDER,
    required=True,
    multiple=True,
    help="Folder with test LMDBs at any depth; may be given more than once.",
)
@click.option(
    "--charset",
    "charset_name",
    default="36",
    show_default=True,
    help="Test charset, applied to label and prediction; 36 for the published numbers.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Images at once.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Arithmetic; published numbers are fp32.",
)
@click.option(
    "--json",
    "json_path",
    type=_NEW_PATH,
    show_default="eval.json beside the checkpoint",
    help="Where the figures are written.",
)
@_device_option
def eval_command(
    run_or_checkpoint: Path,
    roots: tuple[Path, ...],
    charset_name: str,
    batch_size: int,
    precision: str,
    json_path: Path | None,
    device_name: str,
) -> None:
    """Measure word accuracy on every LMDB at or below ROOT.

    \b
    Example:
      clipocr eval run --data data/test
    """
    from tabulate import tabulate

    from .shared.charset import Charset
    from .shared.device import choose_device
    from .shared.schema import TeacherSpec
    from .train.checkpoint import find_checkpoint, load_checkpoint, load_student
    from .train.evaluate import evaluate, open_test_sets, results_as_table, write_results

    checkpoint = find_checkpoint(run_or_checkpoint)
    json_path = json_path or checkpoint.parent / "eval.json"
    if not os.access(json_path.parent, os.W_OK):
        raise click.ClickException(f"{json_path} cannot be written; choose a place by --json")
    student = load_student(checkpoint, choose_device(device_name))
    teacher = str(load_checkpoint(checkpoint)["teacher"])
    _warn_of_random_teacher(TeacherSpec.has_random_weights(teacher), f"{teacher} of this student")
    charset = Charset.load(charset_name)
    test_sets = open_test_sets(roots, charset, student.config.max_label_length)
    results = evaluate(student, test_sets, precision=precision, batch_size=batch_size)
    headers, rows = results_as_table(results)
    click.echo(
        tabulate(
            rows,
            headers=headers,
            tablefmt="github",
            colalign=("left", *["right"] * (len(headers) - 1)),
            disable_numparse=True,
        )
    )
    for result in results:
        if result.num_broken or result.num_unlabelled:
            click.echo(
                f"{result.name}: {_count(result.num_broken, 'broken image')} counted as wrong, "
                f"{_count(result.num_unlabelled, 'sample')} left out (no label of charset "
                f"{charset_name}, or too long)",
                err=True,
            )
    write_results(json_path, results, checkpoint=checkpoint, charset=charset)
    click.echo(f"Wrote {json_path}: {_count(len(results), 'test set')} for {checkpoint}.")


@main.command()
@click.argument("run_or_checkpoint", metavar="RUN-OR-CHECKPOINT", type=_PATH)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=_NEW_PATH)
@_device_option
def read(run_or_checkpoint: Path, images: tuple[Path, ...], device_name: str) -> None:
    """Read cropped words: prints file, text and confidence, separated by tabs.

    Each IMAGE is one word, not a page. Exits with 1 if one of them cannot be read.

    \b
    Example:
      clipocr read run word1.png word2.jpg
    """
    from .shared.device import choose_device
    from .train.checkpoint import find_checkpoint, load_student
    from .train.evaluate import read_images

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


# -------------------------------------------------------------------------------------- output


@contextmanager
def _listed_problems() -> Iterator[Callable[[str], None]]:
    """Collect problems and print them to stderr at the end, the first few and a count."""
    problems: list[str] = []
    num_problems = 0

    def on_problem(problem: str) -> None:
        nonlocal num_problems
        num_problems += 1
        if num_problems <= _MAX_LISTED:
            problems.append(problem)

    try:
        yield on_problem
    finally:
        for problem in problems:
            click.echo(problem, err=True)
        if num_problems > _MAX_LISTED:
            click.echo(f"... and {num_problems - _MAX_LISTED:,} more", err=True)


def _histogram(lengths: dict[int, int], width: int = 5) -> str:
    """Return counts in bins of `width`, e.g. ``1-5: 1,203  6-10: 796``."""
    bins: dict[int, int] = {}
    for length, n in sorted(lengths.items()):
        start = (length - 1) // width * width + 1
        bins[start] = bins.get(start, 0) + n
    return "  ".join(f"{start}-{start + width - 1}: {n:,}" for start, n in bins.items()) or "none"


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _size(folder: Path) -> str:
    return _bytes(sum(path.stat().st_size for path in folder.iterdir()))


def _duration(seconds: float) -> str:
    """Return a time as people say it, to the minute, or to the second if it is short."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _bytes(num_bytes: float) -> str:
    """Return a size in the decimal unit that leaves one to three digits before the point."""
    size, units = float(num_bytes), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000:
        size, unit = size / 1000, next(units)
    return f"{size:.0f} bytes" if unit == "bytes" else f"{size:,.1f} {unit}"
