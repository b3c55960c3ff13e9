from __future__ import annotations

from clipocr.shared.charset import Charset
from clipocr.train.evaluation.evaluate import SampleResult
from clipocr.train.report.gallery import (
    Outcome,
    ShownCharacter,
    draw,
    errors_of,
    most_confident,
    shown_characters,
)


def sample(
    label: str, prediction: str, charset: str = "36", confidence: tuple[float, ...] = ()
) -> SampleResult:
    adapt = Charset.load(charset).adapt
    return SampleResult(
        key=1,
        label=label,
        adapted_label=adapt(label),
        prediction=prediction,
        adapted_prediction=adapt(prediction),
        character_confidence=confidence or (0.9,) * (len(prediction) + 1),
    )


def marks(label: str, prediction: str, charset: str = "36") -> list[tuple[str, str | None]]:
    shown = shown_characters(sample(label, prediction, charset), Charset.load(charset))
    return [(character.text, character.expected) for character in shown]


def test_a_right_word_has_no_marks() -> None:
    # Under charset 36 case does not count, nor does punctuation, which is shown all the same.
    assert marks("Cat", "cAt!") == [("c", None), ("A", None), ("t", None), ("!", None)]


def test_wrong_missing_and_superfluous_characters() -> None:
    assert marks("cat", "cut") == [("c", None), ("u", "a"), ("t", None)]
    assert marks("cat", "ct") == [("c", None), ("", "a"), ("t", None)]
    assert marks("cat", "cats") == [("c", None), ("a", None), ("t", None), ("s", "")]
    assert marks("cat", "") == [("", "c"), ("", "a"), ("", "t")]
    assert marks("cat", "c-ut", "36") == [("c", None), ("-", None), ("u", "a"), ("t", None)]
    assert marks("cat", "cAt", "94") == [("c", None), ("A", "a"), ("t", None)]


def test_levels_of_confidence() -> None:
    values = {0.0: "low", 0.4999: "low", 0.5: "middle", 0.9: "high", 0.99: "sure", 1.0: "sure"}
    for confidence, level in values.items():
        assert ShownCharacter(text="a", confidence=confidence).level == level
    assert ShownCharacter(text="", confidence=None, expected="a").level == "gap"


def test_what_is_chosen_is_always_the_same() -> None:
    assert draw(range(1000), 5) == draw(range(1000), 5)
    assert draw(range(3), 5) == [0, 1, 2]
    assert len(set(draw(range(1000), 100))) == 100


def test_the_worst_errors_are_the_most_confident() -> None:
    outcomes = [
        Outcome(set_name="A", sample=sample("a", read, confidence=(confidence, 1.0)))
        for read, confidence in (("a", 1.0), ("b", 0.2), ("c", 0.8), ("d", 0.5))
    ]
    worst = most_confident(errors_of(outcomes), 2)
    assert [outcome.sample.prediction for outcome in worst] == ["c", "d"]
