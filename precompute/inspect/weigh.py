"""What the parts of a cache weigh, to the byte, without writing them. Shapes: B rows."""

from __future__ import annotations

import numpy as np

from ...shared.cache.codecs.codecs import Pixels, filter_pixels
from ...shared.cache.names import PIXELS
from ...shared.cache.shards import weigh_array
from ...shared.cache.spec import CacheSpec
from ..builder.index import draft_manifest, index_arrays
from ..builder.scan import Scan
from ..builder.text import TextDraft

_NOTHING = np.empty(0)
"""Stands for features: they are not compressed, so that only their layouts count."""


def weigh_view(spec: CacheSpec, views: Pixels) -> dict[str, int]:
    """Return the bytes of ``pixels`` and ``features`` of a view.

    Args:
        spec: Of the cache.
        views: Some of it, to tell what all pixels will take. Shape: (B, 32, 128, 3).
    """
    layouts = spec.image_layouts(0)
    pixels = weigh_array(layouts.pop(PIXELS), filter_pixels(views))
    features = sum(weigh_array(layout, _NOTHING) for layout in layouts.values())
    return {"pixels": pixels, "features": features}


def weigh_text(draft: TextDraft, num_labels: int) -> int:
    """Return the bytes of a text table."""
    layouts = draft.spec.layouts(num_labels) | draft.spec.string_layouts()
    return sum(weigh_array(a, draft.arrays.get(key, _NOTHING)) for key, a in layouts.items())


def weigh_tables(spec: CacheSpec) -> int:
    """Return the bytes of the tables that the codecs of a cache work by."""
    return sum(weigh_array(layout, _NOTHING) for layout in spec.codec_layouts({}).values())


def weigh_index(spec: CacheSpec, scan: Scan) -> int:
    """Return the bytes of the arrays that say what rows are."""
    arrays = index_arrays(draft_manifest(spec, scan), scan)
    return sum(weigh_array(layout, values) for layout, values in arrays)
