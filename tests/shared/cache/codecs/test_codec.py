from __future__ import annotations

import pytest

from clipocr.shared.cache.codecs.codec import Codec, codec_per_array, join_codecs
from clipocr.shared.errors import UsageError


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("fp16", Codec(kind="fp16")),
        ("int4", Codec(kind="int4")),
        ("klt", Codec(kind="klt", record_bytes=192)),
        ("klt:96", Codec(kind="klt", record_bytes=96)),
    ],
)
def test_a_name_is_parsed_and_written(text: str, codec: Codec) -> None:
    assert Codec.parse(text) == codec
    assert Codec.parse(str(codec)) == codec
    assert codec.has_table is text.startswith("klt")


@pytest.mark.parametrize("text", ["", "zip", "int8:4", "klt:", "klt:x", "klt:-1", "auto", "fp16:"])
def test_another_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is unknown; expected one of fp16, int8, int4, klt:BYTES"):
        Codec.parse(text)


def test_one_for_all_or_one_for_each() -> None:
    fp16, int8 = Codec.parse("fp16"), Codec.parse("int8")
    assert codec_per_array([int8], ["a", "b"]) == {"a": int8, "b": int8}
    assert codec_per_array([fp16, int8], ["a", "b"]) == {"a": fp16, "b": int8}
    assert join_codecs([int8, int8]) == "int8"
    assert join_codecs([fp16, int8]) == "fp16,int8"
    with pytest.raises(UsageError, match="'fp16,int8' is of 2 image arrays, there are 3"):
        codec_per_array([fp16, int8], ["a", "b", "c"])
