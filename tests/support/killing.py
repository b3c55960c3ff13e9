"""A build that is killed in the midst of what it publishes, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clipocr.shared.cache import storage


def killed_after(num_files: int, work: Callable[[], object]) -> None:
    """Do work that is interrupted when so many files have their final names."""
    rename, left = storage.rename, [num_files]

    def fails(partial: Path, final: Path) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        rename(partial, final)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "rename", fails)
        with pytest.raises(KeyboardInterrupt):
            work()
