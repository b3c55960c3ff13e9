"""One optimizer step: what AdamW decays, how fast it learns, and when a step is skipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from .config import TrainConfig


class Optimizer:
    """AdamW with a gradient scaler, a clipped gradient and a OneCycle schedule."""

    def __init__(self, module: torch.nn.Module, config: TrainConfig, device: torch.device) -> None:
        self._parameters, self._config = list(module.parameters()), config
        self._adamw = torch.optim.AdamW(
            parameter_groups(module, config.weight_decay), lr=config.learning_rate, fused=True
        )
        # Whatever the precision, it is the scaler that skips steps that are not finite: on a GPU
        # it needs no look at the gradient from here. Only fp16 needs its scale.
        self._scaler = torch.amp.GradScaler(
            device.type, init_scale=2.0**16 if config.precision == "fp16" else 1.0
        )
        self.learning_rate = 0.0
        """Of the last step that began."""

    def begin(self, step: int, num_steps: int) -> None:
        """Begin a step of so many: set the learning rate, forget the gradient."""
        self.learning_rate = one_cycle(
            step, num_steps, self._config.learning_rate, self._config.warmup_fraction
        )
        for group in self._adamw.param_groups:
            group["lr"] = self.learning_rate
        self._adamw.zero_grad(set_to_none=True)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def finish(self) -> torch.Tensor:
        """Take the step, unless the gradient is not finite; return its norm, a scalar."""
        self._scaler.unscale_(self._adamw)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._config.grad_clip_norm)
        self._scaler.step(self._adamw)
        self._scaler.update(None if self._config.precision == "fp16" else 1.0)
        return norm

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it."""
        return {"adamw": self._adamw.state_dict(), "scaler": self._scaler.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` returned."""
        self._adamw.load_state_dict(state["adamw"])
        self._scaler.load_state_dict(state["scaler"])


def parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's groups: decay for the weights of layers, none for biases, norms, embeddings.

    As PARSeq's ``no_weight_decay`` has it. timm's ``param_groups_weight_decay`` would decay every
    parameter of two dimensions and more, and so the embeddings and positions too. A module with a
    matrix of its own names it in ``decayed``.
    """
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    decayed = {id(part.weight) for part in module.modules() if isinstance(part, layers)}
    for part in module.modules():
        decayed |= {id(getattr(part, name)) for name in getattr(part, "decayed", ())}
    return [
        {
            "params": [p for p in module.parameters() if (id(p) in decayed) == is_decayed],
            "weight_decay": weight_decay if is_decayed else 0.0,
        }
        for is_decayed in (True, False)
    ]


def one_cycle(step: int, num_steps: int, peak: float, warmup_fraction: float) -> float:
    """Return the learning rate of a step: cosine up from peak / 25, cosine down to peak / 250,000.

    The same curve as `torch.optim.lr_scheduler.OneCycleLR` with its defaults. It is a function of
    the step, because that class divides by zero where the warm-up is exactly one step, and would
    have a state of its own to save.
    """
    start, end = peak / 25, peak / 25 / 1e4
    top = warmup_fraction * num_steps - 1
    if step <= top:
        return _cosine(start, peak, step / top if top else 1.0)
    return _cosine(peak, end, (step - top) / max(num_steps - 1 - top, 1e-9))


def _cosine(a: float, b: float, share: float) -> float:
    return b + (a - b) / 2 * (1 + math.cos(math.pi * share))
