"""Test sets: LMDBs and image folders, with the samples that count under a test charset."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ...shared.charset import Charset, LabelProblem, LabelRules
from ...shared.data.images import decode_image
from ...shared.data.word_folders import LABEL_FILE_NAMES, WordFolder
from ...shared.data.word_lmdb import WordLmdb, find_named, folders_below
from ...shared.errors import DataError
from ..reading.words import WordPicture


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """One LMDB or image folder, with the samples that count under a test charset."""

    __test__ = False  # For pytest, to which the name looks like a test.

    name: str
    source: WordLmdb | WordFolder
    charset: Charset
    pictures: Sequence[WordPicture] = field(repr=False)
    num_unlabelled: int
    """Samples left out: the test charset leaves nothing of their label, or it is too long."""

    def image(self, key: Any) -> bytes:
        """Return the encoded image of a sample, empty if the set has none.

        Args:
            key: Its number in an LMDB, from 1, or its file in an image folder.

        Raises:
            ImageProblemError: its file cannot be read.
        """
        return self.source.image(key) or b""

    def load(self, picture: WordPicture) -> Image.Image:
        """Return a picture decoded; one that cannot be is an `ImageProblemError`."""
        return decode_image(self.image(picture.image))

    def share(self, rank: int, world_size: int) -> TestSet:
        """Return the part of the set that one of several processes reads."""
        return replace(self, pictures=self.pictures[rank::world_size])

    def digest(self) -> str:
        """Return a digest that another sample, label or file size changes."""
        content = [(some.image, some.adapted_label) for some in self.pictures]
        return hashlib.sha256(repr((content, self.source.num_bytes)).encode()).hexdigest()


def open_test_sets(roots: Sequence[Path], charset: Charset, max_label_length: int) -> list[TestSet]:
    """Open every LMDB and image folder at or below `roots`, in name order, and filter its labels.

    Raises:
        DataError: no test set, one that cannot be used, or one without a label under `charset`.
    """
    return [
        _open_test_set(name, path, charset, max_label_length)
        for name, path in find_named(roots, _find_sources).items()
    ]


def _find_sources(root: Path) -> list[Path]:
    wanted = {"data.mdb", *LABEL_FILE_NAMES}
    found = [folder for folder, files in folders_below(root) if wanted & files]
    if not found:
        raise DataError(
            f"no LMDB (a folder with data.mdb) and no image folder (one with "
            f"{', '.join(LABEL_FILE_NAMES)}) at or below {root}; pass the folder above your test "
            "sets, or make an LMDB with: clipocr data import"
        )
    return found


def _open_test_set(name: str, path: Path, charset: Charset, max_label_length: int) -> TestSet:
    is_lmdb = (path / "data.mdb").exists()
    source = WordLmdb(path) if is_lmdb else WordFolder(path)
    # Folding to ASCII would empty every label of a charset that is not.
    rules = LabelRules(
        keep_unicode=not charset.characters.isascii(), max_label_length=max_label_length
    )
    pictures = []
    for key, raw in source.labels():
        label = rules.apply(raw or "")
        if not isinstance(label, LabelProblem) and (adapted := charset.adapt(label)):
            pictures.append(
                WordPicture(image=key, set_name=name, label=raw or "", adapted_label=adapted)
            )
    if not pictures:
        raise DataError(
            f"{path}: no label is left under test charset {charset.name}; "
            "pass the charset its labels are written in"
        )
    return TestSet(
        name=name,
        source=source,
        charset=charset,
        pictures=pictures,
        num_unlabelled=len(source) - len(pictures),
    )
