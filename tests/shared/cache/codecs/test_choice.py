"""What ``auto:F`` asks for, and the record of what it took."""

from __future__ import annotations

import pytest

from clipocr.shared.cache.codecs.choice import (
    CodecChoice,
    Fidelity,
    RatePoint,
    asked_fidelity,
    auto_codec,
)
from clipocr.shared.errors import UsageError


@pytest.mark.parametrize(
    ("codec", "fidelity"),
    [("auto", 0.99), ("auto:0.95", 0.95), ("auto:.95", 0.95), ("fp16", None), ("klt:9", None)],
)
def test_fidelity_of_a_name(codec: str, fidelity: float | None) -> None:
    assert asked_fidelity(codec) == fidelity


def test_a_fidelity_has_one_name() -> None:
    assert auto_codec(0.950) == "auto:0.95"
    assert asked_fidelity(auto_codec(1 / 3)) == 1 / 3


@pytest.mark.parametrize("codec", ["auto:", "auto:x", "auto:0", "auto:1", "auto:nan", "auto:-2"])
def test_what_is_no_fidelity_is_refused(codec: str) -> None:
    with pytest.raises(UsageError, match=r"between 0 and 1, such as 0\.99"):
        asked_fidelity(codec)


def test_what_a_fidelity_asks_for() -> None:
    assert Fidelity.at(0.99) == Fidelity(cosine_p50=0.99, cosine_p01=0.9, gram_l1=0.02)
    assert Fidelity.at(0.96) == Fidelity(cosine_p50=0.96, cosine_p01=0.6, gram_l1=0.04)


@pytest.mark.parametrize(
    ("found", "is_enough"),
    [
        ((0.99, 0.9, 0.02), True),
        ((0.9899, 1.0, 0.0), False),
        ((1.0, 0.8999, 0.0), False),
        ((1.0, 1.0, 0.0201), False),
    ],
)
def test_every_measure_counts(found: tuple[float, float, float], is_enough: bool) -> None:
    fidelity = Fidelity(cosine_p50=found[0], cosine_p01=found[1], gram_l1=found[2])
    assert fidelity.meets(Fidelity.at(0.99)) is is_enough


def test_a_choice_comes_back_from_its_record() -> None:
    points = [
        RatePoint(codec=codec, row_bytes=n, fidelity=Fidelity.at(fidelity))
        for codec, n, fidelity in (("klt:2", 34, 0.9), ("fp16", 2176, 0.999))
    ]
    choice = CodecChoice(
        codec="fp16", target=Fidelity.at(0.99), num_judged=256, curve=tuple(points)
    )
    assert CodecChoice.from_json(choice.to_json()) == choice
    assert choice.chosen is points[1]
