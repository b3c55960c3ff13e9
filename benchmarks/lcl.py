"""The Linguistic Consistency Loss in tiles against the same loss written down directly.

Rows are as in training: 17 of width 768 per image, and 13 of width 512 per label (12 characters and
EOS). Time is forward and backward, the best of rounds in which the two take turns, so that a
machine whose speed drifts does so for both. Memory is the peak over what the process held before,
each measured in a process of its own. Prints a table.

    python benchmarks/lcl.py [--batches 16,64,160,320] [--device cpu] [--seconds 3]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from clipocr.shared.device import choose_device
from clipocr.train.methods.clip_ocr.losses import AlignmentLoss

TOKENS_AND_WIDTH = {"image": (17, 768), "text": (13, 512)}
MIN_ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", default="16,64,160,320")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=3.0, help="of rounds, per line")
    parser.add_argument("--peak", nargs=3, metavar=("FORM", "ROWS", "WIDTH"), help="for itself")
    args = parser.parse_args()
    device = choose_device(args.device)
    if args.peak:
        form, num_rows, width = args.peak
        print(peak_bytes(FORMS[form], *pair(int(num_rows), int(width), device)))
        return
    table = []
    for batch_size in map(int, args.batches.split(",")):
        for side, (num_tokens, width) in TOKENS_AND_WIDTH.items():
            num_rows = batch_size * num_tokens
            direct_s, tiled_s = best_seconds(*pair(num_rows, width, device), args.seconds)
            direct_mb, tiled_mb = (peak_mb(form, num_rows, width, device) for form in FORMS)
            table.append(
                (
                    *(batch_size, side, f"{num_rows:,} x {width}"),
                    *(f"{1e3 * direct_s:.1f}", f"{1e3 * tiled_s:.1f}"),
                    f"{direct_s / tiled_s:.2f}",
                    *(f"{direct_mb:,.0f}", f"{tiled_mb:,.0f}"),
                )
            )
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    print(f"{device.type}{threads}, torch {torch.__version__}")
    headers = ["batch", "side", "rows", "direct ms", "tiled ms", "ratio", "direct MB", "tiled MB"]
    print(tabulate(table, headers=headers, tablefmt="github", disable_numparse=True))


def direct(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Eq. 5 to 7, as one would write them down."""
    s_ND, t_ND = (x / (x.norm(dim=-1, keepdim=True) + 1e-7) for x in (student_ND, teacher_ND))
    diagonal_N = torch.arange(len(s_ND), device=s_ND.device)
    inter = F.cross_entropy(s_ND @ t_ND.T / 0.03, diagonal_N)
    return 5.0 * F.l1_loss(s_ND @ s_ND.T, t_ND @ t_ND.T) + 0.1 * inter


def tiled(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    loss = AlignmentLoss(intra_weight=5.0, inter_weight=0.1, temperature=0.03, gather="none")
    value: Tensor = loss(student_ND[:, None], teacher_ND[:, None])
    return value


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"direct": direct, "tiled": tiled}


def pair(num_rows: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return student and teacher, whose LayerNorm learns too."""
    student, teacher = torch.randn(2, num_rows, width, device=device)
    return student.requires_grad_(), teacher.requires_grad_()


def step(form: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> float:
    """Return the seconds of one forward and backward."""
    student.grad = teacher.grad = None
    started = time.perf_counter()
    form(student, teacher).backward()
    if student.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def best_seconds(student: Tensor, teacher: Tensor, seconds: float) -> list[float]:
    """Return the best time of each form; the first round warms up."""
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) <= MIN_ROUNDS or time.perf_counter() < end:
        rounds.append([step(form, student, teacher) for form in FORMS.values()])
    return [min(times) for times in zip(*rounds[1:], strict=True)]


def peak_bytes(form: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> int:
    """Return the peak of one step, gradients included, over what was held before."""
    step(form, *pair(8, 8, student.device))
    if student.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(form, student, teacher)
        return torch.cuda.max_memory_allocated() - before
    before = peak_resident_bytes()
    step(form, student, teacher)
    return peak_resident_bytes() - before


def peak_resident_bytes() -> int:
    """Return Linux's VmHWM. `getrusage` would count what the parent held when it started us."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def peak_mb(form: str, num_rows: int, width: int, device: torch.device) -> float:
    command = [sys.executable, __file__, "--device", device.type]
    command += ["--peak", form, str(num_rows), str(width)]
    return int(subprocess.run(command, check=True, capture_output=True).stdout) / 1e6


if __name__ == "__main__":
    main()
