"""How rows relate: the sums under the Linguistic Consistency Loss, in memory linear in the rows.

Written down directly, each term of Eq. 5 and 6 holds several matrices of N x N from forward to
backward. Here they pass by in tiles: a tile is made, summed, turned into its part of the gradient
and overwritten by the next, so that backward has only to scale. The relations within a side are
symmetric, hence only tiles on and above the diagonal are made.

Both terms are sums over pairs, so tiles change no more than the order of summation. One caution:
Eq. 5 has a gradient of sign(x), and where x is within rounding of 0 that is the sign of the
rounding, here as in any other way to write it.

Rows come with unit length. All is computed in their dtype, but where a GPU process lets the factors
of float32 products be rounded to TF32 (`torch.set_float32_matmul_precision`), they are rounded to
half precision: no element is beyond 1, so it keeps as many bits, 11, and tensor cores multiply it
twice as fast. Sums stay in float32. ``benchmarks/lcl.py --errors`` compares both with float64.

Shapes: N own rows, K rows of other processes, M = N + K columns, D width, B samples, T tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE_ROWS = 1024
"""Rows and columns of a tile. At 2176 rows on two cores 256, 512 and 2048 took 5 to 20 % longer;
two buffers of this size are 8 MB."""
_TILE_ROWS_CUDA = 2048
"""1024 would be 64 blocks of 128 x 128, which leaves half of an H100's 132 multiprocessors idle. By
arithmetic, not measured."""

_HALF_SCALE = 2.0**14
"""The largest power of two by which 1 and less stay within half precision, and a factor of 2."""


def relation_sum(
    s_ND: Tensor,
    t_ND: Tensor,
    s_KD: Tensor | None = None,
    t_KD: Tensor | None = None,
    *,
    intra_weight: float,
    inter_weight: float,
    temperature: float,
) -> Tensor:
    """Sum over own rows what Eq. 7 is the mean of; a term of weight 0 is not computed.

    Row i contributes intra_weight * mean_j |s_i . s_j - t_i . t_j|, Eq. 5, and inter_weight times
    -log of the softmax over columns j of s_i . t_j / temperature at j = i, Eq. 6.

    What relates an own row to another process's is in both their sums, once from each end. The
    gradients are those of all processes' sums together: complete for own rows without a word from
    the others, except for `t_KD`, whose gradient has to be sent to its owners (see `other_rows`).

    Args:
        s_ND: Student rows. Shape: (N, D).
        t_ND: Teacher rows. Shape: (N, D).
        s_KD: Student rows of other processes, constants; Eq. 5 has columns for them, and for
            `t_KD`, if given. Shape: (K, D).
        t_KD: Teacher rows of other processes; Eq. 6 has columns for them. Shape: (K, D).
        intra_weight: lambda_1.
        inter_weight: lambda_2.
        temperature: tau.
    """
    rows = _Rows(s_ND, t_ND, s_KD, t_KD)
    needs_grad = [
        x is not None and x.requires_grad and torch.is_grad_enabled()
        for x in (s_ND, t_ND, None, t_KD)
    ]
    weights = _Weights(intra_weight, inter_weight, temperature)
    total: Tensor = _RelationSum.apply(*rows, weights, needs_grad)
    return total


def intra_within_samples(s_BTD: Tensor, t_BTD: Tensor, keep_BT: Tensor) -> Tensor:
    """Sum over samples Eq. 5 as printed: rows relate to the kept rows of their own sample.

    T is a few dozen at most, so the direct form is linear in the number of rows already.

    Args:
        s_BTD: Student rows. Shape: (B, T, D).
        t_BTD: Teacher rows. Shape: (B, T, D).
        keep_BT: Which rows count. Shape: (B, T).
    """
    distance_BTT = (s_BTD @ s_BTD.mT - t_BTD @ t_BTD.mT).abs()
    is_pair_BTT = keep_BT[:, :, None] & keep_BT[:, None, :]
    num_pairs_B = is_pair_BTT.sum((1, 2)).clamp(min=1)
    return (distance_BTT.where(is_pair_BTT, 0).sum((1, 2)) / num_pairs_B).sum()


def inter_within_samples(
    s_BTD: Tensor, t_BTD: Tensor, keep_BT: Tensor, *, temperature: float
) -> Tensor:
    """Sum over samples Eq. 6 as printed: the candidates are the kept rows of the sample.

    Args:
        s_BTD: Student rows. Shape: (B, T, D).
        t_BTD: Teacher rows. Shape: (B, T, D).
        keep_BT: Which rows count. Shape: (B, T).
        temperature: tau.
    """
    logits_BTT = s_BTD @ t_BTD.mT / temperature
    # Not -inf: a sample without any kept row would have nothing finite to normalise by.
    logits_BTT = logits_BTT.where(keep_BT[:, None, :], torch.finfo(logits_BTT.dtype).min)
    chosen_BT = logits_BTT.log_softmax(2).diagonal(dim1=1, dim2=2)
    return -(chosen_BT.where(keep_BT, 0).sum(1) / keep_BT.sum(1).clamp(min=1)).sum()


def gather_counts(num_own: int, device: torch.device) -> list[int]:
    """Return every process's number, by rank. Every process must call this; a GPU is waited for."""
    own = torch.tensor([num_own], device=device)
    counts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    return torch.cat(counts).tolist()


def other_rows(rows_ND: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the rows of all other processes, in order of rank. Every process must call this.

    The gradient of a row is the sum of what all processes want of it.

    Args:
        rows_ND: N differs between processes. Shape: (N, D).
        counts: N of every process, by rank.

    Returns:
        Shape: (K, D).
    """
    gathered: Tensor = _OtherRows.apply(rows_ND, counts)
    return gathered


class _Rows(NamedTuple):
    """The four sets of rows, or a gradient for each that needs one."""

    s_ND: Tensor
    t_ND: Tensor
    s_KD: Tensor | None
    t_KD: Tensor | None


class _Weights(NamedTuple):
    intra: float
    inter: float
    temperature: float


class _RelationSum(torch.autograd.Function):
    """`relation_sum`, whose gradient is finished when its value is."""

    @staticmethod
    def forward(
        ctx: Any,
        s_ND: Tensor,
        t_ND: Tensor,
        s_KD: Tensor | None,
        t_KD: Tensor | None,
        weights: _Weights,
        needs_grad: list[bool],
    ) -> Tensor:
        rows = _Rows(s_ND, t_ND, s_KD, t_KD)
        grads = [
            torch.zeros_like(x) if x is not None and need else None
            for x, need in zip(rows, needs_grad, strict=True)
        ]
        total = s_ND.new_zeros(())
        if multiplies_in_half(s_ND):
            others = (None if x is None else x.half() for x in (s_KD, t_KD))
            rows = _Rows(s_ND.half(), t_ND.half(), *others)
        if weights.intra:
            total += _add_intra(rows, grads, weights)
        if weights.inter:
            total += _add_inter(rows, grads, weights)
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        grads = [None if grad is None else grad * scale for grad in ctx.saved_tensors]
        return *grads, None, None


def _add_intra(rows: _Rows, grads: Sequence[Tensor | None], weights: _Weights) -> Tensor:
    """Return the term of Eq. 5 and add its gradients to those asked for."""
    s_ND, t_ND = rows.s_ND, rows.t_ND
    s_KD, t_KD = (rows.s_KD, rows.t_KD) if rows.s_KD is not None else (s_ND[:0], t_ND[:0])
    assert t_KD is not None
    scale = weights.intra / max(1, len(s_ND) + len(s_KD))
    size = min(_tile_rows(s_ND), max(len(s_ND), len(s_KD)))
    tile_buffer, sign_buffer = s_ND.new_empty(2, size * size, dtype=_sum_dtype(s_ND))
    total: Tensor = tile_buffer.new_zeros(())
    needs_grad = any(grad is not None for grad in grads)
    for block, columns, is_own in _intra_tiles(len(s_ND), len(s_KD), size):
        s_columns, t_columns = (x[columns] for x in ((s_ND, t_ND) if is_own else (s_KD, t_KD)))
        tile = _view(tile_buffer, len(s_ND[block]), len(s_columns))
        _add_product(tile, s_ND[block], s_columns.T, beta=0)
        _add_product(tile, t_ND[block], t_columns.T, alpha=-1)
        sign = _view(sign_buffer, *tile.shape)
        if needs_grad:
            sign = torch.sign(tile, out=sign).to(s_ND.dtype)
        is_mirrored = is_own and block != columns
        total += tile.abs_().sum() * (2 if is_mirrored else 1)
        for grad, x, x_columns, grad_scale in (
            (grads[0], s_ND, s_columns, 2 * scale),
            (grads[1], t_ND, t_columns, -2 * scale),
        ):
            if grad is not None:
                _add_product(grad[block], sign, x_columns, alpha=grad_scale)
                if is_mirrored:
                    _add_product(grad[columns], sign.T, x[block], alpha=grad_scale)
    return total * scale


def _add_inter(rows: _Rows, grads: Sequence[Tensor | None], weights: _Weights) -> Tensor:
    """Return the term of Eq. 6 and add its gradients to those asked for."""
    s_ND, t_ND = rows.s_ND, rows.t_ND
    t_MD = t_ND if rows.t_KD is None else torch.cat((t_ND, rows.t_KD))
    num_own, num_columns = len(s_ND), len(t_MD)
    size = min(_inter_rows(s_ND, num_columns), num_own)
    logits_buffer, chosen_buffer = s_ND.new_empty(2, size * num_columns, dtype=_sum_dtype(s_ND))
    total: Tensor = logits_buffer.new_zeros(())
    grad_scale = weights.inter / weights.temperature
    for block in _blocks(num_own, size):
        s_block = s_ND[block]
        logits = _view(logits_buffer, len(s_block), num_columns)
        _add_product(logits, s_block, t_MD.T, beta=0, alpha=1 / weights.temperature)
        chosen = torch.log_softmax(logits, 1, out=_view(chosen_buffer, *logits.shape))
        total -= chosen.diagonal(block.start).sum()
        if all(grad is None for grad in grads):
            continue
        by_logit, scale = chosen.exp_(), 1.0
        by_logit.diagonal(block.start).sub_(1)
        if by_logit.dtype != s_ND.dtype:
            # Up by a power of two, because half precision loses bits of what is below 2**-14.
            by_logit, scale = by_logit.mul_(_HALF_SCALE).to(s_ND.dtype), 1 / _HALF_SCALE
        for grad, by_row, columns in (
            (grads[0] if grads[0] is None else grads[0][block], by_logit, t_MD),
            (grads[1], by_logit[:, :num_own].T, s_block),
            (grads[3], by_logit[:, num_own:].T, s_block),
        ):
            if grad is not None:
                _add_product(grad, by_row, columns, alpha=grad_scale * scale)
    return total * weights.inter


class _OtherRows(torch.autograd.Function):
    """`other_rows`. Collectives know equal shapes only, hence the padding."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts
        padded = rows_ND.new_zeros(max(1, *counts), rows_ND.shape[1])
        padded[: len(rows_ND)] = rows_ND
        gathered = padded.new_empty(len(counts) * len(padded), padded.shape[1])
        dist.all_gather_into_tensor(gathered, padded)
        of_rank = gathered.view(len(counts), *padded.shape)
        own = dist.get_rank()
        return torch.cat([of_rank[r, :count] for r, count in enumerate(counts) if r != own])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_KD: Tensor) -> tuple[Tensor, None]:
        rank = dist.get_rank()
        num_before, num_own = sum(ctx.counts[:rank]), ctx.counts[rank]
        own_ND = grad_KD.new_zeros(num_own, grad_KD.shape[1])
        grad_MD = torch.cat((grad_KD[:num_before], own_ND, grad_KD[num_before:]))
        dist.all_reduce(grad_MD)
        return grad_MD[num_before : num_before + num_own], None


def multiplies_in_half(rows_ND: Tensor) -> bool:
    """Return whether factors of products are rounded to half precision."""
    return (
        rows_ND.is_cuda
        and rows_ND.dtype == torch.float32
        and torch.get_float32_matmul_precision() != "highest"
        and _has_half_products(rows_ND.device)
    )


@cache
def _has_half_products(device: torch.device) -> bool:
    """Return whether this PyTorch and GPU sum products of half precision in single."""
    ones = torch.ones(16, 16, device=device)
    try:
        _add_product(ones, ones.half(), ones.half())
    except (TypeError, RuntimeError):
        return False
    return bool((ones == 17).all())


def _sum_dtype(factors: Tensor) -> torch.dtype:
    return torch.float32 if factors.dtype == torch.float16 else factors.dtype


def _add_product(out: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> None:
    """Make `out` beta * out + alpha * a @ b, summed in the dtype of `out`."""
    if a.dtype == out.dtype:
        torch.addmm(out, a, b, beta=beta, alpha=alpha, out=out)
    elif out.is_cuda:
        torch.addmm(out, a, b, out.dtype, beta=beta, alpha=alpha, out=out)
    else:
        # A CPU has no such operation; the numbers are the same.
        torch.addmm(out, a.to(out.dtype), b.to(out.dtype), beta=beta, alpha=alpha, out=out)


def _intra_tiles(num_own: int, num_others: int, size: int) -> Iterator[tuple[slice, slice, bool]]:
    """Yield rows, columns, and whether the columns are own rows: of those, the upper triangle."""
    own = _blocks(num_own, size)
    for i, rows in enumerate(own):
        for columns in own[i:]:
            yield rows, columns, True
        for columns in _blocks(num_others, size):
            yield rows, columns, False


def _blocks(num_rows: int, size: int) -> list[slice]:
    """Cut rows into equal blocks of at most `size`: a thin last one would cost like a full one."""
    num_blocks = math.ceil(num_rows / size) if num_rows else 0
    edges = [num_rows * i // num_blocks for i in range(num_blocks + 1)] if num_blocks else []
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _tile_rows(rows_ND: Tensor) -> int:
    return _TILE_ROWS_CUDA if rows_ND.is_cuda else _TILE_ROWS


def _inter_rows(rows_ND: Tensor, num_columns: int) -> int:
    """Rows that are matched against all columns at once: four tiles' worth, or a quarter high."""
    size = _tile_rows(rows_ND)
    return max(1, size // 4, min(size, 4 * size * size // max(1, num_columns)))


def _view(buffer: Tensor, num_rows: int, num_columns: int) -> Tensor:
    return buffer[: num_rows * num_columns].view(num_rows, num_columns)
