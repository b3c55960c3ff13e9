"""Orders in which a label's characters are learned: permuted language modelling, as in PARSeq.

A decoder that has learned several orders can be given any of a word's characters and asked for any
other, which is what lets it read once more what it has written (`Decoder.refine`).

Places of a sequence are BOS, the characters, EOS, P = L + 1 of them; an order lists them as they
become known. All rows of a batch share the orders: shorter labels lack the places that are padding.

Shapes: K orders, P places, L label positions.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

_ENUMERATED = 5
"""Below that many characters orders are drawn from a list of all, so that none comes twice."""
_HALF_OF_FOUR = (0, 3, 4, 6, 9, 10, 12, 16, 17, 18, 19, 21)
"""Of the 24 orders of four characters, one of each pair that mirror each other."""


def draw_orders(num_characters: int, num_orders: int) -> Tensor:
    """Draw orders from torch's global generator, in pairs that mirror each other.

    The first is from left to right, the second from right to left; in that one EOS is foretold
    from nothing, as reading without context needs it. (Official ``gen_tgt_perms``.)

    Args:
        num_characters: Of the longest label.
        num_orders: K, 2 or more and even; fewer come back if there are not as many.

    Returns:
        Shape: (K, P).
    """
    if num_characters < 2:
        return torch.arange(num_characters + 2)[None]
    num_drawn = min(num_orders // 2, math.factorial(num_characters) // 2)
    forward = torch.arange(num_characters)
    if num_characters < _ENUMERATED:
        every = torch.tensor(list(itertools.permutations(range(num_characters))))
        halves = every[list(_HALF_OF_FOUR)] if num_characters == 4 else every[: len(every) // 2]
        others = halves[1:][torch.randperm(len(halves) - 1)[: num_drawn - 1]]
    else:
        drawn = [torch.randperm(num_characters) for _ in range(num_drawn - 1)]
        others = torch.stack(drawn) if drawn else forward.new_empty(0, num_characters)
    drawn_orders = torch.cat([forward[None], others])
    pairs = torch.stack([drawn_orders, drawn_orders.flip(-1)], dim=1).flatten(end_dim=1)
    ends = pairs.new_zeros(len(pairs), 1)
    orders = torch.cat([ends, pairs + 1, ends + num_characters + 1], dim=1)
    orders[1, 1:] = torch.arange(num_characters + 1, 0, -1)
    return orders


def masks_of(orders_KP: Tensor) -> tuple[Tensor, Tensor]:
    """Return what content and queries may read in each order: true where they may.

    Content may read itself and what is known before it; the query of a place only the latter.

    Returns:
        Content of BOS and characters, reading content; queries of characters and EOS, reading
        content. Shape: (K, L, L) twice.
    """
    ranks_KP = orders_KP.argsort(dim=1)
    reader, read = ranks_KP[:, :, None], ranks_KP[:, None, :-1]
    return (read <= reader)[:, :-1], (read < reader)[:, 1:]
