"""The page: its content is put together here, and the templates say how it is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ... import __version__
from ...shared.atomic import replacing
from ..evaluation.paired import compare, reader_letters
from ..evaluation.results import Evaluation
from ..evaluation.tables import ShownTable
from .figures import length_figure, reliability_figure
from .gallery import gallery, pick_at_random, shown_characters
from .reader_section import NUM_CARDS, section_of
from .statistics import NUM_CONFIDENCE_BINS, Rate, accuracy_by_length


def write_report(folder: Path, evaluations: Sequence[Evaluation]) -> Path:
    """Write ``index.html`` about evaluations of the same sets into a folder, which is made."""
    letters = reader_letters(len(evaluations)) if len(evaluations) > 1 else [""]
    named = dict(zip(letters, evaluations, strict=True))
    sections = [section_of(some, letter, i) for i, (letter, some) in enumerate(named.items())]
    charset = evaluations[0].charset
    by_length = {letter: accuracy_by_length(some.words) for letter, some in named.items()}
    reliabilities = {
        section["letter"]: section["reliability"]
        for section in sections
        if section["reliability"] is not None
    }
    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = "{:,}".format
    environment.filters["characters"] = partial(shown_characters, charset=charset)
    html = environment.get_template("page.html.j2").render(
        title=" and ".join(section["name"] for section in sections),
        version=__version__,
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        charset=charset,
        readers=sections,
        comparison=compare(evaluations) if len(sections) > 1 else None,
        remarks=dict.fromkeys(remark for each in evaluations for remark in each.remarks),
        length_chart=length_figure(by_length),
        length_table=_rate_table("characters", by_length),
        reliability_chart=reliability_figure(reliabilities) if reliabilities else None,
        reliability_table=_rate_table(
            "confidence, %",
            {letter: {b.low: b.rate for b in bins} for letter, bins in reliabilities.items()},
            lambda low: f"{100 * low:.0f} to {100 * (low + 1 / NUM_CONFIDENCE_BINS):.0f}",
        ),
        num_bins=NUM_CONFIDENCE_BINS,
        pairs=[
            _pair((sections[0], section), (evaluations[0], evaluation))
            for section, evaluation in zip(sections[1:], evaluations[1:], strict=True)
        ],
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    with replacing(path) as partial_path:
        # A file's name may be bytes that are no text.
        partial_path.write_text(html, encoding="utf-8", errors="backslashreplace")
    return path


def _rate_table(
    what: str, rates: Mapping[str, Mapping[Any, Rate]], shown: Callable[[float], str] = str
) -> ShownTable:
    """Return a table of rates, a row for each key; several readers leave out the intervals."""
    columns = ("words", "right, %", "95 %") if len(rates) == 1 else ("words", "right, %")
    rows = []
    for key in sorted({key for of_one in rates.values() for key in of_one}):
        row = [shown(key)]
        for of_one in rates.values():
            cells = [""] * 3
            if key in of_one:
                rate, (low, high) = of_one[key], of_one[key].interval
                cells = [f"{rate.num_samples:,}", f"{rate.percent:.1f}", f"{low:.1f} to {high:.1f}"]
            row += cells[: len(columns)]
        rows.append(row)
    headers = [what, *(f"{letter} {name}".strip() for letter in rates for name in columns)]
    return ShownTable(headers=headers, rows=rows)


def _pair(
    sections: tuple[Mapping[str, Any], Mapping[str, Any]],
    evaluations: tuple[Evaluation, Evaluation],
) -> dict[str, Any]:
    """Return what the page shows of two readers, on the samples that both were given."""
    first, second = (
        {(word.set_name, word.image): word for word in evaluation.words}
        for evaluation in evaluations
    )
    both = [(first[key], second[key]) for key in first if key in second]
    counts = Counter((x.is_correct, y.is_correct) for x, y in both)
    letters = a, b = sections[0]["letter"], sections[1]["letter"]
    galleries = []
    for letter, outcome in ((a, (True, False)), (b, (False, True))):
        found = [
            dict(zip(letters, pair, strict=True))
            for pair in both
            if (pair[0].is_correct, pair[1].is_correct) == outcome
        ]
        shown = pick_at_random(found, NUM_CARDS)
        galleries.append(gallery(f"Only {letter} reads", len(found), shown, evaluations[0]))
    return {
        "first": sections[0],
        "second": sections[1],
        "anchor": f"{a}-or-{b}".lower(),
        "table": ShownTable(
            headers=["words", f"{b} right", f"{b} wrong"],
            rows=[
                [f"{a} right", f"{counts[True, True]:,}", f"{counts[True, False]:,}"],
                [f"{a} wrong", f"{counts[False, True]:,}", f"{counts[False, False]:,}"],
            ],
        ),
        "galleries": galleries,
    }
