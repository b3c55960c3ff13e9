import math

import pytest
import torch

from clipocr.train.losses import linguistic_consistency, recognition_loss

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
OFFICIAL = {"intra_weight": 5.0, "inter_weight": 0.1, "temperature": 0.03}


def lcl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return linguistic_consistency(student, teacher, **OFFICIAL)


def lcl_in_float64(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Eq. 5 to 7 with loops, one pair of rows after another."""
    rows = range(len(student))
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
    loss = linguistic_consistency(
        student, teacher, intra_weight=5.0, inter_weight=0.1, temperature=0.5
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


@pytest.mark.parametrize("device", DEVICES)
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


@pytest.mark.parametrize("device", DEVICES)
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
