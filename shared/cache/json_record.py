"""Readable JSON that carries its own checksum, and specs compared field by field."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import MEND, CacheCorruptError, CacheMismatchError


def canonical_json(data: object) -> bytes:
    """Return the one JSON form that checksums are taken of."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def encode_record(data: Mapping[str, Any]) -> bytes:
    """Return a record as it is stored: readable JSON that carries its own checksum."""
    checksum = hashlib.sha256(canonical_json(data)).hexdigest()
    return (json.dumps({**data, "sha256": checksum}, indent=1, sort_keys=True) + "\n").encode()


def decode_record(stored: bytes, where: str) -> dict[str, Any]:
    """Return a record's content.

    Raises:
        CacheCorruptError: not JSON, not what its checksum says, or written otherwise.
    """
    try:
        data = dict(json.loads(stored))
        data.pop("sha256")
        is_sound = encode_record(data) == stored
    except (ValueError, KeyError, TypeError):
        is_sound = False
    if not is_sound:
        raise CacheCorruptError(f"{where} is not the record that was written. {MEND}")
    return data


def require_equal(have: Mapping[str, Any], want: Mapping[str, Any], what: str, remedy: str) -> None:
    """Compare two specs, as `dataclasses.asdict` or a ``to_json`` gives them, field by field.

    Raises:
        CacheMismatchError: naming every field that differs, both values, and `remedy`.
    """
    differences = list(_differences(have, want, ""))
    if differences:
        listed = "; ".join(f"{path} is {a!r}, wanted {b!r}" for path, a, b in differences)
        raise CacheMismatchError(f"{what}: {listed}. {remedy}")


def _differences(have: object, want: object, path: str) -> Iterator[tuple[str, object, object]]:
    if isinstance(have, dict) and isinstance(want, dict):
        for key in have:
            yield from _differences(have[key], want[key], f"{path}.{key}" if path else key)
    elif isinstance(have, tuple) and isinstance(want, tuple) and len(have) == len(want):
        for idx, (a, b) in enumerate(zip(have, want, strict=True)):
            named = f"{path}[{a.get('name', idx)}]" if isinstance(a, dict) else path
            if not isinstance(a, dict) and have != want:
                yield path, have, want
                return
            yield from _differences(a, b, named)
    elif have != want:
        yield path, _short(have), _short(want)


def _short(value: object) -> object:
    """Return a list of named things by their names."""
    is_list = isinstance(value, tuple) and all(isinstance(item, dict) for item in value)
    return tuple(item.get("name", item) for item in value) if is_list else value  # type: ignore[attr-defined]
