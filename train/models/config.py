"""What a student is made of; its charset and its longest label are the tokenizer's.

Nothing here imports torch, because ``clipocr train --help`` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from ...shared.errors import UsageError
from ...shared.geometry import VIEW_PX
from ...shared.options import Options, option

NUM_STAGES = 4
"""Stages of the encoder, and layers of the decoder, that a teacher can supervise."""

TIMM = "timm"
"""As encoder weights: those that timm publishes for the model."""


@dataclass(frozen=True, kw_only=True)
class StudentSize:
    """The sizes of a student. With an encoder of timm's, its own replace those of the ViT."""

    width: int = 384
    """D, of encoder and decoder alike."""
    patch_height_px: int = 4
    """Height of an image patch; must divide 32."""
    patch_width_px: int = 8
    """Width of an image patch; must divide 128."""
    encoder_layers: int = 12
    """Transformer blocks of the encoder, a quarter of them per stage."""
    encoder_heads: int = 6
    """Attention heads per encoder block; must divide `width`."""
    decoder_heads: int = 12
    """Attention heads per decoder layer (there are four, one per stage); must divide `width`."""
    mlp_ratio: int = 4
    """Hidden width of every feed-forward network, in multiples of `width`."""
    dropout: float = 0.1
    """Dropout probability everywhere in the decoder; the ViT has none."""

    def __post_init__(self) -> None:
        problems = [
            f"{f.name} is {value!r}, expected a whole number, 1 or more"
            for f in fields(self)
            if f.name != "dropout"
            and (type(value := getattr(self, f.name)) is not int or value < 1)
        ]
        if not problems:
            problems = [
                f"{part_name} {part} does not divide {whole_name} {whole}"
                for part_name, part, whole_name, whole in (
                    ("patch_height_px", self.patch_height_px, "image height", VIEW_PX.height_px),
                    ("patch_width_px", self.patch_width_px, "image width", VIEW_PX.width_px),
                    ("number of stages", NUM_STAGES, "encoder_layers", self.encoder_layers),
                    ("encoder_heads", self.encoder_heads, "width", self.width),
                    ("decoder_heads", self.decoder_heads, "width", self.width),
                )
                if whole % part
            ]
        if not (isinstance(self.dropout, int | float) and 0 <= self.dropout < 1):
            problems.append(f"dropout is {self.dropout!r}, expected 0 or more and less than 1")
        if problems:
            raise UsageError("student: " + "; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The sizes of a decoder, and how it reads."""

    width: int
    """D."""
    layers: int
    heads: int
    """Per layer; must divide `width`."""
    mlp_ratio: int
    dropout: float
    updates_content: bool
    """Whether content advances from layer to layer, as queries do."""
    refines: bool
    """Whether what it has written is read once more."""

    @property
    def stage_layers(self) -> tuple[int, ...]:
        """The layers, counted from 1, whose queries a teacher can supervise: one for each stage."""
        return tuple(-(-self.layers * stage // NUM_STAGES) for stage in range(1, NUM_STAGES + 1))

    def architecture(self) -> dict[str, Any]:
        """Return what decides the shapes of its weights, by the options' names, and their use."""
        kind = "permuted" if self.updates_content else "causal"
        sizes = {f"decoder_{name}": getattr(self, name) for name in ("layers", "width", "heads")}
        return {"decoder": kind, **sizes}


@dataclass(frozen=True, kw_only=True)
class PermutedDecoder(Options):
    """A decoder that learns characters in several orders; the defaults are DPTR's.

    PARSeq's has one layer of 384 with 12 heads, CLIP4STR's one of 512 with 8.
    """

    group: ClassVar[str] = "Permuted decoder"

    decoder_layers: int = option(6, minimum=1, help="Layers of the permuted decoder.")
    decoder_width: int = option(512, minimum=1, help="Width of the permuted decoder.")
    decoder_heads: int = option(8, minimum=1, help="Attention heads of each decoder layer.")
    decoder_dropout: float = option(0.1, minimum=0, below=1, help="Dropout of the decoder.")
    permutations: int = option(
        6, minimum=2, help="Orders of the characters to learn in each step; an even number."
    )
    refine: bool = option(True, help="Whether to read a second time, given the first reading.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_pairs(self.permutations)
        if self.decoder_width % self.decoder_heads:
            raise UsageError(
                f"decoder_heads {self.decoder_heads} does not divide decoder_width "
                f"{self.decoder_width}"
            )

    @property
    def config(self) -> DecoderConfig:
        """The same, as a decoder takes it."""
        return DecoderConfig(
            width=self.decoder_width,
            layers=self.decoder_layers,
            heads=self.decoder_heads,
            mlp_ratio=4,
            dropout=self.decoder_dropout,
            updates_content=True,
            refines=self.refine,
        )


def require_pairs(permutations: int) -> None:
    """Refuse an odd number of orders."""
    if permutations % 2:
        raise UsageError(
            f"permutations is {permutations}, expected an even number: each order comes with its "
            "mirror image"
        )


SIZES = {
    "tiny": StudentSize(
        width=128,
        patch_height_px=32,
        patch_width_px=4,
        encoder_layers=4,
        encoder_heads=4,
        decoder_heads=4,
        mlp_ratio=2,
        dropout=0.0,
    ),
    "small": StudentSize(),
    "base": StudentSize(width=768, encoder_heads=12, decoder_heads=12),
}
"""``tiny`` learns clean print on a laptop's CPU in minutes: its patches are whole columns of the
picture, and dropout only slows so short a training. ``small`` is the paper's, ``base`` is ViT-B."""


def parse_size(written: Any) -> StudentSize:
    """Return the size that a preset's name or a mapping of sizes means.

    Raises:
        UsageError: no preset has that name, or a size is unknown or not possible.
    """
    if isinstance(written, Mapping):
        known = [f.name for f in fields(StudentSize)]
        if unknown := sorted(set(written) - set(known)):
            raise UsageError(
                f"student: no size is called {', '.join(map(repr, unknown))}; expected some of "
                f"{', '.join(known)}"
            )
        return StudentSize(**written)
    if not isinstance(written, str) or written not in SIZES:
        raise UsageError(f"student is {written!r}, expected one of {', '.join(SIZES)}")
    return SIZES[written]


@dataclass(frozen=True, kw_only=True)
class StudentConfig(Options):
    """A student: its size, and what encodes its pictures."""

    group: ClassVar[str] = "Student"

    size: StudentSize = option(
        SIZES["small"],
        name="student",
        choices=tuple(SIZES),
        parse=parse_size,
        unparse=asdict,
        default_text="small",
        help="Size of the student: tiny trains on a CPU, small is the paper's, base is a ViT-B.",
    )
    encoder: str | None = option(
        None,
        metavar="MODEL",
        default_text="the ViT of --student's size",
        help="timm model to use as the encoder, such as convnext_tiny.",
    )
    encoder_weights: str | None = option(
        None,
        metavar="PATH",
        default_text="random",
        help="Initial weights of --encoder: a file, or timm for those that timm publishes.",
    )

    decoder: str = option(
        "causal",
        choices=("causal", "permuted"),
        help="causal is CLIP-OCR's decoder, in the size of --student. permuted learns characters "
        "in several orders and reads twice, as in PARSeq and DPTR.",
    )
    permuted: PermutedDecoder = PermutedDecoder()
    merge: str = option(
        "none",
        choices=("none", "fmu"),
        help="Module between encoder and decoder. fmu is DPTR's Feature Merge Unit.",
    )

    @property
    def decoder_config(self) -> DecoderConfig:
        """Its decoder's."""
        if self.decoder == "permuted":
            return self.permuted.config
        return DecoderConfig(
            width=self.size.width,
            layers=NUM_STAGES,
            heads=self.size.decoder_heads,
            mlp_ratio=self.size.mlp_ratio,
            dropout=self.size.dropout,
            updates_content=False,
            refines=False,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder != "permuted" and self.permuted != PermutedDecoder():
            named = ", ".join(sorted(self.permuted.to_values()))
            raise UsageError(
                f"{named} are of the permuted decoder, this student's is {self.decoder}; pass "
                "decoder permuted too"
            )
        if self.encoder_weights is not None and self.encoder is None:
            raise UsageError(
                f"encoder_weights {self.encoder_weights!r} are those of a timm model; name the "
                "model as the encoder too"
            )
