import pytest
import torch

from clipocr.train.methods.clip_ocr.alignment import GlobalAlignment, ImageAlignment, TokenAlignment


def num_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def standardized(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:])


@pytest.mark.parametrize(("teacher_tokens", "teacher_width"), [(17, 768), (5, 1024)])
def test_image_alignment_brings_student_tokens_to_the_teachers_shape(teacher_tokens, teacher_width):
    head = ImageAlignment(
        student_tokens=129,
        student_width=384,
        teacher_tokens=teacher_tokens,
        teacher_width=teacher_width,
    )
    pair = head(torch.randn(2, 129, 384), torch.randn(2, teacher_tokens, teacher_width))
    assert head.mixing_TS.shape == (teacher_tokens, 129)
    assert pair.student_BTE.shape == pair.teacher_BTE.shape == (2, teacher_tokens, teacher_width)


def test_image_alignment_starts_as_the_average_of_all_student_tokens():
    head = ImageAlignment(student_tokens=6, student_width=4, teacher_tokens=3, teacher_width=8)
    student = torch.randn(2, 6, 4)
    pair = head(student, torch.randn(2, 3, 8))
    average = standardized(head.align.project(student.mean(dim=1)))
    torch.testing.assert_close(pair.student_BTE, average[:, None].expand(-1, 3, -1))


def test_rows_of_a_pair_belong_together():
    # With P = identity and W_1 = identity a student that equals its teacher stays equal to it.
    head = ImageAlignment(student_tokens=3, student_width=4, teacher_tokens=3, teacher_width=4)
    with torch.no_grad():
        head.mixing_TS.copy_(torch.eye(3))
        head.align.project.weight.copy_(torch.eye(4))
        head.align.project.bias.zero_()
    features = torch.randn(2, 3, 4)
    pair = head(features, features)
    torch.testing.assert_close(pair.student_BTE, pair.teacher_BTE)
    torch.testing.assert_close(pair.teacher_BTE, standardized(features))


def test_token_alignment_keeps_positions():
    head = TokenAlignment(student_width=4, teacher_width=6)
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 6)
    pair = head(student, teacher)
    last = head(student[-1:, -1:], teacher[-1:, -1:])
    assert pair.student_BTE.shape == pair.teacher_BTE.shape == (3, 5, 6)
    torch.testing.assert_close(pair.student_BTE[-1:, -1:], last.student_BTE)
    torch.testing.assert_close(pair.teacher_BTE[-1:, -1:], last.teacher_BTE)


def test_global_alignment_leaves_the_teacher_alone():
    head = GlobalAlignment(student_width=4, teacher_width=6)
    teacher = torch.randn(3, 6)
    pair = head(torch.randn(3, 4), teacher)
    assert pair.student_BTE.shape == (3, 1, 6)
    assert torch.equal(pair.teacher_BTE[:, 0], teacher)


def test_the_teachers_norm_learns():
    head = TokenAlignment(student_width=4, teacher_width=6)
    teacher = torch.randn(3, 5, 6)
    (head(torch.randn(3, 5, 4), teacher).teacher_BTE ** 3).sum().backward()
    assert head.teacher_norm.weight.grad.abs().sum() > 0
    assert head.teacher_norm.bias.grad.abs().sum() > 0


def test_sizes_are_those_of_the_official_heads():
    image = ImageAlignment(
        student_tokens=129, student_width=384, teacher_tokens=17, teacher_width=768
    )
    assert 3 * num_parameters(image) == 902_835
    assert 3 * num_parameters(TokenAlignment(student_width=384, teacher_width=512)) == 597_504
    assert num_parameters(GlobalAlignment(student_width=384, teacher_width=512)) == 345_728


def test_losses_without_a_norm_of_their_own_get_that_of_eq_2() -> None:
    plain = GlobalAlignment(student_width=4, teacher_width=6)
    norm = GlobalAlignment(student_width=4, teacher_width=6, normalizes=True)
    norm.load_state_dict(plain.state_dict())
    student, teacher = torch.randn(3, 4), 7 * torch.randn(3, 6) + 2
    for raw, normalised in zip(plain(student, teacher), norm(student, teacher), strict=True):
        mean, deviation = raw.mean(-1, keepdim=True), raw.std(-1, correction=0, keepdim=True)
        torch.testing.assert_close(normalised, (raw - mean) / deviation, rtol=1e-3, atol=1e-4)
