"""Test sets: LMDBs and image folders, with the samples that count under a test charset."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ...shared.charset import Charset, LabelProblem, LabelRules
from ...shared.data.images import decode_image
from ...shared.data.label_formats import LABEL_FILE_NAMES, LABEL_FILES
from ...shared.data.word_folders import WordFolder
from ...shared.data.word_lmdb import WordLmdb, find_named, folders_with
from ...shared.errors import DataError
from ..reading.words import WordPicture
from .protocol import set_order


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
        """Return an encoded image by its number in an LMDB, or its file in an image folder.

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
    """Open every LMDB and image folder at or below `roots`, and filter its labels.

    Benchmarks come first, in the field's order, then other sets by name.

    What is no test set after all, or has no label under `charset`, is left out and named on stderr.

    Raises:
        DataError: nothing is left, or an LMDB is damaged.
    """
    test_sets, left_out = [], []
    found = find_named(roots, _find_sources)
    for name in sorted(found, key=set_order):
        path = found[name]
        # A damaged LMDB ends it: a mean without a set that was meant to count is a wrong one.
        source = WordLmdb(path).opened() if (path / "data.mdb").exists() else None
        try:
            test_sets.append(
                _open_test_set(name, source or WordFolder(path), charset, max_label_length)
            )
        except DataError as e:
            left_out.append(str(e))
    if not test_sets:
        raise DataError("; ".join(left_out))
    for reason in left_out:
        tqdm.write(f"Left out: {reason}.", file=sys.stderr)
    return test_sets


def _find_sources(root: Path) -> list[Path]:
    found = folders_with({"data.mdb", *LABEL_FILE_NAMES}, root)
    if not found:
        raise DataError(
            f"no LMDB (a folder with data.mdb) and no image folder (one with "
            f"{LABEL_FILES}) at or below {root}; pass the folder above your test "
            "sets, or make an LMDB with: clipocr data import"
        )
    return found


def _open_test_set(
    name: str, source: WordLmdb | WordFolder, charset: Charset, max_label_length: int
) -> TestSet:
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
            f"{source.path}: no label is left under test charset {charset.name}; "
            "pass the charset its labels are written in"
        )
    return TestSet(
        name=name,
        source=source,
        charset=charset,
        pictures=pictures,
        num_unlabelled=len(source) - len(pictures),
    )
