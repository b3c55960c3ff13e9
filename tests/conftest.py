"""Fixtures that many tests share: the tiny teacher of `samples`, and one sealed cache."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from devices import DEVICE
from samples import WORDS, register_tiny_clip, tiny_build, write_words

from clipocr.precompute.builder.build import build_cache
from clipocr.shared.cache.reader import FeatureCache

# Two threads of two cores fight each other for tensors this small.
torch.set_num_threads(1)
# Under nohup it would be ignored, and the processes that tests start would ignore it too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# The same in a script's background, where a shell lets SIGINT be ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run on any device."""
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker("device")


@pytest.fixture(scope="session")
def device() -> str:
    """The device under test; see `devices`."""
    return DEVICE


@pytest.fixture(scope="session", autouse=True)
def _tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> None:
    register_tiny_clip(tmp_path_factory.mktemp("open_clip"))


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources; the second has a picture that is none, as its sample 3."""
    root = tmp_path_factory.mktemp("data")
    write_words(root / "MJ" / "train", WORDS * 2)
    write_words(root / "ST", WORDS[:13], images={3: b"not an image"})
    return root


@pytest.fixture(scope="session")
def cache_path(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed cache that tests only read."""
    out = tmp_path_factory.mktemp("cache") / "words.cache"
    build_cache(tiny_build(data_root, out))
    return out


@pytest.fixture
def cache(cache_path: Path) -> FeatureCache:
    return FeatureCache.open(cache_path)
