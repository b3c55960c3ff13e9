from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pytest

from clipocr.shared.cache.json_record import decode_record, encode_record, require_equal
from clipocr.shared.errors import CacheCorruptError, CacheMismatchError


@dataclass(frozen=True)
class Inner:
    width: int
    taps: tuple[int, ...]


@dataclass(frozen=True)
class Outer:
    inner: Inner
    parts: tuple[Inner, ...]
    name: str


HAVE = Outer(Inner(768, (3, 6, 9)), (Inner(1, ()), Inner(2, ())), "a")


def test_records_round_trip_and_are_readable() -> None:
    stored = encode_record({"b": [1, 2], "a": "é"})
    assert decode_record(stored, "x") == {"b": [1, 2], "a": "é"}
    assert json.loads(stored)["a"] == "é"


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"[]",
        b"null",
        b'{"a": 1}',
        encode_record({"a": 1}).replace(b'"a": 1', b'"a": 2'),
        encode_record({"a": 1})[:-9],
        bytes(50),
    ],
)
def test_a_damaged_record_is_named(damaged: bytes) -> None:
    with pytest.raises(CacheCorruptError, match=r"CACHE/commits/x\.json"):
        decode_record(damaged, "CACHE/commits/x.json")


def test_equal_specs_pass() -> None:
    require_equal(asdict(HAVE), asdict(HAVE), "it", "do this")


@pytest.mark.parametrize(
    ("want", "said"),
    [
        (Outer(Inner(512, (3, 6, 9)), HAVE.parts, "a"), "inner.width is 768, wanted 512"),
        (Outer(Inner(768, (3, 6)), HAVE.parts, "a"), r"inner.taps is \(3, 6, 9\), wanted \(3, 6\)"),
        (Outer(Inner(768, (3, 6, 8)), HAVE.parts, "a"), r"inner.taps is \(3, 6, 9\), wanted"),
        (Outer(HAVE.inner, (Inner(1, ()), Inner(5, ())), "a"), r"parts\[1\].width is 2, wanted 5"),
        (Outer(HAVE.inner, HAVE.parts[:1], "a"), "parts is "),
        (Outer(HAVE.inner, HAVE.parts, "b"), "name is 'a', wanted 'b'"),
    ],
)
def test_every_difference_is_named_with_both_values(want: Outer, said: str) -> None:
    with pytest.raises(CacheMismatchError, match=f"it: {said}.*do this"):
        require_equal(asdict(HAVE), asdict(want), "it", "do this")
