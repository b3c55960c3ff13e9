"""clipocr: an offline CLIP feature cache and a lightweight trainer for scene text recognition.

Usage::

    import clipocr

    reader = clipocr.load("run")
    print(reader.read("word.png").text)
"""

from __future__ import annotations

import os as _os
from typing import TYPE_CHECKING as _TYPE_CHECKING

__version__ = "0.1.0"

if _TYPE_CHECKING:
    from .train.deploy.reading import Reader


def load(run: str | _os.PathLike[str], *, device: str = "auto", batch_size: int = 64) -> Reader:
    """Return a reader of cropped words: the student of a run folder or checkpoint.

    ``reader.read(image)`` returns a reading with ``text`` and ``confidence``; ``reader.read_all``
    takes any number of images and reads them in batches. An image is a path, an encoded image, a
    Pillow image or an array of pixels (RGB, uint8).

    Args:
        run: What ``clipocr train`` or ``clipocr pull`` wrote: a folder, or a checkpoint in it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; auto is CUDA if there is one.
        batch_size: Pictures at once.

    Raises:
        CheckpointError: there is none, or it is damaged.
        UsageError: no such device.
    """
    # Only now: the package itself imports nothing heavy.
    from .train.deploy.reading import Reader

    return Reader.load(run, device=device, batch_size=batch_size)
