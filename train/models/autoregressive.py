"""Recognisers that write one character a step, and what they keep between steps.

Reading is one pass over the image (`begin`), then steps until every row has said EOS. Neither has a
branch or a Python number that depends on the batch, so that they can be exported one by one.

    images ──► begin ──► state ──┐
                        tokens ──┴► step ──► logits, state     until EOS

Shapes: B batch, R rows still decoded, L label positions, H heads, S tokens, D width, C characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import KeysValues
from .recogniser import Recogniser

_FEW_ROWS = 3 / 4
"""Share of a batch's rows up to which it pays to go on with those alone: to single them out costs
about what a step does."""


@dataclass(frozen=True, kw_only=True)
class DecoderState:
    """What decoding keeps from one position to the next: the keys and values of each layer."""

    memories: tuple[KeysValues, ...]
    """Of the image; the same at every position."""
    contents: tuple[KeysValues, ...] = ()
    """Of the tokens so far; none before the first."""

    @property
    def num_tokens(self) -> int:
        """Tokens so far, and so the position that is next."""
        return self.contents[0].keys_BHSD.shape[2] if self.contents else 0

    def extended(self, newest: Sequence[KeysValues]) -> DecoderState:
        """Return the state with the keys and values of one more token."""
        if self.contents:
            newest = [old.extended(new) for old, new in zip(self.contents, newest, strict=True)]
        return DecoderState(memories=self.memories, contents=tuple(newest))

    def of_rows(self, rows: Tensor) -> DecoderState:
        """Return the state of some rows of the batch. Shape of `rows`: (R,)."""
        return DecoderState(
            memories=tuple(memory.of_rows(rows) for memory in self.memories),
            contents=tuple(content.of_rows(rows) for content in self.contents),
        )


class AutoregressiveRecogniser(Recogniser):
    """A recogniser that writes one character a step; a subclass defines `begin` and `step`."""

    def begin(self, images: Tensor) -> DecoderState:
        """Return the state before the first position. Shape of images: (B, 3, 32, 128)."""
        raise NotImplementedError

    def step(self, tokens_B: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Decode one position.

        Args:
            tokens_B: The token before it: BOS, then what the last step's logits say. Shape: (B,).
            state: Of `begin`, then of the last step.

        Returns:
            Logits, Shape: (B, C + 1), and the state for the next step.
        """
        raise NotImplementedError

    @torch.no_grad()
    def decode(self, images: Tensor, max_length: int | None = None) -> Tensor:
        """Read images greedily, one character a step, until every row has said EOS.

        Rows that have ended are left out of further steps now and then, so what follows a row's
        EOS is noise or zeros; `LabelTokenizer.decode` cuts it off.

        Args:
            images: Normalised images. Shape: (B, 3, 32, 128).
            max_length: Longest label to write, the tokenizer's if None or longer than that.

        Returns:
            Logits. Shape: (B, L, C + 1), L at most max_length + 1.
        """
        longest = self.tokenizer.max_label_length
        num_steps = 1 + (longest if max_length is None else min(max_length, longest))
        state = self.begin(images)
        rows_R = torch.arange(len(images), device=images.device)
        tokens_R = torch.full_like(rows_R, self.tokenizer.bos_id)
        has_ended_R = torch.zeros_like(rows_R, dtype=torch.bool)
        logits = []
        for _ in range(num_steps):
            newest_RC, state = self.step(tokens_R, state)
            blank_BC = newest_RC.new_zeros(len(images), newest_RC.shape[1])
            logits.append(blank_BC.index_copy(0, rows_R, newest_RC))
            tokens_R = newest_RC.argmax(dim=-1)
            has_ended_R = has_ended_R | (tokens_R == self.tokenizer.eos_id)
            going_on = has_ended_R.logical_not().nonzero().squeeze(1)
            if not len(going_on):
                break
            if len(going_on) <= _FEW_ROWS * len(rows_R):
                state = state.of_rows(going_on)
                rows_R, tokens_R, has_ended_R = (
                    x[going_on] for x in (rows_R, tokens_R, has_ended_R)
                )
        return torch.stack(logits, dim=1)
