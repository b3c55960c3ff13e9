"""Text tables: every unique label of a charset through the text encoder, once.

`clipocr cache build` makes the first; `clipocr cache text` adds others to a cache.

Shapes: U unique strings, C context tokens, M trie nodes, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from ...shared.cache.codecs.codecs import feature_codec
from ...shared.cache.reader import FeatureCache, publish_seal, read_commits
from ...shared.cache.schema import (
    TOKENS,
    Commit,
    Manifest,
    TeacherSpec,
    TextSpec,
    strings_layouts,
)
from ...shared.cache.shards import (
    GROUP_METADATA,
    Array,
    ArrayLayout,
    ArrayWriter,
    encode_strings,
    write_array,
    write_metadata,
)
from ...shared.cache.storage import FileRecord, LocalStorage
from ...shared.charset import Charset
from ...shared.errors import CacheMismatchError, DataError, UsageError
from ..teacher.clip import Teacher, load_teacher
from ..teacher.tokens import TextTokenizer, TokenTrie, build_trie, padded_length, text_tokenizer

_EXACT = feature_codec("fp16")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """What `clipocr cache text` was asked for."""

    cache: Path
    charset: Charset
    tokens: str = "char"
    """``char`` or ``word``."""
    teacher: str | None = None
    """``MODEL/WEIGHTS``; None: as the cache names it, which a weights file cannot be."""
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        if self.tokens not in TOKENS:
            raise UsageError(f"tokens is {self.tokens!r}, expected one of {', '.join(TOKENS)}")


@dataclass(frozen=True, kw_only=True)
class TextSummary:
    """What `add_text_table` did."""

    spec: TextSpec
    num_bytes: int
    """Of the table's files."""
    was_there: bool
    """Whether there was nothing to do."""
    teacher: TeacherSpec


def add_text_table(config: TextConfig) -> TextSummary:
    """Add another text table to a cache, from the labels in it; the sources are not needed.

    What is there is not touched. A sealed cache is sealed anew, with the table.

    Raises:
        CacheError: there is no cache, or another teacher made it.
        TeacherError: CLIP weights cannot be had.
        DataError: the charset leaves nothing of any label.
    """
    cache = FeatureCache.open(config.cache)
    storage, manifest = cache.folder, cache.manifest
    commits = read_commits(storage, manifest, through_seal=False)
    commit = find_text(commits, config.charset, config.tokens)
    was_there = commit is not None
    if commit is None:
        teacher = load_same_teacher(
            config.cache, manifest.spec.teacher, config.teacher, config.device
        )
        storage.sweep()
        commit = build_text_table(
            storage, manifest, cache.labels(), config.charset, teacher, tokens=config.tokens
        )
        cache.publish(commit)
    if cache.is_sealed:
        # Even if the table was there: a killed run may have published it and not the seal.
        publish_seal(storage, manifest)
    assert commit.text is not None, commit
    return TextSummary(
        spec=commit.text,
        num_bytes=sum(file.num_bytes for file in commit.files.values()),
        was_there=was_there,
        teacher=manifest.spec.teacher,
    )


def load_same_teacher(
    place: str | Path, have: TeacherSpec, name: str | None, device: torch.device
) -> Teacher:
    """Load the teacher that made the cache at `place`.

    Args:
        place: Folder or address, for messages.
        have: What the cache says of its teacher.
        name: ``MODEL/WEIGHTS``; None: as the cache names it, which a weights file cannot be.
        device: Where to run it.

    Raises:
        UsageError: the name is needed and was not given.
        CacheMismatchError: other weights.
        TeacherError: CLIP weights cannot be had.
    """
    if name is None and have.weights.startswith("file:"):
        raise UsageError(
            f"{place} was built with the weights file {have.weights[5:]}; "
            f"pass it by --teacher {have.model}/PATH"
        )
    teacher = load_teacher(
        name or have.name,
        image_taps=have.image_taps,
        text_taps=have.text_taps,
        precision=have.precision,
        device=device,
        activation=have.activation,
    )
    if teacher.spec.weights_sha256 != have.weights_sha256:
        raise CacheMismatchError(
            f"{place} holds what {have.name} says (weights sha256 "
            f"{have.weights_sha256[:16]}...), but {teacher.spec.name} has other weights (sha256 "
            f"{teacher.spec.weights_sha256[:16]}...). Pass the weights it was built with, by "
            f"--teacher {have.model}/PATH"
        )
    return teacher


def build_text_table(
    storage: LocalStorage,
    manifest: Manifest,
    labels: Sequence[str],
    charset: Charset,
    teacher: Teacher,
    *,
    tokens: str = "char",
) -> Commit:
    """Encode every label under `charset` and publish the table; return its commit, unpublished.

    `tokens` is ``char`` or ``word``.

    The padding positions after EOT are kept, because the official loss includes them.

    Raises:
        DataError: the charset leaves nothing of any label.
    """
    draft = draft_text(
        labels,
        charset,
        max_label_length=manifest.spec.labels.max_label_length,
        context_length=teacher.context_length,
        tokens=tokens,
    )
    spec = draft.spec
    layouts = spec.layouts(manifest.spec.teacher, manifest.num_labels)
    string_layouts = strings_layouts(f"text/{spec.name}", spec.num_strings, spec.num_string_bytes)
    group = f"text/{spec.name}/zarr.json"
    files = {group: storage.write(group, GROUP_METADATA)}
    for key, layout in (string_layouts | layouts).items():
        if key in draft.arrays:
            files |= write_array(storage, layout, draft.arrays[key])
    files |= _write_features(storage, layouts, draft.trie, teacher, manifest.spec.chunk_rows)
    return Commit(name=f"text/{spec.name}", cache_id=manifest.cache_id, files=files, text=spec)


@dataclass(frozen=True, kw_only=True)
class TextDraft:
    """All of a text table but what the teacher says."""

    spec: TextSpec
    trie: TokenTrie
    arrays: dict[str, Array]
    """``utf8`` and ``offsets`` of the strings, ``of_label`` and ``nodes``."""


def draft_text(
    labels: Sequence[str],
    charset: Charset,
    *,
    max_label_length: int,
    context_length: int,
    tokens: str = "char",
) -> TextDraft:
    """Apply a charset to the labels and number the token prefixes of what is left.

    Raises:
        DataError: nothing is left of any label.
    """
    tokenizer = text_tokenizer(tokens)
    strings, of_label = adapt_labels(labels, charset, tokenizer, max_label_length, context_length)
    if not strings:
        raise DataError(
            f"charset {charset.name} leaves nothing of any of the {len(labels)} labels; "
            "choose the charset these labels are written in"
        )
    trie = build_trie(strings, tokenizer, max_label_length, pads=True)
    arrays = encode_strings(strings) | {"of_label": of_label, "nodes": trie.label_nodes}
    spec = TextSpec(
        name=f"{tokens}-{charset.name}",
        tokens=tokens,
        charset_name=charset.name,
        characters=charset.characters,
        max_label_length=max_label_length,
        num_strings=len(strings),
        num_string_bytes=len(arrays["utf8"]),
        num_nodes=trie.num_nodes,
        pads=True,
    )
    return TextDraft(spec=spec, trie=trie, arrays=arrays)


def find_text(
    commits: Mapping[str, Commit], charset: Charset, tokens: str = "char"
) -> Commit | None:
    """Return the text table of a charset, if there is one.

    Raises:
        CacheMismatchError: there is one of that name, but of other characters.
    """
    for commit in commits.values():
        spec = commit.text
        if spec is None or spec.tokens != tokens:
            continue
        if spec.characters == charset.characters:
            return commit
        if spec.charset_name == charset.name:
            raise CacheMismatchError(
                f"the cache's charset {charset.name} has {len(spec.characters)} characters, this "
                f"one {len(charset.characters)}, and they differ; rename the charset file"
            )
    return None


def adapt_labels(
    labels: Sequence[str],
    charset: Charset,
    tokenizer: TextTokenizer,
    max_label_length: int,
    context_length: int,
) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Return the unique strings a charset makes of `labels`, and each label's string or -1.

    A label is left out where the charset leaves nothing of it, where changing its case made it too
    long ("ß" becomes "SS"), or where it takes more tokens than the text encoder (or, as a word, the
    label) has positions.
    """

    def fits(string: str) -> bool:
        if not 1 <= len(string) <= max_label_length:
            return False
        ids, ends = tokenizer.tokenize(string)
        if len(ends) > max_label_length:
            return False
        return padded_length(ids, ends, max_label_length) <= context_length

    ids: dict[str, int] = {}
    of_label = np.full(len(labels), -1, np.int32)
    for label_idx, label in enumerate(labels):
        string = charset.adapt(label)
        if string in ids or fits(string):
            of_label[label_idx] = ids.setdefault(string, len(ids))
    return list(ids), of_label


def _write_features(
    storage: LocalStorage,
    layouts: dict[str, ArrayLayout],
    trie: TokenTrie,
    teacher: Teacher,
    batch_rows: int,
) -> dict[str, FileRecord]:
    num_strings, context = trie.tokens.shape
    eot = np.empty((num_strings, teacher.spec.eot_width), np.float16)
    taps = teacher.spec.text_taps
    writers = {tap: ArrayWriter(storage, layouts[f"block{tap}"]) for tap in taps}
    try:
        with tqdm(total=num_strings, desc="text table", unit="label") as progress:
            for start in range(0, num_strings, batch_rows):
                stop = min(start + batch_rows, num_strings)
                # Every batch has the same shape, so a feature cannot depend on how many follow.
                tokens = np.zeros((batch_rows, context), np.int32)
                position = np.zeros(batch_rows, np.int64)
                tokens[: stop - start] = trie.tokens[start:stop]
                position[: stop - start] = trie.eot_position[start:stop]
                kept, projected = teacher.text_taps(
                    torch.from_numpy(tokens), torch.from_numpy(position)
                )
                is_new = torch.from_numpy(trie.is_new[start:stop])
                for tap, features in kept.items():
                    writers[tap].append(_to_fp16(features[: stop - start].cpu()[is_new]))
                eot[trie.order[start:stop]] = _to_fp16(projected[: stop - start].cpu())
                progress.update(stop - start)
        files = write_array(storage, layouts["eot"], eot)
        for tap, writer in writers.items():
            files |= {**write_metadata(storage, layouts[f"block{tap}"]), **writer.publish()}
        return files
    finally:
        for writer in writers.values():
            writer.discard()


def _to_fp16(features: torch.Tensor) -> npt.NDArray[np.float16]:
    stored: npt.NDArray[np.float16] = _EXACT.encode(features).numpy()
    return stored
