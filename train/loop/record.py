"""run.json: everything needed to repeat a run, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...shared.atomic import replacing
from ...shared.cache.names import MANIFEST_NAME
from ...shared.data.folders import is_text
from ...shared.errors import CheckpointError, UsageError
from ..deploy.safetensors_file import MODEL_NAME
from .checkpoint import BEST_NAME, LAST_NAME, load_checkpoint

RUN_NAME = "run.json"


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a run so that it is always a whole one, the old or the new."""
    with replacing(out / RUN_NAME) as partial:
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        partial.write_text(text, encoding="utf-8")


def check_folder(out: Path, *, resume: bool) -> None:
    """Check that a run can begin in a folder, or that there is one to go on with.

    One that failed before it saved anything is in no other's way.

    Raises:
        CheckpointError: there is none to resume; or its record is damaged.
        UsageError: the folder holds a run already, or is a cache.
    """
    if not is_text(out):
        raise UsageError(
            f"{out} has bytes in its name that are not UTF-8, and TensorBoard's log cannot be "
            "written there; choose another --out"
        )
    if (out / MANIFEST_NAME).exists():
        raise UsageError(f"{out} is a feature cache; choose another --out for the run")
    if resume and not any((out / name).exists() for name in (LAST_NAME, RUN_NAME)):
        raise CheckpointError(
            f"{out} holds no run to resume; begin one with: clipocr train --cache CACHE --out {out}"
        )
    if not resume and has_saved(out):
        raise UsageError(
            f"{out} holds a run already; go on with it by: clipocr train --resume {out}; or choose "
            "another --out"
        )


def has_saved(out: Path) -> bool:
    """Return whether a folder holds anything that a run has made.

    Raises:
        CheckpointError: its record is damaged.
    """
    names = (BEST_NAME, LAST_NAME, MODEL_NAME)
    return any((out / name).exists() for name in names) or (
        (out / RUN_NAME).exists() and bool(read_record(out)["history"])
    )


def require_same_run(path: Path, *, had: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that what is in a run folder was begun as it is to go on.

    Raises:
        UsageError: it was not; names every value that differs.
    """
    before, now = _flat(had), _flat(wanted)
    differ = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if differ:
        raise UsageError(
            f"{path} was begun differently: {'; '.join(differ)}. Go on with the same options, or "
            "begin another run with another --out"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested values by their path, as options name them."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, "" if name == "config" else f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def read_options(run_or_record: Path) -> dict[str, Any]:
    """Return the options of a run by name, but ``out``, from its folder or its run.json.

    Without a record they are taken from last.pt.

    Raises:
        CheckpointError: there is neither; or what is there is damaged.
    """
    run = run_or_record if run_or_record.is_dir() else run_or_record.parent
    if not run_or_record.is_dir() or (run / RUN_NAME).exists():
        record = read_record(run, run_or_record.name if run_or_record.is_file() else RUN_NAME)
    elif (run / LAST_NAME).exists():
        record = load_checkpoint(run / LAST_NAME)["training"]
    else:
        check_folder(run, resume=True)  # Says what is missing.
        raise AssertionError(run)
    try:
        begun_with = {"init": record["init"]["checkpoint"]} if record["init"] else {}
        return {**record["config"], **record["place"], **begun_with}
    except (KeyError, TypeError):
        raise CheckpointError(
            f"{run_or_record} does not say where its run read: an older clipocr wrote it. Begin "
            f"another run with its weights by: clipocr train --cache CACHE --out OUT --init {run}"
        ) from None


def read_record(run: Path, name: str = RUN_NAME) -> dict[str, Any]:
    """Return the record of a run.

    Raises:
        CheckpointError: it is damaged.
    """
    path = run / name
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record["commands"], record["config"], record["history"], record["cache"]["id"]
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(
            f"{path} is not the record of a run ({e.__class__.__name__}: {e}); remove it, and go "
            f"on with: clipocr train --resume {run}"
        ) from None
    return record
