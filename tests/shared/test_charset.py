"""Labels: the official order of the filter, and the charsets."""

import unicodedata

import pytest

from clipocr.shared.charset import Charset, LabelProblem, LabelRules
from clipocr.shared.errors import UsageError


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("word", "word"),
        ("Ünïcödé", "Unicode"),
        (" two\twords\u00a0\n", "twowords"),  # no-break space is whitespace too
        ("½", "12"),  # NFKD: 1, fraction slash (not ASCII), 2
        ("ﬁne", "fine"),  # a ligature
        ("don't!", "don't!"),  # punctuation is the charset's business
        ("東京", LabelProblem.EMPTY),
        ("", LabelProblem.EMPTY),
        (" \t", LabelProblem.EMPTY),
        ("x" * 25, "x" * 25),
        ("x" * 26, LabelProblem.TOO_LONG),
        ("x " * 25, "x" * 25),  # whitespace goes before the length is taken
        ("x" * 25 + "東", "x" * 25),  # and so does what is not ASCII
        ("a" + "." * 25, LabelProblem.TOO_LONG),  # though charset 36 would leave one character
    ],
)
def test_label_rules_follow_the_official_order(raw: str, expected: str | LabelProblem) -> None:
    assert LabelRules().apply(raw) == expected


def test_labels_in_other_scripts_survive_without_normalisation() -> None:
    assert LabelRules(keep_unicode=True).apply(" 東 京 ") == "東京"


def test_max_label_length_counts_characters_and_is_at_least_one() -> None:
    assert LabelRules(max_label_length=2).apply("abc") is LabelProblem.TOO_LONG
    with pytest.raises(UsageError, match="expected a whole number from 1"):
        LabelRules(max_label_length=0)


def test_benchmark_charsets_have_the_sizes_they_are_named_after() -> None:
    assert [len(Charset.load(name).characters) for name in ("36", "62", "94")] == [36, 62, 94]


@pytest.mark.parametrize(
    ("charset", "label", "expected"),
    [
        ("36", "It's-9", "its9"),
        ("62", "It's-9", "Its9"),
        ("94", "It's-9", "It's-9"),
        ("36", "!?", ""),
        ("36", "", ""),
    ],
)
def test_adapt_folds_case_and_deletes_the_rest(charset: str, label: str, expected: str) -> None:
    assert Charset.load(charset).adapt(label) == expected


def test_upper_case_charset_folds_upwards() -> None:
    assert Charset(name="upper", characters="ABC").adapt("aBx") == "AB"


def test_charset_file_ignores_line_ends(tmp_path) -> None:
    path = tmp_path / "greek.txt"
    path.write_text("αβ\nγ\n", encoding="utf-8")
    assert Charset.load(str(path)) == Charset(name="greek", characters="αβγ")


@pytest.mark.parametrize(
    ("characters", "message"), [("", "empty"), ("aba", "repeats 'a'"), ("a b", "whitespace")]
)
def test_impossible_charsets_are_refused(characters: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Charset(name="odd", characters=characters)


def test_unknown_charset_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="one of 36, 62, 94"):
        Charset.load("37")


def test_a_letter_is_one_character_however_it_was_written(tmp_path) -> None:
    apart, composed = unicodedata.normalize("NFD", "Việt한"), unicodedata.normalize("NFC", "Việt한")
    for written, bom in ((apart, ""), (composed, "\ufeff")):
        path = tmp_path / "vi.txt"
        path.write_text(bom + "\n".join(unicodedata.normalize("NFC", written.lower())), "utf-8")
        charset = Charset.load(str(path))
        assert charset.characters == "việt한"
        for label in (apart, composed):
            kept = LabelRules(keep_unicode=True).apply(label)
            assert kept == composed
            assert charset.adapt(kept) == charset.adapt(label) == composed.lower()
    (tmp_path / "apart.txt").write_text(apart.lower(), "utf-8")
    assert Charset.load(str(tmp_path / "apart.txt")).characters == "việt한"


def test_what_a_charset_deletes_is_counted() -> None:
    charset = Charset.load("36")
    assert charset.describe_dropped(["Word", "two2"]) == ""
    assert charset.describe_dropped(["it's", "it's-", "é", "ok"]) == (
        "charset 36 deletes characters of 3 of 4 labels, and leaves nothing of 1: ' 2  - 1  é 1"
    )
    assert charset.describe_dropped([chr(0x4E00 + i) for i in range(22)]).endswith("  and 2 others")
