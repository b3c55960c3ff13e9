"""The two halves of reading that every exported format is put together from.

Reading is one pass of the encoder, then a loop of decoding steps that ends when every row has said
EOS. The halves hold no branch and no Python number that depends on the batch, so they can be
traced; the loop around them is each format's own.

    images ──► Beginning ──► memories ──┐
                     tokens, contents ──┴► Step ──► probabilities, contents     until EOS

Shapes: B batch, S student image tokens, H heads, D student width, P positions read so far, C
characters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ....shared.geometry import STUDENT_MEAN, STUDENT_STD, VIEW_SHAPE, normalize
from ...models.layers import KeysValues
from ...models.student import NUM_STAGES, DecoderState, Student

NUM_STATES = 2 * NUM_STAGES
"""Tensors of a memory, and of a content: keys and values of each decoder layer."""


class Beginning(nn.Module):
    """From pictures to what decoding reads of them."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalise and encode views.

        Shape: (B, 32, 128, 3) uint8 -> `NUM_STATES` of (B, H, S, D / H).
        """
        memory_BSD = self.student.encode(normalize(images, STUDENT_MEAN, STUDENT_STD))
        return _flat(self.student.begin(memory_BSD).memories)


class Step(nn.Module):
    """One position of every row."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(
        self, tokens_B: Tensor, contents: list[Tensor], memories: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Decode a position.

        Args:
            tokens_B: The token before it, BOS at first. Shape: (B,).
            contents: Of the positions so far, P of them. Shape: `NUM_STATES` of (B, H, P, D / H).
            memories: From `Beginning`.

        Returns:
            Probability of each class, Shape: (B, C + 1), and the contents with one more position.
        """
        state = DecoderState(memories=_paired(memories), contents=_paired(contents))
        logits_BC, state = self.student.step(tokens_B, state)
        return logits_BC.softmax(dim=-1), _flat(state.contents)


def example_inputs(student: Student) -> tuple[Tensor, tuple[Tensor, list[Tensor], list[Tensor]]]:
    """Return inputs of the two halves to trace them with: two rows, two positions read.

    PyTorch takes sizes of 0 and 1 for constants, so neither is used for what may vary.
    """
    images = torch.zeros(2, *VIEW_SHAPE, dtype=torch.uint8)
    tokens_B = torch.full((2,), student.tokenizer.bos_id)
    with torch.no_grad():
        memories = Beginning(student)(images)
    contents = [memory[:, :, :2].clone() for memory in memories]
    return images, (tokens_B, contents, memories)


def _flat(states: Sequence[KeysValues]) -> list[Tensor]:
    return [x for keys_values in states for x in keys_values]


def _paired(flat: Sequence[Tensor]) -> tuple[KeysValues, ...]:
    return tuple(KeysValues(*flat[i : i + 2]) for i in range(0, len(flat), 2))
