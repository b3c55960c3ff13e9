"""What `clipocr eval` prints of one or several readers under one test charset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..reading.readers import PictureBatchReader
from .names import short_names
from .paired import compared
from .results import Evaluation
from .stages import stage_table
from .tables import ShownTable


def tables_of(evaluations: Sequence[Evaluation], title: str = "") -> list[ShownTable]:
    """Return the figures of a reader, or several side by side; then the stages of each."""
    first, *others = evaluations
    main = compared(evaluations).table if others else first.results
    names = short_names([each.reader for each in evaluations])
    return [
        replace(main, title=title),
        *(
            replace(
                stage_table(each.stages),
                title=", ".join(filter(None, (f"Stages of {name}" if others else "Stages", title))),
            )
            for name, each in zip(names, evaluations, strict=True)
            if each.stages
        ),
    ]


def figures_of(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return all figures of some readers under one charset, and what is compared of them."""
    names = short_names([each.reader for each in evaluations])
    record: dict[str, Any] = {
        "charset": evaluations[0].charset.name,
        "readers": {name: each.to_json() for name, each in zip(names, evaluations, strict=True)},
    }
    if len(evaluations) > 1:
        record["comparison"] = compared(evaluations).to_json()
    return record


def describe_source(reader: PictureBatchReader) -> str:
    """Return what was loaded, and when it was written as far as that says so."""
    shown = {
        "epoch": "epoch {:,.0f}",
        "step": "step {:,.0f}",
        "accuracy": "validation accuracy {:.2f} %",
    }
    said = (shown[name].format(value) for name, value in reader.moment.items())
    return ", ".join((reader.name, *said))
