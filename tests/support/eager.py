"""Reading that is put together from modules, computed at once instead of written to a file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Eager:
    """An `Assembler` whose values are tensors."""

    def __init__(self) -> None:
        self.times: list[int] = []
        """How often each loop went round."""

    def call(self, module: nn.Module, *inputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
        returned = module.eval()(*inputs)
        return [returned] if isinstance(returned, Tensor) else returned

    def loop(
        self, body: nn.Module, state: Sequence[Tensor], fixed: Sequence[Tensor], most: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        by_time = []
        for _ in range(most):
            goes_on, state, written = body(state, fixed)
            by_time.append(written)
            if not goes_on:
                break
        self.times.append(len(by_time))
        return list(state), [torch.stack(each, dim=1) for each in zip(*by_time, strict=True)]
