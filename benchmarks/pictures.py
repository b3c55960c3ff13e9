"""The pictures of README.md, from what `make demo` leaves: docs/pictures/{sheet,report,curves}.png.

    make demo && .venv/bin/python benchmarks/pictures.py .demo

The page is opened in chromium, which must be installed. Colours are reduced to a palette, for a
clone carries the pictures for good.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from demo import clipocr

OUT = Path(__file__).resolve().parents[1] / "docs/pictures"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH_PX = 1000
WINDOW_PX = f"{WIDTH_PX},1190"
"""As high as the page is down to the end of the comparison."""


def main(demo: Path) -> None:
    page = demo.resolve() / "report/index.html"
    if not page.is_file():
        raise SystemExit(f"{demo} has no report/index.html; make it with: make demo")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is on PATH; install chromium")
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        sheet, report = Path(folder, "sheet.png"), Path(folder, "report.png")
        clipocr("cache", "show", demo / "words.cache", "--out", sheet, "--rows", 4)
        look = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WINDOW_PX}"]
        subprocess.run([browser, *look, f"--screenshot={report}", page.as_uri()], check=True)
        for source in (sheet, report, demo / "distilled/curves.png"):
            write_small(source, OUT / source.name)


def write_small(source: Path, out: Path) -> None:
    picture = Image.open(source).convert("RGB")
    picture.thumbnail((WIDTH_PX, picture.height), Image.Resampling.LANCZOS)
    picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(out, optimize=True)
    print(f"Wrote {out}: {out.stat().st_size:,} bytes, {picture.width}x{picture.height} pixels.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
