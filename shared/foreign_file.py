"""What a file is that is not what its name says: what downloads and clones leave in its place."""

from __future__ import annotations

import pickle
from pathlib import Path

_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself by: git lfs pull"),
    (b"<!doctype html", "a web page (HTML); download the file itself"),
    (b"<html", "a web page (HTML); download the file itself"),
    (b'{"error', "an answer of a server (JSON), not the file; download it again"),
)


def why_unreadable(path: Path, error: Exception) -> str:
    """Say why PyTorch cannot read a file of weights, without its advice to trust the file."""
    if foreign := describe_foreign(path):
        return f"it is {foreign}"
    if isinstance(error, pickle.UnpicklingError):
        return "it is no file of tensors, or holds more than tensors"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def describe_foreign(path: Path) -> str:
    """Say what stands in a file's place, with what to do; nothing if that is not known."""
    with path.open("rb") as file:
        head = file.read(200)
    if not head:
        return "an empty file; copy or download it again"
    head = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((what for beginning, what in _BEGINNINGS if head.startswith(beginning)), "")
