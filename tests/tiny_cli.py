"""The clipocr command with the tiny teacher of `samples` known to open_clip; for subprocesses."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import open_clip
import torch
from samples import TINY_CLIP

from clipocr.cli import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "ViT-tiny-test.json").write_text(json.dumps(TINY_CLIP))
        open_clip.add_model_config(folder)
        main()
