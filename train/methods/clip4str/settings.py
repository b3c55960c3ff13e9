"""The settings of CLIP4STR; the defaults are the official code's.

views ──► image encoder ──► visual decoder ──► text ──► text encoder ─┐
                └──────────────── image tokens, detached ─────────────┴► cross decoder ──► text
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ....shared.cache.names import FINAL, block_name
from ....shared.errors import UsageError
from ....shared.options import option, option_of
from ...models.config import DecoderConfig, PermutedDecoder, require_pairs
from ..base import Method, Needs, Shapes

if TYPE_CHECKING:
    from ....shared.cache.spec import CacheSpec, TeacherSpec
    from ...models.tokenizer import LabelTokenizer
    from .clip import ClipSizes
    from .recogniser import Clip4StrRecogniser
    from .trainee import Clip4StrTrainee

TUNES = ("none", "adapter", "ladder", "all")


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """The CLIP that a recogniser goes on with."""

    teacher: TeacherSpec
    view_px: tuple[int, int]
    """Height and width of what it sees."""


def _parse_source(value: Any) -> ClipSource:
    if not isinstance(value, Mapping):
        raise UsageError(f"clip is {value!r}, but the cache of a run decides it; leave it out")
    from ....shared.cache.json_record import from_json
    from ....shared.cache.spec import TeacherSpec

    teacher = from_json(TeacherSpec, value["teacher"])
    return ClipSource(teacher=teacher, view_px=tuple(value["view_px"]))


def _unparse_source(source: ClipSource) -> Any:
    return asdict(source) | {"view_px": list(source.view_px)}


@dataclass(frozen=True, kw_only=True)
class Clip4Str(Method):
    """Two decoders on CLIP: one reads the picture, the other corrects it by what was read."""

    name: ClassVar[str] = "clip4str"
    summary: ClassVar[str] = "a visual and a cross-modal decoder on CLIP, frozen or fine-tuned"

    tune: str = option(
        "none",
        choices=TUNES,
        help="What to train besides the decoders: nothing, on cached image tokens (none); a small "
        "network after these tokens (adapter); a side network along the image encoder (ladder); "
        "CLIP itself, on the views' pixels (all).",
    )
    cross: bool = option(
        True, help="Whether to add the cross-modal branch, which corrects what the visual one read."
    )
    text: str | None = option(
        None,
        choices=("embedding", "encoder"),
        default_text="encoder with --tune all, else embedding",
        help="What the cross-modal branch sees of a text: CLIP's token embeddings, or the features "
        "of its text encoder.",
    )
    text_frozen_blocks: int = option(
        6, minimum=0, help="With --tune all: lower blocks of the text encoder that stay frozen."
    )
    rungs: tuple[int, ...] = option(
        (1, 3, 5, 7, 9, 11),
        minimum=1,
        help="With --tune ladder: blocks of the image encoder whose output the ladder reads.",
    )
    ladder_pruning: int = option(
        1,
        minimum=1,
        help="With --tune ladder: how many times narrower its blocks are than CLIP's.",
    )
    adapter_ratio: float = option(
        0.2,
        above=0,
        maximum=1,
        help="With --tune adapter: share of its output; the rest is CLIP's own tokens.",
    )
    cross_weight: float = option(1.0, minimum=0, help="Weight of the cross-modal branch's loss.")
    encoder_rate_ratio: float = option(
        1 / 19,
        above=0,
        default_text="1/19",
        help="Learning rate of CLIP's weights and the ladder's, as a multiple of --learning-rate.",
    )
    decoder_layers: int = option(1, minimum=1, help="Layers of each decoder.")
    decoder_heads: int = option_of(PermutedDecoder, "decoder_heads")
    decoder_dropout: float = option_of(PermutedDecoder, "decoder_dropout")
    permutations: int = option_of(PermutedDecoder, "permutations")
    refine: bool = option_of(PermutedDecoder, "refine")
    normalization: str = option(
        "clip",
        choices=("clip", "half"),
        help="Mean and std of pictures in evaluation: CLIP's own, as in training (clip), or 0.5, "
        "as in the released test code (half).",
    )
    clip_is_held: bool = option(
        False, help="Whether CLIP's frozen weights are the recogniser's own.", is_fitted=True
    )
    clip: ClipSource | None = option(
        None, help="Which CLIP, as the cache says.", parse=_parse_source, unparse=_unparse_source,
        is_fitted=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        require_pairs(self.permutations)
        if not self.rungs or list(self.rungs) != sorted(set(self.rungs)):
            raise UsageError(f"rungs is {self.rungs}, expected block numbers, each above the last")

    @classmethod
    def recipe(cls) -> Mapping[str, Any]:
        """Return the official run's: of MJ and ST; CLIP's rate is 8.4e-5 for batches of 512."""
        return {
            "charset": "94",
            "epochs": 7,
            "batch_size": 1024,
            "learning_rate": 2 * 19 * 8.4e-5,
            "weight_decay": 0.2,
        }

    @property
    def reads(self) -> str:
        """What the cross branch has of a text."""
        return self.text or ("encoder" if self.tune == "all" else "embedding")

    @property
    def holds_clip(self) -> bool:
        """Whether CLIP's weights are the recogniser's own."""
        return self.clip_is_held or self.tune == "all"

    @property
    def image_arrays(self) -> tuple[str, ...]:
        """What is read of the image encoder, if not from views."""
        blocks = map(block_name, self.rungs) if self.tune == "ladder" else ()
        return (*blocks, FINAL)

    def needs(self) -> Needs:
        """Return image tokens, or the views where CLIP itself is trained; and CLIP's weights."""
        if self.tune == "all":
            return Needs(view_px=None, teacher_weights=True)
        # Even if no step asks CLIP: validation does, and whoever reads with the run afterwards.
        return Needs(images=self.image_arrays, pixels=False, view_px=None, teacher_weights=True)

    def fitted(self, spec: CacheSpec) -> Clip4Str:
        """Return the settings for the CLIP of a cache."""
        from .clip import sizes_of

        clip = ClipSource(teacher=spec.teacher, view_px=spec.view.view_px)
        self._require_fit(clip, sizes_of(clip))
        return replace(self, clip=clip)

    def _require_fit(self, clip: ClipSource, sizes: ClipSizes) -> None:
        """Refuse settings that this CLIP's sizes rule out."""
        if sizes.joint_width % self.decoder_heads:
            raise UsageError(
                f"decoder_heads {self.decoder_heads} does not divide the {sizes.joint_width} "
                "values of CLIP's joint space"
            )
        is_embedding = self.cross and self.reads == "embedding"
        if is_embedding and sizes.text_width != sizes.joint_width:
            raise UsageError(
                f"{clip.teacher.model}'s token embeddings have {sizes.text_width} values, "
                f"its joint space {sizes.joint_width}; pass --text encoder"
            )
        if self.tune != "ladder":
            return
        if self.rungs[-1] >= sizes.blocks:
            raise UsageError(
                f"rungs is {self.rungs}, expected blocks before the last of {sizes.blocks}: a side "
                "block begins as the one after its rung"
            )
        of_head = sizes.width // sizes.heads
        if of_head % self.ladder_pruning:
            possible = [str(r) for r in range(1, of_head + 1) if not of_head % r]
            raise UsageError(
                f"ladder_pruning {self.ladder_pruning} does not divide the {of_head} values of a "
                f"head, expected one of {', '.join(possible)}"
            )

    def decoder(self, width: int) -> DecoderConfig:
        """Return a decoder as wide as CLIP's joint space."""
        return PermutedDecoder(
            decoder_layers=self.decoder_layers,
            decoder_width=width,
            decoder_heads=self.decoder_heads,
            decoder_dropout=self.decoder_dropout,
            permutations=self.permutations,
            refine=self.refine,
        ).config

    def recogniser(self, tokenizer: LabelTokenizer) -> Clip4StrRecogniser:
        """Return decoders on the CLIP that the settings name."""
        from .recogniser import Clip4StrRecogniser

        return Clip4StrRecogniser(self, tokenizer)

    def trainee(self, tokenizer: LabelTokenizer, shapes: Shapes) -> Clip4StrTrainee:
        """Return the recogniser, which is all that is trained."""
        from .trainee import Clip4StrTrainee

        return Clip4StrTrainee(self, tokenizer, shapes)
