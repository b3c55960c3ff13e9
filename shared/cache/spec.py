"""The fingerprint of a cache: everything that decides its bytes, written once for both stages.

What is where in a cache: `names`. A spec never changes once its manifest is written.

Shapes: N rows, T image tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from ..charset import LabelRules
from ..geometry import TALL, VIEW_PX, ViewSize
from . import names
from .codecs.codec import Codec, join_codecs
from .codecs.klt import num_table_rows
from .json_record import as_json, canonical_json, later_field
from .shards import ArrayLayout
from .storage import FileRecord

FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """The frozen CLIP that made the features."""

    model: str
    """open_clip model name, e.g. ``ViT-B-16``."""
    weights: str
    """Pretrained tag, ``file:NAME`` or ``random:SEED``."""
    weights_sha256: str
    """Digest of every tensor of the model; the only field that decides what the weights are."""
    activation: str
    """``quickgelu`` (OpenAI's weights) or ``gelu``."""
    precision: str
    """``fp32``, ``fp16`` or ``bf16`` matrix products."""
    positions: str = "crop"
    """How positional embeddings fit the views: rows of the top-left block, never interpolated."""

    @property
    def name(self) -> str:
        """Model and weights as on the command line, e.g. ``ViT-B-16/openai``."""
        return f"{self.model}/{self.weights}"

    @property
    def is_random(self) -> bool:
        """Whether these weights were never trained; everything that shows a cache says so."""
        return self.has_random_weights(self.name)

    @staticmethod
    def has_random_weights(name: str) -> bool:
        """Whether a teacher of that name, ``MODEL/WEIGHTS``, was never trained."""
        return name.partition("/")[2].startswith("random:")


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """How a sample becomes the picture that teacher and student see."""

    augment: str = "clean"
    """``clean``: decode and stretch, nothing else; ``randaugment``: PARSeq's recipe before that."""
    height_px: int = VIEW_PX.height_px
    width_px: int = VIEW_PX.width_px
    resize: str = "pillow-bicubic"
    tall: str = later_field(TALL[0])
    """What becomes of a picture at least 1.5 times as high as wide: ``stretch``, nothing else than
    of any other; ``rotate``, it is turned by 90 degrees counter-clockwise before anything else."""

    def __post_init__(self) -> None:
        if self.tall not in TALL:
            raise ValueError(f"tall is {self.tall!r}, expected one of {', '.join(TALL)}")

    def __str__(self) -> str:
        """Return what decides the pictures, as `cache info` shows it."""
        size = "" if self.view_px == VIEW_PX else f", {self.view_px}"
        return self.augment + size + ("" if self.tall == TALL[0] else ", tall pictures turned")

    @property
    def view_px(self) -> ViewSize:
        """Height and width."""
        return ViewSize(self.height_px, self.width_px)


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One LMDB that rows come from."""

    name: str
    """Its path below the data root, e.g. ``MJ/train``."""
    num_samples: int
    """What its ``num-samples`` says."""
    digest: str
    """SHA-256 over every label and the size of every image."""


@dataclass(frozen=True, kw_only=True)
class ImageArraySpec:
    """What the teacher says of every view at one place of the image encoder."""

    name: str
    """``block3``: the residual stream after block 3, all tokens, before any LayerNorm; ``final``:
    all tokens in the joint space."""
    num_tokens: int
    """T: the class token and the cropped grid."""
    width: int
    """D."""
    codec: Codec
    """How it is stored."""

    @property
    def row_shape(self) -> tuple[int, int]:
        """(T, D): what a decoded row is."""
        return self.num_tokens, self.width

    @property
    def stored_row(self) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of a row on disk."""
        if self.codec.kind == "fp16":
            return self.row_shape, "float16"
        return (self.num_tokens, self.codec.token_bytes(self.width)), "uint8"


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """The fingerprint: everything that decides the bytes of a cache."""

    teacher: TeacherSpec
    view: ViewSpec
    labels: LabelRules
    images: tuple[ImageArraySpec, ...]
    """The image arrays of every view, besides the pixels."""
    text_taps: tuple[int, ...]
    """Text blocks that tables of labels hold, counted from 1, besides the projected EOT."""
    seed: int
    """Keys the row order and every random choice of a view."""
    sources: tuple[SourceSpec, ...]
    num_rows: int
    """N."""
    pixels: bool = later_field(True)
    """Whether the views themselves are stored; not those of natural images, or where rows are words
    without a picture, or where the build was told not to."""
    unit_rows: int
    """Rows per unit: the unit of work, publication and verification."""
    chunk_rows: int
    """Rows per teacher batch and per read; a fixed batch keeps features independent of it."""
    format_version: int = FORMAT_VERSION

    @property
    def codec(self) -> str:
        """The codecs of the image arrays, as ``--codec`` takes them."""
        return join_codecs([image.codec for image in self.images])

    @property
    def image_names(self) -> tuple[str, ...]:
        """Names of the image arrays, besides the pixels."""
        return tuple(image.name for image in self.images)

    @property
    def image_taps(self) -> tuple[int | str, ...]:
        """The image arrays as ``--image-taps`` takes them: a block's number, or ``final``."""
        return tuple(names.block_of(name) or name for name in self.image_names)

    @property
    def is_of_lmdbs(self) -> bool:
        """Whether rows are samples of LMDBs, not the lines of a list or the files of a pool."""
        return bool(self.images) and self.view.resize != names.CENTER_CROP

    def image(self, name: str) -> ImageArraySpec:
        """Return an image array; one that there is."""
        return next(image for image in self.images if image.name == name)

    @property
    def num_units(self) -> int:
        """Number of units in a view."""
        return -(-self.num_rows // self.unit_rows)

    def unit_range(self, unit_idx: int) -> tuple[int, int]:
        """Return rows [start, stop) of a unit."""
        start = unit_idx * self.unit_rows
        return start, min(start + self.unit_rows, self.num_rows)

    def unit_size(self, unit_idx: int) -> int:
        """Return how many rows a unit has."""
        start, stop = self.unit_range(unit_idx)
        return stop - start

    def image_layouts(self, view_idx: int) -> dict[str, ArrayLayout]:
        """Return the arrays of one view by name: the pixels, then the image arrays."""
        rows: dict[str, tuple[tuple[int, ...], str]] = {}
        if self.pixels:
            rows[names.PIXELS] = (3, *self.view.view_px), "uint8"
        rows |= {image.name: image.stored_row for image in self.images}
        return {
            name: ArrayLayout(
                name=names.array_path(names.view_group(view_idx), name),
                shape=(self.num_rows, *row_shape),
                dtype=dtype,
                # An entropy coder would save under a fifth of features, and slow reading.
                compressed=name == names.PIXELS,
                chunk_rows=self.chunk_rows,
                shard_rows=self.unit_rows,
            )
            for name, (row_shape, dtype) in rows.items()
        }

    def codec_layouts(self, index: Mapping[str, FileRecord]) -> dict[str, ArrayLayout]:
        """Return the tables of the codecs that work by one, by image array.

        Args:
            index: The files that say what the rows are, among others.
        """
        layouts = {}
        for image in self.images:
            if image.codec.has_table:
                num_rows = num_table_rows(image.num_tokens, image.width)
                layouts[image.name] = ArrayLayout(
                    name=names.codec_table(self._table_digest(image, index), image.name),
                    shape=(num_rows, image.width),
                    dtype="float32",
                    chunk_rows=num_rows,
                    shard_rows=num_rows,
                )
        return layouts

    def _table_digest(self, image: ImageArraySpec, index: Mapping[str, FileRecord]) -> str:
        """Return a digest of all that decides a table, except which array it is of.

        The other image arrays do not decide it, so a cache with fewer of them has the same tables.
        """
        layouts = self.row_layouts().values()
        rows = {name for layout in layouts for name in layout.shard_names}
        identity = as_json(self) | {
            "images": as_json(image) | {"name": ""},
            "files": {name: as_json(file) for name, file in index.items() if name in rows},
        }
        return hashlib.sha256(canonical_json(identity)).hexdigest()[:16]

    def row_layouts(self) -> dict[str, ArrayLayout]:
        """Return the arrays that say what each row is; one chunk per unit."""
        return {
            key: ArrayLayout(
                name=names.array_path("rows", key),
                shape=(self.num_rows,),
                dtype=dtype,
                chunk_rows=self.unit_rows,
                shard_rows=64 * self.unit_rows,
                compressed=True,
            )
            for key, dtype in (("source", "uint16"), ("lmdb_index", "uint32"), ("label", "uint32"))
        }
