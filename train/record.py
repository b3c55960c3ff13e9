"""run.json: everything needed to repeat a run, and what came of it."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..shared.cache import FeatureCache
from .config import TrainConfig, TrainPlace

RUN_NAME = "run.json"


def write_record(
    place: TrainPlace, config: TrainConfig, cache: FeatureCache, state: Mapping[str, Any]
) -> None:
    """Write the record of a run so that it is always a whole one, the old or the new.

    Args:
        place: Where the run is.
        config: What decides its weights.
        cache: What it reads.
        state: What else is to be known of it.
    """
    spec = cache.spec
    record = {
        "config": config.to_json(),
        "cache": {
            "path": str(place.cache),
            "id": cache.manifest.cache_id,
            "teacher": spec.teacher.name,
            "teacher_is_random": spec.teacher.is_random,
            "sources": [source.name for source in spec.sources],
        },
        "validation": [str(root) for root in place.val_data],
        "versions": {
            package: importlib.metadata.version(package)
            for package in ("clipocr", "torch", "numpy")
        },
        "device": str(place.device),
        "processes": place.processes.world_size,
        **state,
    }
    partial = place.out / f".{RUN_NAME}.partial"
    partial.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(place.out / RUN_NAME)


def read_record(run: Path) -> dict[str, Any]:
    """Return the record of a run."""
    record: dict[str, Any] = json.loads((run / RUN_NAME).read_text(encoding="utf-8"))
    return record
