"""What a method is: its settings, and three things it says.

    needs        what the loader must yield; nothing else is read
    trainee      all that is trained: batch -> named loss terms
    recogniser   what reads images afterwards

Nothing here imports torch, because ``clipocr train --help`` reads the settings of a method.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from ...shared.geometry import VIEW_PX
from ...shared.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from ...shared.cache.spec import CacheSpec
    from ..models.recogniser import Recogniser, RecogniserPart
    from ..models.tokenizer import LabelTokenizer
    from .trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class TextNeeds:
    """What a method reads of a text table."""

    tokenizer: str
    """How the teacher read the labels, ``char``, ``word`` or ``prompt``."""
    arrays: tuple[str, ...]
    """Names of the table's arrays."""
    template: str = ""
    """Of prompts."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What the loader must yield."""

    images: tuple[str, ...] = ()
    """Names of image arrays, such as ``block3``."""
    pixels: bool = True
    """Whether the views themselves are read."""
    view_px: tuple[int, int] | None = VIEW_PX
    """Height and width of the views that pixels and image arrays are of; None: any."""
    text: TextNeeds | None = None
    """None: labels only, which every cache has."""
    pads_together: bool = False
    """Whether all processes pad labels to the longest of the whole batch; else each to its own."""
    epoch: Literal["rows", "labels"] = "rows"
    """What an epoch goes through once: the pictures, or the unique labels of those pictures."""
    pool: bool = False
    """Whether each sample comes with the tokens of a natural image, drawn from the cache's pool."""
    teacher_weights: bool = False
    """Whether the cache must keep its teacher's weights."""
    num_taps: int | None = None
    """How many blocks ``--image-taps`` and ``--text-taps`` take; None: the method has neither."""
    held_out: float = 0.0
    """Share of the labels that are left out of training, for `Trainee.read` to be measured on."""

    @property
    def of_teacher(self) -> bool:
        """Whether anything of it is the teacher's; pixels and labels are not."""
        of_text = self.text is not None and bool(self.text.arrays)
        return bool(self.images) or of_text or self.pool or self.teacher_weights

    def __post_init__(self) -> None:
        if self.epoch == "labels" and (self.pixels or self.images):
            raise ValueError("an epoch over labels has no pictures: pixels=False, images=()")


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Of what a method needs of a cache, without the batch; and what else is there of CLIP."""

    images: Mapping[str, tuple[int, ...]]
    """By array name, (T, D): teacher tokens, width."""
    text: Mapping[str, tuple[int, ...]]
    """By array name: (D,) for an array with a row per position, (E,) for one per label; of prompts,
    whose labels have equally many positions, (L, D)."""
    pool: tuple[int, int] | None = None
    """(T, D) of the tokens of a natural image."""
    teacher_weights: Callable[[Collection[str]], Mapping[str, Tensor]] | None = None
    """Reads tensors of the teacher's model that the cache keeps, by their names there."""


@dataclass(frozen=True, kw_only=True)
class Method(Options):
    """A frozen dataclass of a method's settings that says what the method is."""

    name: ClassVar[str]
    """What ``--method`` calls it."""
    summary: ClassVar[str]
    """One line for the help."""

    @classmethod
    def recipe(cls) -> Mapping[str, Any]:
        """Return the method's own defaults of options that every run has, by their names."""
        return {}

    def fitted(self, spec: CacheSpec) -> Self:
        """Return the settings with what a cache decides of them."""
        del spec
        return self

    def needs(self) -> Needs:
        """Return what the loader must yield."""
        raise NotImplementedError

    def recogniser(self, tokenizer: LabelTokenizer) -> Recogniser | None:
        """Return what reads images, untrained; None of a method that only pre-trains."""
        raise NotImplementedError

    def part(self, tokenizer: LabelTokenizer) -> RecogniserPart | None:
        """Return what a method without a recogniser trains for other runs to begin with."""
        del tokenizer
        return None

    def trainee(self, tokenizer: LabelTokenizer, shapes: Shapes) -> Trainee:
        """Return all that is trained, as one module whose forward yields the loss terms.

        Args:
            tokenizer: Charset and longest label of the run.
            shapes: Of every array that `needs` names.
        """
        raise NotImplementedError
