"""The rules of the house: who may import whom, and what a wheel holds."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import clipocr

ROOT = Path(__file__).parents[1]
CLIP4STR = ROOT / "train/methods/clip4str"
SUBPACKAGES = ("precompute", "train", "shared")


def imported(path: Path) -> set[str]:
    """Return what a module imports, relative names made absolute, wherever in the file."""
    package = ["clipocr", *path.relative_to(ROOT).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names.add(".".join([*base, *([node.module] if node.module else [])]))
    return names


def modules_of(subpackage: str) -> list[Path]:
    found = sorted((ROOT / subpackage).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize(
    ("subpackage", "forbidden"),
    [
        ("precompute", ("clipocr.train", "clipocr.cli")),
        ("train", ("clipocr.precompute", "clipocr.cli", "open_clip", "torchvision")),
        ("shared", ("clipocr.precompute", "clipocr.train", "clipocr.cli", "open_clip", "timm")),
    ],
)
def test_data_flows_one_way(subpackage: str, forbidden: tuple[str, ...]) -> None:
    for path in modules_of(subpackage):
        wrong = [name for name in imported(path) if name.startswith(forbidden)]
        if path.is_relative_to(ROOT / "shared/clip") or path.is_relative_to(CLIP4STR):
            wrong = [name for name in wrong if not name.startswith("open_clip")]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_one_method_goes_on_with_clip_itself() -> None:
    """All else of stage 2 has nothing to do with the teacher's model."""
    for path in [*modules_of("train"), *modules_of("shared")]:
        if not path.is_relative_to(ROOT / "shared/clip"):
            of_clip = [name for name in imported(path) if name.startswith("clipocr.shared.clip")]
            assert not of_clip or path.is_relative_to(CLIP4STR), path


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules loaded after running `code` in a new interpreter."""
    script = f"{code}\nimport sys; print(' '.join({{n.split('.')[0] for n in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_training_imports_neither_the_teacher_nor_lmdb() -> None:
    loaded = loaded_by("import clipocr.train.loop.run, clipocr.train.loop.config")
    assert not loaded & {"open_clip", "lmdb", "zarr", "fsspec", "s3fs", "huggingface_hub_download"}
    assert "torch" in loaded


@pytest.mark.parametrize("command", ["train", "cache build", "cache text", "cache plan"])
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        "from click.testing import CliRunner; from clipocr.cli import main\n"
        f"assert CliRunner().invoke(main, [*{command.split()}, '--help']).exit_code == 0"
    )
    assert not loaded_by(code) & {"torch", "open_clip", "numpy", "timm", "zarr", "lmdb", "PIL"}


def test_every_subpackage_is_packaged() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(SUBPACKAGES)
    found = [path for folder in SUBPACKAGES for path in (ROOT / folder).rglob("__init__.py")]
    expected = {".".join(["clipocr", *path.relative_to(ROOT).parts[:-1]]) for path in found}
    assert set(project["tool"]["setuptools"]["packages"]) == {"clipocr", *expected}


def test_the_citation_is_of_this_version() -> None:
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {clipocr.__version__}" in lines


def test_no_dependency_is_capped() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert not [name for name in wanted if "<" in name or "==" in name or ">=" not in name]


def test_the_root_package_imports_nothing_until_it_is_used() -> None:
    # What it offers, it imports when called; pytest also loads it under the checkout's folder name.
    script = "import sys, clipocr; print(*(n for n in sys.modules if n.startswith('clipocr')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["clipocr"]
    assert not loaded_by("import clipocr") & {"torch", "numpy", "PIL", "click"}
