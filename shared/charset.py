"""Charsets and the rules that turn a raw label into a training label.

The official filter works in a fixed order (CLIP-OCR and PARSeq, ``strhub/data/dataset.py``,
``_preprocess_labels``): drop whitespace, NFKD to ASCII, drop the sample if the label is too long,
and only then lower-case, delete unsupported characters and drop the sample if nothing is left.
The first three do not depend on the charset, so they decide which rows a cache holds
(`LabelRules`); the last three are a training choice and live in `Charset.adapt`.

What is not reduced to ASCII is in Unicode's composed form (NFC) everywhere: labels, charsets and
what is read. A letter with an accent is then one character, however its file was written.
"""

from __future__ import annotations

import dataclasses
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from .errors import UsageError
from .options import Options, option

_CHARSETS = {
    "36": string.digits + string.ascii_lowercase,
    "62": string.digits + string.ascii_lowercase + string.ascii_uppercase,
    "94": string.digits + string.ascii_lowercase + string.ascii_uppercase + string.punctuation,
}
"""Those of the STR benchmarks: lower-case alphanumeric, mixed case, printable ASCII."""


class LabelProblem(Enum):
    """Why a sample's label keeps it out of a cache."""

    EMPTY = "empty label"
    TOO_LONG = "label too long"
    NOT_UTF8 = "label not UTF-8"


@dataclass(frozen=True, kw_only=True)
class LabelRules(Options):
    """The charset-independent part of the label filter; decides which samples become rows."""

    max_label_length: int = option(25, minimum=1, help="Longest label to keep, in characters.")
    keep_unicode: bool = option(
        False,
        help="Keep characters beyond ASCII. Without it, accents and non-Latin letters are dropped.",
    )

    def apply(self, raw_label: str) -> str | LabelProblem:
        """Return the label to keep (case and punctuation intact), or why it is not kept."""
        label = "".join(raw_label.split())
        if self.keep_unicode:
            label = unicodedata.normalize("NFC", label)
        else:
            label = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
        if len(label) > self.max_label_length:
            return LabelProblem.TOO_LONG
        return label or LabelProblem.EMPTY

    def loses_letters(self, raw_label: str) -> bool:
        """Whether `apply` drops letters that have no ASCII form: another script's, not accents."""
        if self.keep_unicode or raw_label.isascii():
            return False
        decomposed = unicodedata.normalize("NFKD", raw_label)
        return any(c.isalpha() and not c.isascii() for c in decomposed)


def counted_characters(counts: Counter[str], most: int = 20) -> str:
    """Return characters with their counts, the most frequent first: ``é 12  ' 3``."""
    frequent = counts.most_common(most)
    listed = (
        f"{c if c.isprintable() and not c.isspace() else f'U+{ord(c):04X}'} {n:,}"
        for c, n in frequent
    )
    rest = len(counts) - len(frequent)
    return "  ".join([*listed, *([f"and {rest:,} others"] if rest else [])])


CHARSET_HELP = "36 (0-9, a-z), 62 (also A-Z), 94 (also punctuation) or a text file"


def charset_option(help: str, *, is_required: bool = False) -> Any:
    """Declare a field of an `Options` class as the option ``--charset``, by default 36."""
    default = dataclasses.MISSING if is_required else Charset.load("36")
    return option(default, parse=Charset.load, unparse=lambda charset: charset.name, help=help)


@dataclass(frozen=True, kw_only=True)
class Charset:
    """The characters a student can write."""

    name: str
    """``36``, ``62``, ``94``, or the stem of the file it was read from."""
    characters: str
    """Each character once; its position is its class index less one (class 0 is EOS)."""

    def __post_init__(self) -> None:
        if not self.characters:
            raise UsageError(f"charset {self.name!r} is empty")
        if len(set(self.characters)) != len(self.characters):
            repeated = sorted({c for c in self.characters if self.characters.count(c) > 1})
            raise UsageError(f"charset {self.name!r} repeats {''.join(repeated)!r}")
        if any(c.isspace() for c in self.characters):
            raise UsageError(f"charset {self.name!r} holds whitespace; labels never keep any")

    @classmethod
    def load(cls, name_or_path: str) -> Charset:
        """Return a benchmark charset by name, or read one from a UTF-8 text file.

        In a file every character counts except whitespace, so one line or one character a line
        are the same charset.
        """
        if name_or_path in _CHARSETS:
            return cls(name=name_or_path, characters=_CHARSETS[name_or_path])
        path = Path(name_or_path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(
                f"charset {name_or_path!r} is neither one of {', '.join(_CHARSETS)} "
                f"nor a UTF-8 text file of characters ({e})"
            ) from e
        characters = "".join(unicodedata.normalize("NFC", text).split())
        return cls(name=path.stem, characters=characters)

    def adapt(self, label: str) -> str:
        """Fold `label` to this charset's case if it has only one, and delete all it cannot write.

        This is PARSeq's CharsetAdapter; an empty result means the sample is not usable with this
        charset.
        """
        return "".join(c for c in self._folded(label) if c in self.characters)

    def describe_dropped(self, labels: Iterable[str]) -> str:
        """Say which characters of unique labels are deleted, and how often; nothing if none are."""
        deleted: Counter[str] = Counter()
        num_labels = num_shortened = num_emptied = 0
        for label in labels:
            dropped = [c for c in self._folded(label) if c not in self.characters]
            deleted.update(dropped)
            num_labels += 1
            num_shortened += bool(dropped)
            num_emptied += not self.adapt(label)
        if not num_shortened:
            return ""
        emptied = f", and leaves nothing of {num_emptied:,}" if num_emptied else ""
        return (
            f"charset {self.name} deletes characters of {num_shortened:,} of {num_labels:,} "
            f"labels{emptied}: {counted_characters(deleted)}"
        )

    def _folded(self, label: str) -> str:
        if self.characters == self.characters.lower():
            label = label.lower()
        elif self.characters == self.characters.upper():
            label = label.upper()
        # What a reader returns may be in another form, and so may a letter in another case. Under
        # an ASCII charset a letter with an accent apart keeps the letter, as in PARSeq.
        return label if self.characters.isascii() else unicodedata.normalize("NFC", label)
