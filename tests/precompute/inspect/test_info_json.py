"""`clipocr cache info --json`: the same figures for programs."""

from __future__ import annotations

import json
from pathlib import Path

from commands import invoke


def test_figures_are_numbers(cache_path: Path) -> None:
    result = invoke("cache", "info", cache_path, "--json")
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    # Two sources of 60 and 13 words, in units of 32; one picture is none.
    assert figures["is_sealed"] is True
    assert figures["spec"]["num_rows"] == 73
    assert [source["num_samples"] for source in figures["spec"]["sources"]] == [60, 13]
    assert figures["num_units_built"] == {"0": 3}
    assert figures["bad_images"] == {"not an image": 1}
    assert [table["name"] for table in figures["text_tables"]] == ["char-36"]
    assert len(figures["fidelity"]) == 3
    assert figures["fidelity"][0]["block1"]["cosine_p50"] > 0.99
    assert figures["bytes_by_part"]["text/char-36"] > 0
    both = invoke("cache", "info", cache_path, "--json", "--bad")
    assert both.exit_code == 2
    assert "--bad prints a list, --json figures" in both.stderr
