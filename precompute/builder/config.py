"""What the commands that make a cache or add to one are asked for. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from ...shared.cache.codecs.codec import Codec, codec_per_array
from ...shared.cache.names import FINAL, LABEL_PLACE, PROMPT, TEMPLATE, TOKENIZERS, image_names
from ...shared.charset import CHARSET_HELP, Charset, LabelRules, charset_option
from ...shared.errors import UsageError
from ...shared.geometry import TALL, TALL_RATIO, VIEW_PX, ViewSize
from ...shared.options import (
    FOLDER,
    NEW_CACHE,
    Options,
    device_option,
    num_cores,
    option,
    option_of,
)
from ...shared.processes import Process

_CHUNK_VIEWS = 256

AUGMENTATIONS = ("clean", "randaugment")


def _parse_tap(text: str) -> int | str:
    """Read a block's number, or ``final``."""
    if text != FINAL and not (text.isascii() and text.isdecimal() and int(text)):
        raise UsageError(f"image tap is {text!r}, expected a block's number, or {FINAL}")
    return text if text == FINAL else int(text)


def _teachers() -> list[str]:
    from ..teacher.clip import published_teachers

    return published_teachers()


@dataclass(frozen=True, kw_only=True)
class SourceOptions(Options):
    """What decides the rows of a cache, and the work that they are: for build and plan alike."""

    data: tuple[Path, ...] = option(
        metavar="ROOT",
        type=FOLDER,
        help="Folder with LMDBs at any depth; may be given more than once.",
    )
    out: Path | None
    """Folder of the cache; here so that its option comes second in either help."""
    teacher: str = option(
        "ViT-B-16/openai",
        metavar="MODEL/WEIGHTS",
        complete=_teachers,
        help="A ViT of CLIP's own kind in open_clip, S to bigG, not SigLIP, EVA02 or others; "
        "weights are a pretrained tag, a file's path, or random:SEED.",
    )
    image_taps: tuple[int | str, ...] = option(
        (3, 6, 9),
        parse=_parse_tap,
        metavar="TAP,...",
        help="Image blocks to keep, and after them maybe final: all tokens in CLIP's joint space.",
    )
    text_taps: tuple[int, ...] = option((3, 6, 9), minimum=1, help="Text blocks to keep.")
    labels: LabelRules = LabelRules()
    precision: str | None = option(
        None,
        choices=("fp32", "fp16", "bf16"),
        default_text="what the cache was begun with, else fp16 on CUDA and fp32 on the CPU",
        help="Arithmetic of the teacher.",
    )
    augment: str = option(
        "clean",
        choices=AUGMENTATIONS,
        help="What happens to a picture before it is stretched; randaugment is PARSeq's recipe.",
    )
    tall: str = option(
        TALL[0],
        choices=TALL,
        help=f"What becomes of a picture at least {TALL_RATIO} times as high as wide; rotate turns "
        "it by 90 degrees counter-clockwise first, and so do all students of the cache.",
    )
    view_size: ViewSize = option(
        VIEW_PX,
        parse=ViewSize.parse,
        unparse=str,
        metavar="HEIGHTxWIDTH",
        help="Size that pictures are stretched to; CLIP-OCR's student reads 32x128.",
    )
    pixels: bool = option(
        True,
        help="Whether views are stored, for methods that read pictures besides image features.",
    )
    unit_rows: int = option(
        16384, minimum=1, help="Rows per unit, which is what a killed build loses at most."
    )
    chunk_rows: int | None = option(
        None,
        minimum=1,
        default_text="256 of 32x128, fewer of larger views",
        help="Rows per teacher batch, and what training reads at once.",
    )
    device: str = device_option()
    workers: int | None = option(
        None,
        minimum=0,
        default_text="a core less than there are on CUDA, else 0",
        help="Processes that decode images; 0 decodes in a thread.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit_rows % self.rows_per_chunk:
            raise UsageError(
                f"unit rows {self.unit_rows} is not a multiple of chunk rows {self.rows_per_chunk}"
            )

    @property
    def rows_per_chunk(self) -> int:
        """Rows of a chunk, as asked for, or of about as many pixels as 256 views of 32x128.

        A training holds 64 chunks, so those of large views have to be short.
        """
        if self.chunk_rows is not None:
            return self.chunk_rows
        pixels = math.prod(self.view_size) / math.prod(VIEW_PX)
        return 1 << int(math.log2(max(1, _CHUNK_VIEWS / max(1, pixels))))

    def require_image_taps(self) -> None:
        """Refuse a cache of pictures of which the teacher would be asked nothing."""
        if not self.image_taps:
            raise UsageError(
                "image taps none leave nothing to ask the teacher of pictures; pass some, or make "
                "a cache of text alone with: clipocr cache labels WORDS --out FOLDER"
            )

    def num_workers(self, device_type: str) -> int:
        """Return how many processes decode images beside a teacher on ``cpu`` or ``cuda``."""
        if self.workers is not None:
            return self.workers
        # Beside a CPU teacher a decoder only takes its cores; a GPU wants all it can get.
        return 0 if device_type == "cpu" else max(1, num_cores() - 1)


def default_precision(device_type: str) -> str:
    """Return the teacher's arithmetic on ``cpu`` or ``cuda`` if nobody says which."""
    return "fp16" if device_type == "cuda" else "fp32"


@dataclass(frozen=True, kw_only=True)
class BuildConfig(SourceOptions):
    """What `clipocr cache build` is asked for."""

    out: Path = option(type=NEW_CACHE, help="Folder of the cache.")
    activation: str | None = option(
        None,
        choices=("quickgelu", "gelu"),
        default_text="what the weights were trained with",
        help="Only for a weights file that does not say: OpenAI's are quickgelu.",
    )
    charset: Charset = charset_option(
        f"Charset of the text table: {CHARSET_HELP}. The images do not depend on it."
    )
    codec: tuple[Codec, ...] = option(
        (Codec.parse("int8"),),
        parse=Codec.parse,
        unparse=str,
        metavar="CODEC,...",
        help="How image features are stored: fp16 exactly; int8 and int4 standardised, in a half "
        "and a quarter of its bytes; klt:BYTES in that many bytes a token, by tables fit to the "
        "features. One for all image taps, or one for each.",
    )
    views: int = option(
        1,
        minimum=1,
        help="Views of each sample; epoch e trains on view e mod K. More can be added later.",
    )
    seed: int = option(0, help="Keys the order of the rows and the augmentation.")
    process: Process = Process()
    """Which units this process builds, of several processes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.codecs
        if self.views > 1 and self.augment == "clean":
            raise UsageError(
                f"{self.views} clean views would all be the same; pass --augment randaugment, "
                "or --views 1"
            )

    @property
    def codecs(self) -> dict[str, Codec]:
        """The codec of each image array."""
        return codec_per_array(self.codec, image_names(self.image_taps))


_TOKENIZER_HELP = (
    "char: one token per character, as CLIP-OCR does; word: the label whole (table 7); prompt: the "
    "label in a sentence, as DPTR does."
)


@dataclass(frozen=True, kw_only=True)
class TextOptions(Options):
    """How the teacher reads labels."""

    tokenizer: str = option("char", choices=TOKENIZERS, help=_TOKENIZER_HELP)
    template: str = option(
        TEMPLATE,
        help="The sentence of --tokenizer prompt. Its quote splits some labels oddly, as "
        "officially; quotes apart from the label, ' {label} ', do not.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer != PROMPT and self.template != TEMPLATE:
            raise UsageError(
                f"template {self.template!r} is of tokenizer {PROMPT}, this one is "
                f"{self.tokenizer}; pass --tokenizer {PROMPT} too"
            )
        if LABEL_PLACE not in self.template:
            raise UsageError(
                f"template {self.template!r} has no {LABEL_PLACE}, expected it where the label "
                f"stands, as in {TEMPLATE!r}"
            )

    @property
    def prompt(self) -> str:
        """The template of prompts, empty where there are none."""
        return self.template if self.tokenizer == PROMPT else ""


@dataclass(frozen=True, kw_only=True)
class TextConfig(TextOptions):
    """What `clipocr cache text` is asked for."""

    cache: Path
    charset: Charset = charset_option(f"{CHARSET_HELP}.", is_required=True)
    teacher: str | None = option(
        None,
        metavar="MODEL/WEIGHTS",
        default_text="the cache's own",
        help="Where its weights are now; needed if they were a file.",
    )
    device: str = device_option()


@dataclass(frozen=True, kw_only=True)
class WeightsConfig(Options):
    """What `clipocr cache weights` is asked for."""

    cache: Path
    teacher: str | None = option_of(TextConfig, "teacher")


@dataclass(frozen=True, kw_only=True)
class LabelsConfig(TextOptions):
    """What `clipocr cache labels` is asked for."""

    words: Path
    out: Path = option_of(BuildConfig, "out")
    charset: Charset = option_of(BuildConfig, "charset")
    tokenizer: str = option(PROMPT, choices=TOKENIZERS, help=_TOKENIZER_HELP)
    labels: LabelRules = LabelRules()
    teacher: str = option_of(BuildConfig, "teacher")
    activation: str | None = option_of(BuildConfig, "activation")
    precision: str | None = option_of(BuildConfig, "precision")
    text_taps: tuple[int, ...] = option_of(BuildConfig, "text_taps")
    unit_rows: int = option_of(BuildConfig, "unit_rows")
    chunk_rows: int | None = option_of(BuildConfig, "chunk_rows")
    seed: int = option_of(BuildConfig, "seed")
    device: str = device_option()

    @property
    def build(self) -> BuildConfig:
        """The build that this is."""
        return BuildConfig(
            data=(self.words,),
            image_taps=(),
            pixels=False,
            codec=(),
            **{field.name: getattr(self, field.name) for field in fields(self)
               if field.name in BuildConfig.__dataclass_fields__},
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PoolConfig(Options):
    """What `clipocr cache pool` is asked for."""

    cache: Path
    images: Path = option(
        type=FOLDER, help="Folder with natural images at any depth, such as COCO's train2017."
    )
    count: int = option(10_000, minimum=1, help="Most images to take.")
    seed: int = option(0, help="Decides which.")
    teacher: str | None = option_of(TextConfig, "teacher")
    device: str = device_option()
    workers: int | None = option_of(BuildConfig, "workers")
    process: Process = Process()
    """Which units this process builds, of several processes."""
