from __future__ import annotations

from dataclasses import replace

from clipocr.shared.charset import Charset
from clipocr.train.reading.words import ReadWord
from clipocr.train.report.gallery import (
    ShownCharacter,
    pick_at_random,
    shown_characters,
    surest_first,
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


def test_the_surest_errors_come_first_and_the_others_by_chance() -> None:
    words = [sample("a", f"b{i}", confidence=(i / 100, 1.0, 1.0)) for i in range(100)]
    assert [word.text for word in surest_first(words[:4], 4)] == ["b3", "b2", "b1", "b0"]
    shown = [word.text for word in surest_first(words, 20)]
    assert shown[:10] == [f"b{i}" for i in range(99, 89, -1)]
    assert len(set(shown)) == 20
    drawn = [int(text[1:]) for text in shown[10:]]
    assert drawn == sorted(drawn, reverse=True)
    assert min(drawn) < 45 < max(drawn) < 90
    unknown = [replace(word, character_confidence=None) for word in words]
    assert surest_first(unknown, 20) == pick_at_random(unknown, 20)


def test_without_confidence_characters_are_marked_all_the_same() -> None:
    word = replace(sample("cat", "cuts"), character_confidence=None)
    shown = list(shown_characters(word, Charset.load("36")))
    assert [(some.text, some.expected, some.confidence) for some in shown] == [
        ("c", None, None),
        ("u", "a", None),
        ("t", None, None),
        ("s", "", None),
    ]
