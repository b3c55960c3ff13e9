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
        help="Folder with LMDBs, at any depth. May be given more than once.",
    )
    out: Path | None
    """Folder of the cache; here so that its option comes second in either help."""
    teacher: str = option(
        "ViT-B-16/openai",
        metavar="MODEL/WEIGHTS",
        complete=_teachers,
        help="CLIP model and its weights. MODEL is an open_clip ViT of CLIP's own design, so not "
        "SigLIP or EVA02. WEIGHTS is a pretrained tag, a file, or random:SEED.",
    )
    image_taps: tuple[int | str, ...] = option(
        (3, 6, 9),
        parse=_parse_tap,
        metavar="TAP,...",
        help="Blocks of the image encoder whose output is stored. Add final at the end to keep all "
        "tokens in CLIP's joint space too.",
    )
    text_taps: tuple[int, ...] = option(
        (3, 6, 9), minimum=1, help="Blocks of the text encoder whose output is stored."
    )
    labels: LabelRules = LabelRules()
    precision: str | None = option(
        None,
        choices=("fp32", "fp16", "bf16"),
        default_text="an existing cache's own, else fp16 on CUDA and fp32 on the CPU",
        help="Number format that the teacher computes in.",
    )
    augment: str = option(
        "clean",
        choices=AUGMENTATIONS,
        help="Augmentation of pictures: none (clean), or PARSeq's recipe (randaugment).",
    )
    tall: str = option(
        TALL[0],
        choices=TALL,
        help=f"What to do with a picture at least {TALL_RATIO} times as high as wide. stretch "
        "treats it like any other; rotate turns it by 90 degrees counter-clockwise first. Students "
        "trained on the cache do the same.",
    )
    view_size: ViewSize = option(
        VIEW_PX,
        parse=ViewSize.parse,
        unparse=str,
        metavar="HEIGHTxWIDTH",
        help="Size in pixels to stretch pictures to. CLIP-OCR's student needs 32x128.",
    )
    pixels: bool = option(
        True,
        help="Whether to store the pixels of views, for methods that train on pictures.",
    )
    unit_rows: int = option(
        16384,
        minimum=1,
        help="Rows per unit of work, a multiple of --chunk-rows. A killed build loses one unit at "
        "most.",
    )
    chunk_rows: int | None = option(
        None,
        minimum=1,
        default_text="256 for views of 32x128, fewer for larger ones",
        help="Rows that the teacher takes at once, and the least that training reads.",
    )
    device: str = device_option()
    workers: int | None = option(
        None,
        minimum=0,
        default_text="on CUDA all cores but one, else 0",
        help="Processes that decode images. With 0, a thread decodes them.",
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

    out: Path = option(type=NEW_CACHE, help="Folder to write the cache to.")
    activation: str | None = option(
        None,
        choices=("quickgelu", "gelu"),
        default_text="what the weights were trained with",
        help="Activation function of the teacher. Needed only if its weights are a file that does "
        "not state it; OpenAI's use quickgelu.",
    )
    charset: Charset = charset_option(
        f"Charset of the text features: {CHARSET_HELP}. Image features do not depend on it."
    )
    codec: tuple[Codec, ...] = option(
        (Codec.parse("int8"),),
        parse=Codec.parse,
        unparse=str,
        metavar="CODEC,...",
        help="How image features are stored: fp16, int8 (half the bytes), int4 (a quarter) or "
        "klt:BYTES (that many bytes per token, by a transform fitted to the features). One for all "
        "image taps, or one for each. cache plan recommends one.",
    )
    views: int = option(
        1,
        minimum=1,
        help="Views of each sample; training uses one per epoch, in turn. More can be added later.",
    )
    seed: int = option(0, help="Seed of the row order and the augmentation.")
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
    "How the teacher reads a label: spelled, one token per character (char, as in CLIP-OCR), whole "
    "(word, as in table 7 of its paper) or in a sentence (prompt, as in DPTR)."
)


@dataclass(frozen=True, kw_only=True)
class TextOptions(Options):
    """How the teacher reads labels."""

    tokenizer: str = option("char", choices=TOKENIZERS, help=_TOKENIZER_HELP)
    template: str = option(
        TEMPLATE,
        help="Sentence for --tokenizer prompt. The default is the official one, whose quotes make "
        "CLIP split some labels oddly. Spaces inside the quotes, as in ' {label} ', avoid that.",
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
    charset: Charset = charset_option(
        f"Charset of the text features: {CHARSET_HELP}.", is_required=True
    )
    teacher: str | None = option(
        None,
        metavar="MODEL/WEIGHTS",
        default_text="as the cache names them",
        help="Where the teacher's weights are now. Needed only if they came from a file.",
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
        type=FOLDER, help="Folder with natural images, at any depth, such as COCO's train2017."
    )
    count: int = option(10_000, minimum=1, help="Images to take, at most.")
    seed: int = option(0, help="Seed of the choice of images.")
    teacher: str | None = option_of(TextConfig, "teacher")
    device: str = device_option()
    workers: int | None = option_of(BuildConfig, "workers")
    process: Process = Process()
    """Which units this process builds, of several processes."""
