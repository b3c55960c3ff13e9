"""Finds, on a CPU, the operations at which the host would wait for a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

_WAITS = {
    aten._local_scalar_dense.default: "a value is read: item(), float(), bool(), tolist()",
    aten.lift_fresh.default: "a tensor is made of Python numbers, or indexed by a list",
    aten.nonzero.default: "the size of the result is data",
    aten.masked_select.default: "the size of the result is data",
}


class HostWaits(TorchDispatchMode):
    """Collects such operations while it is active, with the reason."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _WAITS:
            self.found.append(f"{func}: {_WAITS[func]}")
        is_index = func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
        if is_index and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.found.append(f"{func}: indexed by a mask, whose sum is data")
        return func(*args, **(kwargs or {}))
