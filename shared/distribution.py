"""What the package is installed as, and which versions of packages are at work.

The import package and the command are `clipocr`; on the package index that name belongs to another
project, so what pip installs has a name of its own.
"""

from __future__ import annotations

import importlib.metadata

from .. import __version__

NAME = "clipocr-str"


def install_command(extra: str = "") -> str:
    """Return what installs the package, with the optional dependencies of a name."""
    return f"pip install '{NAME}[{extra}]'" if extra else f"pip install {NAME}"


def versions_with(*packages: str) -> dict[str, str]:
    """Return the version of clipocr and of other installed packages by name."""
    others = {package: importlib.metadata.version(package) for package in packages}
    return {"clipocr": __version__, **others}
