"""What reads images of words: all that evaluation, reading, export, hub and checkpoints know.

Shapes: B batch, H and W height and width of a view, L label positions (characters and EOS), C
characters of the charset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...shared.errors import UsageError
from ...shared.geometry import TALL, VIEW_PX
from .tokenizer import LabelTokenizer

if TYPE_CHECKING:
    from .assembly import Assembler, V

_MOST_LISTED = 40
"""Characters that are new to a recogniser, as a message lists them."""


@dataclass(frozen=True, kw_only=True)
class ImageAttention:
    """How much a recogniser read each part of an image when it wrote each character."""

    places: Tensor
    """Weights of the places of the image, a grid of any size. Shape: (B, L, rows, columns)."""
    elsewhere: Tensor
    """Weight of tokens that are no place, such as a class token. Shape: (B, L).

    Together with the places it sums to 1.
    """


class RecogniserPart(nn.Module):
    """Some modules of a recogniser, under the names that they have there.

    It is what a method without pictures trains: no reader, but `Recogniser.take_from` takes it.
    """

    tokenizer: LabelTokenizer
    """Charset and longest label, which are fixed when it is made."""

    token_axes: Mapping[str, int] = {}
    """Parameters that have an entry for each token, or for each class: the axis, by name."""
    position_axes: Mapping[str, int] = {}
    """Parameters that have an entry for each label position: the axis, by name."""

    def architecture(self) -> dict[str, Any]:
        """Return what another recogniser must have in common for its weights to fit, by name.

        Shapes of parameters are compared anyway; what is named here makes a better message.
        """
        return {}


class Recogniser(RecogniserPart):
    """A model that reads images of single words.

    A subclass sets `tokenizer` and defines `decode`; all else has a default.
    """

    tall: str = TALL[0]
    """What becomes of a tall picture before it is a view, as in the cache it learned from: the run
    sets it, checkpoints and exports keep it, and whatever makes views for it follows it."""
    view_px: tuple[int, int] = VIEW_PX
    """Height and width of the views that it reads, which whatever makes views for it follows; a
    checkpoint rebuilds it from the method's settings."""

    def decode(self, images: Tensor, max_length: int | None = None) -> Tensor:
        """Read images, without gradients.

        Args:
            images: Normalised images. Shape: (B, 3, H, W).
            max_length: Longest label to write; None: the tokenizer's.

        Returns:
            Logits; what follows a row's first EOS is noise. Shape: (B, L, C + 1).
        """
        raise NotImplementedError

    def assemble(self, graph: Assembler[V], images: V) -> V:
        """Put together what `decode` does, of modules, for an export.

        Args:
            graph: What puts them together.
            images: Stands for views. Shape: (B, height, width, 3) uint8.

        Returns:
            Stands for logits. Shape: (B, L, C + 1).

        Raises:
            UsageError: it cannot be put together.
        """
        from .assembly import Decode

        (logits,) = graph.call(Decode(self), images)
        return logits

    def decode_stages(self, images: Tensor, max_length: int | None = None) -> dict[str, Tensor]:
        """Read images, and return the logits of every stage by its name; `decode` is the last.

        Args and shapes as of `decode`. A recogniser that reads once has one stage.
        """
        return {"text": self.decode(images, max_length)}

    @property
    def needs_clip(self) -> bool:
        """Whether it goes on with CLIP and does not hold CLIP's weights."""
        return False

    def bring_clip(self, place: str | None) -> None:
        """Load CLIP's weights, if it needs them.

        Args:
            place: ``MODEL/WEIGHTS``, or a cache that keeps them; None: as its settings name them.

        Raises:
            UsageError: it reads without CLIP, and a place was given; or it needs one.
            TeacherError: they cannot be had, or are others.
        """
        if place is not None:
            raise UsageError(f"--clip {place}: this recogniser reads without CLIP; leave it out")

    def reading_parameters(self) -> Iterator[nn.Parameter]:
        """Return all parameters that it reads with, CLIP's among them."""
        return self.parameters()

    def hold_clip(self) -> dict[str, Any]:
        """Make CLIP's weights its own; return what of its settings that changes."""
        return {}

    def load_pretrained(self) -> None:
        """Load published weights that its config names, if any: once, when a training begins.

        Raises:
            UsageError: they cannot be had.
        """

    def image_attention(self, images: Tensor, token_ids_BL: Tensor) -> ImageAttention | None:
        """Return where it looked when it wrote a text; None of a recogniser that cannot say.

        Args:
            images: Normalised images. Shape: (B, 3, H, W).
            token_ids_BL: What was read in them, from `LabelTokenizer.encode`. Shape: (B, L + 1).
        """
        del images, token_ids_BL
        return None

    def take_from(self, other: RecogniserPart) -> str:
        """Copy the weights of another recogniser, or of a part; return in words what is new, or "".

        Charset and label length may differ: what belongs to a character goes to that character,
        and what belongs to a label position to that position. New ones stay as they are.

        Raises:
            UsageError: the other is of another architecture.
        """
        own, theirs = self.state_dict(), other.state_dict()
        if differing := self._differences(other, own, theirs):
            raise UsageError(
                f"--init holds another recogniser ({'; '.join(differing)}); pass the options it "
                "was trained with"
            )
        pairs = self._shared_tokens(other)
        num_positions = 1 + min(self.tokenizer.max_label_length, other.tokenizer.max_label_length)
        with torch.no_grad():
            for name, given in theirs.items():
                value, given = own[name], given.to(own[name].device)
                if name in self.token_axes:
                    axis = self.token_axes[name]
                    # A parameter for classes alone has no entry for BOS and PAD.
                    of_both = [(to, of) for to, of in pairs if to < value.shape[axis]]
                    to_ids, of_ids = torch.tensor(of_both, device=value.device).unbind(dim=1)
                    value.index_copy_(axis, to_ids, given.index_select(axis, of_ids))
                elif name in self.position_axes:
                    axis = self.position_axes[name]
                    value.narrow(axis, 0, num_positions).copy_(given.narrow(axis, 0, num_positions))
                else:
                    value.copy_(given)
        return self._new_here(other)

    def _differences(
        self, other: RecogniserPart, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
    ) -> list[str]:
        """Say what keeps the weights of another recogniser from fitting here."""
        is_whole = isinstance(other, Recogniser)
        if is_whole and type(other) is not type(self):
            return [f"a {type(other).__name__}, this run's is a {type(self).__name__}"]
        here, there = self.architecture(), other.architecture()
        named = [
            f"{name} is {there.get(name)}, this run's {here.get(name)}"
            for name in (here if is_whole else there)
            if there.get(name) != here.get(name)
        ]
        if named:
            return named
        alone = own.keys() ^ theirs.keys() if is_whole else theirs.keys() - own.keys()
        return [f"{name} is in one of them only" for name in sorted(alone)] or [
            f"{name} has shape {tuple(given.shape)}, this run's {tuple(own[name].shape)}"
            for name, given in theirs.items()
            if self._fixed_shape(name, own[name]) != self._fixed_shape(name, given)
        ]

    def _fixed_shape(self, name: str, value: Tensor) -> list[int]:
        """Return a parameter's shape without the axis that charset or label length decide."""
        shape = list(value.shape)
        for axes in (self.token_axes, self.position_axes):
            if name in axes:
                del shape[axes[name]]
        return shape

    def _shared_tokens(self, other: RecogniserPart) -> list[tuple[int, int]]:
        """Return the ids (here, there) of every token that both have."""
        own, theirs = self.tokenizer, other.tokenizer
        ids_there = {c: i for i, c in enumerate(theirs.charset.characters, start=1)}
        shared = [
            (token_id, ids_there[c])
            for token_id, c in enumerate(own.charset.characters, start=1)
            if c in ids_there
        ]
        special = [(own.bos_id, theirs.bos_id), (own.pad_id, theirs.pad_id)]
        return [(own.eos_id, theirs.eos_id), *shared, *special]

    def _new_here(self, other: RecogniserPart) -> str:
        known = other.tokenizer.charset.characters
        new = "".join(c for c in self.tokenizer.charset.characters if c not in known)
        more = f" and {len(new) - _MOST_LISTED} others" if len(new) > _MOST_LISTED else ""
        parts = [f"characters {new[:_MOST_LISTED]}{more}"] if new and self.token_axes else []
        longest = other.tokenizer.max_label_length
        if longest < self.tokenizer.max_label_length and self.position_axes:
            parts.append(f"label positions from {longest + 2} on")
        taken = {name.partition(".")[0] for name in other.state_dict()}
        parts += [name for name, child in self.named_children()
                  if name not in taken and any(True for _ in child.parameters())]  # fmt: skip
        return " and ".join(parts)
