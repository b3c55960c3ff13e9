"""The commands ``clipocr cache build|text|plan``, which run the teacher."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...shared.options import FOLDER, NEW_CACHE, device_option, num_cores, parse_taps
from ...shared.terminal import byte_size, counted, duration, warn_of_random_teacher

if TYPE_CHECKING:
    from ..inspect.plan import Plan


# Of `build` and `plan` alike.
_data_option = click.option(
    "--data",
    "roots",
    metavar="ROOT",
    type=FOLDER,
    required=True,
    multiple=True,
    help="Folder with LMDBs at any depth; may be given more than once.",
)
_image_taps_option = click.option(
    "--image-taps",
    callback=parse_taps,
    default="3,6,9",
    show_default=True,
    help="Image blocks to keep.",
)
_text_taps_option = click.option(
    "--text-taps",
    callback=parse_taps,
    default="3,6,9",
    show_default=True,
    help="Text blocks to keep.",
)
_max_label_length_option = click.option(
    "--max-label-length", type=int, default=25, show_default=True, help="Longest label kept."
)
_keep_unicode_option = click.option(
    "--keep-unicode", is_flag=True, help="Do not reduce labels to ASCII; for non-Latin scripts."
)
_precision_option = click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    show_default="fp16 on CUDA, fp32 on the CPU",
    help="Arithmetic of the teacher.",
)
_chunk_rows_option = click.option(
    "--chunk-rows", type=int, default=256, show_default=True, help="Rows per teacher batch."
)
_workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    show_default="a core less than there are on CUDA, else 0",
    help="Processes that decode images; 0 decodes in a thread.",
)


@click.group()
def cache() -> None:
    """Build a feature cache, and look at one."""


@cache.command("build")
@_data_option
@click.option("--out", type=NEW_CACHE, required=True, help="Folder of the cache.")
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
@_image_taps_option
@_text_taps_option
@click.option(
    "--charset",
    "charset_name",
    default="36",
    show_default=True,
    help="Charset of the text table: 36, 62, 94 or a text file. The images do not depend on it.",
)
@_max_label_length_option
@_keep_unicode_option
@click.option(
    "--codec",
    default="fp16",
    show_default=True,
    help="How image features are stored: fp16 exactly; int8 and int4 standardised, in a half and a "
    "quarter of its bytes; klt:BYTES in that many bytes a token, by tables fit to the features; "
    "auto in the fewest that will do. Or one for each image tap, by commas.",
)
@click.option(
    "--fidelity",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    show_default="0.99",
    help="With --codec auto: the median centred cosine to keep; bounds for the worst tokens and "
    "for LCL's Gram matrix follow from it.",
)
@_precision_option
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
@_chunk_rows_option
@device_option
@_workers_option
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
    fidelity: float | None,
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
    from ...shared.cache.codecs.choice import auto_codec
    from ...shared.charset import Charset, LabelRules
    from ...shared.device import choose_device
    from ..builder.build import BuildConfig, build_cache

    if fidelity is not None:
        if codec != "auto":
            raise click.UsageError(f"--fidelity is for --codec auto, not for --codec {codec}")
        codec = auto_codec(fidelity)
    rank, world_size, local_rank = process_of()
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
            labels=LabelRules(keep_unicode=keep_unicode, max_label_length=max_label_length),
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
    warn_of_random_teacher(spec.teacher.is_random, spec.teacher.name)
    size = byte_size(summary.cache.num_bytes())
    rate = summary.num_rows_built / max(summary.image_seconds, 1e-9)
    done = (
        f"{counted(summary.num_rows_built, 'row')} built at {rate:,.0f} images/s"
        if summary.num_rows_built
        else "nothing was missing"
    )
    rest = "" if summary.is_complete else "; units of other processes are still missing"
    if summary.cache.manifest.choices:
        click.echo(f"Codec auto took {spec.codec}.", err=True)
    click.echo(
        f"Wrote {out}: {counted(spec.num_rows, 'row')} ({summary.num_bad_rows:,} bad), {size}; "
        f"{done}{rest}."
    )


def process_of() -> tuple[int, int, int]:
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
    return 0 if device_type == "cpu" else max(1, num_cores() - 1)


@cache.command("text")
@click.argument("cache_path", metavar="CACHE", type=FOLDER)
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
@device_option
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
    from ...shared.charset import Charset
    from ...shared.device import choose_device
    from ..builder.text import TextConfig, add_text_table

    summary = add_text_table(
        TextConfig(
            cache=cache_path,
            charset=Charset.load(charset_name),
            tokens=tokens,
            teacher=teacher,
            device=choose_device(device_name),
        )
    )
    warn_of_random_teacher(summary.teacher.is_random, summary.teacher.name)
    spec = summary.spec
    click.echo(
        f"{'Found' if summary.was_there else 'Wrote'} {cache_path}/text/{spec.name}: "
        f"{counted(spec.num_strings, 'label')}, {counted(spec.num_nodes, 'prefix', 'prefixes')}, "
        f"{byte_size(summary.num_bytes)}{'; nothing was missing' if summary.was_there else ''}."
    )


@cache.command("plan")
@_data_option
@click.option(
    "--out",
    type=NEW_CACHE,
    show_default="the disk of temporary files",
    help="Folder of the cache to be; only its disk is measured.",
)
@click.option(
    "--teacher",
    metavar="MODEL/WEIGHTS",
    default="ViT-B-16/openai",
    show_default=True,
    help="As for cache build; its weights are loaded for --fidelity only.",
)
@_image_taps_option
@_text_taps_option
@click.option(
    "--charset",
    "charset_names",
    default=("36",),
    show_default="36",
    multiple=True,
    help="Charset of a text table: 36, 62, 94 or a text file; may be given more than once.",
)
@_max_label_length_option
@_keep_unicode_option
@click.option(
    "--fidelity",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Plan for --codec auto with this fidelity too: its choice is measured as the build does "
    "it, on up to 2,304 images.",
)
@_precision_option
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
@_chunk_rows_option
@device_option
@_workers_option
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
    fidelity: float | None,
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
    No cache is written and, without --fidelity, no weights are downloaded.

    \b
    Example:
      clipocr cache plan --data data/train/synth --out mjst.cache
    """
    import json

    from ...shared.charset import Charset, LabelRules
    from ...shared.device import choose_device
    from ..inspect.plan import PlanConfig, plan_cache

    device = choose_device(device_name)
    plan = plan_cache(
        PlanConfig(
            data=roots,
            out=out,
            teacher=teacher,
            device=device,
            fidelity=fidelity,
            precision=precision,
            image_taps=image_taps,
            text_taps=text_taps,
            charsets=tuple(Charset.load(name) for name in charset_names),
            labels=LabelRules(keep_unicode=keep_unicode, max_label_length=max_label_length),
            augment=augment,
            views=views,
            unit_rows=unit_rows,
            chunk_rows=chunk_rows,
            num_workers=_default_workers(device.type) if workers is None else workers,
            num_cores=num_cores(),
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
        *(("source", f"{name}: {counted(n, 'sample')}") for name, n in plan.sources.items()),
        ("rows", f"{plan.num_rows:,}"),
        ("rejected samples", counts(plan.rejected)),
        ("unique labels", f"{plan.num_labels:,}"),
        *(
            (
                f"text/{text.name}",
                f"{counted(text.num_strings, 'string')}, {text.num_nodes:,} prefixes; nothing is "
                f"left of {counted(text.num_left_out, 'label')}",
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
        *(
            (f"codec {name}", f"{rate:,.0f} rows/s encoded")
            for name, rate in rates.encoded_per_s.items()
        ),
        ("disk", f"{byte_size(rates.written_bytes_per_s)}/s"),
    ]  # fmt: skip
    click.echo(tabulate(facts, tablefmt="plain", disable_numparse=True))
    click.echo()
    parts = list(plan.costs[0].bytes_by_part)
    rows = [
        (cost.codec, f"K={cost.num_views} {cost.augment}",
         *(byte_size(cost.bytes_by_part[part]) for part in parts),
         byte_size(cost.num_bytes), duration(cost.seconds), cost.bottleneck)
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
        f"Building K={first.num_views} here takes about {duration(first.seconds)} "
        f"and {byte_size(first.num_bytes)}."
    )
