"""benchmarks/GPU.md: what `make gpu` found, written anew by every run.

    python -m gpu.page RESULTS...       one page of the results of several calls

Parts of a later folder take the place of an earlier one's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from .results import Check, read_results

PAGE = Path(__file__).parents[1] / "GPU.md"
TITLES = {
    1: "The suite on the device",
    2: "As a CPU does",
    3: "Building a cache",
    4: "Training steps",
    5: "A reader from rendered words",
}


def write_page(path: Path, folders: Sequence[Path]) -> None:
    """Write the page of all results there are in some folders."""
    found = read_results(folders)
    checks = [check for of_part in found.values() for check in of_part]
    num_failed = sum(bool(check.error) for check in checks)
    lines = [
        "# On a GPU",
        "",
        "Written by `make gpu`; see `benchmarks/gpu/run.py` for what each part does.",
        "",
        f"{len(checks) - num_failed} of {len(checks)} checks passed.",
        "",
    ]
    if any(row.get("sizes") == "miniature" for check in checks for row in check.rows):
        lines += ["Sizes are miniature: these are no figures of a GPU, or of anything else.", ""]
    for part, of_part in sorted(found.items()):
        lines += [f"## {part}. {TITLES[part]}", "", *verdicts(of_part), ""]
        for check in of_part:
            if check.rows:
                table = tabulate(
                    [dict(row) for row in check.rows],
                    headers="keys",
                    tablefmt="github",
                    disable_numparse=True,
                )
                lines += [f"**{check.name}**", "", table, ""]
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def verdicts(checks: Sequence[Check]) -> list[str]:
    """Return a line for each check."""
    return [
        f"- {check.name}: {f'**failed**, {check.error}' if check.error else 'passed'} "
        f"({check.seconds:.1f} s)"
        for check in checks
    ]


if __name__ == "__main__":
    write_page(PAGE, [Path(folder) for folder in sys.argv[1:]])
    print(f"Wrote {PAGE}.")
