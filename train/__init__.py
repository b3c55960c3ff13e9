"""Stage 2: a recogniser, trained from a feature cache. Never imports open_clip or precompute.

The package can be called: ``clipocr.train(cache=..., out=..., student="tiny", epochs=3)`` trains.
"""

from __future__ import annotations

import sys
import types
from typing import Any


class _CallableModule(types.ModuleType):
    """This package, which is a function too.

    Python sets ``clipocr.train`` to this package as soon as anything below it is imported, so a
    function of that name in ``clipocr`` would last only until then.
    """

    def __call__(self, **options: Any) -> Any:
        """Train; see `loop.by_options.train`."""
        from .loop.by_options import train

        return train(**options)


sys.modules[__name__].__class__ = _CallableModule
