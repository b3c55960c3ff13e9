"""Reading a feature cache. Only bytes whose checksum a record states are ever returned."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..charset import Charset
from ..errors import MEND, CacheCorruptError, CacheMismatchError, CacheMissingError, UsageError
from ..geometry import ViewSize
from . import names
from .codecs.codecs import FeatureCodec, feature_codec
from .json_record import decode_record, encode_record
from .names import MANIFEST_NAME, SEAL_NAME
from .records import (
    REJECTION_REASONS,
    Committed,
    Manifest,
    Record,
    UnitRecord,
    WeightsRecord,
    parse_record,
)
from .remote import open_storage
from .row_table import RowTable
from .shards import Array, ArrayLayout, ArrayReader
from .spec import FORMAT_VERSION, CacheSpec
from .storage import FileRecord, LocalStorage, ReadStorage
from .strings import decode_strings
from .tensor_file import TensorFile
from .text_spec import TextSpec, TextTable


class FeatureCache:
    """An opened cache; cheap to open, safe to share between threads."""

    def __init__(self, storage: ReadStorage, manifest: Manifest, committed: Committed) -> None:
        self.storage = storage
        self.manifest = manifest
        self.committed = committed
        self._readers: dict[tuple[int, str], ArrayReader] = {}
        self._codecs: dict[str, FeatureCodec] = {}
        self._open_pool: Callable[[], FeatureCache] | None = None

    @classmethod
    def open(
        cls, place: str | Path, *, cache_dir: Path | None = None, max_cache_bytes: int = 0
    ) -> FeatureCache:
        """Open the cache in a folder or at an address, sealed or half built; see `open_storage`."""
        storage = open_storage(place, cache_dir=cache_dir, max_cache_bytes=max_cache_bytes)
        manifest = read_manifest(storage)
        if manifest is None:
            folder = place if isinstance(storage, LocalStorage) else "FOLDER"
            raise CacheMissingError(
                f"{place} is not a feature cache (no {MANIFEST_NAME}); "
                f"make one with: clipocr cache build --data ROOT --out {folder}"
            )
        cache = cls(storage, manifest, read_committed(storage, manifest, through_seal=True))
        cache._open_pool = partial(
            cls.open, pool_of(place), cache_dir=cache_dir, max_cache_bytes=max_cache_bytes
        )
        return cache

    @cached_property
    def pool(self) -> FeatureCache | None:
        """The pool of natural images, itself a cache, of one view and one array; None: no pool."""
        has_one = self.storage.exists(f"{names.POOL_FOLDER}/{MANIFEST_NAME}")
        return self._open_pool() if has_one and self._open_pool else None

    def require_pool(self, count: int) -> tuple[FeatureCache, npt.NDArray[np.int64]]:
        """Return the pool, and which of its rows are images that could be read.

        Raises:
            CacheMismatchError: there is no finished pool of at least `count` images.
        """
        pool, advice = self.pool, self.command_that_adds("pool", "--images FOLDER")
        if pool is None:
            raise CacheMismatchError(
                f"{self.storage} has no pool of natural images, this run needs one; add it with: "
                f"{advice}"
            )
        if not pool.is_sealed:
            raise CacheMismatchError(
                f"the pool of {self.storage} is not finished; run this again: {advice}"
            )
        bad = [list(pool.unit(0, unit_idx).bad_rows) for unit_idx in pool.units()]
        good = np.setdiff1d(np.arange(pool.spec.num_rows), np.concatenate([[], *bad]))
        if len(good) < count:
            raise CacheMismatchError(
                f"the pool of {self.storage} has {len(good):,} images that could be read, this run "
                f"draws {count:,} different ones at once; pass a smaller --batch-size, or remove "
                f"{pool.storage} and make a larger one: {advice} --count {count}"
            )
        return pool, good

    def pool_rows(self, count: int) -> tuple[RowTable, npt.NDArray[np.int64]]:
        """Open the tokens of the pool's images, every chunk checked; see `require_pool`."""
        pool, good = self.require_pool(count)
        return pool.image_reader(0, pool.spec.images[0].name).row_table(), good

    def command_that_adds(self, what: str, options: str = "") -> str:
        """Return the command, for messages, that adds something to the cache, or to a copy of it.

        Args:
            what: A command of ``clipocr cache``, such as ``text``.
            options: Of it.
        """
        if isinstance(self.storage, LocalStorage):
            return f"clipocr cache {what} {self.storage} {options}".rstrip()
        copied = f"clipocr cache copy {self.storage} COPY"
        return f"{copied} && clipocr cache {what} COPY {options}".rstrip()

    @property
    def folder(self) -> LocalStorage:
        """The storage, to write to."""
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
        return self.committed.units_of(view_idx)

    def first_rows(self, fraction: float) -> dict[int, int]:
        """Return the first `fraction` of the rows in committed units of view 0, at least one.

        Rows were permuted at build, so any of them are a fair sample.

        Returns:
            By unit, how many of its rows, from the first on.

        Raises:
            CacheMissingError: no unit is committed yet.
        """
        sizes = {unit_idx: self.spec.unit_size(unit_idx) for unit_idx in self.units()}
        if not sizes:
            raise CacheMissingError(
                f"{self.storage} has no finished unit yet; run its cache build command again"
            )
        num_left, taken = max(1, round(fraction * sum(sizes.values()))), {}
        for unit_idx, num_rows in sizes.items():
            if num_left > 0:
                taken[unit_idx] = min(num_rows, num_left)
            num_left -= num_rows
        return taken

    def num_views_of(self, units: Iterable[int]) -> int:
        """Return how many views have all of some units, counted from view 0 without a gap."""
        wanted = set(units)
        assert wanted
        return next(v for v in itertools.count() if not wanted <= set(self.units(v)))

    def num_bytes(self) -> int:
        """Return the size of all committed files."""
        files = [self.manifest.files, *(record.files for record in self.committed)]
        return sum(file.num_bytes for some in files for file in some.values())

    def unit(self, view_idx: int, unit_idx: int) -> UnitRecord:
        """Return a unit's record."""
        if (view_idx, unit_idx) not in self.committed.units:
            raise CacheMissingError(
                f"{self.storage} holds no unit {unit_idx} of view {view_idx}; "
                "finish it with the cache build command that began it"
            )
        return self.committed.units[view_idx, unit_idx]

    def is_committed(self, view_idx: int, unit_idx: int) -> bool:
        """Return whether a unit is committed by now, by whatever process."""
        file = names.record_file(names.unit_name(view_idx, unit_idx))
        return (view_idx, unit_idx) in self.committed.units or self.storage.exists(file)

    def publish(self, record: Record) -> None:
        """Make a unit, a text table or the weights part of the cache; the files must be there."""
        self.folder.write(names.record_file(record.name), encode_record(record))
        self.committed.add(record)

    def image_reader(self, view_idx: int, array: str) -> ArrayReader:
        """Return the reader of the pixels or of an image array of a view."""
        key = (view_idx, array)
        if key not in self._readers:
            layouts = self.spec.image_layouts(view_idx)
            if array not in layouts:
                raise CacheMismatchError(
                    f"{self.storage} has no image array {array!r}, only {', '.join(layouts)}"
                )
            units = [self.committed.units[view_idx, unit_idx] for unit_idx in self.units(view_idx)]
            files = {name: file for record in units for name, file in record.files.items()}
            self._readers[key] = ArrayReader(self.storage, layouts[array], files)
        return self._readers[key]

    def codec(self, array: str) -> FeatureCodec:
        """Return the codec of an image array, with its table if it works by one."""
        if array not in self._codecs:
            layout = self.manifest.codec_layouts().get(array)
            files = self.manifest.files
            table = ArrayReader(self.storage, layout, files).all() if layout else None
            self._codecs[array] = feature_codec(self.spec.image(array).codec, table)
        return self._codecs[array]

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
        return [record.spec for _, record in sorted(self.committed.texts.items())]

    def require_text(
        self,
        charset: Charset,
        max_label_length: int,
        tokenizer: str = "char",
        arrays: Sequence[str] = (),
        template: str = "",
        num_taps: int | None = None,
    ) -> TextSpec:
        """Return the text table of a charset, long enough for `max_label_length`.

        It has to hold at least the `arrays` of that name. `num_taps` as in `require_images`.
        """
        specs = self.text_specs()
        for spec in specs:
            if (spec.tokenizer, spec.template, spec.characters) == (
                *(tokenizer, template),
                charset.characters,
            ):
                if spec.max_label_length < max_label_length:
                    raise CacheMismatchError(
                        f"{self.storage}: text table {spec.name} holds labels of up to "
                        f"{spec.max_label_length} characters, this run needs {max_label_length}; "
                        f"pass --max-label-length {spec.max_label_length}, or build another cache "
                        f"with cache build --max-label-length {max_label_length}"
                    )
                self._require_arrays("text", spec.array_names, arrays, num_taps)
                return spec
        held = ", ".join(
            f"{s.charset_name} ({len(s.characters)} characters, tokenizer {s.tokenizer}"
            + (f" {s.template!r})" if s.template else ")")
            for s in specs
        )
        options = f"--charset {charset.name} --tokenizer {tokenizer}"
        if template:
            options += f" --template {shlex.quote(template)}"
        raise CacheMismatchError(
            f"{self.storage} has text for charset {held or 'none yet'}, this run needs "
            f"{charset.name} ({len(charset.characters)} characters, tokenizer {tokenizer}"
            f"{' ' + repr(template) if template else ''}). Pass "
            f"what it has, or add a table with: {self.command_that_adds('text', options)}"
        )

    def require_images(
        self, arrays: Sequence[str], pixels: bool = False, num_taps: int | None = None
    ) -> None:
        """Check that the image arrays a run wants are there, and the views themselves.

        Args:
            arrays: Their names.
            pixels: Whether the views are wanted.
            num_taps: How many blocks the run's option for them takes; None: it has none.
        """
        self._require_arrays("image", self.spec.image_names, arrays, num_taps)
        if pixels and not self.spec.pixels:
            why = " (it was built with --no-pixels)" if self.spec.is_of_lmdbs else ""
            raise CacheMismatchError(
                f"{self.storage} holds no pictures{why}, and they are needed here; build a "
                "cache that does: clipocr cache build --data ROOT --out FOLDER --pixels ..."
            )

    def require_view_size(self, view_px: tuple[int, int]) -> None:
        """Check that views are of the size that a run wants."""
        have, want = self.spec.view.view_px, ViewSize(*view_px)
        if have != want:
            raise CacheMismatchError(
                f"{self.storage} holds views of {have}, this run needs {want}; build a cache of "
                f"those: clipocr cache build --view-size {want} --data ROOT --out FOLDER ..."
            )

    def _require_arrays(
        self, kind: str, held: Sequence[str], wanted: Sequence[str], num_taps: int | None
    ) -> None:
        missing = [array for array in wanted if array not in held]
        if not missing:
            return
        if not held:
            raise CacheMismatchError(
                f"{self.storage} holds no {kind} arrays, this run needs {', '.join(wanted)}; train "
                "on a cache of pictures: clipocr cache build --data ROOT ..."
            )
        wanted_taps = ",".join(
            str(names.block_of(array) or array)
            for array in wanted
            if names.block_of(array) or array == names.FINAL
        )
        blocks = [block for array in held if (block := names.block_of(array))]
        instead = ""
        if num_taps is not None and len(blocks) >= num_taps:
            # Of many the last of each part, as 3, 6, 9 are of the nine blocks up to there.
            some = [blocks[len(blocks) * (i + 1) // num_taps - 1] for i in range(num_taps)]
            instead = f"pass --{kind}-taps {','.join(map(str, some))}, or "
        raise CacheMismatchError(
            f"{self.storage} holds {kind} arrays {', '.join(held)}, this run needs "
            f"{', '.join(wanted)}; {instead}build a cache with: "
            f"clipocr cache build --{kind}-taps {wanted_taps} ..."
        )

    def text_table(self, name: str, arrays: Sequence[str] | None = None) -> TextTable:
        """Open a text table, every chunk checked. `arrays` None: all of them."""
        record = self.committed.texts[name]
        spec = record.spec

        def reader(layout: ArrayLayout) -> ArrayReader:
            return ArrayReader(self.storage, layout, record.files)

        layouts = spec.layouts(self.manifest.num_labels)
        wanted = spec.array_names if arrays is None else arrays
        return TextTable(
            spec=spec,
            of_label=reader(layouts["of_label"]).all(),
            strings=self._strings(spec.string_layouts(), record.files),
            nodes=reader(layouts["nodes"]).all(),
            arrays={array: reader(layouts[array]).row_table() for array in wanted},
        )

    def teacher_weights(self, wanted: Collection[str] | None = None) -> dict[str, torch.Tensor]:
        """Read weights of the teacher, by their names in open_clip's model; None: all of them.

        Of a part only that part is read, and all that is read is checked. They are as the teacher
        had them, in its types.

        Raises:
            CacheMismatchError: the cache keeps no weights, or the teacher has none of that name.
        """
        record = self.require_weights()
        file = names.WEIGHTS_FILE
        stored = TensorFile(self.storage, file, record.files[file], record.header_bytes)
        return stored.read(wanted)

    def require_weights(self) -> WeightsRecord:
        """Return the record of the teacher's weights.

        Raises:
            CacheMismatchError: the cache keeps none.
        """
        if self.committed.weights is None:
            raise CacheMismatchError(
                f"{self.storage} keeps no weights of its teacher, and they are needed here; add "
                f"them with: {self.command_that_adds('weights')}"
            )
        return self.committed.weights

    def _strings(
        self, layouts: Mapping[str, ArrayLayout], files: Mapping[str, FileRecord]
    ) -> list[str]:
        utf8, offsets = (ArrayReader(self.storage, a, files).all() for a in layouts.values())
        return decode_strings(utf8, offsets)


def pool_of(place: str | Path) -> str | Path:
    """Return where the pool of the cache in a folder or at an address is, or would be."""
    if isinstance(place, Path):
        return place / names.POOL_FOLDER
    return f"{place.rstrip('/')}/{names.POOL_FOLDER}"


def read_record(storage: ReadStorage, name: str) -> dict[str, Any]:
    """Return what a record holds, once its checksum is right."""
    return decode_record(storage.read(name), f"{storage}/{name}")


def read_manifest(storage: ReadStorage) -> Manifest | None:
    """Return the manifest, or None if no cache was begun here."""
    try:
        data = read_record(storage, MANIFEST_NAME)
    except CacheMissingError:
        return None
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


def publish_seal(storage: LocalStorage, manifest: Manifest) -> Committed:
    """Publish all records in one, so that readers open one file; return them.

    Safe beside other processes that publish: whoever seals last has seen every record there is.
    """
    # What a builder left that was killed while it sealed: no unit's builder comes to sweep it.
    storage.sweep()
    committed = read_committed(storage, manifest, through_seal=False)
    while True:
        records = {record.name: record for record in committed}
        # An older seal, of fewer views or charsets, is true until this one takes its place.
        storage.ensure(SEAL_NAME, encode_record({"commits": records}))
        sealed, committed = committed, read_committed(storage, manifest, through_seal=False)
        if committed == sealed:
            return committed


def read_committed(storage: ReadStorage, manifest: Manifest, *, through_seal: bool) -> Committed:
    """Return the records of all units, of the text tables and of the weights.

    Through the seal, if there is one, those that it repeats: one read, and enough for a reader. A
    builder reads record by record, to see those added since.
    """
    if through_seal and storage.exists(SEAL_NAME):
        sealed = read_record(storage, SEAL_NAME).get("commits", {"seal": {}})
        records = [(SEAL_NAME, unit, data) for unit, data in sealed.items()]
    else:
        records = [
            (file, names.unit_of_record(file), read_record(storage, file))
            for file in storage.names(names.COMMITS_FOLDER)
        ]
    committed = Committed()
    for file, unit, data in records:
        try:
            committed.add(parse_record(unit, data, manifest.cache_id))
        except ValueError:
            raise CacheCorruptError(
                f"{storage}/{file} does not hold the record of {unit} of cache "
                f"{manifest.cache_id}. {MEND}"
            ) from None
    return committed
