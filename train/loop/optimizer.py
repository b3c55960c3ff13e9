"""One optimizer step: what AdamW decays, how fast it learns, and when a step is skipped.

Shapes: V values (the loss terms, their total, the gradient norm).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...shared.device import autocast
from ...shared.hashing import mix
from ..data.batch import Batch
from ..methods.trainee import Trainee
from .config import TrainConfig


class Optimizer:
    """AdamW with a gradient scaler, a clipped gradient and a OneCycle schedule."""

    def __init__(
        self, trainee: Trainee, config: TrainConfig, device: torch.device, rank: int
    ) -> None:
        self._trainee, self._config, self._device, self._rank = trainee, config, device, rank
        self._parameters = [p for p in trainee.parameters() if p.requires_grad]
        groups = parameter_groups(trainee, config.weight_decay, trainee.learning_rate_ratio)
        self._rate_ratios = [group.pop("rate_ratio") for group in groups]
        self._adamw = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        # Whatever the precision, it is the scaler that skips steps that are not finite: on a GPU
        # it needs no look at the gradient from here. Only fp16 needs its scale.
        self._scaler = torch.amp.GradScaler(
            device.type, init_scale=2.0**16 if config.precision == "fp16" else 1.0
        )
        self.learning_rate = 0.0
        """Of the last step that began."""

    def take_step(
        self,
        module: nn.Module,
        batches: Iterator[Batch],
        num_parts: int,
        step: int,
        num_steps: int,
    ) -> torch.Tensor:
        """Take a step of so many on the next batches, unless the gradient is not finite.

        Args:
            module: The trainee, or what wraps it for several processes.
            batches: Those of this process.
            num_parts: How many of them make the step.
            step: From 0.
            num_steps: Of the run.

        Returns:
            The values of the step. Shape: (V,).
        """
        config = self._config
        self.learning_rate = one_cycle(
            step, num_steps, config.learning_rate, config.warmup_fraction
        )
        for group, ratio in zip(self._adamw.param_groups, self._rate_ratios, strict=True):
            group["lr"] = ratio * self.learning_rate
        self._adamw.zero_grad(set_to_none=True)
        values: torch.Tensor | None = None
        for part in range(num_parts):
            batch = next(batches)
            # Dropout is a function of seed, step, part and process: nothing of it to be saved.
            key = mix(config.seed, 2, step, part, self._rank)
            torch.manual_seed(int(key[0]) >> 1)
            waits = part + 1 < num_parts and isinstance(module, DistributedDataParallel)
            with module.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                with autocast(self._device, config.precision):
                    terms = module(batch)
                stacked = torch.stack([terms[name] for name in self._trainee.term_names])
                loss = stacked.sum() / num_parts
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            stacked = stacked.detach() / num_parts
            values = stacked if values is None else values + stacked
        assert values is not None
        self._scaler.unscale_(self._adamw)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, config.grad_clip_norm)
        self._scaler.step(self._adamw)
        self._scaler.update(None if config.precision == "fp16" else 1.0)
        return torch.cat([values, values.sum().view(1), norm.view(1)])

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it."""
        return {"adamw": self._adamw.state_dict(), "scaler": self._scaler.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` returned."""
        self._adamw.load_state_dict(state["adamw"])
        self._scaler.load_state_dict(state["scaler"])


def parameter_groups(
    module: nn.Module, weight_decay: float, rate_ratio: Callable[[str], float] = lambda _: 1.0
) -> list[dict[str, Any]]:
    """Return AdamW's groups: decay for the weights of layers, none for biases, norms, embeddings.

    As PARSeq's ``no_weight_decay`` has it. timm's ``param_groups_weight_decay`` would decay every
    parameter of two dimensions and more, and so the embeddings and positions too. A module with a
    matrix of its own names it in ``decayed``. Parameters that learn at another rate are groups of
    their own, and frozen ones are in none.
    """
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    decayed = {id(part.weight) for part in module.modules() if isinstance(part, layers)}
    for part in module.modules():
        decayed |= {id(getattr(part, name)) for name in getattr(part, "decayed", ())}
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            kind = id(parameter) in decayed, rate_ratio(name)
            groups.setdefault(kind, []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if is_decayed else 0.0,
            "rate_ratio": ratio,
        }
        for (is_decayed, ratio), parameters in groups.items()
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


def describe_longer_schedule(
    config: TrainConfig, num_epochs_before: int, steps_per_epoch: int, step: int
) -> str:
    """Say how a run's learning rate changes, if it goes on with more epochs than it began with."""
    was, now = (
        one_cycle(
            min(step, num_epochs * steps_per_epoch - 1),
            num_epochs * steps_per_epoch,
            config.learning_rate,
            config.warmup_fraction,
        )
        for num_epochs in (num_epochs_before, config.epochs)
    )
    return (
        f"{config.epochs} epochs instead of {num_epochs_before}. The learning rate goes on at "
        f"{now:.2e}, where the schedule of {config.epochs} epochs is at step {step:,}; that of "
        f"{num_epochs_before} had come to {was:.2e}. A run begun with {config.epochs} ends "
        "otherwise."
    )


def _cosine(a: float, b: float, share: float) -> float:
    return b + (a - b) / 2 * (1 + math.cos(math.pi * share))
