"""Who knows a method: its folder, and nobody else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clipocr.train.methods import DEFAULT_METHOD, find_method, method_names
from clipocr.train.methods.base import Method
from clipocr.train.models.config import StudentConfig

TRAIN = Path(__file__).resolve().parents[3] / "train"
METHODS = TRAIN / "methods"
FOLDERS = [path for path in METHODS.iterdir() if (path / "__init__.py").exists()]

NEUTRAL = [
    *("data", "loop", "ablation", "evaluation", "report", "reading", "deploy", "commands"),
    *("models", "methods"),
]
"""Folders that serve every method."""


def neutral_files() -> list[Path]:
    files = [path for name in NEUTRAL for path in (TRAIN / name).rglob("*.py")]
    return [path for path in files if not any(path.is_relative_to(f) for f in FOLDERS)]


def words_of(method: type[Method], folder: Path) -> set[str]:
    """Return what only the method's folder may say: its names, and options of more than a word."""
    return {method.name, folder.name, method.__name__} | {n for n in method.names() if "_" in n}


def without_comments(source: str) -> str:
    """Return a module without comments and docstrings, which may give examples."""
    without = re.sub(r'""".*?"""', "", source, flags=re.S)
    return re.sub(r"#.*", "", without)


def test_there_are_methods_and_files_to_look_at() -> None:
    assert FOLDERS
    assert {path.parent.name for path in neutral_files()} >= {"data", "loop", "commands"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_no_other_file_knows_a_method(folder: Path) -> None:
    method = find_method(folder.name.replace("_", "-"))
    for path in neutral_files():
        code = without_comments(path.read_text(encoding="utf-8"))
        if path == METHODS / "__init__.py":
            code = code.replace(f'DEFAULT_METHOD = "{DEFAULT_METHOD}"', "")
        found = set(re.findall(r"[\w-]+", code)) & words_of(method, folder)
        if TRAIN / "models" in path.parents:
            # Options of a recogniser are options of the methods that train it.
            found -= set(StudentConfig.names())
        assert not found, f"{path.relative_to(TRAIN)} knows {found}"


def test_no_file_names_an_array() -> None:
    for path in neutral_files():
        code = without_comments(path.read_text(encoding="utf-8"))
        found = re.findall(r"\bblock_?\d|[\"']block[\"'{]|\bEOT\b|[\"']eot[\"']", code)
        assert not found, f"{path.relative_to(TRAIN)} names {found}"


def test_folders_are_found_by_name() -> None:
    assert set(method_names()) >= {folder.name.replace("_", "-") for folder in FOLDERS}
    for folder in FOLDERS:
        method = find_method(folder.name.replace("_", "-"))
        assert method.summary
        # Every setting has a default: a method can be trained without saying anything.
        assert method() == method.from_values({})
