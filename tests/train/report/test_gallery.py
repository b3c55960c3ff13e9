from __future__ import annotations

from dataclasses import replace

from clipocr.shared.charset import Charset
from clipocr.train.reading.words import ReadWord
from clipocr.train.report.gallery import (
    ShownCharacter,
    most_confident,
    pick_at_random,
    shown_characters,
)


def sample(
    label: str, prediction: str, charset: str = "36", confidence: tuple[float, ...] = ()
) -> ReadWord:
    adapt = Charset.load(charset).adapt
    return ReadWord(
        image=1,
        set_name="A",
        label=label,
        adapted_label=adapt(label),
        text=prediction,
        adapted_text=adapt(prediction),
        character_confidence=confidence or (0.9,) * (len(prediction) + 1),
        size_px=(1, 1),
    )


def marks(label: str, prediction: str, charset: str = "36") -> list[tuple[str, str | None]]:
    shown = shown_characters(sample(label, prediction, charset), Charset.load(charset))
    *characters, end = shown
    assert (end.text, end.is_gap, end.confidence) == ("", False, 0.9)
    return [(character.text, character.expected) for character in characters]


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
    assert ShownCharacter(text="", expected="a", is_gap=True).level == "gap"


def test_what_is_picked_is_always_the_same() -> None:
    assert pick_at_random(range(1000), 5) == pick_at_random(range(1000), 5)
    assert pick_at_random(range(3), 5) == [0, 1, 2]
    assert len(set(pick_at_random(range(1000), 100))) == 100


def test_the_worst_errors_are_the_most_confident() -> None:
    words = [
        sample("a", read, confidence=(confidence, 1.0))
        for read, confidence in (("a", 1.0), ("b", 0.2), ("c", 0.8), ("d", 0.5))
    ]
    worst = most_confident([word for word in words if word.is_error], 2)
    assert [word.text for word in worst] == ["c", "d"]


def test_without_confidence_characters_are_marked_all_the_same() -> None:
    word = replace(sample("cat", "cuts"), character_confidence=None)
    shown = list(shown_characters(word, Charset.load("36")))
    assert [(some.text, some.expected, some.confidence) for some in shown] == [
        ("c", None, None),
        ("u", "a", None),
        ("t", None, None),
        ("s", "", None),
    ]
