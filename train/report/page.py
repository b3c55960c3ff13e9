"""The page: what is worked out is put together here, and the templates give it its form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from ... import __version__
from ...shared.atomic import replacing
from ...shared.charset import Charset
from ..evaluation.paired import compare, comparison_as_table, student_letters
from ..evaluation.results import Table, remarks_on
from ..evaluation.significance import PairedCounts
from .detail import NUM_CARDS, Detail, Evaluation, Gallery, detail_of
from .figures import length_figure, reliability_figure
from .gallery import card_of, draw
from .statistics import NUM_CONFIDENCE_BINS, Calibration, Rate, accuracy_by_length

PAGE_NAME = "index.html"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two students, on the samples that both were given."""

    first: Detail
    second: Detail
    table: Table
    galleries: Sequence[Gallery]

    @property
    def anchor(self) -> str:
        """What its place on the page is called."""
        return f"{self.first.letter}-or-{self.second.letter}".lower()


def write_report(
    folder: Path,
    evaluations: Sequence[Evaluation],
    *,
    charset: Charset,
    precision: str,
    device: torch.device,
) -> Path:
    """Write a page about one or several students into a folder, which is made.

    Args:
        folder: Gets `PAGE_NAME`; what else is there stays.
        evaluations: One per student, of the same sets under the same charset.
        charset: The test charset.
        precision: Arithmetic they were evaluated with.
        device: To read a few words again on, for the decoder's attention.

    Returns:
        Path of the page.
    """
    letters = student_letters(len(evaluations)) if len(evaluations) > 1 else [""]
    students = [
        detail_of(evaluation, letter, number, device)
        for number, (evaluation, letter) in enumerate(zip(evaluations, letters, strict=True))
    ]
    all_results = [evaluation.results for evaluation in evaluations]
    by_length = {
        letter: accuracy_by_length(outcome.sample for outcome in evaluation.outcomes)
        for letter, evaluation in zip(letters, evaluations, strict=True)
    }
    calibrations = {student.letter: student.calibration for student in students}
    template = _environment().get_template("page.html.j2")
    html = template.render(
        title=" and ".join(student.name for student in students),
        version=__version__,
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        charset=charset,
        precision=precision,
        students=students,
        comparison=comparison_as_table(compare(all_results)) if len(students) > 1 else None,
        remarks=remarks_on(all_results, charset),
        length_chart=length_figure(by_length),
        length_table=_length_table(by_length),
        calibration_chart=reliability_figure(calibrations),
        calibration_table=_calibration_table(calibrations),
        num_bins=NUM_CONFIDENCE_BINS,
        pairs=[
            _pair((students[0], student), (evaluations[0], evaluation))
            for student, evaluation in zip(students[1:], evaluations[1:], strict=True)
        ],
    )
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / PAGE_NAME) as partial:
        partial.write_text(html, encoding="utf-8")
    return folder / PAGE_NAME


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = "{:,}".format
    return environment


def _length_table(by_length: Mapping[str, Mapping[int, Rate]]) -> Table:
    lengths = sorted({length for rates in by_length.values() for length in rates})
    rows = {str(length): [rates.get(length) for rates in by_length.values()] for length in lengths}
    return _rate_table("characters", list(by_length), rows)


def _calibration_table(calibrations: Mapping[str, Calibration]) -> Table:
    bins = [{some.low: some for some in found.bins} for found in calibrations.values()]
    ranges = sorted({(some.low, some.high) for of_one in bins for some in of_one.values()})
    rows = {
        f"{100 * low:.0f} to {100 * high:.0f}": [
            of_one[low].rate if low in of_one else None for of_one in bins
        ]
        for low, high in ranges
    }
    return _rate_table("confidence, %", list(calibrations), rows)


def _rate_table(
    what: str, letters: Sequence[str], rows: Mapping[str, Sequence[Rate | None]]
) -> Table:
    """Return a table of rates, a row for each range; several students leave out the intervals."""
    columns = ("words", "right, %", "95 %") if len(letters) == 1 else ("words", "right, %")
    headers = [what, *(f"{letter} {name}".strip() for letter in letters for name in columns)]
    cells = [
        [name, *(cell for rate in rates for cell in _rate_cells(rate)[: len(columns)])]
        for name, rates in rows.items()
    ]
    return Table(headers=headers, rows=cells)


def _rate_cells(rate: Rate | None) -> list[str]:
    if rate is None:
        return [""] * 3
    low, high = rate.interval
    return [f"{rate.num_samples:,}", f"{rate.percent:.1f}", f"{low:.1f} to {high:.1f}"]


def _pair(students: tuple[Detail, Detail], evaluations: tuple[Evaluation, Evaluation]) -> Pair:
    first, second = (
        {(outcome.set_name, outcome.sample.key): outcome for outcome in evaluation.outcomes}
        for evaluation in evaluations
    )
    both = [(first[key], second[key]) for key in first if key in second]
    counts = PairedCounts.of((x.sample.is_correct, y.sample.is_correct) for x, y in both)
    split = [pair for pair in both if pair[0].sample.is_correct != pair[1].sample.is_correct]
    a, b = (student.letter for student in students)

    def gallery(i: int) -> Gallery:
        found = [pair for pair in split if pair[i].sample.is_correct]
        cards = [
            card_of(dict(zip((a, b), pair, strict=True)), evaluations[0].sets_by_name)
            for pair in draw(found, NUM_CARDS)
        ]
        return Gallery(title=f"Only {(a, b)[i]} reads", num_all=len(found), cards=cards)

    return Pair(
        first=students[0],
        second=students[1],
        table=Table(
            headers=["words", f"{b} right", f"{b} wrong"],
            rows=[
                [f"{a} right", f"{counts.both:,}", f"{counts.only_first:,}"],
                [f"{a} wrong", f"{counts.only_second:,}", f"{counts.neither:,}"],
            ],
        ),
        galleries=[gallery(0), gallery(1)],
    )
