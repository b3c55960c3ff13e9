"""Reading with both branches, put together from modules (`Recogniser.assemble`).

Between the branches CLIP's tokenizer reads what was written. Here it is tensors, for texts of ASCII
letters and digits; all else is dropped before anyway (`WordTokens`):

    logits ─► Pieces ─► loop ( Merge ) ─► TextMemory ─► what the cross decoder reads

Shapes: B batch, L label positions, P positions written, S image tokens, M text tokens, H heads, D
width, C characters.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....shared.charset import Charset
from ....shared.errors import UsageError
from ....shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize
from ...models.assembly import (
    Assembler,
    Refine,
    V,
    assemble_writing,
    assemble_writing_once,
    flat,
    paired,
)
from ...models.autoregressive import DecoderState, num_positions, text_lengths, written_tokens
from ...models.tokenizer import LabelTokenizer
from .clip import CONTEXT_LENGTH, byte_pairs

if TYPE_CHECKING:
    from .recogniser import Clip4StrRecogniser

_LETTERS = frozenset(string.ascii_lowercase)
_WORD_END = "</w>"
"""What the tokenizer marks the last piece of a word with."""
_NO_PIECE = 0
"""Stands after the last piece. As a piece it is a punctuation mark, which no text here has."""


def assemble(recogniser: Clip4StrRecogniser, graph: Assembler[V], images: V) -> V:
    """Put together what `Clip4StrRecogniser.decode` does.

    Raises:
        UsageError: there is a cross branch, and the charset has letters or digits beyond ASCII.
    """
    visual, cross = recogniser.visual, recogniser.cross
    if cross is not None:
        _require_ascii(recogniser.tokenizer.charset)
    memories = graph.call(BeginOnImage(recogniser), images)
    of_visual, of_image = memories[: 2 * len(visual.layers)], memories[2 * len(visual.layers) :]
    if cross is None:
        return assemble_writing(graph, visual, of_visual)
    first = assemble_writing_once(graph, visual, of_visual)
    pieces, merge, of_text = Pieces(recogniser.tokenizer), Merge(), TextMemory(recogniser)

    def of_both(logits: V) -> tuple[list[V], V]:
        """Return what the cross decoder reads, and the positions of each text."""
        first_pieces, lengths = graph.call(pieces, logits)
        # A text has as many pairs of characters, and each merge leaves one less.
        merged, _ = graph.loop(merge, [first_pieces], [], num_positions(visual.tokenizer) - 1)
        return graph.call(of_text, *merged, of_image), lengths

    memories, limits = of_both(first)
    crossed = assemble_writing_once(graph, cross, memories, limits)
    if not recogniser.method.refine:
        return crossed
    (refined,) = graph.call(Refine(visual), first, of_visual)
    memories, _ = of_both(refined)
    (logits,) = graph.call(Refine(cross), crossed, memories, limits)
    return logits


def _require_ascii(charset: Charset) -> None:
    if others := [c for c in charset.characters if c.isalnum() and not c.isascii()]:
        raise UsageError(
            f"charset {charset.name!r} holds {others[0]!r}, and what tokenises texts for the cross "
            "branch in a graph knows letters and digits of ASCII only; pass --format safetensors, "
            "or train with --no-cross"
        )


class BeginOnImage(nn.Module):
    """From views to the keys and values that both decoders read of them."""

    def __init__(self, recogniser: Clip4StrRecogniser) -> None:
        super().__init__()
        self.recogniser = recogniser

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the visual decoder's, then the cross decoder's.

        Shape: (B, height, width, 3) uint8 -> (B, H, S, D / H) each.
        """
        model = self.recogniser
        normalized = model.normalized(normalize(images, STUDENT_MEAN, STUDENT_STD))
        memory_BSD = model.memory(model.features(normalized))
        decoders = [model.visual] if model.cross is None else [model.visual, model.cross]
        return [x for decoder in decoders for x in flat(decoder.begin(memory_BSD).memories)]


class Pieces(nn.Module):
    """What the tokenizer begins with: characters, lower-cased, the last of a word marked."""

    inner_ids_C: Tensor
    last_ids_C: Tensor
    is_digit_C: Tensor

    def __init__(self, tokenizer: LabelTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        ids = byte_pairs().encoder
        # The first class is EOS, which is dropped as punctuation is.
        classes = ["", *tokenizer.charset.characters.lower()]
        inner = [ids[c] if c.isalnum() else _NO_PIECE for c in classes]
        last = [ids[c + _WORD_END] if c.isalnum() else _NO_PIECE for c in classes]
        self.register_buffer("inner_ids_C", torch.tensor(inner), persistent=False)
        self.register_buffer("last_ids_C", torch.tensor(last), persistent=False)
        is_digit_C = torch.tensor([c.isdigit() for c in classes])
        self.register_buffer("is_digit_C", is_digit_C, persistent=False)

    def forward(self, logits_BPC: Tensor) -> list[Tensor]:
        """Return pieces, and the positions of each text, EOS counted.

        Shape: (B, P, C + 1) -> (B, L), (B,).
        """
        length = num_positions(self.tokenizer)
        tokens_BL = written_tokens(self.tokenizer, logits_BPC, length)
        lengths_B = text_lengths(self.tokenizer, tokens_BL)
        places_L = torch.arange(length, device=tokens_BL.device)
        is_in_text_BL = places_L < lengths_B[:, None]
        is_kept_BL = is_in_text_BL & (self.inner_ids_C[tokens_BL] != _NO_PIECE)
        # Close the gaps: the character with l kept ones before it comes to place l.
        place_BL = is_kept_BL.long().cumsum(dim=1) - 1
        is_source_BLL = is_kept_BL[:, None] & (place_BL[:, None] == places_L[:, None])
        kept_BL = (is_source_BLL * tokens_BL[:, None]).sum(dim=2)
        next_BL = F.pad(kept_BL[:, 1:], (0, 1), value=self.tokenizer.eos_id)
        # A digit is a word by itself.
        is_before_other_BL = self.is_digit_C[next_BL] | (next_BL == self.tokenizer.eos_id)
        is_last_BL = is_before_other_BL | self.is_digit_C[kept_BL]
        pieces_BL = torch.where(is_last_BL, self.last_ids_C[kept_BL], self.inner_ids_C[kept_BL])
        return [pieces_BL, lengths_B]


class Merge(nn.Module):
    """One merge of byte pair encoding: in each row, the leftmost pair of the lowest rank.

    No pair spans two words, because none begins with the last piece of a word.
    """

    keys_K: Tensor
    """Of pairs of pieces that become one, ascending, then a larger one up to a power of two."""
    merged_K: Tensor
    """What they become: the lower a pair's rank, the lower that id."""

    def __init__(self) -> None:
        super().__init__()
        bpe = byte_pairs()
        self.num_ids = len(bpe.encoder)
        merged_of = {
            self._key(bpe.encoder[left], bpe.encoder[right]): bpe.encoder[left + right]
            for left, right in bpe.bpe_ranks
            if _LETTERS.issuperset((left + right).removesuffix(_WORD_END))
        }
        keys = sorted(merged_of)
        merged = [merged_of[key] for key in keys]
        padding = (0, (1 << len(keys).bit_length()) - len(keys))
        keys_K = F.pad(torch.tensor(keys), padding, value=self._key(self.num_ids, 0))
        merged_K = F.pad(torch.tensor(merged), padding, value=self.num_ids)
        self.register_buffer("keys_K", keys_K, persistent=False)
        self.register_buffer("merged_K", merged_K, persistent=False)

    def _key(self, left: Any, right: Any) -> Any:
        return left * self.num_ids + right

    def forward(
        self, state: list[Tensor], fixed: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return whether any row had a pair, and the pieces. Shape: (B, L) -> (B, L)."""
        del fixed
        (pieces_BL,) = state
        length = pieces_BL.shape[1]
        next_BL = F.pad(pieces_BL[:, 1:], (0, 1), value=_NO_PIECE)
        key_BL = self._key(pieces_BL, next_BL)
        place_BL = self._last_not_above(key_BL)
        is_pair_BL = self.keys_K[place_BL] == key_BL
        merged_BL = torch.where(is_pair_BL, self.merged_K[place_BL], self.num_ids)
        places_L = torch.arange(length, device=pieces_BL.device)
        # One number says both, so that of equal ranks the leftmost is the least.
        least_B1 = (merged_BL * length + places_L).amin(dim=1, keepdim=True)
        new_B1, at_B1 = least_B1 // length, least_B1 % length
        has_pair_B1 = new_B1 < self.num_ids
        shortened_BL = torch.where(places_L == at_B1, new_B1, next_BL)
        is_same_BL = (places_L < at_B1) | ~has_pair_B1
        return has_pair_B1.any(), [torch.where(is_same_BL, pieces_BL, shortened_BL)], []

    def _last_not_above(self, key_BL: Tensor) -> Tensor:
        """Return where the last key is that is not above one; 0 if all are. Shape: (B, L)."""
        place_BL = torch.zeros_like(key_BL)
        stride = len(self.keys_K) // 2
        while stride:
            place_BL = place_BL + stride * (self.keys_K[place_BL + stride] <= key_BL)
            stride //= 2
        return place_BL


class TextMemory(nn.Module):
    """From pieces to the keys and values that the cross decoder reads, those of the image first."""

    def __init__(self, recogniser: Clip4StrRecogniser) -> None:
        super().__init__()
        self.recogniser = recogniser

    def forward(self, pieces_BL: Tensor, of_image: list[Tensor]) -> list[Tensor]:
        """Shape: (B, L), (B, H, S, D / H) each -> (B, H, S + M, D / H) each."""
        cross = self.recogniser.cross
        assert cross is not None, "nothing else reads text"
        of_text = cross.begin(self.recogniser.encode_text(context_of(pieces_BL)))
        return flat(DecoderState(memories=paired(of_image)).joined(of_text).memories)


def context_of(pieces_BL: Tensor) -> Tensor:
    """Put pieces between SOT and EOT, as `WordTokens` does. Shape: (B, L) -> (B, M)."""
    bpe = byte_pairs()
    places_M = torch.arange(CONTEXT_LENGTH, device=pieces_BL.device)
    num_pieces_B1 = (pieces_BL != _NO_PIECE).sum(dim=1, keepdim=True)
    eot_place_B1 = (num_pieces_B1 + 1).clamp(max=CONTEXT_LENGTH - 1)
    ids_BM = F.pad(pieces_BL, (1, CONTEXT_LENGTH))[:, :CONTEXT_LENGTH]
    ids_BM = ids_BM.masked_fill(places_M == 0, bpe.sot_token_id)
    ids_BM = ids_BM.masked_fill(places_M == eot_place_B1, bpe.eot_token_id)
    return ids_BM.masked_fill(places_M > eot_place_B1, 0)
