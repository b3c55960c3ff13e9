"""The permuted decoder and the Feature Merge Unit, beside what DPTR's own modules compute."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from known_numbers import noise
from torch import nn

from clipocr.shared.charset import Charset
from clipocr.shared.errors import UsageError
from clipocr.train.methods.recognition import recognition_loss
from clipocr.train.models.autoregressive import write
from clipocr.train.models.config import PermutedDecoder, StudentConfig
from clipocr.train.models.decoder import Decoder
from clipocr.train.models.merge import FeatureMergeUnit
from clipocr.train.models.orders import draw_orders, masks_of
from clipocr.train.models.tokenizer import LabelTokenizer

TOKENIZER = LabelTokenizer(Charset.load("94"), 25)
WORDS = ["Street", "table", "revenge", "ab", "x9", "Hello!"]


def small(**settings: int | float | bool) -> PermutedDecoder:
    sizes = {"decoder_layers": 3, "decoder_width": 32, "decoder_heads": 4, "decoder_dropout": 0.0}
    return PermutedDecoder.from_values(sizes | settings)


def fill(module: nn.Module) -> None:
    """Set every weight to a number that its name and place decide."""
    with torch.no_grad():
        for i, (name, weight) in enumerate(sorted(module.named_parameters())):
            strength = 0.1 if weight.dim() == 1 else 0.35
            weight.copy_(strength * noise(*weight.shape, seed=i) + ("norm.weight" in name))


def filled_modules() -> tuple[Decoder, FeatureMergeUnit]:
    torch.manual_seed(0)
    config = small().config
    decoder, unit = Decoder(config, TOKENIZER).eval(), FeatureMergeUnit(config, 26).eval()
    fill(decoder)
    fill(unit)
    return decoder, unit


OFFICIAL: dict[str, Any] = {
    "confidence False": [0.06695025, 0.07533929, 0.06805794, 0.06095614, 0.06123616, 0.05839106],
    "confidence True": [0.08612898, 0.07403425, 0.07356223, 0.111144, 0.08500889, 0.05379843],
    "embedding": 0.3552159,
    "first layer": 0.4880026,
    "loss": 5.150683,
    "merged": 258.0835,
    "positions": 0.2948583,
    "queries": 0.228278,
    "read False": [
        "D$1DG|2PP1SG8PP1=GG@PPDSGP",
        "$$$M\\\\2PQ1z2\\PP1zG\\GPQ1z2G",
        "1111Gh\\PQ1]G8PP1=G@CPQQS2@",
        "DD1D=E2QQ1==8PQ1]2|PP11zGC",
        "111M22GPP1]22PP1=GGPPP1SGG",
        "D$$1GN\\P7$]GNPP$SGNCP7P]zC",
    ],
    "read True": [
        "PP1aSGCPP1SGGPP1aGG@PP1SGC",
        "PP1=Sa@PP1zG27P1=GaGPQ1zGG",
        "PP$SSGPPPeSG@PP1aG@PPQPSG@",
        "PP1SSDPPP1SGEDP1SGEPPQ1S>C",
        "PP1=SGPPP1SGGPP1=GGPPP1SGP",
        "PP$a]GCP7$]GNPP$aGNCPQP]>@",
    ],
}
"""Of ``FMU`` and ``DptrParseq``, Topdu/OpenOCR at ae934e5, their weights and orders set to ours."""

ORDERS = torch.tensor(
    [
        [0, *range(1, 26), 26],
        [0, *range(26, 0, -1)],
        [0, *range(1, 26, 2), *range(2, 26, 2), 26],
        [0, *range(24, 1, -2), *range(25, 0, -2), 26],
    ]
)
"""From left to right, from right to left, and a pair of others."""


def test_it_computes_what_the_official_modules_do() -> None:
    """Loss over four orders, gradients, greedy and refined reading; the numbers are theirs."""
    decoder, unit = filled_modules()
    merged = unit(noise(len(WORDS), 40, 32))
    assert merged.norm().item() == pytest.approx(OFFICIAL["merged"], rel=1e-5)
    _, logits, targets = decoder(merged, TOKENIZER.encode(WORDS, 26), ORDERS)
    loss = recognition_loss(logits, targets)
    assert loss.item() == pytest.approx(OFFICIAL["loss"], rel=1e-5)
    loss.backward()
    gradients = {
        "positions": decoder.positions,
        "embedding": decoder.embedding.weight,
        "first layer": decoder.layers[0].content_attention.key_value.weight,
        "queries": unit.queries,
    }
    for name, weight in gradients.items():
        assert weight.grad is not None
        assert weight.grad.norm().item() == pytest.approx(OFFICIAL[name], rel=1e-4), name


def test_it_reads_what_the_official_decoder_does() -> None:
    decoder, unit = filled_modules()
    memory = noise(len(WORDS), 40, 32)
    for refines in (False, True):
        decoder.refines = refines
        probabilities = write(decoder, decoder.begin(unit(memory))).softmax(-1)
        of_first = probabilities[:, 0].max(dim=-1).values
        assert of_first.tolist() == pytest.approx(OFFICIAL[f"confidence {refines}"], rel=1e-5)
        assert TOKENIZER.decode(probabilities)[0] == OFFICIAL[f"read {refines}"]


@pytest.mark.parametrize(
    ("num_characters", "num_orders"), [(0, 1), (1, 1), (2, 2), (3, 6), (4, 6), (5, 6), (25, 6)]
)
def test_orders_are_pairs_that_mirror_each_other(num_characters: int, num_orders: int) -> None:
    torch.manual_seed(3)
    orders = draw_orders(num_characters, 6)
    assert orders.shape == (num_orders, num_characters + 2)
    places = list(range(num_characters + 2))
    assert all(sorted(order) == places for order in orders.tolist())
    assert orders[0].tolist() == places
    if num_characters > 1:
        assert orders[1].tolist() == [0, *reversed(places[1:])]
    for one, other in zip(orders[2::2].tolist(), orders[3::2].tolist(), strict=True):
        assert one[1:-1] == other[-2:0:-1]
        assert one[-1] == other[-1] == num_characters + 1  # EOS comes last.
    assert len({tuple(order) for order in orders.tolist()}) == num_orders


def test_every_pair_of_four_characters_can_be_drawn() -> None:
    torch.manual_seed(0)
    drawn = {tuple(order[1:-1]) for _ in range(300) for order in draw_orders(4, 6)[2:].tolist()}
    forward = (1, 2, 3, 4)
    assert drawn == set(itertools.permutations(forward)) - {forward, forward[::-1]}


def test_masks_let_through_what_is_known_before() -> None:
    content, queries = masks_of(torch.tensor([[0, 2, 1, 3]]))  # BOS, second, first, EOS
    assert content[0].tolist() == [
        [True, False, False],  # BOS reads itself,
        [True, True, True],  # the first character the second too,
        [True, False, True],  # the second only BOS and itself.
    ]
    assert queries[0].tolist() == [
        [True, False, True],  # The first character is foretold from BOS and the second,
        [True, False, False],  # the second from BOS,
        [True, True, True],  # EOS from all.
    ]


def test_several_orders_at_once_are_each_by_itself() -> None:
    decoder, unit = filled_modules()
    memory, ids = unit(noise(len(WORDS), 40, 32)), TOKENIZER.encode(WORDS, 26)
    stages, logits, targets = decoder(memory, ids, ORDERS)
    for i, order in enumerate(ORDERS):
        alone, of_order, target = decoder(memory, ids, order[None])
        torch.testing.assert_close(of_order, logits[i :: len(ORDERS)], atol=2e-5, rtol=1e-5)
        if i == 0:
            torch.testing.assert_close(alone, stages, atol=2e-5, rtol=1e-5)
        is_eos = targets[i :: len(ORDERS)] == TOKENIZER.eos_id
        assert torch.equal(target == TOKENIZER.eos_id, is_eos) == (i < 2)
        assert is_eos.any() == (i < 2)


def test_a_character_is_foretold_without_itself() -> None:
    """In every order: another true character changes only what is learned after it."""
    decoder, unit = filled_modules()
    memory = unit(noise(1, 40, 32))
    orders = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 5, 4, 3, 2, 1], [0, 3, 1, 4, 2, 5]])
    logits = decoder(memory, TOKENIZER.encode(["abcd"]), orders)[1]
    others = decoder(memory, TOKENIZER.encode(["abXd"]), orders)[1]
    for order, before, after in zip(orders.tolist(), logits, others, strict=True):
        same = [torch.equal(*pair) for pair in zip(before, after, strict=True)]
        changed = [place for place, is_same in enumerate(same, start=1) if not is_same]
        assert set(changed) == set(order[order.index(3) + 1 :])


def test_steps_are_the_training_pass_from_left_to_right() -> None:
    decoder, unit = filled_modules()
    memory, ids = unit(noise(len(WORDS), 40, 32)), TOKENIZER.encode(WORDS)
    expected = decoder(memory, ids)[1]
    state, steps = decoder.begin(memory), []
    for position in range(ids.shape[1] - 1):
        logits, state = decoder.step(ids[:, position], state)
        steps.append(logits)
    # Rows end at their EOS: steps let later ones read it, the training pass does not.
    for row, word in enumerate(WORDS):
        got = torch.stack(steps, dim=1)[row, : len(word) + 1]
        torch.testing.assert_close(got, expected[row, : len(word) + 1], atol=2e-5, rtol=1e-5)


def test_one_layer_refines_without_seeing_what_it_is_asked_for() -> None:
    torch.manual_seed(0)
    decoder = Decoder(small(decoder_layers=1).config, TOKENIZER).eval()
    fill(decoder)
    with torch.no_grad():  # So that every query reads a little of everything.
        decoder.layers[0].content_attention.query.weight.mul_(0.1)
    state, written = decoder.begin(noise(1, 40, 32)), TOKENIZER.encode(["abcd"], 26)[:, 1:]
    written = written.where(written != TOKENIZER.pad_id, TOKENIZER.eos_id)
    other = written.clone()
    other[0, 2] = 90
    before, after = decoder.refine(written, state)[0], decoder.refine(other, state)[0]
    assert torch.equal(before[2], after[2])
    assert all(not torch.equal(before[i], after[i]) for i in (0, 1, 3, 4))
    # What follows the first EOS is nothing that was written.
    other = written.clone()
    other[0, 7:] = 5
    assert torch.equal(decoder.refine(other, state)[0, :5], before[:5])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"permutations": 5}, "permutations is 5, expected an even number"),
        ({"decoder_width": 30}, "decoder_heads 8 does not divide decoder_width 30"),
    ],
)
def test_what_no_permuted_decoder_can_have(settings: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        StudentConfig.from_values({"decoder": "permuted", **settings})


def test_sizes_of_the_permuted_decoder_need_it() -> None:
    with pytest.raises(UsageError, match="pass decoder permuted too"):
        StudentConfig.from_values({"decoder_layers": 2})
