"""The averages of an ablation's table, from results written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipocr.shared.cache.spec import TeacherSpec
from clipocr.train.ablation.comparison import write_comparison
from clipocr.train.ablation.table import AblationTable, Variant

TEACHER = TeacherSpec(
    model="ViT-B-16",
    weights="openai",
    weights_sha256="0" * 64,
    activation="quickgelu",
    precision="fp32",
)
TABLE = AblationTable(
    title="A table",
    columns=("tau",),
    settings={},
    seeds=(0,),
    variants=(Variant(name="v", cells=("0.03",), settings={}),),
)


def write(out: Path, means: dict[str, float]) -> str:
    result: dict[str, Any] = {
        "sets": {name: {"accuracy": 50.0} for name in ("mine", "ArT", "test/SVT", "iiit5k_3000")},
        "means": {
            title: {"weighted by samples": {"accuracy": mean}} for title, mean in means.items()
        },
    }
    write_comparison(TABLE, {"v-seed0": result}, out, TEACHER)
    return (out / "table.md").read_text()


def test_the_average_is_the_paper_s_where_its_benchmarks_are_all_there(tmp_path: Path) -> None:
    text = write(tmp_path, {"six benchmarks (7,248)": 93.8, "total": 70.0})
    assert "| 93.80 |" in text
    assert "Avg: six benchmarks (7,248), weighted by samples." in text
    # Benchmarks in the papers' order, then other sets.
    headers = [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]]
    assert headers == ["tau", "iiit5k_3000", "test/SVT", "ArT", "mine", "Avg", "runs"]


def test_the_average_is_that_of_all_sets_otherwise(tmp_path: Path) -> None:
    text = write(tmp_path, {"total": 70.0})
    assert "| 70.00 |" in text
    assert "Avg: total, weighted by samples." in text
