"""DPTR's pre-training: the memory, its perturbation, and what cannot be."""

from __future__ import annotations

import math

import pytest
import torch

from clipocr.shared.charset import Charset
from clipocr.shared.errors import UsageError
from clipocr.train.data.batch import Batch
from clipocr.train.methods.base import Shapes
from clipocr.train.methods.dptr.perturbation import crop_shape, draw_places
from clipocr.train.methods.dptr.settings import Dptr
from clipocr.train.methods.dptr.trainee import DptrTrainee
from clipocr.train.methods.recognition import recognition_loss
from clipocr.train.models.orders import draw_orders
from clipocr.train.models.tokenizer import LabelTokenizer

TOKENIZER = LabelTokenizer(Charset.load("36"), 25)
WORDS = ["street", "ab", "clip"]


def trainee(
    pool: tuple[int, int] | None = (197, 16),
    width: int = 16,
    joint: int = 16,
    **settings: float | str,
) -> DptrTrainee:
    sizes = {"decoder_layers": 2, "decoder_width": 16, "decoder_heads": 2, "decoder_dropout": 0.0}
    torch.manual_seed(0)
    method = Dptr.from_values(sizes | settings)
    text = {"eot": (joint,), "ln_final": (77, width)}
    shapes = Shapes(images={}, text=text, pool=pool)
    return method.trainee(TOKENIZER, shapes)


def batch(pool: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(5)
    return Batch(
        labels=WORDS,
        token_ids=TOKENIZER.encode(WORDS),
        views=None,
        images={},
        text={
            "eot": torch.randn(3, 16, generator=generator).half(),
            "ln_final": torch.randn(3, 77, 16, generator=generator).half(),
        },
        pool=torch.randn(3, 197, 16, generator=generator).half() if pool else None,
        device=torch.device("cpu"),
    )


def test_the_loss_is_that_of_the_official_step() -> None:
    """Memory [EOT; tokens] plus a tenth of 78 of the image's tokens, the same ones for all rows."""
    made, given = trainee(), batch()
    torch.manual_seed(3)
    (loss,) = made(given).values()
    torch.manual_seed(3)
    places = torch.randperm(197)[:78]
    assert given.pool is not None
    memory = torch.cat([given.text["eot"][:, None], given.text["ln_final"]], dim=1).float()
    memory = memory + 0.1 * given.pool[:, places].float()
    _, logits, targets = made.part.decoder(memory, given.token_ids, draw_orders(6, 6))
    assert loss.item() == recognition_loss(logits, targets).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_trains_and_reads_in_mixed_precision(dtype: torch.dtype) -> None:
    made, given = trainee(), batch()
    torch.manual_seed(3)
    exact = made(given)["recognition"].item()
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype):
        (loss,) = made(given).values()
        assert len(made.eval().read(given)) == len(WORDS)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.02)
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


def test_without_noise_no_pool_is_needed() -> None:
    assert Dptr().needs().pool
    assert not Dptr(noise_ratio=0).needs().pool
    made = trainee(pool=None, noise_ratio=0)
    torch.manual_seed(3)
    without = made(batch(pool=False))["recognition"].item()
    torch.manual_seed(3)
    assert trainee(noise_ratio=0.2)(batch())["recognition"].item() != without


def test_reading_is_not_perturbed() -> None:
    made = trainee().eval()
    torch.manual_seed(1)
    first = made.read(batch())
    torch.manual_seed(2)
    assert made.read(batch(pool=False)) == first
    assert len(first) == len(WORDS)


def test_places_of_tokens_are_any_and_none_twice() -> None:
    torch.manual_seed(0)
    drawn = torch.stack([draw_places("tokens", 197, 78) for _ in range(60)])
    assert all(len(set(row)) == 78 for row in drawn.tolist())
    assert set(drawn.flatten().tolist()) == set(range(197))


def test_places_of_a_crop_are_a_rectangle_anywhere_on_the_grid() -> None:
    torch.manual_seed(0)
    seen = set()
    for _ in range(200):
        places = draw_places("crop", 197, 78) - 1
        rows, columns = places // 14, places % 14
        assert len(set(places.tolist())) == 78
        assert (len(set(rows.tolist())), len(set(columns.tolist()))) == (6, 13)
        seen.add((int(rows.min()), int(columns.min())))
    assert seen == {(top, left) for top in range(9) for left in range(2)}


@pytest.mark.parametrize(("grid", "taken", "shape"), [(14, 78, (6, 13)), (9, 78, (9, 9))])
def test_a_crop_is_the_smallest_rectangle(grid: int, taken: int, shape: tuple[int, int]) -> None:
    found = crop_shape(grid, taken)
    assert math.prod(found) == math.prod(shape)
    assert max(found) <= grid


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"joint": 24}, "the teacher's projected EOT has 24 values, its tokens 16"),
        ({"pool": (197, 24)}, "the pool's tokens have 24 values, the text features 16"),
        ({"pool": (50, 16)}, "the pool's images have 50 tokens, the text features 78"),
        ({"pool": (78, 16), "perturbation": "crop"}, "no crop of an image of 78 tokens"),
    ],
)
def test_what_cannot_be_read_together_is_refused(changed: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        trainee(**changed)  # type: ignore[arg-type]


def test_another_width_is_projected_and_said() -> None:
    made = trainee(pool=(197, 24), width=24, joint=24)
    assert made.notes == ("text features of 24 values are projected to decoder_width 16",)
    assert not trainee().notes
