"""The page as a browser would take it apart: well-formed, closed to the outside, and right."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from checkpoints import save_untrained
from click.testing import CliRunner
from oracle import Oracle, StagedOracle, write_painted
from samples import draw_word, write_words

from clipocr.cli import main
from clipocr.shared.charset import Charset
from clipocr.train.evaluation.evaluate import evaluate_sets
from clipocr.train.evaluation.results import Evaluation, SetResult
from clipocr.train.evaluation.test_sets import TestSet, open_test_sets
from clipocr.train.loop.curves import draw_curves
from clipocr.train.reading.readers import FunctionReader, Reader, load_reader
from clipocr.train.reading.words import ReadWord

CHARSET = Charset.load("94")
SCRIPT = "<script>alert(1)</script>"  # As long as a label may be.
FILES = {
    "cat.png": "cat",
    'x" onerror="alert(2).png': "dog",
    "<img src=x>.png": SCRIPT,
    "broken.png": "ab",
}
RIGHT = {"cat.png": ("cat", (0.9, 0.9, 0.9, 1.0))}
READ_BY_A = RIGHT | {
    'x" onerror="alert(2).png': ("dig", (0.8, 0.5, 0.9, 1.0)),
    "<img src=x>.png": ("<b>", (0.5, 0.5, 0.2, 1.0)),
}
READ_BY_B = {
    "cat.png": ("cut", (0.9, 0.9, 0.9, 1.0)),
    'x" onerror="alert(2).png': ("dog", (1.0, 1.0, 1.0, 1.0)),
    "<img src=x>.png": (SCRIPT, (1.0,) * 26),
}


class Page(HTMLParser):
    """What a page holds; complains where its elements do not close in order."""

    VOID = frozenset({"meta", "img", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append((tag, dict(attrs)))
        if tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open
        if tag in ("td", "th"):
            self._table[-1][-1] = " ".join(self._table[-1][-1].split())
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if any(tag in ("td", "th") for tag, _ in self._open):
            self._table[-1][-1] += data

    @property
    def _table(self) -> list[list[str]]:
        labels = [attrs["aria-label"] for tag, attrs in self._open if tag == "table"]
        return self.tables.setdefault(labels[-1], [])

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def write_folder(root: Path) -> Path:
    """Write an image folder whose name, files and labels all try to be markup."""
    folder = root / "<i>set"
    folder.mkdir(parents=True)
    for name, label in FILES.items():
        is_broken = name == "broken.png"
        (folder / name).write_bytes(b"broken" if is_broken else draw_word(label))
    lines = [f"{name}\t{label}" for name, label in FILES.items()]
    (folder / "gt.tsv").write_text("\n".join(lines), encoding="utf-8")
    return folder


def write_student(folder: Path, charset: str = "94") -> Path:
    return save_untrained(folder / "last.pt", charset, teacher="ViT-B-16/random:0")


def evaluation(
    checkpoint: Path, test_set: TestSet, read: dict[str, tuple[str, tuple[float, ...]]]
) -> Evaluation:
    words = []
    for picture in test_set.pictures:
        text, confidence = read.get(str(picture.image), ("", ()))
        words.append(
            ReadWord(
                image=picture.image,
                set_name=test_set.name,
                label=picture.label,
                adapted_label=picture.adapted_label,
                text=text,
                adapted_text=text,
                character_confidence=confidence,
                size_px=(1, 1) if confidence else None,
                problem=None if confidence else "not an image",
            )
        )
    result = SetResult(test_set=test_set, words=tuple(words))
    reader = load_reader(checkpoint, device="cpu")
    return Evaluation(reader=reader, sets=(result,))


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> list[Evaluation]:
    root = tmp_path_factory.mktemp("report")
    write_folder(root / "data")
    (test_set,) = open_test_sets([root / "data"], CHARSET, 25)
    return [
        evaluation(write_student(root / name), test_set, read)
        for name, read in (("run&1", READ_BY_A), ("run2", READ_BY_B))
    ]


def page_of(evaluations: list[Evaluation], folder: Path) -> Page:
    path = evaluations[0].report(folder, *evaluations[1:])
    assert path == folder / "index.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(evaluations: list[Evaluation], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(evaluations[:1], tmp_path_factory.mktemp("one") / "deep" / "folder")


@pytest.fixture(scope="module")
def page_of_two(evaluations: list[Evaluation], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(evaluations, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("which", ["page", "page_of_two"])
def test_nothing_is_loaded_and_only_the_filter_runs(
    which: str, request: pytest.FixtureRequest
) -> None:
    page: Page = request.getfixturevalue(which)
    names = [tag for tag, _ in page.tags]
    assert not {*names} & {"link", "iframe", "object", "embed", "base", "form", "i"}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.attributes("src"))
    links = page.attributes("href") + page.attributes("xlink:href")
    ids = page.attributes("id")
    assert len(set(ids)) == len(ids)
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    (style,) = [text for text in page.texts if "--ink" in text]
    assert not re.search(r"url\(|@import", style)
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert names.count("script") == 1
    (script,) = [text for text in page.texts if "use strict" in text]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert str(policy).startswith(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; "
    )


@pytest.mark.parametrize("which", ["page", "page_of_two"])
def test_nothing_scrolls_but_the_page(which: str, request: pytest.FixtureRequest) -> None:
    page: Page = request.getfixturevalue(which)
    (style,) = [text for text in page.texts if "--ink" in text]
    assert not re.search(r"overflow(-[xy])?: *(auto|scroll)", style)
    # In a row that became a block, each cell says what it is by the name of its column.
    for tag, attrs in page.tags:
        if tag == "table" and "columns-" in (attrs.get("class") or ""):
            headers = page.tables[attrs["aria-label"] or ""][0]
            assert set(headers[1:]) <= set(page.attributes("data-column"))


def test_labels_and_names_are_text(page: Page) -> None:
    for written in (
        SCRIPT,
        "<b>",
        "<i>set",
        'x" onerror="alert(2).png',
        "<img src=x>.png",
        "run&1",
    ):
        assert written in page.text


def test_it_can_be_read_by_everybody(page_of_two: Page) -> None:
    tags = page_of_two.tags
    assert ("html", {"lang": "en"}) in tags
    assert all(attrs.get("alt") for tag, attrs in tags if tag == "img")
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in tags if tag == "th")
    assert all("aria-label" in a or "aria-hidden" in a for tag, a in tags if tag == "svg")
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_figures_are_those_worked_out_by_hand(page: Page) -> None:
    tables = page.tables
    assert tables["Results of run&1/last.pt"][1][:3] == ["<i>set", "4", "25.00"]
    # cat is right and dog is not; neither is the script, nor the picture that is none.
    assert tables["Accuracy by label length"] == [
        ["characters", "words", "right, %", "95 % interval"],
        ["2", "1", "0.0", "0.0–79.3"],
        ["3", "2", "50.0", "9.5–90.5"],
        ["25", "1", "0.0", "0.0–79.3"],
    ]
    assert tables["Calibration"][1:] == [
        ["0 to 10", "1", "0.0", "0.0–79.3"],  # 0.5 * 0.5 * 0.2
        ["30 to 40", "1", "0.0", "0.0–79.3"],  # 0.8 * 0.5 * 0.9
        ["70 to 80", "1", "100.0", "20.7–100.0"],  # 0.9 ** 3
    ]
    points = [(float(a["cx"]), float(a["cy"])) for tag, a in page.tags if tag == "circle"]
    assert points == [pytest.approx(p) for p in ((5, 100), (36, 100), (72.9, 0))]
    # |0.05 - 0| + |0.36 - 0| + |0.729 - 1|, each of a third of the words.
    assert "Expected calibration error: 22.70" in page.text
    by_character = {row[0]: row[1:] for row in tables["Accuracy by character"]}
    # o: of dog, read as i. c: of cat, and of the two of script.
    assert by_character["o"] == ["1", "0.0", "0.0–79.3", "i × 1"]
    assert by_character["c"][:2] == ["3", "33.3"]
    assert ["o", "i", "1", "100.0"] in tables["Most frequent confusions"]
    # The matrix: o, of which there is one, as i; c as itself, one of three.
    assert "o read as i: 1 of 1" in page.text
    cells = [attrs for tag, attrs in page.tags if tag == "rect" and attrs.get("class")]
    assert {cell["class"] for cell in cells} == {"same", "other"}
    assert {"1.00", "0.62"} <= {cell["fill-opacity"] for cell in cells}


def test_errors_are_shown_with_what_was_expected(page: Page) -> None:
    assert "i: 0.5000; the label has o" in page.attributes("title")
    assert "end of the word: 1.0000" in page.attributes("title")
    assert "2 of 2 wrong words, those first that the reader was surest of" in page.text


def test_errors_of_each_set_can_be_filtered(tmp_path: Path) -> None:
    reads = {
        "first": {"one": "One", "two": "twos", "four": "for", "six": "xxx", "ten": "ten"},
        "other": {"abc": "abd"},
        "without": {"right": "right"},
    }
    sets = []
    for name, read in reads.items():
        write_painted(tmp_path / name, [*read])
        (test_set,) = open_test_sets([tmp_path / name], CHARSET, 25)
        (some,) = evaluate_sets(Reader(Oracle([*read.values()])), [test_set]).sets
        sets.append(some)
    whole = Evaluation(reader=Reader(Oracle([])), sets=tuple(sets))
    page = page_of([whole], tmp_path / "report")
    assert page.tables["Errors of Oracle by kind"] == [
        ["set", "wrong", "one character off", "too short", "too long", "right length",
         "only upper or lower case"],
        ["first", "4", "3", "1", "1", "2", "1"],
        ["other", "1", "1", "0", "0", "1", "0"],
        ["without", "0", "0", "0", "0", "0", "0"],
    ]  # fmt: skip
    assert page.attributes("data-set") == ["first", "other"]
    cards = zip(page.attributes("data-words"), page.attributes("data-kinds"), strict=True)
    assert dict(cards) == {
        "one\nOne": "one character off,right length,only upper or lower case",
        "two\ntwos": "one character off,too long",
        "four\nfor": "one character off,too short",
        "six\nxxx": "right length",
        "abc\nabd": "one character off,right length",
    }
    # What the script looks for; without it there is no filter, and all is shown.
    assert page.attributes("name")[-3:] == ["set", "kind", "words"]
    (filter_attributes,) = [a for _, a in page.tags if a.get("class") == "filter"]
    assert "hidden" in filter_attributes
    assert not [a for _, a in page.tags if a.get("class") == "card" and "hidden" in a]


def test_every_character_has_its_attention(page: Page) -> None:
    seen = [alt for alt in page.attributes("alt") if alt.startswith("Weights")]
    read = [prediction for prediction, _ in READ_BY_A.values()]
    assert sorted(seen) == sorted(
        f"Weights while writing {character}" for text in read for character in (*text, "the end")
    )


def test_header_names_what_was_measured(page: Page) -> None:
    for said in ("94 (94 characters)", "fp32", "ViT-B-16/random:0 was never trained"):
        assert said in page.text


def test_two_students_side_by_side(page_of_two: Page) -> None:
    assert page_of_two.tables["Words that both, one or none read"] == [
        ["words", "B right", "B wrong"],
        ["A right", "0", "1"],
        ["A wrong", "2", "1"],
    ]
    assert "Only A reads 1 of 1 words" in page_of_two.text
    assert "Only B reads 2 of 2 words" in page_of_two.text
    assert page_of_two.tables["Comparison"][1][:4] == ["<i>set", "4", "25.00", "50.00"]
    assert page_of_two.tables["Accuracy by label length"][:5] == [
        ["characters", "reader", "words", "right, %", "95 % interval"],
        ["2", "A", "1", "0.0", "0.0–79.3"],
        ["B", "1", "0.0", "0.0–79.3"],
        ["3", "A", "2", "50.0", "9.5–90.5"],
        ["B", "2", "50.0", "9.5–90.5"],
    ]


@pytest.mark.parametrize("read", [{}, RIGHT], ids=["all broken", "no error"])
def test_there_may_be_nothing_to_show(
    read: dict[str, tuple[str, tuple[float, ...]]], evaluations: list[Evaluation], tmp_path: Path
) -> None:
    whole = evaluations[0].sets[0].test_set
    some = replace(whole, pictures=[one for one in whole.pictures if one.image in RIGHT])
    page = page_of([evaluation(evaluations[0].reader.checkpoint, some, read)], tmp_path)
    assert page.tables["Results of run&1/last.pt"][1][1:3] == ["1", "100.00" if read else "0.00"]
    assert page.tables["Errors of run&1/last.pt by kind"] == [["set", "wrong"], ["<i>set", "0"]]
    assert "filter" not in page.attributes("class")
    assert page.tables["Most frequent confusions"][1:] == []


def test_the_same_results_give_the_same_page(
    page: Page, evaluations: list[Evaluation], tmp_path: Path
) -> None:
    def without_date(some: Page) -> list[str]:
        return [text for text in some.texts if not re.match(r"\d{4}-\d\d-\d\d ", text)]

    again = page_of(evaluations[:1], tmp_path)
    assert again.tags == page.tags
    assert without_date(again) == without_date(page)


def test_a_function_has_no_confidence_and_no_attention(
    evaluations: list[Evaluation], tmp_path: Path
) -> None:
    (student, _) = evaluations
    (result,) = student.sets
    words = tuple(replace(word, character_confidence=None) for word in result.words)
    function = Evaluation(
        reader=FunctionReader(list, name="<i>theirs"),
        sets=(replace(result, words=words),),
    )
    alone = page_of([function], tmp_path / "alone")
    assert "<i>theirs , given as a function" in alone.text
    assert alone.tables["Results of <i>theirs"][1][:5] == ["<i>set", "4", "25.00", "43.67", "-"]
    assert not {"calibration", "reader-a-attention"} & set(alone.attributes("id"))
    assert "alibration" not in alone.text
    assert "2 of 2 wrong words. label dog" in alone.text  # Nobody knows which were surest.
    assert "i; the label has o" in alone.attributes("title")
    both = page_of([student, function], tmp_path / "both")
    assert both.tables["Calibration"][0] == ["confidence, %", "words", "right, %", "95 % interval"]
    assert both.text.count("calibration error") == 3  # Tile, explanation and figure of A.


@pytest.mark.parametrize("num_readers", [1, 2])
def test_what_stages_changed_is_shown(tmp_path: Path, num_readers: int) -> None:
    stages = {
        "first": ["ax", "bb", "cc", "xx", "any"],
        "second": ["xx", "bb", "cx", "xx", "any"],
        "third": ["aa", "bb", "cy", "yy", "any"],
    }
    write_painted(tmp_path / "data" / "set", ["aa", "bb", "cc", "dd", "ee"], broken=5)
    reader = Reader(StagedOracle(stages))
    staged = evaluate_sets(reader, open_test_sets([tmp_path / "data"], CHARSET, 25))
    page = page_of([staged] * num_readers, tmp_path / "report")
    assert page.attributes("id").count("reader-a-stages") == 1
    assert page.tables["Stages of StagedOracle"] == num_readers * [
        ["stage", "accuracy", "1-NED", "corrected", "spoiled"],
        ["first", "40.00", "50.00", "", ""],
        ["second", "20.00", "30.00", "0", "1"],
        ["third", "40.00", "50.00", "1", "1"],
    ]
    # aa, whatever the second made of it; cc. What was and stays wrong is on neither sheet.
    corrected, spoiled = (
        page.text.index(f"{title} 1 of 1 words, picked at random.")
        for title in (
            "Corrected: wrong by first, right by third",
            "Spoiled: right by first, wrong by third",
        )
    )
    assert "label aa first ✗ a x third ✓ a 100 a 100 end" in page.text[corrected:spoiled]
    assert "label cc first ✓ c c third ✗ c 100 y 100 end" in page.text[spoiled:]
    assert "label dd first" not in page.text
    links = [link for link in page.attributes("href") if link.endswith("-stages")]
    assert links == (["#reader-a-stages"] if num_readers == 1 else [])


def test_by_the_command_with_the_curves_of_the_run(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    write_words(tmp_path / "data" / "A", ["one", "two"])
    checkpoint = write_student(tmp_path / "run", "36")
    with SummaryWriter(str(checkpoint.parent)) as board:
        for step in range(1, 4):
            board.add_scalar("loss/total", 1 / step, step)
    draw_curves(checkpoint.parent)
    command = ["eval", str(checkpoint.parent), "--data", str(tmp_path / "data")]
    result = CliRunner().invoke(main, [*command, "--report", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    assert f"Wrote {tmp_path / 'report' / 'index.html'}: " in result.stdout
    page = Page((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    assert "Training curves" in page.attributes("alt")
    refused = CliRunner().invoke(main, [*command, "--report", str(checkpoint / "report")])
    assert refused.exit_code == 1
    assert f"{checkpoint / 'report'}: Not a directory" in refused.output
