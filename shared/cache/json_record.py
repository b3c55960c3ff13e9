"""Readable JSON that carries its own checksum, and specs compared field by field."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import MEND, CacheCorruptError, CacheMismatchError


def canonical_json(data: object) -> bytes:
    """Return the one JSON form that checksums are taken of."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def later_field(default: Any) -> Any:
    """Declare a field that was added after records were written, whose default they all mean.

    The default is not recorded, because digests are taken of records, and those of what was
    written before must stay. Another value is, and a program that does not know it refuses it.
    """
    return dataclasses.field(default=default, metadata={_IS_LATER: True})


_IS_LATER = "is_later"


def as_json(value: Any, *, complete: bool = False) -> Any:
    """Return the JSON form of a value; what can be parsed, such as a codec, is its text.

    Args:
        value: A dataclass, mapping, tuple or plain value.
        complete: Whether a `later_field` is there even if it has its default: to compare and to
            show, not to record.
    """
    if hasattr(value, "parse"):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {
            f.name: as_json(getattr(value, f.name), complete=complete)
            for f in dataclasses.fields(value)
            if complete or _IS_LATER not in f.metadata or getattr(value, f.name) != f.default
        }
    if isinstance(value, Mapping):
        return {str(key): as_json(item, complete=complete) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(as_json(item, complete=complete) for item in value)
    return value


def from_json(kind: Any, data: Any) -> Any:
    """Invert `as_json`: return a value of a type.

    Raises:
        ValueError: the data is of no such value.
    """
    args = get_args(kind)
    try:
        if hasattr(kind, "parse"):
            return kind.parse(data)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            types = _types(kind)
            return kind(**{key: from_json(types[key], item) for key, item in data.items()})
        if get_origin(kind) is Mapping:
            return {args[0](key): from_json(args[1], item) for key, item in data.items()}
        if get_origin(kind) is tuple:
            kinds = args[:1] * len(data) if args[-1] is ... else args
            return tuple(map(from_json, kinds, data))
    except (AttributeError, KeyError, TypeError) as e:
        raise ValueError(f"{data!r} is not of {kind}") from e
    return data


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def encode_record(record: Any) -> bytes:
    """Return a record as it is stored: readable JSON that carries its own checksum."""
    data = as_json(record)
    checksum = hashlib.sha256(canonical_json(data)).hexdigest()
    return (json.dumps({**data, "sha256": checksum}, indent=1, sort_keys=True) + "\n").encode()


def decode_record(stored: bytes, where: str) -> dict[str, Any]:
    """Return a record's content."""
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
    """Compare two specs, as `as_json` gives them complete, field by field."""
    held, wanted = dict(_fields(have, "")), dict(_fields(want, ""))
    differences = [path for path in held if path in wanted and held[path] != wanted[path]]
    if differences:
        listed = (f"{path} is {held[path]!r}, wanted {wanted[path]!r}" for path in differences)
        raise CacheMismatchError(f"{what}: {'; '.join(listed)}. {remedy}")


def _fields(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield the plain values in a spec by path; of a list of named things first their names."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _fields(item, f"{path}.{key}" if path else key)
    elif isinstance(value, tuple) and value and all(isinstance(item, Mapping) for item in value):
        named = {item.get("name", idx): item for idx, item in enumerate(value)}
        yield path, tuple(named)
        for name, item in named.items():
            yield from _fields(item, f"{path}[{name}]")
    else:
        yield path, value
