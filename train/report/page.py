"""The page: its content is put together here, and the templates say how it is shown."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ... import __version__
from ...shared.atomic import replacing
from ..evaluation.paired import compare, reader_letters
from ..evaluation.results import Evaluation
from ..evaluation.tables import ShownTable
from .gallery import gallery, pick_at_random, shown_characters
from .reader_section import NUM_CARDS, section_of
from .statistics import NUM_CONFIDENCE_BINS, Rate


def write_report(folder: Path, evaluations: Sequence[Evaluation]) -> Path:
    """Write ``index.html`` about evaluations of the same sets into a folder, which is made."""
    letters = reader_letters(len(evaluations)) if len(evaluations) > 1 else [""]
    named = dict(zip(letters, evaluations, strict=True))
    sections = [section_of(some, letter, i) for i, (letter, some) in enumerate(named.items())]
    charset = evaluations[0].charset
    confident = [section for section in sections if section["reliability"] is not None]
    by_confidence = [{b.low: b.rate for b in section["reliability"]} for section in confident]
    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (Path(__file__).parent / "templates" / "filter.js").read_text(encoding="utf-8")
    script_sha256 = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.filters["count"] = "{:,}".format
    environment.filters["characters"] = partial(shown_characters, charset=charset)
    html = environment.get_template("page.html.j2").render(
        title=" and ".join(section["name"] for section in sections),
        version=__version__,
        script=Markup(script),
        script_sha256=script_sha256,
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        charset=charset,
        readers=sections,
        comparison=compare(evaluations) if len(sections) > 1 else None,
        remarks=dict.fromkeys(remark for each in evaluations for remark in each.remarks),
        by_length=_rows([section["by_length"] for section in sections]),
        confident=confident,
        by_confidence=[
            (f"{100 * low:.0f} to {100 * (low + 1 / NUM_CONFIDENCE_BINS):.0f}", rates)
            for low, rates in _rows(by_confidence)
        ],
        num_bins=NUM_CONFIDENCE_BINS,
        pairs=[
            _pair(sections[0], section, [evaluations[0], evaluation])
            for section, evaluation in zip(sections[1:], evaluations[1:], strict=True)
        ],
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    with replacing(path) as partial_path:
        # A file's name may be bytes that are no text.
        partial_path.write_text(html, encoding="utf-8", errors="backslashreplace")
    return path


def _rows(rates: Sequence[Mapping[Any, Rate]]) -> list[tuple[Any, list[Rate | None]]]:
    """Return a row for each key: the key, and the rate of each reader, None if it has none."""
    keys = sorted({key for of_one in rates for key in of_one})
    return [(key, [of_one.get(key) for of_one in rates]) for key in keys]


def _pair(
    first: Mapping[str, Any], second: Mapping[str, Any], evaluations: Sequence[Evaluation]
) -> dict[str, Any]:
    """Return what the page shows of two readers, on the samples that both were given."""
    a, b = first["letter"], second["letter"]
    by_first, by_second = (
        {(word.set_name, word.image): word for word in each.words} for each in evaluations
    )
    by_outcome = defaultdict(list)
    for key in by_first:
        if key not in by_second:
            continue
        words = {a: by_first[key], b: by_second[key]}
        by_outcome[words[a].is_correct, words[b].is_correct].append(words)
    galleries = []
    for letter, outcome in ((a, (True, False)), (b, (False, True))):
        found = by_outcome[outcome]
        shown = pick_at_random(found, NUM_CARDS)
        galleries.append(gallery(f"Only {letter} reads", len(found), shown, evaluations[0]))
    rows = [
        [f"{a} {is_right}", *(f"{len(by_outcome[x, y]):,}" for y in (True, False))]
        for x, is_right in ((True, "right"), (False, "wrong"))
    ]
    return {
        "first": first,
        "second": second,
        "anchor": f"{a}-or-{b}".lower(),
        "table": ShownTable(headers=["words", f"{b} right", f"{b} wrong"], rows=rows),
        "galleries": galleries,
    }
