"""Text tables of prompts, and caches of words alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from commands import invoke
from killing import killed_after
from samples import EQUAL_TEACHER, TINY_TEACHER, WORDS, files_of

from clipocr.precompute.builder.build import build_labels
from clipocr.precompute.builder.config import LabelsConfig, TextConfig
from clipocr.precompute.builder.text import add_text_table
from clipocr.precompute.teacher.clip import Teacher, load_teacher
from clipocr.precompute.teacher.tokens import TeacherTokenizer
from clipocr.shared.cache.names import TEMPLATE
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.storage import LocalStorage
from clipocr.shared.charset import Charset, LabelRules
from clipocr.shared.errors import CacheMismatchError, DataError, UsageError

APART = "a photo of a ' {label} '"


def load(name: str) -> Teacher:
    taps = (1, 2, 3)
    return load_teacher(
        name, image_taps=taps, text_taps=taps, precision="fp32", device=torch.device("cpu")
    )


def words_file(folder: Path) -> Path:
    path = folder / "words.txt"
    path.write_text("\n".join([*WORDS, "", "alpha", "x" * 26, "Zulu"]) + "\n")
    return path


def config(folder: Path, **changes: object) -> LabelsConfig:
    settings: dict[str, object] = {
        "words": words_file(folder),
        "out": folder / "words.cache",
        "teacher": EQUAL_TEACHER,
        "text_taps": (1, 2, 3),
        "unit_rows": 16,
        "chunk_rows": 8,
        "device": "cpu",
    }
    return LabelsConfig(**(settings | changes))  # type: ignore[arg-type]


def test_a_prompts_tokens_are_the_official_ones() -> None:
    """In the official sentence a quote takes the first letters of some labels with it."""
    decode = open_clip.tokenizer.SimpleTokenizer().decoder
    for label in ("street", "table", "revenge", "Clip", "42!"):
        for template in (TEMPLATE, APART):
            sequence = TeacherTokenizer("prompt", 25, template).tokenize(label)
            assert sequence is not None
            (expected,) = open_clip.tokenize(template.replace("{label}", label)).tolist()
            assert sequence.ids == expected[: len(sequence.ids)]
            assert not any(expected[len(sequence.ids) :])
            assert sequence.read == list(range(77))
    glued, apart = (
        [decode[i] for i in TeacherTokenizer("prompt", 25, template)._tokenize_prompt("street").ids]
        for template in (TEMPLATE, APART)
    )
    assert glued[5:8] == ["'s</w>", "tre", "et</w>"]
    assert apart[5:8] == ["'</w>", "street</w>", "'</w>"]


def test_a_prompt_table_is_what_the_teacher_says_of_each_prompt(
    cache_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "own.cache"
    shutil.copytree(cache_path, path)
    before = files_of(path)
    result = invoke("cache", "text", path, "--charset", "94", "--tokenizer", "prompt")
    assert result.exit_code == 0, result.output
    assert {k: v for k, v in files_of(path).items() if k in before and k != "sealed.json"} == {
        k: v for k, v in before.items() if k != "sealed.json"
    }
    cache = FeatureCache.open(path)
    spec = cache.require_text(
        Charset.load("94"), 25, "prompt", ("ln_final", "eot"), template=TEMPLATE
    )
    table, teacher = cache.text_table(spec.name), load(TINY_TEACHER)
    assert "One" in table.strings  # Case is kept, though CLIP does not see it.
    for number, label in enumerate(table.strings):
        tokens = open_clip.tokenize(f"a photo of a '{label}'")
        said = teacher.text_features(tokens, tokens.argmax(dim=1), ("ln_final", "eot"))
        with torch.no_grad():
            projected = teacher._model.encode_text(tokens)
        torch.testing.assert_close(said["eot"], projected, atol=1e-6, rtol=1e-6)
        for name, rows in (("ln_final", table.nodes[number]), ("eot", number)):
            found = torch.from_numpy(table.arrays[name][rows]).float()
            torch.testing.assert_close(found, said[name][0], atol=1e-3, rtol=2e-3)
    # SOT, a, photo, of, a: once each, for all labels.
    assert [len(np.unique(table.nodes[:, at])) for at in range(5)] == [1] * 5
    assert spec.num_prefixes < 77 * spec.num_strings
    assert invoke("cache", "verify", path).exit_code == 0


def test_templates_stand_beside_each_other(cache_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.cache"
    shutil.copytree(cache_path, path)
    charset = Charset.load("36")
    names = []
    for template in (TEMPLATE, APART):
        text = TextConfig(cache=path, charset=charset, tokenizer="prompt", template=template)
        _, record, was_there = add_text_table(text)
        assert not was_there
        assert add_text_table(text)[2]
        names.append(record.spec.name)
    assert len(set(names)) == 2
    assert [spec.template for spec in FeatureCache.open(path).text_specs() if spec.is_prompt] == [
        template for _, template in sorted(zip(names, (TEMPLATE, APART), strict=True))
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--template", "a photo"), "template 'a photo' has no {label}"),
        (("--template", "{label} " * 80), "into the 77 tokens that the text encoder reads"),
    ],
)
def test_templates_that_cannot_be(
    cache_path: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    path = tmp_path / "own.cache"
    shutil.copytree(cache_path, path)
    result = invoke("cache", "text", path, "--charset", "94", "--tokenizer", "prompt", *options)
    assert result.exit_code in (1, 2)
    assert said in " ".join(result.output.split())
    assert invoke("cache", "verify", path).exit_code == 0


def test_a_template_needs_prompts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pass --tokenizer prompt too"):
        TextConfig(cache=tmp_path, charset=Charset.load("36"), template=APART)


def test_a_cache_of_words_has_a_row_for_every_usable_line(tmp_path: Path) -> None:
    summary = build_labels(config(tmp_path))
    cache = FeatureCache.open(tmp_path / "words.cache")
    rows = {
        key: np.concatenate([cache.rows(u)[key] for u in cache.units()])
        for key in ("label", "lmdb_index")
    }
    lines = (tmp_path / "words.txt").read_text().splitlines()
    labels = cache.labels()
    assert [labels[i] for i in rows["label"]] == [lines[at - 1] for at in rows["lmdb_index"]]
    assert len(rows["label"]) == len(WORDS) + 2 == summary.num_rows_built
    assert {(index, reason) for _, index, reason in cache.rejected()} == {
        (len(WORDS) + 1, "empty label"),
        (len(WORDS) + 3, "label too long"),
    }
    assert invoke("cache", "info", tmp_path / "words.cache", "--bad").stdout.splitlines() == [
        f"words.txt\tline {len(WORDS) + 1}\tempty label",
        f"words.txt\tline {len(WORDS) + 3}\tlabel too long",
    ]
    assert cache.is_sealed
    assert cache.spec.num_units == 2
    assert invoke("cache", "verify", tmp_path / "words.cache").exit_code == 0
    again = build_labels(config(tmp_path))
    assert (again.num_rows_built, again.is_complete) == (0, True)


def test_another_list_of_as_many_words_is_another_cache(tmp_path: Path) -> None:
    build_labels(config(tmp_path))
    changed = tmp_path / "words.txt"
    text = changed.read_text().replace("alpha", "omega", 1)
    given = config(tmp_path)
    changed.write_text(text)
    with pytest.raises(CacheMismatchError, match=r"holds another cache.*into another folder"):
        build_labels(given)


def test_a_label_whose_prompt_is_too_long_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("clip\n" + "9" * 75)
    rules = LabelRules(max_label_length=75)
    build_labels(config(tmp_path, words=tmp_path / "some.txt", labels=rules))
    cache = FeatureCache.open(tmp_path / "words.cache")
    (spec,) = cache.text_specs()
    assert cache.text_table(spec.name).strings == ["clip"]
    assert len(cache.labels()) == 2


def test_what_only_pictures_have_is_said(tmp_path: Path) -> None:
    build_labels(config(tmp_path))
    for command in ("show", "align"):
        drawn = invoke("cache", command, tmp_path / "words.cache", "--out", tmp_path / "a.png")
        assert drawn.exit_code == 1
        assert "holds no pictures" in drawn.output
    options = ("--recompute", 3, "--data", tmp_path)
    recomputed = invoke("cache", "verify", tmp_path / "words.cache", *options)
    assert recomputed.exit_code == 1
    assert "holds no pictures" in recomputed.output


def test_killed_anywhere_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    build_labels(config(tmp_path / "whole"))
    expected = files_of(tmp_path / "whole" / "words.cache")
    for at in range(0, len(expected), 5):
        folder = tmp_path / f"killed-{at}"
        folder.mkdir()
        killed_after(at, lambda: build_labels(config(folder)))  # noqa: B023  (called at once)
        build_labels(config(folder))
        assert files_of(folder / "words.cache") == expected


def test_nothing_usable_is_said(tmp_path: Path) -> None:
    empty = tmp_path / "none.txt"
    empty.write_text("\n\n")
    with pytest.raises(DataError, match=r"no usable sample in .*none.txt \(empty label: 2\)"):
        build_labels(config(tmp_path, words=empty))
    with pytest.raises(DataError, match="charset letters leaves nothing"):
        build_labels(config(tmp_path, charset=Charset(name="letters", characters="éß")))


def test_words_are_no_pictures(tmp_path: Path) -> None:
    build_labels(config(tmp_path))
    result = invoke("train", "--cache", tmp_path / "words.cache", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "holds no image arrays, this run needs block3" in result.output
    assert isinstance(FeatureCache.open(tmp_path / "words.cache").storage, LocalStorage)
