"""Part 1: the tests that take a device, on this one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from clipocr.shared.options import num_cores

from .place import Place

ROOT = Path(__file__).parents[2]
SMALL = "tests/train/methods/clip_ocr/test_relations.py"


def main() -> None:
    place = Place.parse()
    results = place.begin(1)
    results.check("tests that take a device", run_tests, place)


def files() -> list[str]:
    """Return those that hold such tests: others need packages that a lent machine may lack."""
    takes_device = re.compile(r"def \w+\([^)]*\bdevice")
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path) for path in paths if takes_device.search(path.read_text())]


def run_tests(place: Place) -> list[dict[str, object]]:
    report = place.work.resolve() / "tests.xml"
    report.unlink(missing_ok=True)
    # Each has a CUDA context of its own, which takes half a gigabyte and some seconds.
    processes = () if place.small else ("-n", str(min(8, num_cores())), "--dist", "worksteal")
    subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-m", "device", "-p", "no:cacheprovider",
            "-o", "filterwarnings=default", f"--junitxml={report}", *processes,
            *([SMALL] if place.small else files()),
        ],
        cwd=ROOT,
        env=os.environ | {"CLIPOCR_TEST_DEVICE": place.device.type},
    )  # fmt: skip
    cases = list(ET.parse(report).iter("testcase"))
    failed = [c for c in cases if any(c.find(how) is not None for how in ("failure", "error"))]
    if not cases:
        raise AssertionError("no test was found")
    if failed:
        names = ", ".join(f"{case.get('classname')}.{case.get('name')}" for case in failed[:20])
        raise AssertionError(f"{len(failed)} of {len(cases)} failed: {names}")
    return [{"tests": len(cases), "failed": len(failed)}]


if __name__ == "__main__":
    main()
