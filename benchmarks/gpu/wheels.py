"""Download the wheels that `make gpu WHEELS=FOLDER` needs, for a machine without a network.

    python benchmarks/gpu/wheels.py FOLDER [--python 3.12]

Everything that this environment has for clipocr and its tests, but PyTorch, timm and NumPy, which
such a machine has; and but what is large and not needed there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOTS = ("clipocr-str", "pytest", "pytest-xdist", "pytest-timeout")
LEFT_OUT = {
    *("torch", "torchvision", "triton", "timm", "numpy"),
    # 11 MB by which downloads from a hub and TensorBoard's page become faster.
    *("hf-xet", "tensorboard-data-server"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12")
    args = parser.parse_args()
    found: dict[str, str] = {}
    for name in ROOTS:
        collect(name, args.python, found)
    del found[ROOTS[0]]
    pinned = [f"{name}=={version}" for name, version in found.items()]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", args.python, "--dest", args.folder]
    # pip builds clipocr's own with it.
    subprocess.run([*map(str, command), *pinned, "setuptools>=77"], check=True)
    sizes = [path.stat().st_size for path in args.folder.glob("*.whl")]
    print(f"Wrote {args.folder}: {len(sizes)} wheels, {sum(sizes) / 1e6:.0f} MB.")


def collect(name: str, python: str, found: dict[str, str]) -> None:
    """Add a package and all that it needs, with the versions that are installed here."""
    name = canonicalize_name(name)
    if name in found or name in LEFT_OUT or name.startswith(("nvidia-", "cuda-")):
        return
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return  # Only for another platform.
    found[name] = package.version
    environment = {"extra": "", "python_version": python, "python_full_version": f"{python}.0"}
    for text in package.requires or ():
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate(environment):
            collect(needed.name, python, found)


if __name__ == "__main__":
    main()
