"""Every name in a cache, built and parsed here and nowhere else.

    manifest.json, sealed.json         what the cache is; all records in one
    commits/UNIT.json                  the record of a unit, of a text table or of the weights
    ARRAY/zarr.json, ARRAY/c/3/0/0     the metadata of an array, and its shard 3

    rows/label, labels/utf8, ...       arrays of the index
    codec/DIGEST/block3                the table of a codec
    image/view0/block3                 an image array of a view
    pool/...                           a cache of natural images, with names like these
    text/char-36/eot                   an array of a text table, text/prompt-36-5f3a9c01/eot another
    teacher/weights.safetensors        the weights of the teacher, if they are kept

A *unit* is ``view0/unit-00003``; a text table is one, ``text/char-36``, and so are the weights,
``teacher``. An image array is called ``block3`` (the residual stream after block 3, counted from
1), or by any other word; ``pixels`` are the views themselves. Of a text table ``block3`` and
``ln_final`` have a row per prefix, ``eot`` one per string.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import UsageError

MANIFEST_NAME = "manifest.json"
SEAL_NAME = "sealed.json"
METADATA_NAME = "zarr.json"
COMMITS_FOLDER = "commits"
TMP_FOLDER = ".tmp"
CODEC_FOLDER = "codec"
POOL_FOLDER = "pool"
"""A cache within the cache: tokens of natural images."""
TEACHER = "teacher"
"""Folder of the teacher's weights, which is its unit's name too."""
WEIGHTS_FILE = f"{TEACHER}/weights.safetensors"
GROUPS = ("", "rows", "labels", "rejected", "image", "text")
"""Folders that are Zarr groups in every cache."""

PIXELS = "pixels"
"""The views themselves."""
FINAL = "final"
"""Every token through the last LayerNorm and the projection, in the joint space."""
CENTER_CROP = "pillow-bicubic-crop"
"""How a picture becomes CLIP's square: its shorter side is resized to it, its middle is kept."""
EOT = "eot"
"""The projected EOT embedding of each string."""
LN_FINAL = "ln_final"
"""The residual stream after the last block, through the final LayerNorm, before any projection."""
PROMPT = "prompt"
LABEL_TOKENIZERS = ("char", "word")
"""How a text table may split labels by themselves."""
TOKENIZERS = (*LABEL_TOKENIZERS, PROMPT)
"""``prompt``: the label in the middle of a sentence, read whole."""
LABEL_PLACE = "{label}"
TEMPLATE = f"a photo of a '{LABEL_PLACE}'"
"""DPTR's sentence. Its first quote meets CLIP's rules for contractions, so that some labels split
oddly: 'street' becomes 's, tre, et'. ``a photo of a " {label} "`` avoids it."""

_BLOCK = re.compile(r"block([1-9]\d*)")
_SHARD = re.compile(r"(.+?)/c/(\d+)(?:/0)*")


def require_free(folder: Path) -> None:
    """Refuse a folder that holds other things than a cache, which must be deletable as a whole.

    What a build or a copy has left that was killed before its manifest is no other thing.
    """
    own = {
        *(TMP_FOLDER, METADATA_NAME, COMMITS_FOLDER, CODEC_FOLDER, POOL_FOLDER, TEACHER),
        *(MANIFEST_NAME, SEAL_NAME),
    }
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    strange = [name for name in there if name not in own and name not in GROUPS]
    if strange:
        raise UsageError(
            f"{folder} is not a cache and holds {', '.join(strange[:3])}; pass a new folder"
        )


def block_name(block_idx: int) -> str:
    """Return the array that holds the residual stream after a block, counted from 1."""
    return f"block{block_idx}"


def block_names(block_idxs: tuple[int, ...]) -> tuple[str, ...]:
    """Return `block_name` of each."""
    return tuple(map(block_name, block_idxs))


def image_names(taps: Iterable[int | str]) -> tuple[str, ...]:
    """Return the image array of each tap: of a block's number, counted from 1, or ``final``."""
    return tuple(tap if isinstance(tap, str) else block_name(tap) for tap in taps)


def block_of(array: str) -> int | None:
    """Return the block of ``block{i}``, or None of an array of another kind."""
    match = _BLOCK.fullmatch(array)
    return int(match[1]) if match else None


def array_path(group: str, key: str) -> str:
    """Return the path of an array in a folder."""
    return f"{group}/{key}"


def view_group(view_idx: int) -> str:
    """Return the folder of a view's arrays."""
    return f"image/view{view_idx}"


def codec_table(digest: str, array: str) -> str:
    """Return the path of the table that the codec of an image array works by."""
    return f"{CODEC_FOLDER}/{digest}/{array}"


def text_table(tokenizer: str, charset_name: str, template: str = "") -> str:
    """Return the name of a text table, e.g. ``char-36``; of prompts it ends in a digest of theirs.

    Args:
        tokenizer: One of `TOKENIZERS`.
        charset_name: Of the labels.
        template: Of prompts.
    """
    parts = [tokenizer, charset_name]
    if template:
        parts.append(hashlib.sha256(template.encode()).hexdigest()[:8])
    return "-".join(parts)


def text_group(table: str) -> str:
    """Return the folder of a text table's arrays, which is its unit's name too."""
    return f"text/{table}"


def text_parts(table: str) -> str:
    """Return the folder where parts of a text table wait until it is published."""
    return f"{TMP_FOLDER}/{text_group(table)}"


def text_part(table: str, digest: str, first_string: int) -> str:
    """Return the file of such a part; `digest` is of all that the table is made of."""
    return f"{text_parts(table)}/{digest}-{first_string:08d}.npz"


def unit_name(view_idx: int, unit_idx: int) -> str:
    """Return the name of a unit of a view."""
    return f"view{view_idx}/unit-{unit_idx:05d}"


def record_file(unit: str) -> str:
    """Return the file of a unit's record."""
    return f"{COMMITS_FOLDER}/{unit}.json"


def unit_of_record(file: str) -> str:
    """Return the unit whose record a file is."""
    return file.removeprefix(f"{COMMITS_FOLDER}/").removesuffix(".json")


def metadata_file(folder: str) -> str:
    """Return the Zarr metadata of an array or group; the group of the whole cache is empty."""
    return f"{folder}/{METADATA_NAME}" if folder else METADATA_NAME


def is_metadata(file: str) -> bool:
    """Return whether a file is Zarr metadata."""
    return file.rpartition("/")[2] == METADATA_NAME


def shard_file(array: str, shard_idx: int, num_dimensions: int) -> str:
    """Return the file of a shard, as Zarr's default chunk keys name it."""
    return "/".join([array, "c", str(shard_idx)] + ["0"] * (num_dimensions - 1))


def parents(folder: str) -> list[str]:
    """Return the folders around an array, the innermost first, without the cache itself."""
    parts = folder.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def array_of(file: str) -> str:
    """Return the array or group that a shard or a metadata file belongs to."""
    match = _SHARD.fullmatch(file)
    return match[1] if match else file.removesuffix(METADATA_NAME).rstrip("/")


def part_of(file: str) -> str:
    """Return the image array or the text table that a file is part of; of any other its array."""
    array = array_of(file)
    return "/".join(array.split("/")[:2]) if array.startswith("text/") else array
