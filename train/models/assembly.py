"""Reading, put together from modules: what an export writes down of a recogniser.

Exporters of PyTorch take modules, and no loop that ends when every row has ended. So a recogniser
says how its reading is put together from modules and loops of modules, and an `Assembler` makes of
that what it is for, such as an ONNX graph.

    images ─► Begin ─► memories ─► Start ─► loop ( Step ) ─► logits
                           └────────────────────────────────────┴─► Refine ─► logits

Shapes: B batch, L label positions, P positions written, S image tokens, H heads, D width, C
characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ...shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize
from .attention import KeysValues
from .autoregressive import DecoderState, Writer, num_positions, only_eos, written_tokens

if TYPE_CHECKING:
    from .autoregressive import AutoregressiveRecogniser
    from .recogniser import Recogniser

V = TypeVar("V")
"""What stands for a tensor, whose first axis is the batch."""


class Assembler(Protocol[V]):
    """What puts modules together."""

    def call(self, module: nn.Module, *inputs: V | Sequence[V]) -> list[V]:
        """Return what a module makes of its inputs: a tensor or a list of them.

        Their sizes do not vary, but for the batch's.
        """

    def loop(
        self, body: nn.Module, state: Sequence[V], fixed: Sequence[V], most: int
    ) -> tuple[list[V], list[V]]:
        """Repeat a module, at least once, while it goes on.

        Args:
            body: From a list with the state and one with what is fixed, to whether it goes on, the
                new state, and a list with what it has written.
            state: What it is given first. A size that is not the batch's may grow from 0 by 1.
            fixed: What it is given every time.
            most: How many times at most.

        Returns:
            The last state; and all that was written, times along the second axis.
        """


class Decode(nn.Module):
    """Reading in one pass."""

    def __init__(self, recogniser: Recogniser) -> None:
        super().__init__()
        self.recogniser = recogniser

    def forward(self, images: Tensor) -> Tensor:
        """Shape: (B, height, width, 3) uint8 -> (B, L, C + 1)."""
        return self.recogniser.decode(normalize(images, STUDENT_MEAN, STUDENT_STD))


class Begin(nn.Module):
    """From views to the keys and values that decoding reads of them."""

    def __init__(self, recogniser: AutoregressiveRecogniser) -> None:
        super().__init__()
        self.recogniser = recogniser

    def forward(self, images: Tensor) -> list[Tensor]:
        """Shape: (B, height, width, 3) uint8 -> any number of (B, H, S, D / H)."""
        return flat(self.recogniser.begin(normalize(images, STUDENT_MEAN, STUDENT_STD)).memories)


class _OfWriter(nn.Module):
    """A part of writing."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self.writer = writer


class Start(_OfWriter):
    """The state before the first position."""

    def forward(self, memories: list[Tensor], limits_B: Tensor | None = None) -> list[Tensor]:
        """Return first tokens and positions left, (B,) each, and contents, (B, H, 0, D / H).

        Args:
            memories: Shape: (B, H, S, D / H).
            limits_B: See `write_once`.
        """
        tokenizer = self.writer.tokenizer
        blank_B = memories[0].new_zeros(memories[0].shape[0], dtype=torch.long)
        tokens_B = blank_B + tokenizer.bos_id
        if limits_B is None:
            limits_B = blank_B + num_positions(tokenizer)
        # For the sizes of its contents alone: an exporter drops what computes their numbers.
        _, state = self.writer.step(tokens_B, DecoderState(memories=paired(memories)))
        empty = [
            memories[0].new_zeros(memories[0].shape[0], content.shape[1], 0, content.shape[3])
            for content in flat(state.contents)
        ]
        return [tokens_B, limits_B, *empty]


class Step(_OfWriter):
    """One position of every row."""

    def forward(
        self, state: list[Tensor], memories: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return whether any row goes on, the new state and the logits.

        Args:
            state: As `Start` returns it.
            memories: Shape: (B, H, S, D / H).
        """
        tokens_B, left_B, *contents = state
        so_far = DecoderState(memories=paired(memories), contents=paired(contents))
        logits_BC, new = self.writer.step(tokens_B, so_far)
        logits_BC = only_eos(self.writer.tokenizer, logits_BC, left_B <= 0)
        tokens_B = logits_BC.argmax(dim=-1)
        left_B = (left_B - 1) * (tokens_B != self.writer.tokenizer.eos_id)
        return (left_B > 0).any(), [tokens_B, left_B, *flat(new.contents)], [logits_BC]


class Refine(_OfWriter):
    """All positions once more."""

    def forward(
        self, logits_BPC: Tensor, memories: list[Tensor], limits_B: Tensor | None = None
    ) -> Tensor:
        """Shape: (B, P, C + 1) written, (B, H, S, D / H), (B,) -> (B, L, C + 1)."""
        length = num_positions(self.writer.tokenizer)
        tokens_BL = written_tokens(self.writer.tokenizer, logits_BPC, length, limits_B)
        return self.writer.refine(tokens_BL, DecoderState(memories=paired(memories)))


def assemble_writing(graph: Assembler[V], writer: Any, memories: Sequence[V]) -> V:
    """Put together what `write` does."""
    logits = assemble_writing_once(graph, writer, memories)
    if writer.refines:
        (logits,) = graph.call(Refine(writer), logits, memories)
    return logits


def assemble_writing_once(
    graph: Assembler[V], writer: Writer, memories: Sequence[V], *limits: V
) -> V:
    """Put together what `write_once` does."""
    state = graph.call(Start(writer), memories, *limits)
    _, (logits,) = graph.loop(Step(writer), state, memories, num_positions(writer.tokenizer))
    return logits


def flat(states: Sequence[KeysValues]) -> list[Tensor]:
    """Return keys and values in turn."""
    return [x for keys_values in states for x in keys_values]


def paired(tensors: Sequence[Tensor]) -> tuple[KeysValues, ...]:
    """Undo `flat`."""
    return tuple(KeysValues(*tensors[i : i + 2]) for i in range(0, len(tensors), 2))
