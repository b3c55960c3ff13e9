"""What a feature cache promises, written once for both stages.

    CACHE/
      zarr.json                          a Zarr v3 group; every array below opens with plain zarr
      manifest.json                      what this cache is: its spec, and the files of its index
      rows/{source,lmdb_index,label}     N rows in their permuted order
      labels/{utf8,offsets}              the unique labels that rows point into
      rejected/{source,lmdb_index,reason}  samples that did not become rows
      image/view0/{pixels,block3,...}    one shard file per unit
      codec/DIGEST/{block3,...}          tables of the codec, if it works by any
      choice/DIGEST/{block3,...}         what the codec was chosen by, if it was
      text/char-36/{nodes,eot,...}       one table per charset and tokenisation
      commits/...                        one record per unit and per text table
      sealed.json                        all commit records in one, once nothing is missing

Shapes: N rows, U unique strings, M trie nodes, T image tokens, D width, L label positions.
Records are JSON with a checksum of their own; a file counts only if a record vouches for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Self

from ..charset import LabelRules
from .codecs.choice import CodecChoice, asked_fidelity, auto_codec
from .codecs.codecs import (
    feature_codec,
    klt_record_bytes,
    parse_tap_codecs,
    pixel_layout,
)
from .codecs.klt import num_table_rows
from .records import canonical_json
from .shards import ArrayLayout
from .storage import FileRecord

FORMAT_VERSION = 1

MANIFEST_NAME = "manifest.json"
SEAL_NAME = "sealed.json"
COMMITS_FOLDER = "commits"

TEXT_CHUNK_ROWS = 256
TEXT_SHARD_ROWS = 1 << 18


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
    image_taps: tuple[int, ...]
    """Image blocks after which the residual stream is kept, counted from 1."""
    text_taps: tuple[int, ...]
    """Text blocks after which the residual stream is kept, counted from 1."""
    num_image_tokens: int
    """T: the class token and the cropped grid."""
    image_width: int
    text_width: int
    eot_width: int
    """Width of the joint embedding space."""
    positions: str = "crop"
    """How positional embeddings fit 32x128: rows of the top-left block, never interpolated."""

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
    height_px: int = 32
    width_px: int = 128
    resize: str = "pillow-bicubic"


AUGMENTATIONS = ("clean", "randaugment")

TOKENS = ("char", "word")
"""How a text table may split labels."""


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
class CacheSpec:
    """The fingerprint: everything that decides the bytes of a cache."""

    teacher: TeacherSpec
    view: ViewSpec
    labels: LabelRules
    codec: str
    """Of the image taps: one codec for all, or one for each, by commas; while none was chosen yet,
    ``auto:F``."""
    seed: int
    """Keys the row order and every random choice of a view."""
    sources: tuple[SourceSpec, ...]
    num_rows: int
    """N."""
    unit_rows: int
    """Rows per unit: the unit of work, publication and verification."""
    chunk_rows: int
    """Rows per teacher batch and per read; a fixed batch keeps features independent of it."""
    format_version: int = FORMAT_VERSION

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a spec from its JSON form."""
        teacher = dict(data["teacher"])
        for taps in ("image_taps", "text_taps"):
            teacher[taps] = tuple(teacher[taps])
        return cls(
            **{
                **data,
                "teacher": TeacherSpec(**teacher),
                "view": ViewSpec(**data["view"]),
                "labels": LabelRules(**data["labels"]),
                "sources": tuple(SourceSpec(**s) for s in data["sources"]),
            }
        )

    @property
    def tap_codecs(self) -> dict[int, str]:
        """The codec of each image tap, once it is known."""
        taps = self.teacher.image_taps
        return dict(zip(taps, parse_tap_codecs(self.codec, len(taps)), strict=True))

    @property
    def num_units(self) -> int:
        """Number of units in a view."""
        return -(-self.num_rows // self.unit_rows)

    def unit_range(self, unit_idx: int) -> tuple[int, int]:
        """Return rows [start, stop) of a unit."""
        start = unit_idx * self.unit_rows
        return start, min(start + self.unit_rows, self.num_rows)

    def image_layouts(self, view_idx: int) -> dict[str, ArrayLayout]:
        """Return the arrays of one view: ``pixels``, then ``block{i}`` for each tap."""
        tap_shape = (self.teacher.num_image_tokens, self.teacher.image_width)
        inner = {
            "pixels": pixel_layout(),
            **{
                f"block{tap}": feature_codec(name).layout(tap_shape)
                for tap, name in self.tap_codecs.items()
            },
        }
        return {
            key: ArrayLayout(
                name=f"image/view{view_idx}/{key}",
                shape=(self.num_rows, *stored.row_shape),
                dtype=stored.dtype,
                compressed=stored.compressed,
                chunk_rows=self.chunk_rows,
                shard_rows=self.unit_rows,
            )
            for key, stored in inner.items()
        }

    def codec_layouts(self, index: Mapping[str, FileRecord]) -> dict[str, ArrayLayout]:
        """Return the tables of the codecs, ``block{i}`` of each tap whose codec works by one.

        Args:
            index: The files that say what the rows are, among others.
        """
        teacher = self.teacher
        num_rows = num_table_rows(teacher.num_image_tokens, teacher.image_width)
        return {
            f"block{tap}": ArrayLayout(
                name=f"codec/{self._sample_digest(codec, index)}/block{tap}",
                shape=(num_rows, teacher.image_width),
                dtype="float32",
                chunk_rows=num_rows,
                shard_rows=num_rows,
            )
            for tap, codec in self.tap_codecs.items()
            if klt_record_bytes(codec)
        }

    def choice_files(self, fidelity: float, index: Mapping[str, FileRecord]) -> dict[str, str]:
        """Return the file that says which codec ``auto:F`` chose, by ``block{i}`` of each tap."""
        folder = f"choice/{self._sample_digest(auto_codec(fidelity), index)}"
        return {
            f"block{tap}": f"{folder}/block{tap}/choice.json" for tap in self.teacher.image_taps
        }

    def _sample_digest(self, codec: str, index: Mapping[str, FileRecord]) -> str:
        """Return a digest of all that decides what a tap's sample says, if `codec` is its codec.

        Which other taps there are, and what their codecs are, is none of it.
        """
        shards = tuple(f"{layout.name}/c/" for layout in self.row_layouts().values())
        files = {name: file for name, file in index.items() if name.startswith(shards)}
        spec = asdict(replace(self, codec=codec))
        del spec["teacher"]["image_taps"]
        identity = canonical_json({"spec": spec, "files": _files_json(files)})
        return hashlib.sha256(identity).hexdigest()[:16]

    def row_layouts(self) -> dict[str, ArrayLayout]:
        """Return the arrays that say what each row is; one chunk per unit."""
        return {
            key: ArrayLayout(
                name=f"rows/{key}",
                shape=(self.num_rows,),
                dtype=dtype,
                chunk_rows=self.unit_rows,
                shard_rows=64 * self.unit_rows,
                compressed=True,
            )
            for key, dtype in (("source", "uint16"), ("lmdb_index", "uint32"), ("label", "uint32"))
        }


def flat_layout(name: str, length: int, dtype: str) -> ArrayLayout:
    """Return the layout of a plain list of numbers, such as string bytes or offsets."""
    return ArrayLayout(
        name=name,
        shape=(length,),
        dtype=dtype,
        chunk_rows=1 << 16,
        shard_rows=1 << 26,
        compressed=True,
    )


def strings_layouts(folder: str, num_strings: int, num_bytes: int) -> dict[str, ArrayLayout]:
    """Return the arrays of a string list: all UTF-8 bytes in a row, and where each begins."""
    return {
        "utf8": flat_layout(f"{folder}/utf8", num_bytes, "uint8"),
        "offsets": flat_layout(f"{folder}/offsets", num_strings + 1, "uint64"),
    }


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """One text table: what the teacher says of every label under one charset."""

    name: str
    """Folder below ``text/``, e.g. ``char-36``."""
    tokens: str = "char"
    """``char``: the label's characters, one position each; ``word``: the label whole, as BPE."""
    charset_name: str
    characters: str
    max_label_length: int
    num_strings: int
    """U: unique labels left after the charset was applied."""
    num_string_bytes: int
    """Their UTF-8 bytes."""
    num_nodes: int
    """M: token prefixes; the text encoder is causal, so equal prefixes share their features."""
    pads: bool
    """Whether the positions after EOT are there, as the official loss sees them."""

    @property
    def num_positions(self) -> int:
        """L of the longest label: its characters and EOT."""
        return self.max_label_length + 1

    def layouts(self, teacher: TeacherSpec, num_labels: int) -> dict[str, ArrayLayout]:
        """Return the arrays of this table; `strings_layouts` gives those of its strings."""
        folder = f"text/{self.name}"

        def table(key: str, num_rows: int, width: int, dtype: str) -> ArrayLayout:
            return ArrayLayout(
                name=f"{folder}/{key}",
                shape=(num_rows, width),
                dtype=dtype,
                chunk_rows=TEXT_CHUNK_ROWS,
                shard_rows=TEXT_SHARD_ROWS,
                compressed=dtype == "int32",
            )

        features = {
            f"block{tap}": table(f"block{tap}", self.num_nodes, teacher.text_width, "float16")
            for tap in teacher.text_taps
        }
        return {
            "of_label": flat_layout(f"{folder}/of_label", num_labels, "int32"),
            "nodes": table("nodes", self.num_strings, self.num_positions, "int32"),
            "eot": table("eot", self.num_strings, teacher.eot_width, "float16"),
            **features,
        }


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The record that makes a unit or a text table part of the cache."""

    name: str
    """``view0/unit-00003`` or ``text/char-36``; also the record's place below ``commits/``."""
    cache_id: str
    files: Mapping[str, FileRecord]
    rows: tuple[int, int] = (0, 0)
    """Rows [start, stop) of a unit."""
    keys_sha256: str = ""
    """Digest of the unit's (source, LMDB index) pairs."""
    bad_rows: Mapping[int, str] = dataclasses.field(default_factory=dict)
    """Row -> reason, for images that could not become a view; readers never yield them."""
    fidelity: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """Array -> measure -> value: how well the codec kept this unit's own features."""
    text: TextSpec | None = None

    @property
    def record_name(self) -> str:
        """The file this record is stored in."""
        return f"{COMMITS_FOLDER}/{self.name}.json"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self) | {"bad_rows": {str(row): why for row, why in self.bad_rows.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a commit from its JSON form."""
        return cls(
            **{
                **data,
                "rows": tuple(data["rows"]),
                "files": {name: FileRecord(**file) for name, file in data["files"].items()},
                "bad_rows": {int(row): why for row, why in data["bad_rows"].items()},
                "text": TextSpec(**data["text"]) if data["text"] else None,
            }
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a cache is; written once, when its rows are decided, and never changed."""

    spec: CacheSpec
    num_labels: int
    """Unique labels of all rows."""
    num_label_bytes: int
    num_rejected: int
    """Samples that did not become rows."""
    built_with: Mapping[str, str]
    """Versions of what made it; for people, not compared."""
    files: Mapping[str, FileRecord]
    """The index: rows, labels, rejected samples, what the codec works by, the group's metadata."""
    choices: Mapping[str, CodecChoice] = dataclasses.field(default_factory=dict)
    """``block{i}`` -> what the codec of that tap was chosen by; empty if it was named. `files`
    has the digest of each, so that `cache_id` depends on them."""

    @cached_property
    def cache_id(self) -> str:
        """Digest of the spec and of the index; every commit carries it."""
        identity = {"spec": asdict(self.spec), "files": _files_json(self.files)}
        return hashlib.sha256(canonical_json(identity)).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"format": "clipocr-cache", "cache_id": self.cache_id} | asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a manifest from its JSON form."""
        fields = {k: v for k, v in data.items() if k not in ("format", "cache_id")}
        fields["spec"] = CacheSpec.from_json(data["spec"])
        fields["files"] = {name: FileRecord(**file) for name, file in data["files"].items()}
        choices = data.get("choices", {})
        keys = [f"block{tap}" for tap in fields["spec"].teacher.image_taps]
        fields["choices"] = {k: CodecChoice.from_json(choices[k]) for k in keys if k in choices}
        return cls(**fields)

    @property
    def request(self) -> CacheSpec:
        """What was asked for: the spec, with ``auto:F`` in place of what that chose."""
        choice = next(iter(self.choices.values()), None)
        if choice is None:
            return self.spec
        return replace(self.spec, codec=auto_codec(choice.target.cosine_p50))

    def choice_files(self) -> dict[str, str]:
        """Return the file of each tap's choice, by ``block{i}``."""
        fidelity = asked_fidelity(self.request.codec)
        return self.spec.choice_files(fidelity, self.files) if fidelity else {}

    def label_layouts(self) -> dict[str, ArrayLayout]:
        """Return the arrays of the unique labels."""
        return strings_layouts("labels", self.num_labels, self.num_label_bytes)

    def codec_layouts(self) -> dict[str, ArrayLayout]:
        """Return the tables of the codec, ``block{i}`` for each tap, if it works by any."""
        return self.spec.codec_layouts(self.files)

    def rejected_layouts(self) -> dict[str, ArrayLayout]:
        """Return the arrays of the samples that did not become rows."""
        return {
            key: flat_layout(f"rejected/{key}", self.num_rejected, dtype)
            for key, dtype in (("source", "uint16"), ("lmdb_index", "uint32"), ("reason", "uint8"))
        }


REJECTION_REASONS = (
    "missing image",
    "missing label",
    "empty label",
    "label too long",
    "label not UTF-8",
)
"""Meaning of ``rejected/reason``."""


def _files_json(files: Mapping[str, FileRecord]) -> dict[str, Any]:
    return {name: asdict(record) for name, record in files.items()}
