"""Build a text table: every unique label of a charset through the text encoder, once.

Shapes: U unique strings, C context tokens, M trie nodes, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from ..shared.arrays import (
    GROUP_METADATA,
    ArrayLayout,
    ArrayWriter,
    encode_strings,
    write_array,
    write_metadata,
)
from ..shared.charset import Charset
from ..shared.codecs import feature_codec
from ..shared.errors import DataError
from ..shared.schema import Commit, Manifest, TextSpec, strings_layouts
from ..shared.storage import FileRecord, LocalStorage
from .teacher import Teacher
from .tokens import CharacterTokenizer, TokenTrie, build_trie, padded_length

_EXACT = feature_codec("fp16")


def build_text_table(
    storage: LocalStorage,
    manifest: Manifest,
    labels: Sequence[str],
    charset: Charset,
    teacher: Teacher,
) -> Commit:
    """Encode every label under `charset` and publish the table; return its commit, unpublished.

    The padding positions after EOT are kept, because the official loss includes them.

    Raises:
        DataError: the charset leaves nothing of any label.
    """
    tokenizer = CharacterTokenizer()
    max_label_length = manifest.spec.labels.max_label_length
    strings, of_label = adapt_labels(
        labels, charset, tokenizer, max_label_length, teacher.context_length
    )
    if not strings:
        raise DataError(
            f"charset {charset.name} leaves nothing of any of the {len(labels)} labels; "
            "choose the charset these labels are written in"
        )
    trie = build_trie(strings, tokenizer, max_label_length, pads=True)
    string_arrays = encode_strings(strings)
    spec = TextSpec(
        name=f"char-{charset.name}",
        charset_name=charset.name,
        characters=charset.characters,
        max_label_length=max_label_length,
        num_strings=len(strings),
        num_string_bytes=len(string_arrays["utf8"]),
        num_nodes=trie.num_nodes,
        pads=True,
    )
    layouts = spec.layouts(manifest.spec.teacher, manifest.num_labels)
    group = f"text/{spec.name}/zarr.json"
    files = {group: storage.write(group, GROUP_METADATA)}
    string_layouts = strings_layouts(f"text/{spec.name}", spec.num_strings, spec.num_string_bytes)
    for key, layout in string_layouts.items():
        files |= write_array(storage, layout, string_arrays[key])
    files |= write_array(storage, layouts["of_label"], of_label)
    files |= write_array(storage, layouts["nodes"], trie.label_nodes)
    files |= _write_features(storage, layouts, trie, teacher, manifest.spec.chunk_rows)
    return Commit(name=f"text/{spec.name}", cache_id=manifest.cache_id, files=files, text=spec)


def adapt_labels(
    labels: Sequence[str],
    charset: Charset,
    tokenizer: CharacterTokenizer,
    max_label_length: int,
    context_length: int,
) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Return the unique strings a charset makes of `labels`, and each label's string or -1.

    A label is left out where the charset leaves nothing of it, where changing its case made it too
    long ("ß" becomes "SS"), or where its characters take more tokens than the text encoder has
    positions.
    """

    def fits(string: str) -> bool:
        if not 1 <= len(string) <= max_label_length:
            return False
        ids, ends = tokenizer.tokenize(string)
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
