"""Short names of readers, for the columns of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..deploy.safetensors_file import MODEL_NAME
from ..loop.checkpoint import BEST_NAME, LAST_NAME
from ..reading.readers import PictureBatchReader


def short_names(readers: Sequence[PictureBatchReader]) -> list[str]:
    """Return a name for each reader that no other has.

    A run is called by its folder and any other file by its name, with as many folders above as tell
    it from the others. Two checkpoints of a folder are called by folder and file. What is there
    twice is numbered.
    """
    files = [reader.file and reader.file.resolve() for reader in readers]
    num_of_run = Counter(map(_run_of, {file for file in files if file is not None}))
    paths: list[tuple[str, ...]] = []
    names: dict[tuple[str, ...], tuple[str, ...]] = {}
    for reader, file in zip(readers, files, strict=True):
        is_alone = file is None or num_of_run[_run_of(file)] == 1
        parts = (reader.name,) if file is None else (_run_of(file) if is_alone else file).parts
        paths.append(parts)
        names[parts] = parts[-1:] if is_alone else parts[-2:]
    is_longer = True
    while is_longer:
        counts, is_longer = Counter(names.values()), False
        for path, name in names.items():
            if counts[name] > 1 and len(name) < len(path):
                names[path], is_longer = path[-len(name) - 1 :], True
    return _numbered(["/".join(names[path]) for path in paths])


def _run_of(file: Path) -> Path:
    return file.parent if file.name in (BEST_NAME, LAST_NAME, MODEL_NAME) else file


def _numbered(names: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return numbered
