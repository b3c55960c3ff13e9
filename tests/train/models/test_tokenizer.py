import pytest
import torch

from clipocr.shared.charset import Charset
from clipocr.shared.errors import DataError
from clipocr.train.models.tokenizer import LabelTokenizer

AB = LabelTokenizer(Charset(name="ab", characters="ab"), 25)
# Ids: EOS 0, a 1, b 2, BOS 3, PAD 4.


def one_hot(*ids: int) -> torch.Tensor:
    """Certain predictions of these classes. Shape: (1, L, 3)."""
    return torch.nn.functional.one_hot(torch.tensor([ids]), 3).float()


def test_layout_is_that_of_parseq():
    tokenizer = LabelTokenizer(Charset.load("36"), 25)
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (0, 37, 38)
    assert (tokenizer.num_classes, tokenizer.num_tokens) == (37, 39)


def test_encode_pads_to_the_longest_label():
    assert AB.encode(["ab", "", "b"]).tolist() == [[3, 1, 2, 0], [3, 0, 4, 4], [3, 2, 0, 4]]


def test_encode_refuses_a_character_outside_the_charset():
    with pytest.raises(DataError, match=r"label 'abc' holds 'c', which charset 'ab'"):
        AB.encode(["a", "abc"])


@pytest.mark.parametrize(
    ("ids", "label", "num_probabilities"),
    [
        ((1, 2, 0), "ab", 3),
        ((1, 0, 2), "a", 2),  # what follows EOS is noise
        ((0, 1, 2), "", 1),
        ((2, 2, 2), "bbb", 3),  # never ended: no EOS probability
    ],
)
def test_decode_cuts_at_the_first_eos(ids, label, num_probabilities):
    labels, probabilities = AB.decode(one_hot(*ids))
    assert labels == [label]
    assert probabilities[0].tolist() == [1.0] * num_probabilities


def test_decode_reports_the_probability_of_each_character_and_of_eos():
    distributions = torch.tensor([[[0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]]])
    labels, probabilities = AB.decode(distributions)
    assert labels == ["a"]
    assert probabilities[0].tolist() == pytest.approx([0.7, 0.6])


def test_every_character_survives_the_round_trip():
    charset = Charset.load("94")
    tokenizer = LabelTokenizer(charset, 25)
    token_ids = tokenizer.encode([charset.characters])
    logits = torch.nn.functional.one_hot(token_ids[:, 1:], tokenizer.num_classes).float()
    assert tokenizer.decode(logits)[0] == [charset.characters]
