"""Reading a feature cache. Only what a commit record vouches for is ever returned."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..charset import Charset
from ..errors import MEND, CacheCorruptError, CacheMismatchError, CacheMissingError, UsageError
from .codecs.codecs import FeatureCodec, feature_codec
from .records import decode_record, encode_record
from .remote import open_storage
from .schema import (
    COMMITS_FOLDER,
    FORMAT_VERSION,
    MANIFEST_NAME,
    REJECTION_REASONS,
    SEAL_NAME,
    CacheSpec,
    Commit,
    Manifest,
    TextSpec,
    strings_layouts,
)
from .shards import Array, ArrayLayout, ArrayReader, decode_strings
from .storage import FileRecord, LocalStorage, ReadStorage


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """What the teacher says of every label under one charset, in memory.

    Shapes: U unique strings, M trie nodes, L label positions, D text width, E joint width.
    """

    spec: TextSpec
    of_label: npt.NDArray[np.int32]
    """Label id -> text id, -1 where the charset leaves nothing. Shape: (labels,)."""
    strings: list[str]
    """The U training labels."""
    nodes: npt.NDArray[np.int32]
    """Feature row of each label position: characters, EOT, then padding (-1 without pads).
    Shape: (U, L)."""
    taps: Mapping[int, npt.NDArray[np.float16]]
    """Text residual stream after each tapped block. Shape: (M, D) each."""
    eot: npt.NDArray[np.float16]
    """Projected EOT embedding. Shape: (U, E)."""


class FeatureCache:
    """An opened cache; cheap to open, safe to share between threads."""

    def __init__(self, storage: ReadStorage, manifest: Manifest, commits: dict[str, Commit]):
        self.storage = storage
        self.manifest = manifest
        self.commits = commits
        self._readers: dict[tuple[int, str], ArrayReader] = {}
        self._codecs: dict[int, FeatureCodec] = {}

    @classmethod
    def open(
        cls, place: str | Path, *, cache_dir: Path | None = None, max_cache_bytes: int = 0
    ) -> FeatureCache:
        """Open the cache in a folder or at an address, sealed or half built.

        Args:
            place: Folder, or an fsspec address such as ``s3://bucket/words.cache``.
            cache_dir: Where copies of what is read from an address are kept; see `open_storage`.
            max_cache_bytes: Most bytes of such copies; 0 keeps none.

        Raises:
            CacheMissingError: there is none.
            CacheMismatchError: it was written by another version of the format.
            CacheCorruptError: one of its records is damaged.
            CacheUnavailableError: the address does not answer.
            UsageError: no file system is known for the address.
        """
        storage = open_storage(place, cache_dir=cache_dir, max_cache_bytes=max_cache_bytes)
        manifest = read_manifest(storage)
        if manifest is None:
            folder = place if isinstance(storage, LocalStorage) else "FOLDER"
            raise CacheMissingError(
                f"{place} is not a feature cache (no {MANIFEST_NAME}); "
                f"make one with: clipocr cache build --data ROOT --out {folder}"
            )
        return cls(storage, manifest, read_commits(storage, manifest, through_seal=True))

    @property
    def folder(self) -> LocalStorage:
        """The storage, to write to.

        Raises:
            UsageError: the cache is at an address, which is only ever read.
        """
        if not isinstance(self.storage, LocalStorage):
            raise UsageError(
                f"{self.storage} can only be read; bring it into a folder with: "
                f"clipocr cache copy {self.storage} FOLDER"
            )
        return self.storage

    @property
    def spec(self) -> CacheSpec:
        """The fingerprint."""
        return self.manifest.spec

    @property
    def is_sealed(self) -> bool:
        """Whether everything that was planned is there."""
        return self.storage.exists(SEAL_NAME)

    @property
    def num_views(self) -> int:
        """How many views have a committed unit, counted from view 0 without a gap."""
        return next(v for v in itertools.count() if not self.units(v))

    def units(self, view_idx: int = 0) -> list[int]:
        """Return the committed units of a view, in order."""
        return [u for u in range(self.spec.num_units) if unit_name(view_idx, u) in self.commits]

    def num_bytes(self) -> int:
        """Return the size of all committed files."""
        commits = [self.manifest.files, *(commit.files for commit in self.commits.values())]
        return sum(file.num_bytes for files in commits for file in files.values())

    def unit(self, view_idx: int, unit_idx: int) -> Commit:
        """Return a unit's commit record.

        Raises:
            CacheMissingError: the unit is not built.
        """
        try:
            return self.commits[unit_name(view_idx, unit_idx)]
        except KeyError:
            raise CacheMissingError(
                f"{self.storage} holds no unit {unit_idx} of view {view_idx}; "
                "finish it with the cache build command that began it"
            ) from None

    def is_committed(self, view_idx: int, unit_idx: int) -> bool:
        """Return whether a unit is committed by now, by whatever process."""
        name = unit_name(view_idx, unit_idx)
        return name in self.commits or self.storage.exists(f"{COMMITS_FOLDER}/{name}.json")

    def publish(self, commit: Commit) -> None:
        """Make a unit or a text table part of the cache; its files must be published already."""
        self.folder.write(commit.record_name, encode_record(commit.to_json()))
        self.commits[commit.name] = commit

    def view_reader(self, view_idx: int, array: str) -> ArrayReader:
        """Return the reader of ``pixels`` or ``block{i}`` of a view.

        Raises:
            CacheMismatchError: this cache has no such array.
        """
        key = (view_idx, array)
        if key not in self._readers:
            layouts = self.spec.image_layouts(view_idx)
            if array not in layouts:
                raise CacheMismatchError(
                    f"{self.storage} has no image array {array!r}, only {', '.join(layouts)}"
                )
            files: dict[str, FileRecord] = {}
            for unit_idx in self.units(view_idx):
                files.update(self.unit(view_idx, unit_idx).files)
            self._readers[key] = ArrayReader(self.storage, layouts[array], files)
        return self._readers[key]

    def tap_codec(self, tap: int) -> FeatureCodec:
        """Return the codec of an image tap, with its table if it works by one."""
        if tap not in self._codecs:
            layout = self.manifest.codec_layouts().get(f"block{tap}")
            files = self.manifest.files
            table = ArrayReader(self.storage, layout, files).all() if layout else None
            self._codecs[tap] = feature_codec(self.spec.tap_codecs[tap], table)
        return self._codecs[tap]

    def rows(self, unit_idx: int) -> dict[str, Array]:
        """Return ``source``, ``lmdb_index`` and ``label`` of each row of a unit."""
        start, stop = self.spec.unit_range(unit_idx)
        return {key: reader.rows(start, stop) for key, reader in self._row_readers.items()}

    @cached_property
    def _row_readers(self) -> dict[str, ArrayReader]:
        return {
            key: ArrayReader(self.storage, layout, self.manifest.files)
            for key, layout in self.spec.row_layouts().items()
        }

    def labels(self) -> list[str]:
        """Return the unique labels that rows point into, case and punctuation intact."""
        return self._strings(self.manifest.label_layouts(), self.manifest.files)

    def rejected(self) -> list[tuple[str, int, str]]:
        """Return (source, LMDB index, reason) of each sample that did not become a row."""
        source, index, reason = (
            ArrayReader(self.storage, layout, self.manifest.files).all()
            for layout in self.manifest.rejected_layouts().values()
        )
        return [
            (self.spec.sources[s].name, int(i), REJECTION_REASONS[r])
            for s, i, r in zip(source, index, reason, strict=True)
        ]

    def text_specs(self) -> list[TextSpec]:
        """Return the text tables there are."""
        return [commit.text for commit in self.commits.values() if commit.text]

    def require_text(
        self, charset: Charset, max_label_length: int, tokens: str = "char"
    ) -> TextSpec:
        """Return the text table of a charset, long enough for `max_label_length`.

        `tokens` is ``char`` or ``word``.

        Raises:
            CacheMismatchError: there is none.
        """
        specs = self.text_specs()
        for spec in specs:
            if (spec.tokens, spec.characters) == (tokens, charset.characters):
                if spec.max_label_length < max_label_length:
                    raise CacheMismatchError(
                        f"{self.storage}: text table {spec.name} holds labels of up to "
                        f"{spec.max_label_length} characters, this run needs {max_label_length}; "
                        f"pass --max-label-length {spec.max_label_length}, or build another cache "
                        f"with cache build --max-label-length {max_label_length}"
                    )
                return spec
        held = ", ".join(
            f"{s.charset_name} ({len(s.characters)} characters, {s.tokens} tokens)" for s in specs
        )
        raise CacheMismatchError(
            f"{self.storage} has text for charset {held or 'none yet'}, this run needs "
            f"{charset.name} ({len(charset.characters)} characters, {tokens} tokens). Pass what it "
            f"has, or add a table with: clipocr cache text {self.storage} --charset {charset.name}"
            f" --tokens {tokens}"
        )

    def require_taps(self, kind: str, wanted: Sequence[int]) -> None:
        """Check that the ``image`` or ``text`` taps a run wants are there.

        Raises:
            CacheMismatchError: one is not.
        """
        teacher = self.spec.teacher
        held = teacher.image_taps if kind == "image" else teacher.text_taps
        missing = [tap for tap in wanted if tap not in held]
        if missing:
            raise CacheMismatchError(
                f"{self.storage} holds {kind} taps {held}, this run needs {tuple(wanted)}; pass "
                f"--{kind}-taps {','.join(map(str, held))}, or build a cache with: "
                f"clipocr cache build --{kind}-taps {','.join(map(str, wanted))} ..."
            )

    def text_table(self, name: str, taps: Sequence[int] | None = None) -> TextTable:
        """Read a text table into memory, every chunk checked.

        Args:
            name: Of the table, e.g. ``char-36``.
            taps: Text blocks to read; None: all there are.
        """
        commit = self.commits[f"text/{name}"]
        spec = commit.text
        assert spec is not None, commit

        def read(layout: ArrayLayout) -> Array:
            return ArrayReader(self.storage, layout, commit.files).all()

        layouts = spec.layouts(self.spec.teacher, self.manifest.num_labels)
        taps = self.spec.teacher.text_taps if taps is None else taps
        return TextTable(
            spec=spec,
            of_label=read(layouts["of_label"]),
            strings=self._strings(
                strings_layouts(f"text/{name}", spec.num_strings, spec.num_string_bytes),
                commit.files,
            ),
            nodes=read(layouts["nodes"]),
            taps={tap: read(layouts[f"block{tap}"]) for tap in taps},
            eot=read(layouts["eot"]),
        )

    def _strings(
        self, layouts: Mapping[str, ArrayLayout], files: Mapping[str, FileRecord]
    ) -> list[str]:
        utf8, offsets = (ArrayReader(self.storage, a, files).all() for a in layouts.values())
        return decode_strings(utf8, offsets)


def unit_name(view_idx: int, unit_idx: int) -> str:
    """Return the commit name of a unit."""
    return f"view{view_idx}/unit-{unit_idx:05d}"


def read_manifest(storage: ReadStorage) -> Manifest | None:
    """Return the manifest, or None if no cache was begun here.

    Raises:
        CacheMismatchError: written by another version of the format.
        CacheCorruptError: damaged.
    """
    if not storage.exists(MANIFEST_NAME):
        return None
    data = decode_record(storage.read(MANIFEST_NAME), f"{storage}/{MANIFEST_NAME}")
    if data.get("format") != "clipocr-cache":
        raise CacheCorruptError(
            f"{storage}/{MANIFEST_NAME} is another record, not a manifest. {MEND}"
        )
    version = data["spec"].get("format_version")
    if version != FORMAT_VERSION:
        raise CacheMismatchError(
            f"{storage} has format version {version}, this clipocr reads {FORMAT_VERSION}; "
            "build it anew, or use the clipocr version that wrote it"
        )
    return Manifest.from_json(data)


def publish_seal(storage: LocalStorage, manifest: Manifest) -> dict[str, Commit]:
    """Publish all commit records in one, so that readers open one file; return them.

    Safe beside other processes that publish: whoever seals last has seen every record there is.
    """
    # A builder killed in just this left a file that no unit's builder would come to sweep.
    storage.sweep()
    commits = read_commits(storage, manifest, through_seal=False)
    while True:
        records = {name: commit.to_json() for name, commit in sorted(commits.items())}
        # An older seal, of fewer views or charsets, is true until this one takes its place.
        storage.ensure(SEAL_NAME, encode_record({"commits": records}))
        sealed, commits = commits, read_commits(storage, manifest, through_seal=False)
        if commits == sealed:
            return commits


def read_commits(
    storage: ReadStorage, manifest: Manifest, *, through_seal: bool
) -> dict[str, Commit]:
    """Return commit records by name.

    Args:
        storage: Of the cache.
        manifest: Of the cache; records of another cache are refused.
        through_seal: Take those of the seal, if there is one, in one read; a reader is content
            with them. A builder wants what is there by now, record by record.
    """
    if through_seal and storage.exists(SEAL_NAME):
        seal = decode_record(storage.read(SEAL_NAME), f"{storage}/{SEAL_NAME}")
        sealed = seal.get("commits", {"seal": seal})
        records = [(SEAL_NAME, f"{COMMITS_FOLDER}/{name}.json", sealed[name]) for name in sealed]
    else:
        records = [
            (name, name, decode_record(storage.read(name), f"{storage}/{name}"))
            for name in storage.names(COMMITS_FOLDER)
        ]
    commits = {}
    for file, record_name, data in records:
        try:
            commit = Commit.from_json(data)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise CacheCorruptError(
                f"{storage}/{file} is another record than its name says. {MEND}"
            ) from None
        if (commit.cache_id, commit.record_name) != (manifest.cache_id, record_name):
            raise CacheCorruptError(
                f"{storage}/{file} holds the record of {commit.name} of cache {commit.cache_id}, "
                f"expected {record_name} of {manifest.cache_id}. {MEND}"
            )
        commits[commit.name] = commit
    return commits
