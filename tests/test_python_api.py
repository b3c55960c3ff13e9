"""The four functions of `import clipocr`, as people call them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from samples import draw_word

import clipocr
from clipocr.shared.errors import UsageError


def test_what_there_is_can_be_listed_and_has_a_docstring() -> None:
    assert clipocr.__all__ == ["evaluate", "load", "open_cache", "train"]
    assert set(clipocr.__all__) <= set(dir(clipocr))
    for name in clipocr.__all__:
        assert getattr(clipocr, name).__doc__
        assert callable(getattr(clipocr, name))
    with pytest.raises(AttributeError, match="no attribute 'eval'"):
        clipocr.eval  # noqa: B018


def test_train_takes_the_options_of_the_command(cache_path: Path, tmp_path: Path) -> None:
    options = {"student": "tiny", "epochs": 1, "batch_size": 32, "image_taps": [1, 2, 3]}
    summary = clipocr.train(
        cache=cache_path, out=tmp_path / "run", device="cpu", text_taps=(1, 2, 3), **options
    )
    assert summary.checkpoint == tmp_path / "run" / "last.pt"
    assert summary.num_steps > 0
    word = clipocr.load(tmp_path / "run", device="cpu").read(draw_word("word"))
    assert len(word.character_confidence) in (len(word.text), len(word.text) + 1)
    # Going on with a run that is finished does nothing.
    again = clipocr.train(
        cache=str(cache_path), out=str(tmp_path / "run"), device="cpu", resume=True,
        text_taps=(1, 2, 3), **options,
    )  # fmt: skip
    assert again.num_steps == summary.num_steps
    with pytest.raises(UsageError, match="'epoch'"):
        clipocr.train(cache=cache_path, out=tmp_path / "other", epoch=1)
    assert not (tmp_path / "other").exists()
    with pytest.raises(TypeError, match="cache"):
        clipocr.train(out=tmp_path / "other")


@pytest.mark.parametrize("before", ["", "import clipocr.train.loop.run"])
def test_train_is_a_function_whatever_was_imported_before(before: str) -> None:
    script = (
        f"{before}\nimport clipocr\n"
        "try: clipocr.train(cache='none', out='none', student='tiny')\n"
        "except clipocr.train.loop.run.CacheError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith("none is not a feature cache"), done.stderr
