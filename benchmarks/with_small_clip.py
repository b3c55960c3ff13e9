"""The clipocr command, with the model of `small_clip.py` among those that open_clip knows."""

from __future__ import annotations

# Workers of `cache build` import this file too: what they do not need is imported below.
if __name__ == "__main__":
    from clipocr.cli import main
    from small_clip import register

    register()
    main()
