"""A small cache, every kind of damage to it, and what a trainer then meets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from loading import loader_of, needing
from samples import WORDS, files_of, tiny_build, write_words

from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.builder.config import BuildConfig
from clipocr.shared.cache.memory import Bytes
from clipocr.shared.cache.names import WEIGHTS_FILE
from clipocr.shared.cache.reader import FeatureCache, publish_seal
from clipocr.shared.cache.records import WeightsRecord
from clipocr.shared.cache.shards import ArrayWriter
from clipocr.shared.cache.tensor_file import write_tensors
from clipocr.shared.errors import CacheError
from clipocr.train.data.batch import Batch

BLOCKS = ("block1", "block2", "block3")

Damage = dict[str, bytes | None]
"""File -> what it holds instead; None: it is gone."""
Files = dict[str, bytes]


def fill_disk_after(num_chunks: int, patch: pytest.MonkeyPatch) -> None:
    """Let the disk be full after so many chunks of pixels."""
    allowed, real = iter(range(num_chunks)), ArrayWriter.append_chunk

    def append_chunk(writer: ArrayWriter, payload: Bytes) -> None:
        if writer._layout.name.endswith("pixels") and next(allowed, None) is None:
            raise OSError(28, "No space left on device")
        real(writer, payload)

    patch.setattr(ArrayWriter, "append_chunk", append_chunk)


def keep_tensors(path: Path, seed: int) -> None:
    """Let a cache keep three tensors as the weights of its teacher.

    The tiny teacher's own take 7 MB, because it knows CLIP's whole vocabulary, and every fault
    would have to be found among them.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(9, 7, generator=generator) for name in ("a", "b", "c.weight")}
    cache = FeatureCache.open(path)
    file, header_bytes = write_tensors(cache.folder, WEIGHTS_FILE, tensors)
    cache.publish(
        WeightsRecord(
            cache_id=cache.manifest.cache_id, files={WEIGHTS_FILE: file}, header_bytes=header_bytes
        )
    )
    publish_seal(cache.folder, cache.manifest)


class World:
    """A sealed cache of two views, another one of another seed, and what a trainer sees."""

    def __init__(self, root: Path, codec: str = "fp16", keeps_weights: bool = False) -> None:
        self._codec = codec
        self.data = root / "data"
        write_words(self.data / "MJ", WORDS, images={3: b"not an image"})
        write_words(self.data / "ST", ["one", "", "x" * 30])  # Two labels are rejected.
        self.path = root / "words.cache"
        build_cache(self.config(self.path))
        other = root / "other.cache"
        build_cache(self.config(other, seed=1))
        self.weights: dict[str, torch.Tensor] = {}
        if keeps_weights:
            keep_tensors(self.path, 0)
            keep_tensors(other, 1)
            self.weights = FeatureCache.open(self.path).teacher_weights()
        self.files, self.other = files_of(self.path), files_of(other)
        self.batches = list(batches_of(self.path))

    def config(self, out: Path, **changes: object) -> BuildConfig:
        return tiny_build(
            self.data,
            out,
            **(
                {
                    "augment": "randaugment",
                    "views": 2,
                    "unit_rows": 16,
                    "codec": self._codec,
                }
                | changes
            ),
        )


def batches_of(path: Path) -> Iterator[Batch]:
    """Yield what a trainer reads: an epoch of each view."""
    cache = FeatureCache.open(path)
    loader = loader_of(cache, needing(BLOCKS, (*BLOCKS, "eot")), batch_size=16)
    for epoch in range(cache.num_views):
        yield from loader.epoch(epoch)


def is_same(a: Batch, b: Batch) -> bool:
    tensors = [[batch.views, *batch.images.values(), *batch.text.values()] for batch in (a, b)]
    pairs = zip(*tensors, strict=True)
    return a.labels == b.labels and all(torch.equal(left, right) for left, right in pairs)


def flip(where: float) -> Callable[[World, str], Iterator[Damage]]:
    def damage(world: World, file: str) -> Iterator[Damage]:
        content = bytearray(world.files[file])
        at = min(int(where * len(content)), len(content) - 1)
        content[at] ^= 1 << at % 8
        yield {file: bytes(content)}

    return damage


def cut(keep: Callable[[bytes], bytes]) -> Callable[[World, str], Iterator[Damage]]:
    def damage(world: World, file: str) -> Iterator[Damage]:
        yield {file: keep(world.files[file])}

    return damage


def delete(_world: World, file: str) -> Iterator[Damage]:
    # Without its seal a cache is sound; see below.
    if file != "sealed.json":
        yield {file: None}


def swap(world: World, file: str) -> Iterator[Damage]:
    """Swap with the next file of another content, and with every one of the same size."""
    content, names = world.files[file], sorted(world.files)
    later = [name for name in names if name > file and world.files[name] != content]
    same_size = [name for name in later[1:] if len(world.files[name]) == len(content)]
    for name in later[:1] + same_size:
        yield {file: world.files[name], name: content}


def replace_by_another_caches(world: World, file: str) -> Iterator[Damage]:
    # The tables of a codec are in a folder of another name there.
    names = [n for n in world.other if n.split("/")[2:] == file.split("/")[2:]]
    theirs = world.other[file if file in world.other else names[0]]
    # Some are the same in both: the labels, say, do not depend on the seed.
    if theirs != world.files[file]:
        yield {file: theirs}


KINDS = {
    "flip a bit of the first byte": flip(0),
    "flip a bit at 1/2": flip(1 / 2),
    "flip a bit of the last byte": flip(1),
    "cut the last byte off": cut(lambda content: content[:-1]),
    "cut in half": cut(lambda content: content[: len(content) // 2]),
    "cut to nothing": cut(lambda _: b""),
    "append a byte": cut(lambda content: content + b"\0"),
    "fill with zeros": cut(lambda content: bytes(len(content))),
    "zeros at the end": cut(
        lambda content: content[: len(content) // 2].ljust(len(content), b"\0")
    ),
    "delete": delete,
    "swap": swap,
    "replace by another cache's": replace_by_another_caches,
}


def inflict(path: Path, damage: Damage) -> None:
    for file, content in damage.items():
        if content is None:
            (path / file).unlink()
        else:
            (path / file).write_bytes(content)


def train_on(world: World, path: Path, damage: Damage) -> str:
    """Return what a trainer meets: right rows, an error that names a damaged file, or worse."""
    batches = batches_of(path)
    try:
        for expected in world.batches:
            batch = next(batches, None)
            if batch is None or not is_same(batch, expected):
                return "wrong rows"
        if world.weights:
            found = FeatureCache.open(path).teacher_weights()
            if not all(torch.equal(found[name], tensor) for name, tensor in world.weights.items()):
                return "wrong weights"
    except CacheError as e:
        # Another cache's manifest makes strangers of the records, and of the index.
        names = [*damage, *(["sealed.json", "commits/"] if "manifest.json" in damage else [])]
        if "manifest.json" in damage and damage["manifest.json"] is None:
            names.append("no manifest.json")
        return "stopped" if any(name in str(e) for name in names) else f"an unclear error: {e}"
    return "right rows"
