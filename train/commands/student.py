"""The commands ``clipocr read`` and ``clipocr export``, which put a trained student to use."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...shared.options import NEW_PATH, PATH, takes
from ...shared.terminal import byte_size, counted, listed_problems
from ..reading.options import ReadingOptions

if TYPE_CHECKING:
    from ..reading.words import ReadWord

_STDIN = "-"


@click.command()
@click.argument("run_or_checkpoint", metavar="RUN-OR-CHECKPOINT", type=PATH)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@takes(ReadingOptions)
def read(run_or_checkpoint: Path, images: tuple[str, ...], given: dict[str, Any]) -> None:
    """Read cropped words: each picture is one word, not a page.

    An IMAGE is a file, a folder (with all pictures below it), a quoted pattern such as
    "crops/**/*.png", or - for standard input. Standard input holds the bytes of one picture, or a
    list of files, one per line. Pictures that cannot be read are named on stderr; the others are
    read, and the exit code is 1.

    \b
    Example:
      clipocr read run word1.png word2.jpg
      clipocr read run crops --format jsonl
      find crops -name '*.png' | clipocr read run -
    """
    from ...shared.geometry import looks_like_a_page
    from ..reading.pictures import find_pictures, pictures_of_stream
    from ..reading.readers import load_reader

    options = ReadingOptions.from_values(given)
    reader = load_reader(
        run_or_checkpoint,
        device=options.device,
        batch_size=options.batch_size,
        precision=options.precision,
        clip=options.clip,
    )
    has_problem = False

    def say(problem: str) -> None:
        nonlocal has_problem
        has_problem = True
        click.echo(problem, err=True)

    def pictures() -> Iterator[Path | bytes]:
        for name in images:
            stdin = pictures_of_stream(sys.stdin.buffer.read()) if name == _STDIN else None
            for picture in stdin or find_pictures([name]):
                if isinstance(picture, Path | bytes):
                    yield picture
                else:
                    say(str(picture))

    with listed_problems() as on_page:
        for word in reader.read_all(pictures()):
            is_stream = isinstance(word.image, bytes)
            name = _STDIN if is_stream else os.fspath(word.image)
            if word.problem is None:
                click.echo(_formatted(options.format, name, word))
            else:
                say(f"{name}: {word.problem}")
            if word.size_px is not None and looks_like_a_page(*word.size_px):
                width_px, height_px = word.size_px
                on_page(
                    f"{name}: {width_px}x{height_px} is the size of a page or a line; cut its "
                    "words out with a text detector first"
                )
    if has_problem:
        raise SystemExit(1)


def _formatted(output_format: str, name: str, word: ReadWord) -> str:
    if output_format == "text":
        return word.text
    if output_format == "jsonl":
        return json.dumps(word.to_json() | {"image": name})
    if set(name) & set("\t\n\r"):  # A file's name may hold anything; a line has three fields.
        name = name.translate({ord(c): repr(c)[1:-1] for c in "\\\t\n\r"})
    return f"{name}\t{word.text}\t{word.confidence:.4f}"


@click.command()
@click.argument("run_or_checkpoint", metavar="RUN-OR-CHECKPOINT", type=PATH)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["onnx", "safetensors"]),
    default="onnx",
    show_default=True,
    help="onnx is the whole model, from pixels to probabilities, and does not need clipocr. "
    "safetensors holds the weights; clipocr reads it like a checkpoint.",
)
@click.option(
    "--out",
    type=NEW_PATH,
    show_default="model.onnx or model.safetensors beside the checkpoint",
    help="File to write.",
)
@click.option(
    "--check-images",
    type=PATH,
    show_default="words drawn for it",
    help="LMDB, folder or file with cropped words, to compare file and student on.",
)
@click.option(
    "--clip",
    metavar="MODEL/WEIGHTS|CACHE",
    show_default="as the run names them",
    help="Where CLIP's weights are, for a recogniser that contains CLIP but was saved without its "
    "weights.",
)
@click.option(
    "--self-contained",
    is_flag=True,
    help="Include CLIP's weights in a safetensors file; an onnx file always does.",
)
def export(
    run_or_checkpoint: Path,
    file_format: str,
    out: Path | None,
    check_images: Path | None,
    clip: str | None,
    self_contained: bool,
) -> None:
    """Export a student to one ONNX or safetensors file, and check the file.

    The file also says how to use it: charset, picture size, normalisation and more. It is written
    only if it reads the same texts as the student in PyTorch, in batches of several sizes, with all
    probabilities within 1e-4.

    \b
    Example:
      clipocr export run --format onnx --check-images data/test/IIIT5k
    """
    from ..deploy.export import export as export_student
    from ..loop.checkpoint import find_checkpoint

    if out is None:
        out = find_checkpoint(run_or_checkpoint).parent / f"model.{file_format}"
    num_pictures, num_texts, difference = export_student(
        run_or_checkpoint,
        file_format,
        out,
        pictures=check_images,
        clip=clip,
        self_contained=self_contained,
    )
    of = "given" if check_images else "drawn"
    click.echo(
        f"Wrote {out}: {byte_size(out.stat().st_size)}; it agrees with PyTorch on "
        f"{counted(num_pictures, f'{of} picture')}, {counted(num_texts, 'different text')}, "
        f"probabilities within {difference:.1e}."
    )
