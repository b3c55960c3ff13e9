"""Which device and which arithmetic a run uses, and why."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import torch

from .errors import UsageError
from .processes import Process

_ALONE = Process()
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str, process: Process = _ALONE) -> torch.device:
    """Return the device of that name; ``auto`` is CUDA if there is one, else the CPU.

    A GPU becomes the current one of this process, and attention there leaves cuDNN out.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        process: Of several processes each takes the GPU of its own, unless `name` numbers one. A
            process that sees one GPU takes that, because a launcher such as Slurm's
            ``--gpus-per-task=1`` shows each process its own and nothing else.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        has_own = process.world_size > 1 and torch.cuda.device_count() > 1
        name = f"cuda:{process.local_rank if has_own else 0}"
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not index.isdigit())):
        raise UsageError(f"device {name!r} is unknown; expected auto, cpu, cuda or cuda:N")
    num_devices = torch.cuda.device_count() if kind == "cuda" else 1
    if int(index or 0) >= num_devices:
        raise UsageError(
            f"device {name!r}: this machine has {num_devices} CUDA devices; pass --device auto"
        )
    device = torch.device(name)
    if kind == "cuda":
        torch.cuda.set_device(device)
        # PyTorch prefers cuDNN on a Hopper, which plans anew for every shape (a decoding step, a
        # longest label), and whose choice would decide the last bits of a cache.
        torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def describe_device(device: torch.device) -> str:
    """Return what decides the last bits of results, beside the versions of libraries."""
    if device.type != "cuda":
        return f"{device.type} with {torch.backends.cpu.get_cpu_capability()}"
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    described = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, cuDNN {cudnn}"
    with suppress(OSError):
        module = re.search(r" (\d+\.[\d.]+) ", Path("/proc/driver/nvidia/version").read_text())
        described += f", driver {module[1]}" if module else ""
    return described


def choose_precision(name: str, device: torch.device) -> tuple[str, str]:
    """Return the precision meant by `name` on `device`, and the reason."""
    if name == "bf16" and device.type == "cuda" and not has_bf16(device):
        return name, "as asked, but this GPU only emulates it, slowly: pass fp16"
    if name != "auto":
        return name, "as asked"
    if device.type != "cuda":
        return "fp32", f"{device.type} gains nothing from less"
    if has_bf16(device):
        return "bf16", "the device has it, and it needs no loss scaling"
    return "fp16", "the device has no bf16"


def has_bf16(device: torch.device) -> bool:
    """Return whether a GPU multiplies bf16; PyTorch's own question counts emulating it."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def allow_fast_products(precision: str) -> None:
    """Let float32 matrix products of a mixed-precision run use TF32, and those of no other.

    TF32 keeps as many bits of a product's inputs as the official run's fp16. For the whole process,
    so whatever computes says it anew.
    """
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which a student's forward runs."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])
