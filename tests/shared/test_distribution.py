"""Whatever says how to install something names what there is to install."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from clipocr.shared.distribution import NAME, install_command

ROOT = Path(__file__).parents[2]
FOLDERS = ("precompute", "train", "shared", "docs", "benchmarks")


def test_every_advice_names_the_distribution_and_an_extra_of_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == NAME
    texts = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
    texts += [ROOT / "README.md", ROOT / "cli.py", ROOT / "__init__.py"]
    found = []
    for path in texts:
        if path.suffix in (".py", ".md", ".j2", ".toml"):
            text = path.read_text(encoding="utf-8")
            found += [(path.name, what) for what in re.findall(r"pip install ([^`\n;]+)", text)]
            extras = re.findall(r"install_command\(\W?(\w+)\W?\)", text)
            found += [(path.name, install_command(of).split(" ", 2)[2]) for of in extras]
    own = re.compile(rf"'?{NAME}(?:\[(?P<extra>\w+)\])?'?|\.")
    named = [(name, own.fullmatch(what.rstrip(" ,)"))) for name, what in found if "{" not in what]
    assert [name for name, match in named if match is None] == []
    extras = {match["extra"] for _, match in named if match and match["extra"]}
    assert {"export", "s3", "bench"} <= extras <= {*project["optional-dependencies"]}
