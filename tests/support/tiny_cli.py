"""The clipocr command with the tiny teacher of `samples` known to open_clip; for subprocesses."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from samples import register_tiny_clip

from clipocr.__main__ import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        register_tiny_clip(Path(folder))
        main()
