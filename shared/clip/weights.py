"""CLIP's weights: from a name, ``MODEL/WEIGHTS``, to a frozen open_clip model.

WEIGHTS is an open_clip pretrained tag, the path of a file, or ``random:SEED``. Weights that were
trained with QuickGELU never get GELU, or the other way round: tags and OpenAI's archives say which
it was, any other file has to be told.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import socket
import urllib.parse
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import torch
from open_clip.transformer import QuickGELU

from ..cache.spec import TeacherSpec
from ..errors import TeacherError, UsageError, nearest
from ..foreign_file import why_unreadable
from ..terminal import byte_size

_HUB_TIMEOUT_S = 5.0
_HUB_WEIGHTS = "open_clip_model.safetensors"
"""What open_clip looks for first where a tag names no file."""


def load_weights(
    name: str, precision: str, activation: str | None = None, *, instead: str | None = None
) -> tuple[Any, TeacherSpec]:
    """Load ``MODEL/WEIGHTS``.

    Args:
        name: Of model and weights.
        precision: Of matrix products, for the description.
        activation: Needed only for a file that does not say.
        instead: What a user may do if the weights cannot be downloaded; None: what a build may.

    Returns:
        An open_clip model, frozen, in eval mode, on the CPU; and what it is, in that precision.

    Raises:
        UsageError: the name is not possible, or the activation is not that of the weights.
        TeacherError: the weights cannot be had.
    """
    model_name, separator, weights = name.partition("/")
    if not separator or not weights:
        raise UsageError(
            f"teacher {name!r} is not MODEL/WEIGHTS; expected e.g. ViT-B-16/openai, "
            "ViT-B-16/path/to/weights.pt or ViT-B-16/random:0"
        )
    trained_with = "quickgelu" if config_of(model_name).get("quick_gelu") else "gelu"
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    path = Path(weights)
    load: Callable[[str, str, str], torch.nn.Module]
    if weights.startswith("random:"):
        load, trained_with = _random_model, activation or trained_with
    elif weights in tags:
        load = functools.partial(
            _pretrained_model,
            instead=instead
            or f"Pass the file: --teacher {model_name}/PATH, or try the pipeline with untrained "
            f"weights: --teacher {model_name}/random:0",
        )
        if open_clip.get_pretrained_cfg(model_name, weights).get("quick_gelu"):
            trained_with = "quickgelu"
    elif path.is_file():
        load, trained_with = _model_from_file, _activation_of(path, trained_with, activation)
    else:
        raise TeacherError(
            f"teacher weights {weights!r} are neither a file nor a pretrained tag of "
            f"{model_name}, nor random:SEED; "
            + nearest(weights, tags, f"its tags are {', '.join(tags) or 'none'}")
        )
    if activation not in (None, trained_with):
        raise UsageError(
            f"{name} was trained with {trained_with}, not {activation}; drop --activation, or "
            "name other weights"
        )
    model = load(model_name, weights, trained_with)
    is_quick = any(isinstance(module, QuickGELU) for module in model.modules())
    if is_quick != (trained_with == "quickgelu"):
        raise TeacherError(
            f"open_clip built {model_name} with {'quickgelu' if is_quick else 'gelu'} although "
            f"these weights need {trained_with}; another open_clip version may help"
        )
    spec = TeacherSpec(
        model=model_name,
        weights=f"file:{path.name}" if load is _model_from_file else weights,
        weights_sha256=hash_weights(model),
        activation=trained_with,
        precision=precision,
    )
    return model.eval().requires_grad_(False), spec


def blank_model(teacher: TeacherSpec) -> Any:
    """Return a teacher's model without weights: its tensors are on the device ``meta``."""
    with torch.device("meta"):
        return _create(teacher.model, teacher.activation, device="meta")


def image_px(model_name: str) -> int:
    """Return the side of the square pictures that a model of open_clip was made for.

    Raises:
        UsageError: open_clip does not know the model, or its pictures are no squares.
    """
    size = (open_clip.get_model_config(model_name) or {}).get("vision_cfg", {}).get("image_size")
    if not isinstance(size, int):
        raise UsageError(f"{model_name} is made for pictures of size {size}, expected squares")
    return size


def hash_weights(model: torch.nn.Module) -> str:
    """Return the SHA-256 of every tensor of a model with its name, type and shape."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def config_of(model_name: str) -> dict[str, Any]:
    """Return what open_clip says of a model.

    Raises:
        UsageError: it says nothing.
    """
    config: dict[str, Any] | None = open_clip.get_model_config(model_name)
    if config is None:
        raise UsageError(
            f"teacher model {model_name!r} is unknown to open_clip; "
            + nearest(model_name, open_clip.list_models(), "expected one such as ViT-B-16")
        )
    return config


def _activation_of(path: Path, configured: str, told: str | None) -> str:
    """Return what a file's weights were trained with.

    GELU in a model's configuration says nothing: the same configuration is used for both.
    """
    if configured == "quickgelu" or _is_torchscript(path):
        return "quickgelu"
    if told is None:
        raise UsageError(
            f"{path} does not say which activation its weights were trained with, and the wrong "
            "one changes every feature; pass --activation quickgelu (OpenAI's weights, DFN, "
            "MetaCLIP) or --activation gelu (LAION, DataComp)"
        )
    return told


def _is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive, the form OpenAI published CLIP in."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _create(model_name: str, activation: str, **options: Any) -> torch.nn.Module:
    # Kept from logging what our own errors and summary say better.
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        model: torch.nn.Module = open_clip.create_model(
            model_name, force_quick_gelu=activation == "quickgelu", **options
        )
    finally:
        logging.disable(previous)
    return model


def _random_model(model_name: str, weights: str, activation: str) -> torch.nn.Module:
    seed = weights.removeprefix("random:")
    if not seed.isdigit():
        raise UsageError(f"teacher weights {weights!r}: expected random:SEED with a whole number")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        return _create(model_name, activation)


def _pretrained_model(
    model_name: str, tag: str, activation: str, *, instead: str
) -> torch.nn.Module:
    hub = huggingface_hub.constants.ENDPOINT
    try:
        with _offline_hub_if_unreachable() as is_offline:
            return _create(model_name, activation, pretrained=tag)
    except Exception as e:
        # open_clip and the hub raise many types here, and all mean that there are no weights.
        reason = f"no connection to {hub}" if is_offline else f"{e.__class__.__name__}: {e}"
        raise TeacherError(
            f"the {tag!r} weights of {model_name} are neither cached here nor can they be "
            f"downloaded ({' '.join(reason.split())}). By hand they come from "
            f"{_address_of(model_name, tag)}, up to "
            f"{byte_size(_num_bytes(model_name, activation))}. {instead}"
        ) from e


def _address_of(model_name: str, tag: str) -> str:
    """Return where a file of pretrained weights can be fetched."""
    config = open_clip.get_pretrained_cfg(model_name, tag)
    repo, _, name = config.get("hf_hub", "").rpartition("/")
    of_hub = f"{huggingface_hub.constants.ENDPOINT}/{repo}/resolve/main/{name or _HUB_WEIGHTS}"
    return config.get("url") or of_hub


def _num_bytes(model_name: str, activation: str) -> int:
    """Return the size of a model's weights in single precision."""
    with torch.device("meta"):
        model = _create(model_name, activation, device="meta")
    return sum(weight.nbytes for weight in model.parameters())


def _model_from_file(model_name: str, path: str, activation: str) -> torch.nn.Module:
    model = _create(model_name, activation)
    try:
        if not _is_torchscript(Path(path)):
            open_clip.load_checkpoint(model, path, weights_only=True)
            return model
        with warnings.catch_warnings():
            # PyTorch deprecated the format for new models; OpenAI's files keep it.
            for category in (DeprecationWarning, FutureWarning):  # The first in torch 2.10.
                warnings.simplefilter("ignore", category)
            archive: Any = torch.jit.load(path, map_location="cpu")
        state = archive.state_dict()
        for key in ("input_resolution", "context_length", "vocab_size"):
            state.pop(key, None)
        model.load_state_dict(state)
    except Exception as e:
        reason = why_unreadable(Path(path), e)
        raise TeacherError(f"{path} does not hold weights of {model_name}: {reason}") from e
    return model


@contextlib.contextmanager
def _offline_hub_if_unreachable() -> Iterator[bool]:
    """Let the hub client look only into its cache if the hub cannot be reached; yield whether so.

    Otherwise the client tries every file again for most of a minute before it fails.
    """
    constants: Any = huggingface_hub.constants
    previous = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = previous or not _can_connect(constants.ENDPOINT)
    try:
        yield constants.HF_HUB_OFFLINE
    finally:
        constants.HF_HUB_OFFLINE = previous


def _can_connect(url: str) -> bool:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in urllib.request.getproxies():
        return True  # Behind a proxy a direct connection proves nothing.
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), _HUB_TIMEOUT_S).close()
    except OSError:
        return False
    return True
