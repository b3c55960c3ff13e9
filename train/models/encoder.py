"""The encoder: any timm model, as four stages of tokens.

    flat (ViT, mixer)     the tokens after each quarter of the blocks
    hierarchical, CNN     the last four feature maps, row after row of places

The first three stages are raw, the last is through a LayerNorm. Tokens that are no place of the
picture (class token, registers) come first, the class token foremost.

Shapes: B batch, S_1 ... S_4 tokens of a stage, D_1 ... D_4 their width.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ...shared.errors import UsageError, nearest
from ...shared.geometry import STUDENT_MEAN, STUDENT_STD, VIEW_PX
from .config import NUM_STAGES, TIMM, StudentConfig, StudentSize


class Encoder(nn.Module):
    """A timm model without its classifier, returning four stages.

    What it returns is found out by one forward pass of a blank picture, which tells the shapes of
    the stages and, of a model named by the user, whether it can be an encoder at all.
    """

    stage_shapes: tuple[tuple[int, int], ...]
    """(S, D) of each stage."""
    grid: tuple[int, int]
    """Rows and columns of places that the last stage's tokens stand for."""
    num_prefix_tokens: int
    """Tokens of the last stage that are no place of the picture; they come first."""
    has_class_token: bool
    """Whether the first of them is a class token."""

    model: Any
    """Of timm's, whose models have no common type that shows intermediate features."""
    norm: nn.LayerNorm | None
    """Of the last stage, where that is not through one of the model's."""
    scale: Tensor | None
    shift: Tensor | None
    """From our normalisation to the one of the model's weights; None: they are the same."""

    def __init__(self, config: StudentConfig) -> None:
        """Build the encoder, its weights random.

        Raises:
            UsageError: the model that the config names cannot be an encoder.
        """
        super().__init__()
        self.name = config.encoder
        self.weights = config.encoder_weights
        self.model = _vit(config.size) if self.name is None else _timm_model(self.name)
        self._adapt_inputs()
        try:
            self._find_stages()
        except UsageError:
            raise
        except Exception as e:
            # A model may fail in any way at a picture of a size it was not made for.
            raise _refusal(self.name, f"fails at a picture of 32x128 pixels: {_line(e)}") from e

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encode normalised images. Shape: (B, 3, 32, 128) -> four of (B, S, D)."""
        if images.shape[0] == 0:
            # A blank picture, of which nothing is kept, gives every parameter a gradient of zero:
            # torch.compile on a CPU cannot differentiate a convolution of no pictures, and some
            # models reshape with a -1, which is ambiguous without rows.
            blank = images.new_zeros(1, *images.shape[1:])
            return tuple(stage[:0] for stage in self(blank))
        if self.scale is not None and self.shift is not None:
            images = images * self.scale + self.shift
        found = self.model.forward_intermediates(images, **self._arguments)
        if self.norm is not None:
            stages = [self._tokens(features) for features in found]
            return (*stages[:-1], self.norm(stages[-1]))
        last, features = found
        return (*map(self._tokens, features[:-1]), last)

    def summary(self, last_BSD: Tensor) -> Tensor:
        """Return the last stage's class token, or without one the mean of its places.

        Shape: (B, S, D) -> (B, D).
        """
        if self.has_class_token:
            return last_BSD[:, 0]
        return last_BSD[:, self.num_prefix_tokens :].mean(dim=1)

    def load_weights(self) -> None:
        """Load the weights that the config names, adapted to pictures of 32x128 as timm does it.

        Raises:
            UsageError: they cannot be fetched or read, or are another model's.
        """
        if self.weights is None:
            return
        assert self.name is not None
        if self.weights != TIMM and not Path(self.weights).is_file():
            raise UsageError(f"encoder weights: no file {self.weights}; pass a path, or {TIMM}")
        overlay = None if self.weights == TIMM else {"file": self.weights}
        try:
            first, second = (
                _create(self.name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
                for _ in range(2)
            )
        except Exception as e:
            # A library of the network's or of a file format's raises whatever it likes.
            if overlay is None:
                raise UsageError(
                    f"timm's weights of {self.name} cannot be fetched ({_line(e)}); pass the path "
                    "of a file of them, or a model that timm.list_pretrained() names"
                ) from e
            raise UsageError(f"{self.weights} holds no weights of {self.name}: {_line(e)}") from e
        own = self.model.state_dict()
        # timm leaves out of account what a file lacks. That stays random, and so differs.
        lacking = [name for name in own if name in first and (first[name] != second[name]).any()]
        if lacking:
            raise UsageError(
                f"{self.weights} holds no weights of {self.name}: it lacks {', '.join(lacking[:3])}"
                f"{' and more' if len(lacking) > 3 else ''}"
            )
        self.model.load_state_dict({name: first.get(name, value) for name, value in own.items()})

    # -- finding out what a model yields -----------------------------------------------------

    def _adapt_inputs(self) -> None:
        """Undo our normalisation for a model whose weights were trained with another."""
        about = getattr(self.model, "pretrained_cfg", None) or {}
        theirs = [about.get("mean") or STUDENT_MEAN, about.get("std") or STUDENT_STD]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in theirs)
        own_mean, own_std = (
            torch.tensor(values).view(3, 1, 1) for values in (STUDENT_MEAN, STUDENT_STD)
        )
        is_ours = self.name is None or theirs == [STUDENT_MEAN, STUDENT_STD]
        # No weights: state_dict leaves them out.
        self.register_buffer("scale", None if is_ours else own_std / std, persistent=False)
        self.register_buffer("shift", None if is_ours else (own_mean - mean) / std, False)

    def _find_stages(self) -> None:
        model = self.model
        if not hasattr(model, "forward_intermediates"):
            raise _refusal(self.name, "does not show intermediate features")
        reductions = [info["reduction"] for info in model.feature_info]
        if len(reductions) < NUM_STAGES:
            raise _refusal(
                self.name, f"shows {len(reductions)} feature maps, expected {NUM_STAGES} or more"
            )
        is_flat = len(set(reductions)) == 1
        indices: Any = NUM_STAGES
        if is_flat:
            indices = [(i * len(reductions)) // NUM_STAGES - 1 for i in range(1, NUM_STAGES + 1)]
        # The norm of a hierarchical model belongs to its pooling, if it has one at all.
        has_norm = is_flat and not isinstance(getattr(model, "norm", nn.Identity()), nn.Identity)
        model.prune_intermediate_layers(indices, prune_norm=not has_norm, prune_head=True)
        parameters = inspect.signature(model.forward_intermediates).parameters
        self._arguments = {"indices": indices, "output_fmt": "NCHW"}
        if "return_prefix_tokens" in parameters and getattr(model, "num_prefix_tokens", False):
            self._arguments["return_prefix_tokens"] = True

        was_training = model.training
        model.eval()
        blank = torch.zeros(1, 3, *VIEW_PX, device=next(model.parameters()).device)
        with torch.no_grad():
            final, features = model.forward_intermediates(blank, **self._arguments)
            last_map, prefix = (
                features[-1] if isinstance(features[-1], tuple) else (features[-1], None)
            )
            tokens = self._tokens(features[-1])
            if is_flat:
                # Tokens as they are, where a model offers them: no map is made and undone.
                self._arguments["output_fmt"] = "NLC"
                try:
                    model.forward_intermediates(blank, **self._arguments)
                except AssertionError:
                    self._arguments["output_fmt"] = "NCHW"
        self.grid = (int(last_map.shape[2]), int(last_map.shape[3]))
        self.num_prefix_tokens = 0 if prefix is None else int(prefix.shape[1])
        self.has_class_token = prefix is not None and getattr(model, "cls_token", None) is not None
        # Some add a class token at the end that is in no stage.
        has_norm = has_norm and final.shape == tokens.shape
        self.norm = None if has_norm else nn.LayerNorm(tokens.shape[2])
        self._arguments["intermediates_only"] = not has_norm
        # Some keep in eval mode what they computed of their parameters, here without gradients.
        model.train()
        model.eval()
        stages = self(blank)
        self.stage_shapes = tuple((int(s.shape[1]), int(s.shape[2])) for s in stages)
        if self.name is not None:
            _freeze_unused(self, stages)
        model.train(was_training)

    def _tokens(self, features: Any) -> Tensor:
        """Return the tokens of one entry of ``forward_intermediates``. Shape: (B, S, D)."""
        places, prefix = features if isinstance(features, tuple) else (features, None)
        if self._arguments["output_fmt"] == "NCHW":
            places = places.flatten(start_dim=2).transpose(1, 2)
        return places if prefix is None else torch.cat([prefix, places], dim=1)


def _vit(size: StudentSize) -> nn.Module:
    """Return the student's own ViT, initialised as timm does it."""
    return VisionTransformer(
        img_size=VIEW_PX,
        patch_size=(size.patch_height_px, size.patch_width_px),
        embed_dim=size.width,
        depth=size.encoder_layers,
        num_heads=size.encoder_heads,
        mlp_ratio=size.mlp_ratio,
        num_classes=0,
    )


def _timm_model(name: str) -> nn.Module:
    if ":" in name or not timm.is_model(name):
        hint = nearest(name, timm.list_models(), "timm.list_models() names them")
        raise UsageError(f"timm has no model {name!r}; {hint}")
    try:
        return _create(name)
    except Exception as e:
        # Whatever a model raises that cannot be made for this size of picture.
        raise _refusal(name, f"cannot be made for pictures of 32x128 pixels: {_line(e)}") from e


def _create(name: str, **arguments: Any) -> nn.Module:
    try:
        return timm.create_model(name, num_classes=0, img_size=VIEW_PX, **arguments)
    except TypeError as e:
        if "img_size" not in str(e):
            raise
        # A convolutional network takes pictures of any size, and so none as an argument.
        return timm.create_model(name, num_classes=0, **arguments)


def _freeze_unused(module: nn.Module, outputs: tuple[Tensor, ...]) -> None:
    """Freeze what no stage depends on, such as the rest of a pooled head.

    DistributedDataParallel would wait for its gradient.
    """
    parameters = list(module.parameters())
    total = torch.stack([output.sum() for output in outputs]).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def _refusal(name: str | None, problem: str) -> UsageError:
    return UsageError(
        f"{name} cannot be the encoder: it {problem}. Pass another timm model, such as "
        "vit_small_patch16_224, swin_tiny_patch4_window7_224 or convnext_tiny, or none"
    )


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [error.__class__.__name__])[0]
