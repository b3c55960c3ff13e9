"""Text tables: every unique label of a charset through the text encoder, once.

`clipocr cache build` makes the first; `clipocr cache text` adds others to a cache.

Shapes: U unique strings, C context tokens, M prefixes, D width.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ...shared.cache import names
from ...shared.cache.codecs.codec import Codec
from ...shared.cache.codecs.codecs import feature_codec
from ...shared.cache.json_record import as_json, canonical_json
from ...shared.cache.reader import FeatureCache, publish_seal, read_committed
from ...shared.cache.records import Committed, TextRecord
from ...shared.cache.shards import (
    GROUP_METADATA,
    Array,
    ArrayLayout,
    ArrayWriter,
    write_array,
    write_metadata,
)
from ...shared.cache.spec import CacheSpec, TeacherSpec
from ...shared.cache.storage import FileRecord, LocalStorage
from ...shared.cache.strings import encode_strings
from ...shared.cache.text_spec import TextArraySpec, TextSpec
from ...shared.charset import Charset
from ...shared.device import choose_device
from ...shared.errors import CacheMismatchError, DataError, UsageError
from ...shared.progress import progress_bar
from ..teacher.clip import Teacher, load_teacher
from ..teacher.tokens import TeacherTokenizer, TokenTrie, build_trie
from .config import TextConfig

_EXACT = feature_codec(Codec.parse("fp16"))
_PART_BATCHES = 4
"""Batches that a killed build loses at most: of 256 labels each, 15 s of ViT-B/16 on a CPU."""


def add_text_table(config: TextConfig) -> tuple[FeatureCache, TextRecord, bool]:
    """Add another text table to a cache, from the labels in it; the sources are not needed.

    What is there is not touched. A sealed cache is sealed anew, with the table.

    Returns:
        The cache, the table's record, and whether it was there already.
    """
    cache = FeatureCache.open(config.cache)
    committed = read_committed(cache.folder, cache.manifest, through_seal=False)
    held = find_text(committed, config.charset, config.tokenizer, config.prompt)
    record = held
    if record is None:
        device = choose_device(config.device)
        teacher = load_same_teacher(config.cache, cache.spec, config.teacher, device)
        draft = draft_table(cache, config.charset, teacher, config.tokenizer, config.prompt)
        record = build_text_table(cache, draft, teacher)
    if cache.is_sealed:
        # Even if the table was there: a killed run may have published it and not the seal.
        publish_seal(cache.folder, cache.manifest)
    return cache, record, held is not None


def load_same_teacher(
    place: str | Path,
    spec: CacheSpec,
    name: str | None,
    device: torch.device,
) -> Teacher:
    """Load the teacher that made the cache at `place`, from the weights ``MODEL/WEIGHTS``.

    None: as the cache names them, which a weights file cannot be.
    """
    have = spec.teacher
    teacher = load_teacher(
        same_teacher_name(place, have, name),
        image_taps=spec.image_taps,
        text_taps=spec.text_taps,
        precision=have.precision,
        device=device,
        activation=have.activation,
        view_px=spec.view.view_px,
    )
    require_same_weights(place, have, teacher.spec)
    return teacher


def same_teacher_name(place: str | Path, have: TeacherSpec, name: str | None) -> str:
    """Return where the weights of the cache at `place` are: as named, or as it says itself."""
    if name is None and have.weights.startswith("file:"):
        raise UsageError(
            f"{place} was built with the weights file {have.weights[5:]}; "
            f"pass it by --teacher {have.model}/PATH"
        )
    return name or have.name


def require_same_weights(place: str | Path, have: TeacherSpec, found: TeacherSpec) -> None:
    """Refuse a teacher of other weights than those of the cache at `place`."""
    if found.weights_sha256 != have.weights_sha256:
        raise CacheMismatchError(
            f"{place} holds what {have.name} says (weights sha256 "
            f"{have.weights_sha256[:16]}...), but {found.name} has other weights (sha256 "
            f"{found.weights_sha256[:16]}...). Pass the weights it was built with, by "
            f"--teacher {have.model}/PATH"
        )


def draft_table(
    cache: FeatureCache,
    charset: Charset,
    teacher: Teacher,
    tokenizer: str = "char",
    template: str = "",
) -> TextDraft:
    """Return the draft of a table of a cache's labels; see `draft_text`."""
    max_label_length = cache.spec.labels.max_label_length
    return draft_text(cache.labels(), charset, max_label_length, teacher, tokenizer, template)


def build_text_table(cache: FeatureCache, draft: TextDraft, teacher: Teacher) -> TextRecord:
    """Encode the strings of a draft and publish the table, part by part of it.

    Parts that an interrupted build of the same table has left are not computed again.
    """
    storage, manifest = cache.folder, cache.manifest
    storage.sweep()
    layouts = draft.spec.layouts(manifest.num_labels)
    group = names.metadata_file(names.text_group(draft.spec.name))
    files = {group: storage.write(group, GROUP_METADATA)}
    for key, values in draft.arrays.items():
        files |= write_array(storage, layouts[key], values)
    files |= _write_features(storage, draft, layouts, teacher, manifest.spec.chunk_rows)
    record = TextRecord(spec=draft.spec, cache_id=manifest.cache_id, files=files)
    cache.publish(record)
    storage.sweep()
    return record


@dataclass(frozen=True, kw_only=True)
class TextDraft:
    """All of a text table but its features."""

    spec: TextSpec
    trie: TokenTrie
    arrays: dict[str, Array]
    """``utf8`` and ``offsets`` of the strings, ``of_label`` and ``nodes``."""


def draft_text(
    labels: Sequence[str],
    charset: Charset,
    max_label_length: int,
    teacher: Teacher,
    tokenizer: str = "char",
    template: str = "",
) -> TextDraft:
    """Apply a charset to the labels and number the token prefixes of what is left.

    A label is left out where the charset leaves nothing of it, where changing its case made it too
    long ("ß" becomes "SS"), or where it takes more tokens than the text encoder (or, as a word, the
    label) has positions.

    Raises:
        UsageError: the prompts of all labels are longer than the text encoder's context.
        DataError: nothing is left of any label.
    """
    reads = TeacherTokenizer(tokenizer, max_label_length, template, teacher.context_length)

    def fits(string: str) -> bool:
        if not 1 <= len(string) <= max_label_length:
            return False
        sequence = reads.tokenize(string)
        return sequence is not None and sequence.length <= teacher.context_length

    ids: dict[str, int] = {}
    of_label = np.full(len(labels), -1, np.int32)
    for label_idx, label in enumerate(labels):
        string = charset.adapt(label)
        if string in ids or fits(string):
            of_label[label_idx] = ids.setdefault(string, len(ids))
    strings = list(ids)
    if not strings and template and any(map(charset.adapt, labels)):
        raise UsageError(
            f"no label fits within template {template!r} into the {teacher.context_length} tokens "
            "that the text encoder reads; shorten --template"
        )
    if not strings:
        raise DataError(
            f"charset {charset.name} leaves nothing of any of the {len(labels)} labels; "
            "choose the charset these labels are written in"
        )
    trie = build_trie(strings, reads)
    arrays = encode_strings(strings) | {"of_label": of_label, "nodes": trie.nodes}
    spec = TextSpec(
        name=names.text_table(tokenizer, charset.name, template),
        tokenizer=tokenizer,
        template=template,
        context_length=trie.tokens.shape[1],
        num_positions=reads.num_positions,
        charset_name=charset.name,
        characters=charset.characters,
        max_label_length=max_label_length,
        num_strings=len(strings),
        num_string_bytes=len(arrays["utf8"]),
        num_prefixes=trie.num_prefixes,
        arrays=tuple(
            TextArraySpec(name=name, width=width, rows="string" if name == names.EOT else "prefix")
            for name, width in teacher.text_widths(tokenizer == names.PROMPT).items()
        ),
    )
    return TextDraft(spec=spec, trie=trie, arrays=arrays)


def find_text(
    committed: Committed, charset: Charset, tokenizer: str = "char", template: str = ""
) -> TextRecord | None:
    """Return the text table of a charset, if there is one."""
    for record in committed.texts.values():
        spec = record.spec
        if (spec.tokenizer, spec.template) != (tokenizer, template):
            continue
        if spec.characters == charset.characters:
            return record
        if spec.charset_name == charset.name:
            raise CacheMismatchError(
                f"the cache's charset {charset.name} has {len(spec.characters)} characters, this "
                f"one {len(charset.characters)}, and they differ; rename the charset file"
            )
    return None


def _write_features(
    storage: LocalStorage,
    draft: TextDraft,
    layouts: Mapping[str, ArrayLayout],
    teacher: Teacher,
    batch_rows: int,
) -> dict[str, FileRecord]:
    """Run the text encoder and publish the arrays of features."""
    spec, order = draft.spec, draft.trie.order
    by_prefix = {
        array.name: ArrayWriter(storage, layouts[array.name])
        for array in spec.arrays
        if array.rows == "prefix"
    }
    by_string = {
        array.name: np.empty((spec.num_strings, array.width), np.float16)
        for array in spec.arrays
        if array.rows == "string"
    }
    try:
        with progress_bar(total=spec.num_strings, desc="text table", unit="label") as progress:
            for at, features in _parts(storage, draft, teacher, batch_rows):
                for name, writer in by_prefix.items():
                    writer.append(features[name])
                for name, rows in by_string.items():
                    rows[order[at]] = features[name]
                progress.update(at.stop - at.start)
        files: dict[str, FileRecord] = {}
        for name, rows in by_string.items():
            files |= write_array(storage, layouts[name], rows)
        for name, writer in by_prefix.items():
            files |= {**write_metadata(storage, layouts[name]), **writer.publish()}
        return files
    finally:
        for writer in by_prefix.values():
            writer.discard()


_Features = Mapping[str, npt.NDArray[np.float16]]
"""Arrays by name, their rows in the order of the trie. Shape: (new prefixes or strings, D) each."""


def _parts(
    storage: LocalStorage, draft: TextDraft, teacher: Teacher, batch_rows: int
) -> Iterator[tuple[slice, _Features]]:
    """Yield the features of the strings part by part, each kept until the table is published."""
    spec = draft.spec
    made_of = canonical_json(as_json(spec, complete=True)) + draft.arrays["utf8"].tobytes()
    digest = hashlib.sha256(made_of).hexdigest()[:16]
    step = _PART_BATCHES * batch_rows
    for start in range(0, spec.num_strings, step):
        at = slice(start, min(start + step, spec.num_strings))
        name = names.text_part(spec.name, digest, start)
        features = _read_part(storage, name)
        if features is None:
            features = _encode_part(draft, teacher, batch_rows, at)
            packed = io.BytesIO()
            np.savez(packed, **features)  # type: ignore[arg-type]  # It takes arrays by name.
            storage.write(name, packed.getvalue())
        yield at, features


def _read_part(storage: LocalStorage, name: str) -> _Features | None:
    """Return a part that was kept, if it is there and sound."""
    if not storage.exists(name):
        return None
    try:
        with np.load(io.BytesIO(storage.read(name))) as arrays:
            return dict(arrays)  # Each member's CRC-32 is checked.
    except (OSError, ValueError, zipfile.BadZipFile):
        return None


def _encode_part(draft: TextDraft, teacher: Teacher, batch_rows: int, part: slice) -> _Features:
    """Run the text encoder on a part of the strings."""
    trie, spec = draft.trie, draft.spec
    found: dict[str, list[npt.NDArray[np.float16]]] = {name: [] for name in spec.array_names}
    for start in range(part.start, part.stop, batch_rows):
        stop = min(start + batch_rows, part.stop)
        # Every batch has the same shape, so a feature cannot depend on how many follow.
        tokens = np.zeros((batch_rows, trie.tokens.shape[1]), np.int32)
        position = np.zeros(batch_rows, np.int64)
        tokens[: stop - start] = trie.tokens[start:stop]
        position[: stop - start] = trie.eot_position[start:stop]
        features = teacher.text_features(
            torch.from_numpy(tokens), torch.from_numpy(position), spec.array_names
        )
        is_new = torch.from_numpy(trie.is_new[start:stop])
        for array in spec.arrays:
            rows = features[array.name][: stop - start].cpu()
            found[array.name].append(_to_fp16(rows[is_new] if array.rows == "prefix" else rows))
    return {name: np.concatenate(rows) for name, rows in found.items()}


def _to_fp16(features: torch.Tensor) -> npt.NDArray[np.float16]:
    stored: npt.NDArray[np.float16] = _EXACT.encode(features).numpy()
    return stored
