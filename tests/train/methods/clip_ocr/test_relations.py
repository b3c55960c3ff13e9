import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clipocr.train.methods.clip_ocr import relations
from clipocr.train.methods.clip_ocr.relations import relation_sum

OFFICIAL = {"intra_weight": 5.0, "inter_weight": 0.1, "temperature": 0.03}
NUM_ROWS = [1, 2, 63, 64, 65, 300, 2100]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(relations, "_TILE_ROWS", 64)
    monkeypatch.setattr(relations, "_TILE_ROWS_CUDA", 64)


def direct_sum(s: Tensor, t: Tensor, *, intra_weight=5.0, inter_weight=0.1, temperature=0.03):
    """Eq. 7 as one would write it down, times the number of rows."""
    inter = F.cross_entropy(s @ t.T / temperature, torch.arange(len(s), device=s.device))
    intra = F.l1_loss(s @ s.T, t @ t.T)
    return (intra_weight * intra + inter_weight * inter) * len(s)


def float64_rows(num_rows: int, device: str = "cpu", width: int = 5) -> list[Tensor]:
    """Student and teacher, so that no sign in Eq. 5 is a matter of rounding.

    Hence not of unit length: the diagonal would be 1 - 1. (That part of the gradient points along
    the row, and dividing by the length takes it away again.)
    """
    generator = torch.Generator().manual_seed(num_rows)
    rows = 0.3 * torch.randn(2, num_rows, width, generator=generator).double()
    return [x.to(device).requires_grad_() for x in rows]


def lattice_rows(num_rows: int, device: str = "cpu") -> list[Tensor]:
    """Unit rows of +-1/4: products are exact in float32, and many differences exactly 0."""
    generator = torch.Generator().manual_seed(num_rows)
    signs = torch.randint(0, 2, (2, num_rows, 16), generator=generator) * 2.0 - 1
    return [(x / 4).to(device).requires_grad_() for x in signs]


def value_and_gradients(function, rows: list[Tensor], **settings: float) -> list[Tensor]:
    value = function(*rows, **OFFICIAL | settings)
    return [value.detach(), *torch.autograd.grad(3 * value, rows)]


def assert_equal(actual: list[Tensor], expected: list[Tensor], relative: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=relative, atol=relative * e.abs().max().item())


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize(
    "settings", [{}, {"intra_weight": 0.0}, {"inter_weight": 0.0}], ids=["both", "inter", "intra"]
)
def test_tiles_equal_the_direct_form(num_rows, device, settings):
    rows = float64_rows(num_rows, device)
    expected = value_and_gradients(direct_sum, rows, **settings)
    assert_equal(value_and_gradients(relation_sum, rows, **settings), expected, 1e-10)


@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_tiles_equal_the_direct_form_in_float32(num_rows, device):
    rows = lattice_rows(num_rows, device)
    expected = value_and_gradients(direct_sum, rows)
    assert_equal(value_and_gradients(relation_sum, rows), expected, 1e-5)


def test_tiles_of_any_size_agree(monkeypatch):
    rows = float64_rows(50)
    expected = value_and_gradients(direct_sum, rows)
    for size in (1, 7, 49, 50, 51):
        monkeypatch.setattr(relations, "_TILE_ROWS", size)
        assert_equal(value_and_gradients(relation_sum, rows), expected, 1e-10)


def test_gradients_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setattr(relations, "_TILE_ROWS", 3)
    assert torch.autograd.gradcheck(lambda s, t: relation_sum(s, t, **OFFICIAL), float64_rows(7))
    # Eq. 6 alone has a gradient for other processes' rows.
    settings = OFFICIAL | {"intra_weight": 0.0}
    (s, t), (_, others) = float64_rows(7), float64_rows(4)
    assert torch.autograd.gradcheck(
        lambda *rows: relation_sum(*rows[:2], None, rows[2], **settings), (s, t, others)
    )


@pytest.mark.parametrize("num_own", [0, 1, 70, 130])
def test_own_and_other_rows_make_up_the_whole(num_own):
    # As two processes would: each sums over its rows, and adds what the other wants of its teacher.
    s, t = float64_rows(130)
    value, grad_s, grad_t = value_and_gradients(direct_sum, [s, t])
    s_parts, t_parts = (
        [part.detach().requires_grad_() for part in x.split([num_own, len(x) - num_own])]
        for x in (s, t)
    )
    total = 0
    for own, other in ((0, 1), (1, 0)):
        total += relation_sum(
            s_parts[own], t_parts[own], s_parts[other].detach(), t_parts[other], **OFFICIAL
        )
    (3 * total).backward()
    assert_equal([total.detach()], [value], 1e-10)
    assert_equal([torch.cat([part.grad for part in s_parts])], [grad_s], 1e-10)
    assert_equal([torch.cat([part.grad for part in t_parts])], [grad_t], 1e-10)


def test_no_rows_are_nothing():
    rows = [torch.empty(0, 5, requires_grad=True) for _ in range(2)]
    value, *gradients = value_and_gradients(relation_sum, rows)
    assert value == 0
    assert [x.shape for x in gradients] == [(0, 5)] * 2


def test_the_same_rows_give_the_same_bits_whether_or_not_gradients_are_wanted():
    s, t = (x.detach().float() for x in float64_rows(300))
    first = relation_sum(s, t, **OFFICIAL)
    wanted = relation_sum(s.clone().requires_grad_(), t.clone().requires_grad_(), **OFFICIAL)
    assert torch.equal(first, wanted.detach())
    assert not first.requires_grad


def test_a_graph_kept_gives_its_gradient_again():
    s, t = float64_rows(70)
    value = relation_sum(s, t, **OFFICIAL)
    value.backward(retain_graph=True)
    once = s.grad.clone()
    value.backward()
    assert torch.equal(s.grad, 2 * once)


def unit_rows(num_rows: int, num_tokens: int, width: int) -> list[Tensor]:
    """Rows as a trained student and its teacher have them: alike within a side and between both."""
    generator = torch.Generator().manual_seed(num_rows)
    common = torch.randn(num_tokens, width, generator=generator)
    teacher = common + torch.randn(num_rows, num_tokens, width, generator=generator)
    student = teacher + 0.7 * torch.randn(num_rows, num_tokens, width, generator=generator)
    return [F.normalize(x.flatten(0, 1), dim=1).requires_grad_() for x in (student, teacher)]


def test_half_precision_keeps_what_tf32_keeps(monkeypatch):
    """Errors against float64, of TF32 by rounding the factors of every product to its ten bits."""
    rows = unit_rows(24, 17, 96)
    exact = value_and_gradients(relation_sum, [x.detach().double().requires_grad_() for x in rows])

    def errors() -> list[float]:
        results = value_and_gradients(relation_sum, rows)
        assert {x.dtype for x in results} == {torch.float32}
        return [((a - e).norm() / e.norm()).item() for a, e in zip(results, exact, strict=True)]

    in_float32 = errors()
    monkeypatch.setattr(relations, "multiplies_in_half", lambda _: True)
    in_half = errors()
    monkeypatch.setattr(relations, "multiplies_in_half", lambda _: False)
    add_product = relations._add_product

    def add_product_in_tf32(out, a, b, **settings):
        add_product(out, tf32(a), tf32(b), **settings)

    monkeypatch.setattr(relations, "_add_product", add_product_in_tf32)
    in_tf32 = errors()
    for half, single, tf32_ in zip(in_half, in_float32, in_tf32, strict=True):
        assert single < half < 1.3 * tf32_ + 1e-6
    assert in_half[0] < 2e-5
    assert max(in_half) < 0.05  # Of Eq. 5 signs flip whose differences are within rounding of 0.


def tf32(x: Tensor) -> Tensor:
    """Round float32 to the nearest with ten bits of mantissa."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


def test_half_precision_takes_memory_and_products_as_single_does(monkeypatch):
    monkeypatch.setattr(relations, "multiplies_in_half", lambda _: True)
    rows = unit_rows(10, 6, 16)
    with Watch() as watch:
        value_and_gradients(relation_sum, rows)
    assert watch.num_products == 7


class Watch(TorchDispatchMode):
    """Counts matrix products, and the numbers of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_products = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        self.num_products += func.overloadpacket.__name__.strip("_") in {"mm", "addmm"}
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor):
                held = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.largest = max(self.largest, held)
        return made


def test_memory_grows_with_the_rows_not_their_square(device):
    def largest(function, num_rows: int) -> int:
        with Watch() as watch:
            value_and_gradients(function, float64_rows(num_rows, device))
        return watch.largest

    assert largest(direct_sum, 2100) >= 2100**2  # The watch sees what it is here to see.
    # Two buffers of a quarter tile's height, over all columns.
    assert largest(relation_sum, 2100) == 2 * 16 * 2100
    assert largest(relation_sum, 4200) == 2 * 16 * 4200


@pytest.mark.parametrize(
    ("wanted", "settings", "num_products"),
    [
        pytest.param("", {}, 3, id="value alone"),
        pytest.param("s", {}, 5, id="student"),
        pytest.param("t", {}, 5, id="teacher"),
        pytest.param("st", {}, 7, id="both; written directly it would be 9"),
        pytest.param("st", {"intra_weight": 0.0}, 3, id="without Eq. 5"),
        pytest.param("st", {"inter_weight": 0.0}, 4, id="without Eq. 6"),
        pytest.param("st", {"intra_weight": 0.0, "inter_weight": 0.0}, 0, id="nothing at all"),
    ],
)
def test_nothing_is_computed_that_nobody_needs(wanted, settings, num_products):
    s, t = (
        x.requires_grad_(side in wanted) for side, x in zip("st", lattice_rows(30), strict=True)
    )
    with Watch() as watch:
        value = relation_sum(s, t, **OFFICIAL | settings)
        if wanted:
            value.backward()
    assert watch.num_products == num_products
    assert (s.grad is not None) == ("s" in wanted)
    assert (t.grad is not None) == ("t" in wanted)


def test_no_grad_computes_no_gradient():
    with torch.no_grad(), Watch() as watch:
        relation_sum(*float64_rows(30), **OFFICIAL)
    assert watch.num_products == 3
