"""What CLIP's two transformers compute, on a model of open_clip.

The image encoder sees views of any size that its grid of positions covers, through a crop of that
grid, never an interpolation. Nothing here decides about gradients or precision.

Shapes: B batch, T image tokens, D width, E joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import UsageError
from ..geometry import VIEW_PX, ViewSize


def embed_images(visual: Any, positions_TD: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return what the first image block sees.

    Args:
        visual: The image encoder.
        positions_TD: Of `crop_positions`.
        images: With CLIP's mean and std. Shape: (B, 3, H, W).

    Returns:
        Shape: (B, T, D).
    """
    x = visual.conv1(images)
    x = x.flatten(2).transpose(1, 2)
    # By its shape: PyTorch exports `len` as the number that it happens to be.
    class_token = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
    x = torch.cat([class_token, x], dim=1) + positions_TD.to(x.dtype)
    embedded: torch.Tensor = visual.ln_pre(x)
    return embedded


def run_blocks(
    transformer: Any, x: torch.Tensor, taps: Sequence[int], mask: torch.Tensor | None
) -> dict[int, torch.Tensor]:
    """Run blocks up to the last tap and keep the residual stream after each tapped one."""
    kept = {}
    if not transformer.batch_first:
        x = x.transpose(0, 1)
    for block_idx, block in enumerate(transformer.resblocks[: max(taps, default=0)], start=1):
        x = block(x, attn_mask=mask)
        if block_idx in taps:
            kept[block_idx] = (x if transformer.batch_first else x.transpose(0, 1)).float()
    return kept


def project_image_tokens(visual: Any, last_BTD: torch.Tensor) -> torch.Tensor:
    """Return every token of the last block in the joint space. Shape: (B, T, D) -> (B, T, E)."""
    projected: torch.Tensor = visual.ln_post(last_BTD) @ visual.proj
    return projected


def crop_positions(
    positions: torch.Tensor,
    patch_px: Sequence[int],
    view_px: tuple[int, int] = VIEW_PX,
) -> torch.Tensor:
    """Return the positional rows for a view: class row, then the top-left block of the grid.

    For ViT-B/16 and 32x128 that is rows 0, 1-8 and 15-22 of 197 (official ``system.py`` 257-260).

    Shape: (1 + G * G, D) -> (T, D).

    Raises:
        UsageError: the grid does not cover the view.
    """
    grid = round((len(positions) - 1) ** 0.5)
    height, width = (view // patch for view, patch in zip(view_px, patch_px, strict=True))
    if height > grid or width > grid:
        most = ViewSize(grid * patch_px[0], grid * patch_px[1])
        raise UsageError(
            f"views of {ViewSize(*view_px)} do not fit this teacher, whose grid of positions "
            f"covers {most}; pass a --view-size within it, or choose a teacher of larger pictures"
        )
    block = positions[1:].reshape(grid, grid, -1)[:height, :width].flatten(0, 1)
    return torch.cat([positions[:1], block])
