"""A table in each format, written out by hand."""

from __future__ import annotations

from clipocr.train.evaluation.tables import ShownTable

TABLE = ShownTable(
    title="A title",
    headers=["set", "of", "samples", "1 / 2"],
    rows=[["IC15_1811", "50 %", "1,811", "93.80 ± 0.12"], ["a, b", "&", "12,345,678", ""]],
    notes="What it is.",
    num_left=2,
)


def test_markdown_has_title_and_notes() -> None:
    assert (
        str(TABLE)
        == TABLE.formatted("markdown")
        == (
            "A title\n\n"
            "| set       | of   |    samples |        1 / 2 |\n"
            "|-----------|------|------------|--------------|\n"
            "| IC15_1811 | 50 % |      1,811 | 93.80 ± 0.12 |\n"
            "| a, b      | &    | 12,345,678 |              |\n\n"
            "What it is."
        )
    )


def test_csv_has_numbers_that_programs_read() -> None:
    assert TABLE.formatted("csv") == (
        'A title\nset,of,samples,1 / 2\nIC15_1811,50 %,1811,93.80 ± 0.12\n"a, b",&,12345678,'
    )


def test_latex_is_booktabs_with_everything_escaped() -> None:
    lines = TABLE.formatted("latex").splitlines()
    assert lines[:4] == ["% A title", "% What it is.", r"\begin{tabular}{llrr}", r"\toprule"]
    assert [cell.strip() for cell in lines[6].removesuffix(r"\\").split(" & ")] == [
        r"IC15\_1811", r"50 \%", "1,811", r"93.80 $\pm$ 0.12",
    ]  # fmt: skip
    assert lines[7].startswith(r" a, b      & \& ")
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
