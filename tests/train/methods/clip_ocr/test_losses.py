"""The losses, alone and, run as a script, as one of two processes."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from clipocr.shared.errors import UsageError
from clipocr.train.methods.clip_ocr import losses, relations
from clipocr.train.methods.clip_ocr.losses import (
    AlignmentLoss,
)
from clipocr.train.methods.recognition import global_mean, recognition_loss

OFFICIAL = {"intra_weight": 5.0, "inter_weight": 0.1, "temperature": 0.03}
KINDS, SCOPES, GATHERS = (
    ("lcl", "l1", "cosine", "kl"),
    ("batch", "sample"),
    ("none", "inter", "all"),
)
KINDS_AND_SCOPES = [*(("lcl", scope) for scope in SCOPES), *((kind, "batch") for kind in KINDS[1:])]


def lcl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the loss among the rows given, no others."""
    return AlignmentLoss(**OFFICIAL, gather="none")(student[:, None], teacher[:, None])


def lcl_in_float64(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Eq. 5 to 7 with loops, one pair of rows after another."""
    rows = range(len(student))
    if not rows:
        return 0.0
    s, t = ([row / (row.norm() + 1e-7) for row in x.double()] for x in (student, teacher))
    intra = inter = 0.0
    for i in rows:
        intra += sum(abs(float(s[i] @ s[j] - t[i] @ t[j])) for j in rows)
        similarities = [float(s[i] @ t[j]) / 0.03 for j in rows]
        largest = max(similarities)
        log_sum = largest + math.log(sum(math.exp(x - largest) for x in similarities))
        inter += log_sum - similarities[i]
    return 5.0 * intra / len(student) ** 2 + 0.1 * inter / len(student)


def test_lcl_equals_a_hand_calculation():
    # Unit rows: student (1, 0), (0.6, 0.8); teacher (1, 0), (0, 1).
    # Self-similarities differ by 0.6 in the two cells off the diagonal: intra = 1.2 / 4 = 0.3.
    # Row 1 against the teacher: 1 and 0, row 2: 0.6 and 0.8; divided by tau = 0.5:
    # inter = (log(1 + e^-2) + log(1 + e^-0.4)) / 2 = (0.126928 + 0.513015) / 2 = 0.319972.
    student = torch.tensor([[2.0, 0.0], [3.0, 4.0]])
    teacher = torch.tensor([[7.0, 0.0], [0.0, 5.0]])
    loss = AlignmentLoss(intra_weight=5.0, inter_weight=0.1, temperature=0.5, gather="none")(
        student[:, None], teacher[:, None]
    )
    assert loss.item() == pytest.approx(5 * 0.3 + 0.1 * 0.319972, abs=1e-6)


@pytest.mark.parametrize("num_rows", [1, 2, 7, 30])
def test_lcl_equals_the_formulas_in_float64(num_rows):
    generator = torch.Generator().manual_seed(num_rows)
    student, teacher = torch.randn(2, num_rows, 5, generator=generator)
    assert lcl(student, teacher).item() == pytest.approx(
        lcl_in_float64(student, teacher), rel=1e-5, abs=1e-6
    )


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        pytest.param([[3.0, 4.0]], [[0.0, 1.0]], 0.0, id="one row has nothing to relate to"),
        pytest.param([[1.0, 2.0]] * 4, [[3.0, 1.0]] * 4, 0.1 * math.log(4), id="identical rows"),
        pytest.param([[0.0, 0.0]] * 2, [[0.0, 0.0]] * 2, 0.1 * math.log(2), id="rows of zeros"),
    ],
)
def test_degenerate_rows_have_a_loss_and_a_gradient(student, teacher, expected):
    student = torch.tensor(student, requires_grad=True)
    loss = lcl(student, torch.tensor(teacher))
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert student.grad.isfinite().all()


def test_lcl_ignores_the_length_of_rows():
    student, teacher = torch.randn(2, 6, 5)
    assert lcl(student, teacher).item() == pytest.approx(
        lcl(student * 100, teacher / 7).item(), rel=1e-5
    )


def test_lcl_reaches_both_sides():
    student, teacher = (x.requires_grad_() for x in torch.randn(2, 6, 5))
    lcl(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad.abs().sum() > 0


@pytest.mark.parametrize("num_rows", [1, 2, 63, 64, 65, 300])
def test_lcl_has_the_gradient_of_the_direct_form(num_rows, device, monkeypatch):
    monkeypatch.setattr(relations, "_TILE_ROWS", 64)
    monkeypatch.setattr(relations, "_TILE_ROWS_CUDA", 64)
    # Rows of +-1 have a length of exactly 4, and no sign in Eq. 5 is a matter of rounding.
    rows = (torch.randint(0, 2, (2, num_rows, 16)) * 2.0 - 1).to(device)
    student, teacher = (x.clone().requires_grad_() for x in rows)

    def direct() -> Tensor:
        s, t = (x / (x.norm(dim=-1, keepdim=True) + 1e-7) for x in (student, teacher))
        inter = F.cross_entropy(s @ t.T / 0.03, torch.arange(num_rows, device=device))
        return 5.0 * F.l1_loss(s @ s.T, t @ t.T) + 0.1 * inter

    expected = torch.autograd.grad(direct(), (student, teacher))
    actual = torch.autograd.grad(lcl(student, teacher), (student, teacher))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5 * e.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_are_float32_and_finite_whatever_comes_in(device, dtype):
    # 6e4 is nearly all float16 can hold: its square, and any sum, would overflow.
    student = (6e4 * torch.rand(5, 40, device=device)).to(dtype).requires_grad_()
    logits = (6e4 * torch.rand(2, 3, 4, device=device)).to(dtype)
    with torch.autocast(device, dtype):
        loss = lcl(student, student.detach().flip(0))
        recognition = recognition_loss(logits, torch.zeros(2, 3, dtype=torch.long, device=device))
    loss.backward()
    assert loss.dtype == recognition.dtype == torch.float32
    assert loss.isfinite()
    assert recognition.isfinite()
    assert student.grad.isfinite().all()


def test_autocast_does_not_change_the_losses(device):
    student, teacher = torch.randn(2, 9, 16, device=device)
    logits, targets = torch.randn(3, 4, 5, device=device), torch.ones(3, 4, dtype=int).to(device)
    plain = lcl(student, teacher), recognition_loss(logits, targets)
    with torch.autocast(device, torch.bfloat16):
        assert (lcl(student, teacher), recognition_loss(logits, targets)) == plain


def test_recognition_loss_is_the_mean_over_characters_and_eos():
    # Two classes and EOS; the last two positions are padding (ids 3, BOS, and 4, PAD, no classes).
    logits = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [9.0, 0.0, 0.0], [9.0, 9.0, 0.0]]])
    loss = recognition_loss(logits, torch.tensor([[2, 0, 4, 4]]))
    # log 3 = 1.098612 and log(e + 2) - 1 = 0.551445
    assert loss.item() == pytest.approx((1.098612 + 0.551445) / 2, abs=1e-6)


def test_recognition_loss_counts_positions_not_rows():
    logits = torch.randn(2, 3, 4)
    targets = torch.tensor([[1, 2, 0], [0, 5, 5]])
    log_probabilities = logits.double().log_softmax(-1)
    picked = [(0, 0, 1), (0, 1, 2), (0, 2, 0), (1, 0, 0)]
    expected = -sum(log_probabilities[index].item() for index in picked) / 4
    assert recognition_loss(logits, targets).item() == pytest.approx(expected, rel=1e-6)


def test_recognition_loss_of_padding_alone_is_zero():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss = recognition_loss(logits, torch.full((2, 3), 5))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def loss_in_float64(
    student: Tensor, teacher: Tensor, keep: Tensor, *, kind: str, scope: str
) -> float:
    """Every kind with loops over the rows that are kept."""
    if (kind, scope) == ("lcl", "sample"):
        samples = [i for i in range(len(keep)) if keep[i].any()]
        values = [lcl_in_float64(student[i][keep[i]], teacher[i][keep[i]]) for i in samples]
        return sum(values) / max(1, len(samples))
    student, teacher = student[keep].double(), teacher[keep].double()
    if kind == "lcl":
        return lcl_in_float64(student, teacher)
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        if kind == "l1":
            total += sum(abs(float(x - y)) for x, y in zip(s, t, strict=True)) / len(s)
        elif kind == "cosine":
            total += 1 - float(s @ t / (s.norm() + 1e-7) / (t.norm() + 1e-7))
        else:
            p, q = t.exp() / t.exp().sum(), s.exp() / s.exp().sum()
            total += sum(float(x * math.log(x / y)) for x, y in zip(p, q, strict=True))
    return total / max(1, len(student))


def random_pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator)
    return student.requires_grad_(), teacher.requires_grad_()


KEEPS = {
    "all": torch.ones(3, 4, dtype=torch.bool),
    "ragged": torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool(),
    "a sample of padding": torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]]).bool(),
    "padding alone": torch.zeros(3, 4, dtype=torch.bool),
}


@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS)
@pytest.mark.parametrize(("kind", "scope"), KINDS_AND_SCOPES)
def test_every_kind_equals_its_formula_over_the_kept_rows(kind, scope, keep, device):
    student, teacher = random_pair(3, 4, 5)
    loss = AlignmentLoss(kind=kind, scope=scope)
    value = loss(student.to(device), teacher.to(device), keep.to(device))
    value.backward()
    expected = loss_in_float64(student.detach(), teacher.detach(), keep, kind=kind, scope=scope)
    assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert value.dtype == torch.float32
    for x in (student, teacher):
        assert not x.grad[~keep].any()
        # A row that is alone in its sample relates to nothing.
        assert x.grad[keep].any() == keep.any()
    if keep.all():
        assert loss(student.to(device), teacher.to(device)).item() == pytest.approx(value.item())


@pytest.mark.parametrize(
    ("kind", "student", "teacher", "expected"),
    [
        # Differences 0, 2, 3, 4 over 2 rows of width 2.
        pytest.param("l1", [[1, 2], [3, 4]], [[1, 0], [0, 0]], 2.25, id="l1"),
        # Cosines 24 / 25 and 0.
        pytest.param("cosine", [[3, 4], [1, 0]], [[4, 3], [0, 2]], 0.52, id="cosine"),
        pytest.param("cosine", [[0, 0]], [[1, 0]], 1.0, id="cosine of nothing"),
        # 3/4 log(3/2) + 1/4 log(1/2) = 0.130812; the second row agrees.
        pytest.param("kl", [[0, 0], [5, 5]], [[math.log(3), 0], [2, 2]], 0.065406, id="kl"),
    ],
)
def test_kinds_equal_hand_calculations(kind, student, teacher, expected):
    student, teacher = (torch.tensor(x, dtype=torch.float32)[None] for x in (student, teacher))
    assert AlignmentLoss(kind=kind)(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_lcl_within_samples_equals_a_hand_calculation():
    # The first sample is that of the batch above, 5 * 0.3 + 0.1 * 0.319972; the second agrees with
    # its teacher, which leaves 0.1 * log(1 + e^-2) = 0.1 * 0.126928.
    student = torch.tensor([[[2.0, 0.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]]])
    teacher = torch.tensor([[[7.0, 0.0], [0.0, 5.0]], [[1.0, 0.0], [0.0, 1.0]]])
    loss = AlignmentLoss(scope="sample", temperature=0.5)
    assert loss(student, teacher).item() == pytest.approx((1.531997 + 0.012693) / 2, abs=1e-6)


def test_a_class_token_relates_to_the_batch_whatever_the_scope():
    pair = random_pair(6, 1, 5)
    by_sample, by_batch = (AlignmentLoss(scope=scope)(*pair) for scope in ("sample", "batch"))
    assert by_sample == by_batch != 0


def test_the_batch_scope_is_lcl_of_its_rows():
    student, teacher = random_pair(3, 4, 5)
    expected = lcl(student.flatten(end_dim=1), teacher.flatten(end_dim=1))
    assert AlignmentLoss()(student, teacher) == expected


@pytest.mark.parametrize(("kind", "scope"), KINDS_AND_SCOPES)
@pytest.mark.parametrize("shape", [(0, 4, 5), (0, 1, 5), (1, 1, 5), (1, 4, 5)])
def test_small_batches_have_a_loss_and_a_gradient(kind, scope, shape):
    student, teacher = random_pair(*shape)
    loss = AlignmentLoss(kind=kind, scope=scope)(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert loss == 0 or shape[0]
    assert student.grad.isfinite().all()
    assert teacher.grad.isfinite().all()


@pytest.mark.parametrize("scope", SCOPES)
def test_identical_rows_leave_the_choice_to_chance(scope):
    student, teacher = torch.ones(2, 3, 4, 5)
    num_rows = {"batch": 12, "sample": 4}[scope]
    loss = AlignmentLoss(scope=scope)(student, teacher)
    assert loss.item() == pytest.approx(0.1 * math.log(num_rows), abs=1e-5)


@pytest.mark.parametrize("scope", SCOPES)
def test_lcl_without_weights_is_zero_with_gradients(scope):
    student, teacher = random_pair(3, 4, 5)
    loss = AlignmentLoss(intra_weight=0, inter_weight=0, scope=scope)(student, teacher)
    loss.backward()
    assert loss == 0
    assert not student.grad.any()
    assert not teacher.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kind", "scope"), KINDS_AND_SCOPES)
def test_every_kind_is_float32_and_finite_whatever_comes_in(kind, scope, dtype, device):
    student, teacher = ((6e4 * (x - 0.5)).to(device, dtype) for x in torch.rand(2, 3, 4, 40))
    student.requires_grad_()
    with torch.autocast(device, dtype):
        loss = AlignmentLoss(kind=kind, scope=scope)(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad.isfinite().all()


# What follows the loss is compiled too, and the compiler looks at the gradient of its argument.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_loss_can_stand_in_a_compiled_function():
    student, teacher = random_pair(3, 4, 5)

    def doubled(student: Tensor, teacher: Tensor) -> Tensor:
        return 2 * AlignmentLoss()(3 * student, 3 * teacher)

    expected = torch.autograd.grad(doubled(student, teacher), student)
    compiled = torch.compile(doubled, backend="eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(student, teacher), student), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "l2"}, "loss is 'l2', expected one of lcl, l1, cosine, kl"),
        ({"scope": "word"}, "scope is 'word', expected one of batch, sample"),
        ({"gather": ""}, "gather is '', expected one of none, inter, all"),
        ({"intra_weight": -1.0}, "intra_weight is -1.0, expected a number from 0"),
        ({"inter_weight": math.nan}, "inter_weight is nan, expected a number from 0"),
        ({"temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
    ],
)
def test_settings_that_make_no_loss_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        AlignmentLoss(**settings)


@pytest.mark.parametrize("count", [0, torch.tensor(0)])
def test_the_mean_of_nothing_is_zero(count):
    assert global_mean(torch.tensor(0.0), count, "all") == 0


# Two processes. Each has its own rows, as many as its rank says; the second's are sometimes none.

LAYOUTS = {"ragged": (3, 2), "one is empty": (4, 0), "both are empty": (0, 0)}
PROCESS_CASES = [
    (layout, kind, scope, gather)
    for layout in LAYOUTS
    for kind, scope in KINDS_AND_SCOPES
    for gather in GATHERS
]


def pair_of(layout: str, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Student, teacher and keep of a process."""
    num_samples = LAYOUTS[layout][rank]
    keep = torch.rand(num_samples, 4, generator=torch.Generator().manual_seed(rank)) < 0.7
    return *random_pair(num_samples, 4, 5, seed=rank), keep


def labels_of(rank: int) -> tuple[Tensor, Tensor]:
    """Logits and targets of a process; id 5 is PAD."""
    generator = torch.Generator().manual_seed(rank)
    logits = torch.randn(2 + rank, 3, 5, generator=generator).requires_grad_()
    return logits, torch.randint(0, 6, (2 + rank, 3), generator=generator)


def losses_of_a_process(rank: int) -> dict[tuple[str, ...], tuple[Tensor, ...]]:
    """Value and gradients of every case."""
    found = {}
    for layout, kind, scope, gather in PROCESS_CASES:
        student, teacher, keep = pair_of(layout, rank)
        value = AlignmentLoss(kind=kind, scope=scope, gather=gather)(student, teacher, keep)
        value.backward()
        found[layout, kind, scope, gather] = value.detach(), student.grad, teacher.grad
    for layout, gather in itertools.product(LAYOUTS, ("inter", "all")):
        student, teacher, _ = pair_of(layout, rank)
        loss = AlignmentLoss(gather=gather)
        sizes = [num * student.shape[1] for num in LAYOUTS[layout]]
        asked = loss(student, teacher, None, None).detach()
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(losses, "gather_counts")
            told = loss(student, teacher, None, sizes).detach()
        found["sizes", layout, gather] = told, asked
    logits, targets = labels_of(rank)
    value = recognition_loss(logits, targets, gather="all")
    value.backward()
    found["recognition",] = value.detach(), logits.grad
    return found


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> list[dict[tuple[str, ...], tuple[Tensor, ...]]]:
    """What each of two processes found, by case."""
    folder = tmp_path_factory.mktemp("processes")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), str(folder)]
    running = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    try:
        assert [process.wait(timeout=60) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def assert_is_the_loss_of_one_process(
    found: list[tuple[Tensor, ...]], value: Tensor, gradients: tuple[Tensor, ...]
) -> None:
    """The mean over processes is `value`, the gradients of each its part of `gradients`."""
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, value, rtol=1e-5, atol=1e-6)
    for i, expected in enumerate(gradients, start=1):
        actual = torch.cat([found[rank][i] for rank in range(2)]) / 2
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kind", "scope"), KINDS_AND_SCOPES)
def test_gather_all_is_the_loss_of_one_process(layout, kind, scope, two_processes):
    student, teacher, keep = (
        torch.cat(parts)
        for parts in zip(*(pair_of(layout, rank) for rank in range(2)), strict=True)
    )
    value = AlignmentLoss(kind=kind, scope=scope)(student, teacher, keep)
    gradients = torch.autograd.grad(value, (student, teacher))
    found = [process[layout, kind, scope, "all"] for process in two_processes]
    assert_is_the_loss_of_one_process(found, value.detach(), gradients)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("gather", ["inter", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_row_counts_spare_the_question_and_change_nothing(layout, gather, rank, two_processes):
    told, asked = two_processes[rank]["sizes", layout, gather]
    assert torch.equal(told, asked)


def test_recognition_of_all_is_the_loss_of_one_process(two_processes):
    logits, targets = (torch.cat(x) for x in zip(*(labels_of(r) for r in range(2)), strict=True))
    value = recognition_loss(logits, targets)
    found = [process["recognition",] for process in two_processes]
    assert_is_the_loss_of_one_process(found, value.detach(), torch.autograd.grad(value, logits))


def official(student: Tensor, teacher: Tensor, others: Tensor) -> Tensor:
    """The official code: other processes' teacher rows stand behind one's own, as constants."""
    s, t, o = (x / (x.norm(dim=-1, keepdim=True) + 1e-7) for x in (student, teacher, others))
    inter = F.cross_entropy(s @ torch.cat((t, o.detach())).T / 0.03, torch.arange(len(s)))
    return 5.0 * F.l1_loss(s @ s.T, t @ t.T) + 0.1 * inter


@pytest.mark.parametrize("rank", [0, 1])
def test_gather_inter_is_the_official_code(rank, two_processes):
    student, teacher, keep = pair_of("ragged", rank)
    _, others, others_keep = pair_of("ragged", 1 - rank)
    value = official(student[keep], teacher[keep], others[others_keep])
    expected = value.detach(), *torch.autograd.grad(value, (student, teacher))
    found = two_processes[rank]["ragged", "lcl", "batch", "inter"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("kind", "scope", "gather"),
    [
        (kind, scope, gather)
        for kind, scope in KINDS_AND_SCOPES
        for gather in ("none", "inter")
        if (kind, scope, gather) != ("lcl", "batch", "inter")
    ],
)
def test_otherwise_a_process_stands_alone(rank, kind, scope, gather, two_processes):
    student, teacher, keep = pair_of("ragged", rank)
    value = AlignmentLoss(kind=kind, scope=scope)(student, teacher, keep)
    expected = value.detach(), *torch.autograd.grad(value, (student, teacher))
    found = two_processes[rank]["ragged", kind, scope, gather]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def main(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(losses_of_a_process(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
