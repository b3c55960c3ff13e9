"""The clipocr command, with the model of `small_clip.py` among those that open_clip knows."""

from __future__ import annotations

from clipocr.cli import main
from small_clip import register

if __name__ == "__main__":
    register()
    main()
