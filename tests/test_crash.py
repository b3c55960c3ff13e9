"""Builds that are killed, or that the disk turns against: nothing partial, and all resumes."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import WORDS, files_of, write_words

from clipocr.precompute.upkeep.verify import verify_cache
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.errors import CacheMissingError

NUM_KILLS = (9, 9, 30)
"""While the index is made, the text table, and the units with the seal."""


@dataclass(frozen=True)
class Run:
    """What a build did."""

    exit_code: int
    operations: list[str]
    """``write``, ``fsync``, ``replace NAME`` or ``mkdir``, in order."""
    stdout: str
    stderr: str

    def error(self) -> str:
        """Return the one line of an expected failure."""
        assert self.exit_code == 1, (self.exit_code, self.stderr)
        assert self.stdout == ""
        assert "Traceback" not in self.stderr
        last = self.stderr.strip().splitlines()[-1]
        assert last.startswith("Error: "), self.stderr
        return last


class Builder:
    """The program `crash_builder`, waiting for builds."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "support" / "crash_builder.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def build(self, out: Path, **fault: object) -> Run:
        args = [
            *("cache", "build", "--data", self.data, "--out", out, "--device", "cpu"),
            *("--teacher", "ViT-tiny-test/random:0", "--image-taps", "1,2,3"),
            *("--text-taps", "1,2,3", "--unit-rows", "8", "--chunk-rows", "4"),
        ]
        return self.run(*args, **fault)

    def run(self, *args: object, **fault: object) -> Run:
        request = {"args": [str(arg) for arg in args], "fault": fault}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return Run(**answer)

    def close(self) -> None:
        self._process.communicate(timeout=20)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    data = tmp_path_factory.mktemp("data")
    write_words(data / "A", WORDS[:12])
    write_words(data / "B", WORDS[8:16], images={3: b"not an image"})
    builder = Builder(data)
    yield builder
    builder.close()


@dataclass(frozen=True)
class Reference:
    """The cache that an undisturbed build makes: 20 rows in three units."""

    files: dict[str, bytes]
    cache: FeatureCache
    operations: list[str]


@pytest.fixture(scope="module")
def reference(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    out = tmp_path_factory.mktemp("reference") / "cache"
    run = builder.build(out)
    assert run.exit_code == 0, run.stderr
    return Reference(files=files_of(out), cache=FeatureCache.open(out), operations=run.operations)


def unfinished_files(out: Path) -> list[str]:
    """Return what was being written; parts of the text table are whole, and are kept."""
    return [n for n in files_of(out) if n.startswith(".tmp/") and not n.startswith(".tmp/text/")]


def check_nothing_partial(out: Path, reference: Reference) -> int:
    """Check that whatever can be read is whole and right; return the number of units there."""
    published = {n: d for n, d in files_of(out).items() if not n.startswith(".tmp/")}
    # Every name that exists is complete, whether a record vouches for it yet or not.
    assert published == {name: reference.files[name] for name in published}
    try:
        cache = FeatureCache.open(out)
    except CacheMissingError:
        assert not (out / "manifest.json").exists()
        return 0
    report = verify_cache(out)
    assert report.faults == []
    for unit in cache.committed.units.values():
        for key in cache.spec.image_layouts(0):
            rows = cache.image_reader(0, key).rows(*unit.rows)
            expected = reference.cache.image_reader(0, key).rows(*unit.rows)
            np.testing.assert_array_equal(rows, expected, err_msg=f"{unit.name} {key}")
    for name in cache.committed.texts:
        assert cache.text_table(name).strings
    assert cache.is_sealed == (out / "sealed.json").exists()
    return len(cache.units())


@pytest.mark.slow
def test_a_build_killed_at_any_operation_resumes_to_the_same_bytes(
    builder: Builder, reference: Reference, tmp_path: Path
) -> None:
    operations = reference.operations
    bounds = [
        *(0, operations.index("replace manifest.json"), operations.index("replace char-36.json")),
        len(operations),
    ]
    points = {
        first + i * (after - first) // num
        for (first, after), num in zip(itertools.pairwise(bounds), NUM_KILLS, strict=True)
        for i in range(num)
    }
    # The seal, operation by operation: when all else is there, a resume has only that to do.
    points |= set(range(operations.index("replace unit-00002.json"), len(operations)))
    assert len(points) > 50
    struck: Counter[str] = Counter()
    num_units: Counter[int] = Counter()
    for point in sorted(points):
        out = tmp_path / f"killed-{point}"
        run = builder.build(out, kind="kill", at=point)
        assert run.exit_code == -9
        # Arrays are written at once, so operations come in another order each time, and another
        # thread may have begun one before the process was gone.
        assert len(run.operations) >= point + 1
        struck[run.operations[point].split()[0]] += 1
        num_units[check_nothing_partial(out, reference)] += 1
        resumed = builder.build(out)
        assert resumed.exit_code == 0, resumed.stderr
        assert files_of(out) == reference.files, f"killed at operation {point}"
        shutil.rmtree(out)
    print(f"\n{len(points)} kills in {len(operations)} operations: {dict(struck)}")
    assert set(struck) == {"write", "fsync", "replace", "mkdir"}
    assert set(num_units) == {0, 1, 2, 3}


def test_weights_killed_at_any_operation_are_added_by_the_same_command(
    builder: Builder, reference: Reference, tmp_path: Path
) -> None:
    before = reference.cache.folder.root
    whole = shutil.copytree(before, tmp_path / "whole")
    added = builder.run("cache", "weights", whole)
    assert added.exit_code == 0, added.stderr
    expected = files_of(whole)
    # Up to the record; how a seal is made is shown above.
    num_points = added.operations.index("replace teacher.json") + 2
    for point in range(num_points):
        out = shutil.copytree(before, tmp_path / f"killed-{point}")
        assert builder.run("cache", "weights", out, kind="kill", at=point).exit_code == -9
        published = {n: d for n, d in files_of(out).items() if not n.startswith(".tmp/")}
        for name, data in published.items():
            assert data in (reference.files.get(name), expected[name]), f"{name} at {point}"
        assert verify_cache(out).faults == []
        assert builder.run("cache", "weights", out).exit_code == 0
        assert files_of(out) == expected, f"killed at operation {point}"
        shutil.rmtree(out)


@pytest.mark.parametrize(
    ("kind", "said", "num_points"),
    [
        ("ENOSPC", "No space left on device", 6),
        ("EROFS", "Read-only file system", 2),
        ("EIO", "Input/output error", 2),
    ],
)
def test_a_disk_that_fails_at_any_operation_is_one_clear_error(
    builder: Builder,
    reference: Reference,
    tmp_path: Path,
    kind: str,
    said: str,
    num_points: int,
) -> None:
    for i in range(num_points):
        point = i * (len(reference.operations) - 1) // (num_points - 1)
        out = tmp_path / f"failed-{point}"
        run = builder.build(out, kind=kind, at=point)
        assert said in run.error(), point
        # Nobody was killed: what was being written is gone already.
        assert not unfinished_files(out)
        check_nothing_partial(out, reference)
        assert builder.build(out).exit_code == 0
        assert files_of(out) == reference.files, point


def test_a_disk_that_is_really_full_is_one_clear_error(
    builder: Builder, reference: Reference, tmp_path: Path
) -> None:
    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a file system may not be mounted here ({done.stderr.strip()})")

    disk, out, num_units = tmp_path / "disk", tmp_path / "disk" / "cache", []
    disk.mkdir()
    try:
        mount("size=4k")
        for size_kb in (60, 450, 600):
            mount(f"remount,size={size_kb}k")
            assert "No space left on device" in builder.build(out).error()
            assert not unfinished_files(out)
            num_units.append(check_nothing_partial(out, reference))
        mount("remount,size=4m")
        assert builder.build(out).exit_code == 0
        assert files_of(out) == reference.files
    finally:
        subprocess.run(["umount", str(disk)], capture_output=True)
    assert num_units[0] == 0
    assert len(set(num_units)) > 1


def test_a_limit_on_the_size_of_files_is_one_clear_error(
    builder: Builder, reference: Reference, tmp_path: Path
) -> None:
    out, num_units = tmp_path / "cache", []
    sizes = sorted({len(data) for data in reference.files.values()})
    # From a limit that stops the first file to one that stops only the largest.
    for num_bytes in [0, *sizes[4:-1:6], sizes[-1] - 1]:
        run = builder.build(out, kind="file size", num_bytes=num_bytes)
        assert "File too large" in run.error(), num_bytes
        assert not unfinished_files(out)
        num_units.append(check_nothing_partial(out, reference))
    # A part of the text table holds every array of it.
    assert builder.build(out, kind="file size", num_bytes=2 * sizes[-1]).exit_code == 0
    assert files_of(out) == reference.files


def test_a_finished_cache_on_a_read_only_disk_is_readable_and_complete(
    builder: Builder, reference: Reference, tmp_path: Path
) -> None:
    out = tmp_path / "cache"
    assert builder.build(out).exit_code == 0
    run = builder.build(out, kind="EROFS", at=0)
    assert run.exit_code == 0, run.stderr
    assert "nothing was missing" in run.stdout
    assert run.operations == []
    assert check_nothing_partial(out, reference) == 3


def test_something_in_the_way_is_one_clear_error(
    builder: Builder, reference: Reference, tmp_path: Path
) -> None:
    out = tmp_path / "cache"
    (out / "image").mkdir(parents=True)
    (out / "image" / "view0").write_bytes(b"in the way")
    error = builder.build(out).error()
    assert re.search(r"/cache/image/view0.*: (Not a directory|File exists)", error)
    (out / "image" / "view0").unlink()
    assert builder.build(out).exit_code == 0
    assert files_of(out) == reference.files


def test_a_source_that_vanishes_is_one_clear_error_or_none(
    builder: Builder, reference: Reference, tmp_path: Path
) -> None:
    operations = reference.operations
    # An LMDB that is open stays readable without its name; later it cannot be opened.
    points = {
        "before the first unit": operations.index("replace manifest.json"),
        "in the second unit": operations.index("replace unit-00000.json") + 5,
    }
    away, source = tmp_path / "away", builder.data / "B"
    shutil.copytree(source, away)
    for name, point in points.items():
        out = tmp_path / name
        run = builder.build(out, kind="vanish", at=point, path=source)
        if run.exit_code:
            assert str(source) in run.error(), name
            assert check_nothing_partial(out, reference) < 3
        else:
            assert files_of(out) == reference.files
        (out / "commits/view0/unit-00001.json").unlink(missing_ok=True)
        (out / "sealed.json").unlink(missing_ok=True)
        # Without the source nothing goes on, and nothing is lost.
        assert "B" in builder.build(out).error()
        check_nothing_partial(out, reference)
        shutil.copytree(away, source)
        assert builder.build(out).exit_code == 0
        assert files_of(out) == reference.files
