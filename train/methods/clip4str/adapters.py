"""What may stand between a frozen image encoder and the decoders (official ``str_adapter``).

Shapes: B batch, T image tokens, D width of the image encoder, E joint width, R rungs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.attention import initialize, merge_heads, split_heads

ClipWeights = Callable[[Collection[str]], Mapping[str, Tensor]]
"""CLIP's tensors, by some names of open_clip's state dict, from wherever they are."""

_TEMPERATURE = 0.1
"""Of the gates of a ladder."""


class LinearAdapter(nn.Module):
    """CLIP-Adapter: two layers without biases, mixed with what they read."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.down = nn.Linear(width, width // 2, bias=False)
        self.up = nn.Linear(width // 2, width, bias=False)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=0.02)

    def forward(self, final_BTE: Tensor) -> Tensor:
        """Shape: (B, T, E) -> (B, T, E)."""
        adapted_BTE = self.up(self.down(final_BTE).relu()).relu()
        mixed_BTE: Tensor = self.ratio * adapted_BTE + (1 - self.ratio) * final_BTE
        return mixed_BTE


class SideBlock(nn.Module):
    """A transformer block as wide as CLIP's, whose insides may be narrower."""

    SOURCES = (
        *("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"),
        *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
        *("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"),
    )
    """Names of a block's tensors in open_clip."""

    def __init__(self, width: int, heads: int, reduction: int, activation: str) -> None:
        super().__init__()
        self.heads, self.activation = heads, activation
        inner = width // reduction
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * inner)
        self.out = nn.Linear(inner, width)
        self.up = nn.Linear(width, 4 * inner)
        self.down = nn.Linear(4 * inner, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Shape: (B, T, D) -> (B, T, D)."""
        projected = self.query_key_value(self.attention_norm(x_BTD)).chunk(3, dim=-1)
        query, key, value = (split_heads(part, self.heads) for part in projected)
        attended = merge_heads(F.scaled_dot_product_attention(query, key, value))
        x_BTD = x_BTD + self.out(attended)
        hidden = self.up(self.mlp_norm(x_BTD))
        is_quick = self.activation == "quickgelu"
        hidden = hidden * torch.sigmoid(1.702 * hidden) if is_quick else F.gelu(hidden)
        advanced_BTD: Tensor = x_BTD + self.down(hidden)
        return advanced_BTD

    @torch.no_grad()
    def take(self, block: Mapping[str, Tensor], reduction: int) -> None:
        """Begin as a block of CLIP, or as those of its rows that have the largest L1 norms.

        As in the official ``prune_v2``, which chooses the rows of queries, keys and values each by
        itself, and biases by their own size, whatever row they belonged to.
        """

        def rows(name: str, parts: int = 1) -> Tensor:
            return torch.cat([largest_rows(part, reduction) for part in block[name].chunk(parts)])

        def columns(name: str) -> Tensor:
            return largest_rows(block[name].T, reduction).T

        for own, weight, bias in (
            (self.query_key_value, rows("attn.in_proj_weight", 3), rows("attn.in_proj_bias", 3)),
            (self.out, columns("attn.out_proj.weight"), block["attn.out_proj.bias"]),
            (self.up, rows("mlp.c_fc.weight"), rows("mlp.c_fc.bias")),
            (self.down, columns("mlp.c_proj.weight"), block["mlp.c_proj.bias"]),
            (self.attention_norm, block["ln_1.weight"], block["ln_1.bias"]),
            (self.mlp_norm, block["ln_2.weight"], block["ln_2.bias"]),
        ):
            own.weight.copy_(weight)
            own.bias.copy_(bias)


def largest_rows(weight: Tensor, reduction: int) -> Tensor:
    """Return one in `reduction` rows, those with the largest L1 norms, in their order."""
    norms = weight.abs() if weight.ndim == 1 else weight.norm(p=1, dim=1)
    kept = norms.topk(len(weight) // reduction, sorted=False).indices.sort().values
    return weight[kept]


class Ladder(nn.Module):
    """A side network that climbs along the frozen image encoder (LST), block beside block.

    Rung i is the encoder's stream after a block; the side block at it begins as a copy of the
    encoder's next one.
    """

    decayed = ("projection",)

    def __init__(
        self,
        rungs: Sequence[int],
        width: int,
        joint_width: int,
        heads: int,
        activation: str,
        reduction: int = 1,
    ) -> None:
        super().__init__()
        self.rungs, self.reduction = tuple(rungs), reduction
        self.gates = nn.Parameter(torch.zeros(len(rungs)))
        self.blocks = nn.ModuleList(SideBlock(width, heads, reduction, activation) for _ in rungs)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Parameter(torch.empty(width, joint_width))
        self.apply(initialize)
        nn.init.normal_(self.projection, std=width**-0.5)

    def forward(self, rungs_BTD: Sequence[Tensor], final_BTE: Tensor) -> Tensor:
        """Shape: R of (B, T, D), (B, T, E) -> (B, T, E)."""
        shares = torch.sigmoid(self.gates / _TEMPERATURE)
        x_BTD = rungs_BTD[0]
        for place, (block, rung_BTD) in enumerate(zip(self.blocks, rungs_BTD, strict=True)):
            if place:
                x_BTD = shares[place] * rung_BTD + (1 - shares[place]) * x_BTD
            x_BTD = block(x_BTD)
        climbed_BTE = self.norm(x_BTD) @ self.projection
        # The first gate, which the first block has no use for, as in the official code.
        mixed_BTE: Tensor = shares[0] * final_BTE + (1 - shares[0]) * climbed_BTE
        return mixed_BTE

    @torch.no_grad()
    def take(self, clip: ClipWeights) -> None:
        """Begin as blocks of CLIP's image encoder."""
        for rung, block in zip(self.rungs, self.blocks, strict=True):
            assert isinstance(block, SideBlock)
            prefix = f"visual.transformer.resblocks.{rung}."
            found = clip([prefix + name for name in SideBlock.SOURCES])
            block.take({name.removeprefix(prefix): x for name, x in found.items()}, self.reduction)
        top = clip(["visual.ln_post.weight", "visual.ln_post.bias", "visual.proj"])
        self.norm.weight.copy_(top["visual.ln_post.weight"])
        self.norm.bias.copy_(top["visual.ln_post.bias"])
        self.projection.copy_(top["visual.proj"])
