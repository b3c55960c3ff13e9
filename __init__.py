"""clipocr: an offline CLIP feature cache and a lightweight trainer for scene text recognition.

    import clipocr

    cache = clipocr.open_cache("words.cache")           # labels, views and teacher features
    clipocr.train(cache="words.cache", out="run", student="tiny", epochs=3)
    reader = clipocr.load("run")
    print(reader.read("word.png").text)
    print(clipocr.evaluate(reader, "data/test").table())

Each name is imported when it is first used, so that ``import clipocr`` is instant.
"""

from __future__ import annotations

import importlib as _importlib
import os as _os
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

__version__ = "0.1.0"

if _TYPE_CHECKING:
    from .train import train as train
    from .train.data.cached_words import open_cache as open_cache
    from .train.evaluation.evaluate import evaluate as evaluate
    from .train.reading.readers import load_reader as load

__all__ = ["evaluate", "load", "open_cache", "train"]

_PLACES = {
    "evaluate": "train.evaluation.evaluate:evaluate",
    "load": "train.reading.readers:load_reader",
    "open_cache": "train.data.cached_words:open_cache",
}


def let_threads_sleep() -> None:
    """Make torch's threads sleep while they wait, unless the environment says otherwise.

    To be called before torch is imported. They would spin, and beside any other busy process a CPU
    run then takes twenty times as long (0.5 steps/s for 10, measured on two cores).
    """
    _os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def __getattr__(name: str) -> _Any:
    """Import what the package offers when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    let_threads_sleep()
    if name == "train":
        return _importlib.import_module(".train", __name__)  # A package that can be called.
    module, _, attribute = _PLACES[name].partition(":")
    found = getattr(_importlib.import_module(f".{module}", __name__), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
