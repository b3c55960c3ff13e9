"""`clipocr push` and `clipocr pull`: a student on the Hugging Face hub.

    best.pt or last.pt ──► model.safetensors ┐
    run.json, eval.json, without local paths ├──► one commit ──► a folder for eval, read, export
    both, as a page ───────────► README.md   ┘

No pickle goes up, and none is taken down. Where the hub is and who one is there, its own client
knows (``HF_ENDPOINT``, ``HF_TOKEN``, ``hf auth login``).
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...shared.atomic import replacing
from ...shared.errors import DataError, HubError, UsageError
from ..loop.checkpoint import BEST_NAME, LAST_NAME, build_recogniser, find_checkpoint
from ..loop.record import RUN_NAME, read_record
from .description import load_described, settings_without_folders, teacher_without_folder
from .model_card import model_card, results_of
from .safetensors_file import MODEL_NAME, read_safetensors, write_safetensors

CARD_NAME = "README.md"
FIGURES_NAME = "eval.json"
_PULLED = (MODEL_NAME, RUN_NAME, FIGURES_NAME, CARD_NAME)

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)

# What names no folder of the machine that trained: not commands, not where cache and sets lie.
_SHARED_OF_RECORD = (
    *("versions", "processes", "units", "num_views", "num_parameters", "steps"),
    *("history", "best"),
)
_SHARED_OF_CACHE = ("id", "teacher", "teacher_is_random", "tall", "sources")


def push(
    run_or_checkpoint: Path,
    repo: str,
    *,
    figures_path: Path | None = None,
    license_id: str | None = None,
    public: bool = False,
) -> str:
    """Upload a student with its card; return the address of the commit.

    Raises:
        CheckpointError: there is no student, or its record is damaged.
        DataError: the figures are not of this checkpoint, or not figures.
        HubError: the hub does not answer, or refuses.
        UsageError: `repo` is no name of a repository.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    _require_name(repo)
    checkpoint = find_checkpoint(run_or_checkpoint)
    student, description = load_described(checkpoint)
    record = _shareable_record(checkpoint.parent)
    figures = _shareable_figures(figures_path, checkpoint, description["moment"])
    card = model_card(
        repo=repo,
        description=description,
        record=record,
        figures=figures,
        license_id=license_id,
        needs_clip=student.needs_clip,
    )
    operations = [CommitOperationAdd(CARD_NAME, card.encode())]
    for name, content in ((RUN_NAME, record), (FIGURES_NAME, figures)):
        if content is not None:
            operations.append(CommitOperationAdd(name, json.dumps(content, indent=1).encode()))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / MODEL_NAME
        write_safetensors(model, student, description)
        operations.append(CommitOperationAdd(MODEL_NAME, model))
        api = HfApi(library_name="clipocr", library_version=description["clipocr_version"])
        with _hub_errors(repo):
            api.create_repo(repo, private=not public, exist_ok=True)
            commit = api.create_commit(repo, operations, commit_message="Upload by clipocr push")
    return str(commit.commit_url)


def pull(repo: str, out: Path, *, revision: str | None = None) -> list[str]:
    """Download a student to a folder; return the names of what came.

    Raises:
        CheckpointError: what is there is not a student of this program.
        HubError: the hub does not answer, has no such repository, or it holds no student.
        UsageError: `out` holds a run, or `repo` is no name of a repository.
    """
    from huggingface_hub import constants, snapshot_download

    _require_name(repo)
    for name in (BEST_NAME, LAST_NAME):
        if (out / name).exists():
            raise UsageError(f"{out} holds a run of its own ({name}); choose another folder")
    address = f"{constants.ENDPOINT}/{repo}/resolve/{revision or 'main'}"
    by_hand = f". By hand: bring {', '.join(_PULLED)} from {address}/ to {out}"
    with _hub_errors(repo, by_hand):
        snapshot = Path(snapshot_download(repo, revision=revision, allow_patterns=list(_PULLED)))
    model = snapshot / MODEL_NAME
    if not model.is_file():
        raise HubError(
            f"{repo} holds no {MODEL_NAME}; expected a repository made by: clipocr push RUN {repo}"
        )
    build_recogniser(read_safetensors(model), model)  # Refused before anything is written.
    out.mkdir(parents=True, exist_ok=True)
    pulled = [name for name in _PULLED if (snapshot / name).is_file()]
    for name in pulled:
        with replacing(out / name) as partial:
            shutil.copyfile(snapshot / name, partial)
    return pulled


def _require_name(repo: str) -> None:
    if not _NAME.fullmatch(repo):
        raise UsageError(f"{repo!r} is not the name of a repository; expected OWNER/NAME")


@contextmanager
def _hub_errors(repo: str, by_hand: str = "") -> Iterator[None]:
    """Turn what the hub's client raises into one line, and say at its end what else may be done."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The bases of the client's error are those of every error of its HTTP library, which has
    # changed twice. RuntimeError: the upload of one file failed, its cause behind it.
    expected: tuple[type[Exception], ...] = HfHubHTTPError.__bases__
    expected += (OSError, HFValidationError, RuntimeError)
    try:
        yield
    except expected as e:
        if isinstance(e, OSError) and e.errno is not None:
            raise  # Of a file of this machine.
        cause = e.__cause__ if isinstance(e, RuntimeError) else None
        said = " ".join(f"{e} {cause or ''}".split()) or e.__class__.__name__
        raise HubError(
            f"{repo}: the hub says: {said.rstrip('.')}. Private repositories and pushing need a "
            f"token: hf auth login, or HF_TOKEN{by_hand}"
        ) from e


def _shareable_record(run: Path) -> dict[str, Any] | None:
    """Return what run.json says of the run, not what it says of this machine."""
    if not (run / RUN_NAME).exists():
        return None
    record = read_record(run)
    shareable = {name: record[name] for name in _SHARED_OF_RECORD if name in record}
    cache = {name: record["cache"][name] for name in _SHARED_OF_CACHE if name in record["cache"]}
    cache["teacher"] = teacher_without_folder(cache.get("teacher"))
    config = settings_without_folders(record["config"])
    return shareable | {"config": config, "cache": cache, "commands": []}


def _shareable_figures(
    path: Path | None, checkpoint: Path, moment: Mapping[str, float]
) -> dict[str, Any] | None:
    """Return eval.json, if it is of this checkpoint, with that one's name only.

    Args:
        path: Another than the file beside the checkpoint; None: that one, if it is there.
        checkpoint: What is pushed.
        moment: When that was written. A run that goes on writes another under the same name.
    """
    beside = checkpoint.parent / FIGURES_NAME
    if path is None and not beside.exists():
        return None
    path = path or beside
    try:
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        measured = Path(figures["checkpoint"]).name, figures.get("moment", {})
        results_of(figures)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(
            f"{path} is not what clipocr eval writes ({e.__class__.__name__}: {e}); measure again "
            f"with: clipocr eval {checkpoint} --data ROOT"
        ) from None
    wanted = checkpoint.name, dict(moment)
    if measured != wanted:
        measures, pushed = (
            ", ".join((name, *(f"{key} {value:g}" for key, value in when.items())))
            for name, when in (measured, wanted)
        )
        raise DataError(
            f"{path} is of {measures}; what is pushed is {pushed}. Measure that with: "
            f"clipocr eval {checkpoint} --data ROOT"
        )
    return figures | {"checkpoint": MODEL_NAME}
