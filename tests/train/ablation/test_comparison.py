"""The averages of an ablation's table, from results written by hand."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from clipocr.shared.cache.spec import TeacherSpec
from clipocr.train.ablation.comparison import (
    Outcomes,
    RowSource,
    RunResults,
    combine_p_values,
    write_comparison,
)
from clipocr.train.ablation.table import AblationTable, Variant

TEACHER = TeacherSpec(
    model="ViT-B-16",
    weights="openai",
    weights_sha256="0" * 64,
    activation="quickgelu",
    precision="fp32",
)
TABLE = AblationTable(
    title="A table of 50 %",
    columns=("tau",),
    settings={},
    seeds=(0, 1, 2),
    variants=(
        Variant(name="low", cells=("0.01",), settings={}),
        Variant(name="high", cells=("0.03",), settings={}),
    ),
)
SOURCES = {name: RowSource(cache="words.cache", teacher=TEACHER) for name in ("low", "high")}
SETS = ("mine", "ArT", "test/SVT", "iiit5k_3000")


def result(means: Mapping[str, float], outcomes: Outcomes = MappingProxyType({})) -> RunResults:
    figures: dict[str, Any] = {
        "sets": {name: {"accuracy": 50.0} for name in SETS},
        "means": {
            title: {
                "sets": [*SETS] if title == "total" else ["iiit5k_3000", "test/SVT"],
                "weighted by samples": {"accuracy": mean},
            }
            for title, mean in means.items()
        },
    }
    return RunResults(figures=figures, outcomes=outcomes)


def write(
    out: Path,
    results: Mapping[str, RunResults],
    table: AblationTable = TABLE,
    sources: Mapping[str, RowSource] = MappingProxyType(SOURCES),
) -> list[list[str]]:
    """Write the table; return the cells of table.md, its headers first."""
    names = [f"{name}-seed{seed}" for name in ("low", "high") for seed in (0, 1, 2)]
    write_comparison(table, {name: results.get(name) for name in names}, out, sources)
    lines = (out / "table.md").read_text().splitlines()
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    return [rows[0], *rows[2:]]


def test_the_average_is_the_paper_s_where_its_benchmarks_are_all_there(tmp_path: Path) -> None:
    whole = {"six benchmarks (7,248)": 93.8, "total": 70.0}
    headers, first, _ = write(tmp_path, {"low-seed0": result(whole)})
    # Benchmarks in the papers' order, then other sets.
    assert headers == ["tau", "iiit5k_3000", "test/SVT", "ArT", "mine", "Avg", "p", "runs"]
    assert first == ["0.01", "50.00", "50.00", "50.00", "50.00", "93.80", "-", "1/3"]
    text = (tmp_path / "table.md").read_text()
    assert "Avg: six benchmarks (7,248), weighted by samples." in text


def test_the_average_of_other_sets_says_of_how_many(tmp_path: Path) -> None:
    headers, first, second = write(tmp_path, {"low-seed0": result({"total": 70.0})})
    assert (headers[-3], first[-3], second[-3]) == ("Avg of 4 sets", "70.00", "-")
    assert "Avg: total of 4 sets, weighted by samples." in (tmp_path / "table.md").read_text()


def words(right: str) -> Outcomes:
    """Return what was read correctly of six words of SVT, then what no one counts."""
    outcomes = {("test/SVT", i): mark == "+" for i, mark in enumerate(right)}
    return outcomes | {("mine", i): right[0] == "-" for i in range(9)}


def test_p_values_are_of_runs_of_one_seed_and_twice_their_median(tmp_path: Path) -> None:
    means = {"six benchmarks (7,248)": 93.8, "total": 70.0}
    # Words that just one of the two reads: 0 and 6, 1 and 4, 2 and 2. By the binomials of 6, 5 and
    # 4: 2 / 64, 2 * 6 / 32 and 1, the largest that there is.
    pairs = {0: ("------", "++++++"), 1: ("+----+", "-+++++"), 2: ("++----", "--++--")}
    results = {}
    for seed, (low, high) in pairs.items():
        results[f"low-seed{seed}"] = result(means, words(low))
        results[f"high-seed{seed}"] = result(means, words(high))
    assert [row[-2] for row in write(tmp_path, results)] == ["p", "-", "0.7500"]
    assert (
        "against the first row's run of the same seed; over seeds twice the median"
        in (tmp_path / "table.md").read_text()
    )
    with (tmp_path / "table.csv").open() as file:
        assert [row["p"] for row in csv.DictReader(file)] == ["", "0.75"]
    # One pair alone has its own.
    del results["low-seed1"], results["high-seed2"]
    assert [row[-2] for row in write(tmp_path, results)] == ["p", "-", "0.0312"]
    # Runs of an older version kept no words.
    assert write(tmp_path, {"high-seed0": result(means, words("+" * 6))})[-1][-2] == "-"


def test_p_values_of_several_tests_never_exceed_1() -> None:
    assert combine_p_values([0.03]) == 0.03
    assert combine_p_values([0.01, 0.5, 0.02]) == 0.04
    assert combine_p_values([0.01, 0.03]) == pytest.approx(0.04)
    assert combine_p_values([0.9, 0.8]) == 1


def test_the_caption_says_what_was_set_and_what_was_learned_from(tmp_path: Path) -> None:
    results = {"low-seed0": result({"total": 70.0})}
    write(tmp_path, results)
    text = (tmp_path / "table.md").read_text()
    assert "Learned from cache words.cache, teacher ViT-B-16/openai.\n" in text
    assert "Set for every run" not in text
    table = TABLE.with_overrides({"student": "tiny", "epochs": 3, "word": False})
    random = replace(TEACHER, weights="random:0")
    sources = SOURCES | {"high": RowSource(cache="other.cache", teacher=random)}
    write(tmp_path, results, table, sources)
    text = (tmp_path / "table.md").read_text()
    assert text.endswith(
        "Set for every run: student=tiny, epochs=3, word=false. Learned from cache words.cache, "
        "teacher ViT-B-16/openai (low). Learned from cache other.cache, teacher ViT-B-16/random:0 "
        "(RANDOM weights: this tries out the pipeline, not CLIP) (high).\n"
    )
    latex = (tmp_path / "table.tex").read_text()
    assert latex.startswith("% A table of 50 %\n% Word accuracy in percent")
    assert "epochs=3" in latex
    assert r"\begin{tabular}{lrrrrrrr}" in latex
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
