"""Where encoded pictures come from, by number. Imports no torch: it travels to worker processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np

from ...shared.data.folders import files_below
from ...shared.data.images import IMAGE_SUFFIXES
from ...shared.errors import DataError
from ...shared.hashing import mix


class PictureSource(Protocol):
    """What yields encoded pictures by number, such as `WordLmdb`."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> bytes | None:
        """Return the encoded picture of an index, counted from 1; None: there is none."""


class ImageFolder:
    """Some images at or below a folder, drawn by a seed."""

    def __init__(self, root: Path, count: int, seed: int) -> None:
        """Find the images.

        Args:
            root: The folder.
            count: Most images to take.
            seed: Decides which.

        Raises:
            DataError: there is none, or a folder cannot be listed.
        """
        self.root = root
        found = [os.fspath(path.relative_to(root)) for path in files_below(root, IMAGE_SUFFIXES)]
        if not found:
            raise DataError(
                f"{root} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); pass a folder with "
                "natural images, such as COCO's train2017"
            )
        drawn = np.argsort(mix(seed, np.arange(len(found))), kind="stable")[:count]
        self.names: list[str] = [found[i] for i in sorted(drawn.tolist())]
        """Paths below `root`."""

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> bytes | None:
        """Return a file's bytes; None if it cannot be read."""
        try:
            encoded: bytes = (self.root / self.names[index - 1]).read_bytes()
        except OSError:
            return None
        return encoded
