"""Every field of the fingerprint is compared, named, and shown with both values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from clipocr.shared.cache.codecs.codec import Codec
from clipocr.shared.cache.json_record import as_json, from_json, require_equal
from clipocr.shared.cache.spec import CacheSpec, ImageArraySpec, SourceSpec, TeacherSpec, ViewSpec
from clipocr.shared.charset import LabelRules
from clipocr.shared.errors import CacheMismatchError
from clipocr.shared.geometry import TALL

SPEC = CacheSpec(
    teacher=TeacherSpec(
        model="ViT-B-16",
        weights="openai",
        weights_sha256="ab" * 32,
        activation="quickgelu",
        precision="fp16",
    ),
    view=ViewSpec(),
    labels=LabelRules(),
    images=(
        ImageArraySpec(name="block3", num_tokens=17, width=768, codec=Codec.parse("klt:96")),
        ImageArraySpec(name="final", num_tokens=17, width=512, codec=Codec.parse("int8")),
    ),
    text_taps=(3, 6, 9),
    seed=0,
    sources=(
        SourceSpec(name="MJ/train", num_samples=7, digest="12" * 32),
        SourceSpec(name="ST", num_samples=5, digest="34" * 32),
    ),
    num_rows=12,
    unit_rows=8,
    chunk_rows=4,
)


def other(value: Any) -> Any:
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return value[:-1]
    if isinstance(value, Codec):
        return Codec.parse("int4")
    if value in TALL:
        return TALL[1]
    return value + 1 if isinstance(value, int) else value + "-other"


def changed(spec: Any, path: str = "") -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield (path, value, other value, spec with the other) for every field, however deep."""
    for field in fields(spec):
        value, name = getattr(spec, field.name), f"{path}{field.name}"
        if is_dataclass(value) and not isinstance(value, Codec):
            for inner_path, a, b, inner in changed(value, f"{name}."):
                yield inner_path, a, b, replace(spec, **{field.name: inner})
        elif isinstance(value, tuple) and is_dataclass(value[0]):
            for idx, item in enumerate(value):
                for inner_path, a, b, inner in changed(item, f"{name}[{item.name}]."):
                    items = (*value[:idx], inner, *value[idx + 1 :])
                    if inner_path.endswith(".name"):  # A list is told by its names.
                        inner_path, a, b = name, *(tuple(i.name for i in v) for v in (value, items))
                    yield inner_path, a, b, replace(spec, **{field.name: items})
        else:
            wrong = other(value)
            shown = (str(v) if isinstance(v, Codec) else v for v in (value, wrong))
            yield name, *shown, replace(spec, **{field.name: wrong})


CHANGES = list(changed(SPEC))


def test_no_field_is_forgotten() -> None:
    names = {name for name, *_ in CHANGES}
    assert {"teacher.weights_sha256", "view.resize", "labels.keep_unicode"} <= names
    assert {"sources[ST].digest", "seed", "format_version", "teacher.positions"} <= names
    assert {"images[block3].codec", "images[final].width", "text_taps"} <= names
    assert len(CHANGES) == 6 + 5 + 2 + 2 * 4 + 2 * 3 + 7


@pytest.mark.parametrize(("path", "have", "wanted", "spec"), CHANGES, ids=[c[0] for c in CHANGES])
def test_a_difference_is_named_with_both_values(
    path: str, have: Any, wanted: Any, spec: CacheSpec
) -> None:
    specs = [as_json(each, complete=True) for each in (SPEC, spec)]
    with pytest.raises(CacheMismatchError) as caught:
        require_equal(*specs, "out.cache holds another cache", "Pass --out")
    expected = f"out.cache holds another cache: {path} is {have!r}, wanted {wanted!r}. Pass --out"
    assert str(caught.value) == expected


def test_a_spec_survives_its_json_form() -> None:
    stored = json.loads(json.dumps(as_json(SPEC)))
    assert from_json(CacheSpec, stored) == SPEC
