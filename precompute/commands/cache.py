"""The commands ``clipocr cache build|text|weights|labels|pool|plan``, which run the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...shared.cache import names
from ...shared.charset import Charset
from ...shared.help import Group
from ...shared.options import FILE, FOLDER, takes
from ...shared.processes import Process
from ...shared.terminal import (
    byte_size,
    counted,
    duration,
    goes_on,
    markdown_table,
    plain_table,
    warn_of_random_teacher,
)
from ..builder.config import BuildConfig, LabelsConfig, PoolConfig, TextConfig, WeightsConfig
from ..inspect.options import PlanConfig

if TYPE_CHECKING:
    from ...shared.cache.reader import FeatureCache
    from ..inspect.plan import Plan


@click.group(cls=Group)
def cache() -> None:
    """Build, inspect, check and copy feature caches."""


@cache.command("build")
@takes(BuildConfig)
@goes_on
def build_command(given: Mapping[str, Any]) -> None:
    """Run frozen CLIP over word images, and store its features.

    Run the same command again to finish an interrupted build. Run it with another --charset to add
    text features under that charset, or with more --views to add views.

    Under torchrun, srun or a Slurm array, each process builds its share of the units. Any of them
    may start late or fail without harm.

    \b
    Example:
      clipocr cache build --data data/train/synth --out mjst.cache --teacher ViT-B-16/openai
    """
    config = BuildConfig.from_values(given, process=Process.of_torchrun_or_slurm())
    if config.process.world_size > 1:
        click.echo(f"{config.process.describe_share('the units')} ...", err=True)
    from ..builder.build import build_cache

    summary = build_cache(config)
    spec = summary.cache.spec
    warn_of_random_teacher(spec.teacher.is_random, spec.teacher.name)
    _say_what_is_deleted(config.charset, summary.cache)
    size = byte_size(summary.cache.num_bytes())
    rate = summary.num_rows_built / max(summary.image_seconds, 1e-9)
    done = (
        f"{counted(summary.num_rows_built, 'view')} built at {rate:,.0f} images/s"
        if summary.num_rows_built
        else "nothing was missing"
    )
    rest = "" if summary.is_complete else "; units of other processes are still missing"
    click.echo(
        f"Wrote {config.out}: {counted(spec.num_rows, 'row')} ({summary.num_bad_rows:,} bad) in "
        f"{counted(summary.cache.num_views, 'view')}, {size}; {done}{rest}."
    )


@cache.command("text")
@click.argument("cache_path", metavar="CACHE", type=FOLDER)
@takes(TextConfig)
@goes_on
def text_command(cache_path: Path, given: Mapping[str, Any]) -> None:
    """Add text features to a cache, for another charset or tokenizer.

    The labels are in the cache, so no LMDBs are needed. The teacher's weights are, and must be
    those that built the cache. Image features stay as they are.

    \b
    Example:
      clipocr cache text mjst.cache --charset 94
    """
    config = TextConfig.from_values(given, cache=cache_path)
    from ..builder.text import add_text_table

    cache, record, was_there = add_text_table(config)
    warn_of_random_teacher(cache.spec.teacher.is_random, cache.spec.teacher.name)
    _say_what_is_deleted(config.charset, cache)
    spec, num_bytes = record.spec, sum(file.num_bytes for file in record.files.values())
    click.echo(
        f"{'Found' if was_there else 'Wrote'} {cache_path}/{names.text_group(spec.name)}: "
        f"{counted(spec.num_strings, 'label')}, "
        f"{counted(spec.num_prefixes, 'prefix', 'prefixes')}, "
        f"{byte_size(num_bytes)}{'; nothing was missing' if was_there else ''}."
    )


@cache.command("weights")
@click.argument("cache_path", metavar="CACHE", type=FOLDER)
@takes(WeightsConfig)
@goes_on
def weights_command(cache_path: Path, given: Mapping[str, Any]) -> None:
    """Add the teacher's weights to a cache, for methods that need CLIP.

    Such methods then train without a download. The weights must be those that built the cache.
    Everything else in the cache stays as it is.

    \b
    Example:
      clipocr cache weights mjst.cache
    """
    config = WeightsConfig.from_values(given, cache=cache_path)
    from ..builder.weights import add_weights

    cache, record, was_there = add_weights(config)
    teacher, file = cache.spec.teacher, record.files[names.WEIGHTS_FILE]
    warn_of_random_teacher(teacher.is_random, teacher.name)
    click.echo(
        f"{'Found' if was_there else 'Wrote'} {cache_path}/{names.WEIGHTS_FILE}: {teacher.name}, "
        f"{byte_size(file.num_bytes)}{'; nothing was missing' if was_there else ''}."
    )


@cache.command("labels")
@click.argument("words", metavar="WORDS", type=FILE)
@takes(LabelsConfig)
@goes_on
def labels_command(words: Path, given: Mapping[str, Any]) -> None:
    """Build a cache of text features alone, from a list of words.

    WORDS is a text file with one word per line, in any language that the charset can write. The
    cache is for pre-training a decoder: clipocr train --method dptr. Run the same command again to
    finish an interrupted build.

    \b
    Example:
      clipocr cache labels lexicon.txt --out lexicon.cache --charset 94
    """
    config = LabelsConfig.from_values(given, words=words)
    from ..builder.build import build_labels

    summary = build_labels(config)
    spec = summary.cache.spec
    warn_of_random_teacher(spec.teacher.is_random, spec.teacher.name)
    _say_what_is_deleted(config.charset, summary.cache)
    rejected = summary.cache.manifest.num_rejected
    click.echo(
        f"Wrote {config.out}: {counted(spec.num_rows, 'word')} ({rejected:,} lines rejected), "
        f"{byte_size(summary.cache.num_bytes())}"
        f"{'' if summary.num_rows_built or summary.made_text else '; nothing was missing'}."
    )


@cache.command("pool")
@click.argument("cache_path", metavar="CACHE", type=FOLDER)
@takes(PoolConfig)
@goes_on
def pool_command(cache_path: Path, given: Mapping[str, Any]) -> None:
    """Add features of natural images to a cache, as noise for DPTR.

    They are all tokens of each image in CLIP's joint space, at the image size that the teacher was
    trained with. To list images that cannot be decoded, use clipocr cache info CACHE/pool --bad.
    Run the same command again to finish an interrupted build.

    \b
    Example:
      clipocr cache pool mjst.cache --images coco/train2017 --count 10000
    """
    config = PoolConfig.from_values(given, cache=cache_path, process=Process.of_torchrun_or_slurm())
    from ..builder.build import build_pool

    summary = build_pool(config)
    spec = summary.cache.spec
    warn_of_random_teacher(spec.teacher.is_random, spec.teacher.name)
    tokens = spec.images[0].num_tokens
    rest = "" if summary.is_complete else "; units of other processes are still missing"
    click.echo(
        f"Wrote {summary.cache.storage}: {counted(spec.num_rows, 'image')} "
        f"({summary.num_bad_rows:,} bad) of {tokens} tokens, "
        f"{byte_size(summary.cache.num_bytes())}"
        f"{'' if summary.num_rows_built else '; nothing was missing'}{rest}."
    )


def _say_what_is_deleted(charset: Charset, cache: FeatureCache) -> None:
    if said := charset.describe_dropped(cache.labels()):
        click.echo(f"Note: {said}.", err=True)


@cache.command("plan")
@takes(PlanConfig)
def plan_command(given: Mapping[str, Any]) -> None:
    """Estimate the rows, bytes and time of a cache before it is built.

    This scans the LMDBs and times each part of the work on this machine, for a few seconds each. If
    the teacher's weights are available, it also measures every codec on up to 2,304 images,
    and prints the --codec to give to cache build. No cache is written.

    \b
    Example:
      clipocr cache plan --data data/train/synth --out mjst.cache
    """
    config = PlanConfig.from_values(given)
    from ..inspect.plan import plan_cache

    plan = plan_cache(config)
    teacher = plan.spec.teacher
    warn_of_random_teacher(bool(plan.curves) and teacher.is_random, teacher.name)
    _print_plan(plan)
    if config.plot is not None and plan.curves:
        from ..inspect.codec_figure import draw_codec_curves

        warning = ", RANDOM weights" if teacher.is_random else ""
        title = f"Fidelity {config.fidelity:g}: --codec {plan.advised_codec}\n{teacher.name}"
        draw_codec_curves(plan.curves, title + warning, config.plot)
        click.echo(f"Wrote {config.plot}.", err=True)


def _print_plan(plan: Plan) -> None:
    rates = plan.rates
    facts = [
        *(
            ("source", f"{source.name}: {counted(source.num_samples, 'sample')}")
            for source in plan.spec.sources
        ),
        ("rows", f"{plan.spec.num_rows:,}"),
        *(
            (f"rejected, {reason}", counted(n, "sample")) for reason, n in plan.rejected.items()
        ),
        ("unique labels", f"{plan.num_labels:,}"),
        *(
            (
                names.text_group(text.name),
                f"{counted(text.num_strings, 'string')}, {text.num_prefixes:,} prefixes",
            )
            for text in plan.texts
        ),
        *(
            (f"{augment} views", f"{rate:,.0f}/s on one core")
            for augment, rate in rates.views_per_s.items()
        ),
        ("teacher", f"{rates.images_per_s:,.0f} images/s, {rates.labels_per_s:,.0f} labels/s "
                    f"({plan.config.teacher} on {plan.device} in {plan.spec.teacher.precision})"),
        ("disk", f"{byte_size(rates.written_bytes_per_s)}/s"),
    ]  # fmt: skip
    click.echo(plain_table(facts) + "\n")
    parts = list(plan.costs[0].bytes_by_part)
    rows = [
        (cost.codec, f"K={cost.num_views} {cost.augment}",
         *(byte_size(cost.bytes_by_part[part]) for part in parts),
         byte_size(cost.num_bytes), duration(cost.seconds), cost.bottleneck)
        for cost in plan.costs
    ]  # fmt: skip
    headers = ["codec", "views", *parts, "total", "time", "waits for"]
    click.echo(markdown_table(rows, headers, num_left=2) + "\n")
    for curve in plan.curves:
        rows = [
            (str(point.codec), f"{point.row_bytes:,}",
             *(f"{point.kept[of]:.4f}" for of in ("cosine_p50", "cosine_p01", "gram_l1")),
             "advised" if point is curve.advised else "")
            for point in curve.points
        ]  # fmt: skip
        headers = [curve.array, "bytes a row", "cosine, median", "1st percentile", "Gram error", ""]
        click.echo(markdown_table(rows, headers) + "\n")
    for assumption in plan.assumptions:
        click.echo(f"- {assumption}")
    click.echo()
    if plan.curves:
        num_bytes = sum(curve.advised.row_bytes for curve in plan.curves)
        click.echo(
            f"--codec {plan.advised_codec} keeps a median centred cosine of "
            f"{plan.config.fidelity:g} in {num_bytes:,} bytes a row."
        )
    codec = plan.advised_codec or str(BuildConfig.codec[0])
    cost = next((cost for cost in plan.costs if cost.codec == codec), plan.costs[0])
    click.echo(
        f"Building K={cost.num_views} with --codec {cost.codec} here takes about "
        f"{duration(cost.seconds)} and {byte_size(cost.num_bytes)}."
    )
