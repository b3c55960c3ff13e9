"""The Linguistic Consistency Loss in tiles against the same loss written down directly.

Rows are as in training: 17 of width 768 per image, and 13 of width 512 per label (12 characters and
EOS). Time is forward and backward, the best of rounds in which the two take turns, so that a
machine whose speed drifts does so for both. Memory is the peak over what the process held before,
each measured in a process of its own. Prints a table.

    python benchmarks/lcl.py [--batches 16,64,160,320] [--device cpu] [--seconds 3]
    python benchmarks/lcl.py --errors [--batches 64,320] [--device cpu]

With --errors it prints how far the loss and its gradients are from those in float64, with factors
of products in float32, in TF32 and in half precision; sums are in float32. A CPU has no TF32: there
factors are rounded to its ten bits first. Rows are like those of a student half-way: half of what
teacher and student say is common to all.

On a GPU products are as fast as in training with mixed precision.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from clipocr.shared.device import allow_fast_products, choose_device
from clipocr.train.methods.clip_ocr import relations
from clipocr.train.methods.clip_ocr.losses import AlignmentLoss

TOKENS_AND_WIDTH = {"image": (17, 768), "text": (13, 512)}
MIN_ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", default="16,64,160,320")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=3.0, help="of rounds, per line")
    parser.add_argument("--peak", nargs=3, metavar=("FORM", "ROWS", "WIDTH"), help="for itself")
    parser.add_argument("--errors", action="store_true", help="against float64, instead of times")
    args = parser.parse_args()
    device = choose_device(args.device)
    allow_fast_products("fp32" if device.type == "cpu" else "bf16")
    if args.errors:
        batch_sizes = map(int, args.batches.split(","))
        headers = ["batch", "side", "of", "float32", "TF32", "half"]
        print(tabulate(error_rows(batch_sizes, device), headers=headers, tablefmt="github"))
        return
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


def error_rows(batch_sizes: Iterable[int], device: torch.device) -> list[list[object]]:
    """Return, by batch size and side, relative errors of the loss and both gradients."""
    table: list[list[object]] = []
    for batch_size in batch_sizes:
        for side, (num_tokens, width) in TOKENS_AND_WIDTH.items():
            rows = similar_rows(batch_size * num_tokens, width, device)
            exact = loss_and_gradients([x.double() for x in rows])
            errors = []
            for products in PRODUCTS.values():
                with products(device):
                    found = loss_and_gradients(rows)
                errors.append(
                    [float((f - e).norm() / e.norm()) for f, e in zip(found, exact, strict=True)]
                )
            for of, *by_products in zip(("loss", "student", "teacher"), *errors, strict=True):
                table.append([batch_size, side, of, *(f"{error:.1e}" for error in by_products)])
    return table


def similar_rows(num_rows: int, width: int, device: torch.device) -> list[Tensor]:
    common, own, noise = torch.randn(3, num_rows, width, device=device).unbind()
    teacher = common[:1] + own
    return [F.normalize(x, dim=1) for x in (teacher + noise, teacher)]


def loss_and_gradients(rows: list[Tensor]) -> list[Tensor]:
    s_ND, t_ND = (x.detach().requires_grad_() for x in rows)
    loss = relations.relation_sum(s_ND, t_ND, intra_weight=5.0, inter_weight=0.1, temperature=0.03)
    return [loss.detach(), *torch.autograd.grad(loss, [s_ND, t_ND])]


@contextlib.contextmanager
def changed(name: str, value: object) -> Iterator[None]:
    before = getattr(relations, name)
    setattr(relations, name, value)
    yield
    setattr(relations, name, before)


@contextlib.contextmanager
def float32_products(device: torch.device) -> Iterator[None]:
    allow_fast_products("fp32")
    yield
    allow_fast_products("fp32" if device.type == "cpu" else "bf16")


@contextlib.contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    add_product = relations._add_product

    def rounded(out: Tensor, a: Tensor, b: Tensor, **settings: float) -> None:
        add_product(out, to_tf32(a), to_tf32(b), **settings)

    with changed("multiplies_in_half", lambda _: False):
        if device.type == "cuda":
            yield
        else:
            with changed("_add_product", rounded):
                yield


def half_products(_: torch.device) -> contextlib.AbstractContextManager[None]:
    return changed("multiplies_in_half", lambda rows: rows.dtype == torch.float32)


def to_tf32(x: Tensor) -> Tensor:
    bits = x.contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


PRODUCTS = {"float32": float32_products, "TF32": tf32_products, "half": half_products}


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
