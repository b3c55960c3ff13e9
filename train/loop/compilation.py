"""torch.compile: whether a run uses it, and on what.

Lengths of labels and the rows of an epoch's last batch are left to PyTorch to find: it compiles a
part for one shape, and when a second comes for any, which takes no more graphs.
"""

from __future__ import annotations

import torch
from torch import nn

from ...shared.errors import UsageError
from ..methods.trainee import Trainee


def compile_trainee(trainee: Trainee, wish: str, device: torch.device, method: str) -> str:
    """Have torch.compile fuse the parts of a trainee that it can, from their first call on.

    `wish` is ``on``, ``off``, or ``auto``, which is on for a GPU where it works; `method` is named
    in messages. Returns what was done, for the user; nothing if that is nothing.

    Raises:
        UsageError: it is to be on, and there is nothing to compile, or it does not work here.
    """
    if wish == "off" or (wish == "auto" and device.type != "cuda"):
        return ""
    parts = trainee.compilable()
    if not parts:
        if wish == "on":
            raise UsageError(f"method {method} has nothing to compile; leave --compile out")
        return ""
    if problem := _try(device):
        if wish == "on":
            raise UsageError(f"torch.compile does not work here ({problem}); leave --compile out")
        return f"Steps are not compiled, so slower: torch.compile does not work here ({problem})."
    for part in parts:
        part.compile()
    return "Steps are compiled, which takes a minute or two at the start; --compile off does not."


def _try(device: torch.device) -> str:
    """Compile something small, forward and backward; return why that does not work, if so."""
    probe = nn.Sequential(nn.Linear(8, 8), nn.GELU()).to(device)
    probe.compile()
    try:
        probe(torch.ones(2, 8, device=device)).sum().backward()
    except Exception as e:  # Whatever a missing C compiler, Triton or driver makes of it.
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        return lines[0] if lines else type(e).__name__
    return ""
