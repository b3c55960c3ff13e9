"""A cache at ``hf://``, on a hub that the test serves itself."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub import Hub
from samples import files_of

from clipocr.shared.cache.reader import FeatureCache

REPO = "datasets/someone/words"
ADDRESS = f"hf://{REPO}/words.cache"


@pytest.fixture
def hub(cache_path: Path) -> Iterator[Hub]:
    with Hub.serving() as hub:
        hub.repos[REPO] = files_of(cache_path.parent)
        yield hub


def on_hub(hub: Hub, *command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the hub at its address, which its library reads when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=kept | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"} | variables,
        capture_output=True,
        text=True,
    )


def contents(place: str | Path) -> dict[str, str]:
    """Return the digest of every array that a trainer reads."""
    cache = FeatureCache.open(place)
    table = cache.text_table("char-36")
    arrays = {key: cache.image_reader(0, key).all() for key in cache.spec.image_layouts(0)}
    arrays |= {"nodes": table.nodes}
    arrays |= {f"text {name}": features[:] for name, features in table.arrays.items()}
    digests = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
    return digests | {"units": repr(cache.units()), "labels": repr(cache.labels())}


PROGRAM = """
import json, sys, time
time.sleep = lambda seconds: None  # Pauses between tries are not what is tested.
sys.path.insert(0, sys.argv[1])
from test_hub import contents
print(json.dumps(contents(sys.argv[2])))
"""


def read_at(hub: Hub) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(sys.path)
    here = Path(__file__).parent
    return on_hub(hub, "-c", PROGRAM, here, ADDRESS, PYTHONPATH=path)


def first_time(status: int) -> Callable[[str, int], int]:
    """Fail the first of each request for content."""
    return lambda what, before: 0 if before or "/resolve/" not in what else status


@pytest.mark.parametrize("status", [0, 500])
def test_a_hub_gives_what_the_folder_gives(hub: Hub, cache_path: Path, status: int) -> None:
    hub.fault = first_time(status)
    done = read_at(hub)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == contents(cache_path)
    # Ranges, and no byte beyond them: a chunk is eight rows of 17 tokens, 64 wide, and a checksum.
    asked = [what for what in hub.requests if "/block2/c/" in what and "/resolve/" in what]
    spans = [what.rpartition("bytes=")[2].split("-") for what in asked]
    assert max(int(last) + 1 - int(first) for first, last in spans) == 8 * 17 * 64 * 2 + 4


def test_a_hub_that_goes_on_failing_is_one_clear_error(hub: Hub) -> None:
    hub.fault = lambda what, _: 500 if "/block2/c/1" in what and "/resolve/" in what else 0
    done = read_at(hub)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "CacheUnavailableError" in last
    assert f"{ADDRESS}/image/view0/block2/c/1/0/0 cannot be read" in last
    assert "tried 5 times" in last


def test_the_commands_take_a_hub(hub: Hub, cache_path: Path, tmp_path: Path) -> None:
    done = on_hub(hub, "-m", "clipocr", "cache", "copy", ADDRESS, tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    for path in cache_path.rglob("*"):
        name = path.relative_to(cache_path)
        if path.is_file() and name.parts[0] != ".tmp":
            assert (tmp_path / "copy" / name).read_bytes() == path.read_bytes(), name
    done = on_hub(hub, "-m", "clipocr", "cache", "info", f"hf://{REPO}/none")
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: hf://{REPO}/none is not a feature cache")


def test_a_student_trains_from_a_hub(hub: Hub, tmp_path: Path) -> None:
    done = on_hub(
        hub, "-m", "clipocr", "train", "--cache", ADDRESS, "--out", tmp_path / "run",
        "--cache-dir", tmp_path / "copies", "--student", "tiny", "--epochs", "1", "--batch-size",
        "24", "--image-taps", "1,2,3", "--text-taps", "1,2,3", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 steps" in done.stdout
