"""Recognisers that write one character a step, and what they keep between steps.

Reading is one pass over the image (`begin`), then steps until every row has said EOS. Neither has a
branch or a Python number that depends on the batch, so that they can be exported one by one.

    images ──► begin ──► state ──┐
                        tokens ──┴► step ──► logits, state     until EOS; then perhaps refine

Shapes: B batch, R rows still decoded, L label positions, H heads, S tokens, D width, C characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .attention import KeysValues
from .recogniser import Recogniser
from .tokenizer import LabelTokenizer

if TYPE_CHECKING:
    from .assembly import Assembler, V

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

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.memories[0].keys_BHSD)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.memories[0].keys_BHSD.device

    def joined(self, other: DecoderState) -> DecoderState:
        """Return the state before the first position that reads both memories."""
        pairs = zip(self.memories, other.memories, strict=True)
        return DecoderState(memories=tuple(own.extended(more) for own, more in pairs))

    def of_rows(self, rows: Tensor) -> DecoderState:
        """Return the state of some rows of the batch. Shape of `rows`: (R,)."""
        return DecoderState(
            memories=tuple(memory.of_rows(rows) for memory in self.memories),
            contents=tuple(content.of_rows(rows) for content in self.contents),
        )


class Writer(Protocol):
    """What writes one character a step: a decoder, or a recogniser that has one."""

    tokenizer: LabelTokenizer

    @property
    def refines(self) -> bool:
        """Whether what was written is read once more."""

    def step(self, tokens_B: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Decode one position.

        Args:
            tokens_B: The token before it: BOS, then what the last step's logits say. Shape: (B,).
            state: The first one, then that of the last step.

        Returns:
            Logits, Shape: (B, C + 1), and the state for the next step.
        """

    def refine(self, tokens_BL: Tensor, state: DecoderState) -> Tensor:
        """Predict every position anew from what was written at all others.

        Args:
            tokens_BL: What was written, EOS from where a row ended. Shape: (B, L).
            state: The first one.

        Returns:
            Logits. Shape: (B, L, C + 1).
        """


@torch.no_grad()
def write(writer: Writer, state: DecoderState, max_length: int | None = None) -> Tensor:
    """Write labels greedily, then, with a writer that refines, read them once more.

    Args:
        writer: What writes.
        state: The first one.
        max_length: Longest label to write, the tokenizer's if None or longer than that.

    Returns:
        Logits; what follows a row's EOS is noise or zeros, and `LabelTokenizer.decode` cuts it off.
        Shape: (B, L, C + 1), L at most max_length + 1.
    """
    logits = write_once(writer, state, max_length)
    if not writer.refines:
        return logits
    num_steps = num_positions(writer.tokenizer, max_length)
    return writer.refine(written_tokens(writer.tokenizer, logits, num_steps), state)


def num_positions(tokenizer: LabelTokenizer, max_length: int | None = None) -> int:
    """Return L of the longest label to write, the tokenizer's if None or longer than that."""
    longest = tokenizer.max_label_length
    return 1 + (longest if max_length is None else min(max_length, longest))


@torch.no_grad()
def write_once(
    writer: Writer,
    state: DecoderState,
    max_length: int | None = None,
    limits_B: Tensor | None = None,
) -> Tensor:
    """Write labels greedily, one character a step, until every row has said EOS.

    Rows that have ended are left out of further steps now and then, so what follows a row's EOS is
    noise or zeros.

    Args:
        writer: What writes.
        state: The first one.
        max_length: See `write`.
        limits_B: Positions after which a row ends in any case: all that follows is a certain EOS.
            Shape: (B,).

    Returns:
        Logits. Shape: (B, L, C + 1), L at most max_length + 1.
    """
    tokenizer = writer.tokenizer
    rows_R = torch.arange(state.num_rows, device=state.device)
    num_rows = len(rows_R)
    tokens_R = torch.full_like(rows_R, tokenizer.bos_id)
    has_ended_R = torch.zeros_like(rows_R, dtype=torch.bool)
    logits: list[Tensor] = []
    for _ in range(num_positions(tokenizer, max_length)):
        newest_RC, state = writer.step(tokens_R, state)
        blank_BC = newest_RC.new_zeros(num_rows, newest_RC.shape[1])
        logits.append(blank_BC.index_copy(0, rows_R, newest_RC))
        tokens_R = newest_RC.argmax(dim=-1)
        has_ended_R = has_ended_R | (tokens_R == tokenizer.eos_id)
        if limits_B is not None:
            has_ended_R = has_ended_R | (limits_B[rows_R] <= len(logits))
        going_on = has_ended_R.logical_not().nonzero().squeeze(1)
        if not len(going_on):
            break
        if len(going_on) <= _FEW_ROWS * len(rows_R):
            state = state.of_rows(going_on)
            rows_R, tokens_R, has_ended_R = (x[going_on] for x in (rows_R, tokens_R, has_ended_R))
    logits_BLC = torch.stack(logits, dim=1)
    if limits_B is not None:
        # A row that did not end before its limit may have gone on beside others, or not.
        places_L = torch.arange(len(logits), device=state.device)
        logits_BLC = only_eos(tokenizer, logits_BLC, places_L >= limits_B[:, None])
    return logits_BLC


def only_eos(tokenizer: LabelTokenizer, logits: Tensor, has_ended: Tensor) -> Tensor:
    """Leave EOS alone to what has ended. Shape: (..., C + 1), (...) -> (..., C + 1)."""
    is_character = torch.arange(logits.shape[-1], device=logits.device) != tokenizer.eos_id
    return logits.masked_fill(has_ended[..., None] & is_character, float("-inf"))


def written_tokens(
    tokenizer: LabelTokenizer, logits_BLC: Tensor, length: int, limits_B: Tensor | None = None
) -> Tensor:
    """Return the likeliest tokens, filled up with EOS.

    Args:
        tokenizer: What knows EOS.
        logits_BLC: What was written. Shape: (B, L, C + 1).
        length: How many to return; L at least.
        limits_B: Positions of each row of which the last one is taken for EOS. Shape: (B,).

    Returns:
        Shape: (B, length).
    """
    likeliest_BL = logits_BLC.argmax(dim=-1)
    all_ended = likeliest_BL.new_full((likeliest_BL.shape[0], length), tokenizer.eos_id)
    tokens_BL = torch.cat([likeliest_BL, all_ended], dim=1)[:, :length]
    if limits_B is not None:
        places_L = torch.arange(length, device=tokens_BL.device)
        is_past_BL = places_L >= limits_B[:, None] - 1
        tokens_BL = tokens_BL.masked_fill(is_past_BL, tokenizer.eos_id)
    return tokens_BL


def text_lengths(tokenizer: LabelTokenizer, tokens_BL: Tensor) -> Tensor:
    """Return the positions of each text, EOS counted; all without one. Shape: (B, L) -> (B,)."""
    before_BL = (tokens_BL == tokenizer.eos_id).cumsum(dim=1) == 0
    lengths_B: Tensor = 1 + before_BL.sum(dim=1)
    return lengths_B.clamp(max=tokens_BL.shape[1])


class AutoregressiveRecogniser(Recogniser):
    """A recogniser that is a `Writer`; a subclass defines `begin`, `step` and perhaps `refine`."""

    refines: bool = False

    def begin(self, images: Tensor) -> DecoderState:
        """Return the state before the first position. Shape of images: (B, 3, H, W)."""
        raise NotImplementedError

    def step(self, tokens_B: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Decode one position; see `Writer`."""
        raise NotImplementedError

    def refine(self, tokens_BL: Tensor, state: DecoderState) -> Tensor:
        """Predict every position anew; see `Writer`."""
        raise NotImplementedError

    def assemble(self, graph: Assembler[V], images: V) -> V:
        """Put together what `decode` does; see `Recogniser`."""
        from .assembly import Begin, assemble_writing

        return assemble_writing(graph, self, graph.call(Begin(self), images))

    @torch.no_grad()
    def decode(self, images: Tensor, max_length: int | None = None) -> Tensor:
        """Read images greedily; see `write`. Shape: (B, 3, H, W) -> (B, L, C + 1)."""
        return write(self, self.begin(images), max_length)
