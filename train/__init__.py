"""Stage 2: a recogniser, trained from a feature cache.

Never imports precompute, and open_clip only where a method goes on with CLIP itself.

The package can be called: ``clipocr.train(cache=..., out=..., student="tiny", epochs=3)`` trains.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop.run import TrainSummary

_Path = str | os.PathLike[str]


def train(
    *,
    cache: _Path,
    out: _Path,
    val_data: _Path | Sequence[_Path] = (),
    resume: bool = False,
    init: _Path | None = None,
    **options: Any,
) -> TrainSummary:
    """Train a recogniser from a cache, or go on where an interrupted run stopped.

    Args:
        cache: Feature cache: a folder, or an address such as ``s3://bucket/mjst.cache``.
        out: Folder of the run.
        val_data: Folder or folders with validation sets; ``best.pt`` is chosen by them.
        resume: Whether to go on with the run in `out`.
        init: Run folder or checkpoint whose recogniser this one begins with; None: random weights.
        options: Any other option of ``clipocr train`` by its name, with underscores: ``device``,
            ``method``, ``student``, ``epochs``, ``batch_size``, ...

    Returns:
        The checkpoint to use, and figures of the run.

    Raises:
        CacheError: the cache is missing, damaged, or not the one this run needs.
        KeyboardInterrupt: a signal ended the run; ``last.pt`` holds it.
        TrainingError: too many steps in a row were not finite.
        UsageError: an option is unknown or not possible, or the run folder is in use.
    """
    from .loop.config import TrainConfig, TrainPlace
    from .loop.run import train as train_run

    roots = [val_data] if isinstance(val_data, str | os.PathLike) else val_data
    values = {
        "cache": cache if "://" in str(cache) else Path(cache),
        "out": Path(out),
        "val_data": [Path(root) for root in roots],
        **options,
    }
    given = ", ".join(f"{name}={value!r}" for name, value in values.items())
    of_place = TrainPlace.own(values)
    return train_run(
        TrainConfig.from_values({k: v for k, v in values.items() if k not in of_place}),
        TrainPlace.from_values(of_place, command=(f"clipocr.train({given})",)),
        resume=resume,
        init=None if init is None else Path(init),
    )


class _CallableModule(types.ModuleType):
    """This package, which is a function too.

    Python sets ``clipocr.train`` to this package as soon as anything below it is imported, so a
    function of that name in ``clipocr`` would last only until then.
    """

    __call__ = staticmethod(train)


sys.modules[__name__].__class__ = _CallableModule
