"""Which tokens of a natural image perturb the text features; drawn from torch's global generator.

Shapes: T tokens of an image, class token first, M of them that are taken.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def draw_places(kind: str, num_tokens: int, num_taken: int) -> Tensor:
    """Draw M of T tokens.

    Args:
        kind: ``tokens``: any, in any order, the class token among them, as the official code does.
            ``crop``: those of a rectangle of the picture, row by row. The paper writes
            ``F_t + lambda * C(I(x))`` with C a crop and says no more; the rectangle is the smallest
            that holds M, as near to a square as the grid allows.
        num_tokens: T.
        num_taken: M, at most T, and for a crop at most the places of the grid.

    Returns:
        Their numbers. Shape: (M,).
    """
    if kind == "tokens":
        return torch.randperm(num_tokens)[:num_taken]
    grid = math.isqrt(num_tokens - 1)
    height, width = crop_shape(grid, num_taken)
    top, left = (int(torch.randint(grid - size + 1, ())) for size in (height, width))
    rows, columns = torch.arange(top, top + height), torch.arange(left, left + width)
    return (1 + grid * rows[:, None] + columns).flatten()[:num_taken]


def crop_shape(grid: int, num_taken: int) -> tuple[int, int]:
    """Return rows and columns of the smallest rectangle that holds so many places of a grid."""
    shapes = [(rows, -(-num_taken // rows)) for rows in range(1, grid + 1)]
    fitting = [shape for shape in shapes if shape[1] <= grid]
    return min(fitting, key=lambda shape: (math.prod(shape), abs(shape[0] - shape[1])))
