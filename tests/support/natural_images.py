"""Natural images of tests: noise of several sizes, and one file that is no image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

NUM_IMAGES = 30


def write_images(folder: Path) -> Path:
    """Write 30 images, the last of them broken, some in a folder below."""
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(NUM_IMAGES - 1):
        size = (40 + 7 * i, 300 - 5 * i, 3)
        name = f"more/{i:02}.png" if i % 4 == 0 else f"{i:02}.jpg"
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"not an image")
    return folder
