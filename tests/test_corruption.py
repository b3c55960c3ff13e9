"""Every kind of damage in every file: `cache verify` names it, and nobody trains on it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from damage import KINDS, Damage, World, inflict, train_on

from clipocr.precompute.upkeep.verify import VerifyReport, verify_cache


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    # Codecs that were chosen, with tables, and weights: files of a cache like any other.
    root = tmp_path_factory.mktemp("world")
    return World(root, codec="klt:24,int8,fp16", keeps_weights=True)


@pytest.fixture
def copy(world: World, tmp_path: Path) -> Path:
    """A copy of the cache, to be damaged."""
    out = tmp_path / "words.cache"
    shutil.copytree(world.path, out)
    return out


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, Counter[str]]]:
    """Fault -> outcome -> how many; printed at the end (pytest -s)."""
    found: dict[str, Counter[str]] = {}
    yield found
    columns = ("tried", "caught", "stopped a trainer", "harmless to it")
    print("\n" + "  ".join(["fault".ljust(40), *columns]))
    for fault, counts in [*found.items(), ("all", sum(found.values(), Counter()))]:
        cells = (f"{counts[column]:,}".rjust(len(column)) for column in columns)
        print("  ".join([fault.ljust(40), *cells]))


def unit_of(file: str) -> str:
    """Return what `verify` should blame for a file."""
    parts = file.split("/")
    if file == "sealed.json":
        return "seal"
    if parts[0] == "commits":
        return file.removeprefix("commits/").removesuffix(".json")
    if parts[0] == "teacher":
        return "teacher"
    if parts[0] == "text" and len(parts) > 2:
        return "/".join(parts[:2])
    if parts[0] == "image" and len(parts) > 2:
        return parts[1] if parts[-1] == "zarr.json" else f"{parts[1]}/unit-{int(parts[4]):05d}"
    return "index"


def missed(report: VerifyReport, damage: Damage) -> list[str]:
    """Return the damaged files that a report does not name with their units."""
    found = {(fault.part, fault.file) for fault in report.faults}
    files = list(damage)
    if ("index", "manifest.json") in found and "manifest.json" in files:
        files = ["manifest.json"]  # Nothing else can be judged without it.
    return [file for file in files if (unit_of(file), file) not in found]


def makes_a_difference_without_a_seal(damage: Damage) -> bool:
    """Only then readers take the records; and one that is gone is a unit not built yet."""
    records = [file for file in damage if file.startswith(("commits/", "manifest"))]
    is_unbuilt = damage[records[0]] is None and "manifest.json" not in damage if records else True
    return "sealed.json" not in damage and not is_unbuilt


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_sealed", [True, False])
def test_every_fault_in_every_file_is_caught(
    world: World, copy: Path, table: dict[str, Counter[str]], kind: str, is_sealed: bool
) -> None:
    counts: Counter[str] = Counter()
    uncaught = []
    if not is_sealed:
        (copy / "sealed.json").unlink()
    for file in sorted(world.files):
        for damage in KINDS[kind](world, file):
            if not is_sealed and not makes_a_difference_without_a_seal(damage):
                continue
            inflict(copy, damage)
            missing = missed(verify_cache(copy), damage)
            # No trainer opens Zarr's metadata, as their deletion shows.
            is_read = kind == "delete" or not all(name.endswith("zarr.json") for name in damage)
            outcome = train_on(world, copy, damage) if is_read else "right rows"
            counts["tried"] += 1
            counts["caught"] += not missing
            counts["stopped a trainer"] += outcome == "stopped"
            counts["harmless to it"] += outcome == "right rows"
            if missing or outcome not in ("stopped", "right rows"):
                uncaught.append((list(damage), missing, outcome))
            inflict(copy, {name: world.files[name] for name in damage})
    assert {"codec", "teacher"} <= {file.partition("/")[0] for file in world.files}
    table[kind + ("" if is_sealed else ", no seal")] = counts
    assert not uncaught
    assert counts["tried"] == counts["caught"] > 0
    assert counts["tried"] == counts["stopped a trainer"] + counts["harmless to it"]
    assert verify_cache(copy).faults == []
