"""CLIP's two encoders, as a recogniser goes on with them.

Shapes: B batch, N texts, M text tokens, T image tokens, D width, E joint width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from ....shared.cache.reader import FeatureCache
from ....shared.cache.spec import TeacherSpec
from ....shared.clip.encoders import (
    crop_positions,
    embed_images,
    project_image_tokens,
    run_blocks,
)
from ....shared.clip.weights import blank_model, config_of, load_weights
from ....shared.errors import TeacherError, UsageError
from .adapters import ClipWeights
from .settings import ClipSource

CONTEXT_LENGTH = 16
"""M: tokens that the cross branch reads of a text (official ``context_length``)."""


def weights_at(source: ClipSource, place: str | None = None) -> ClipWeights:
    """Return the weights of a CLIP.

    Args:
        source: What it is.
        place: ``MODEL/WEIGHTS``, or a cache that keeps them; None: as the source names them.

    Raises:
        CacheError: there is no such cache, or it keeps none.
        TeacherError: they cannot be had, or are others than those of the source.
        UsageError: the source was a file, which has to be passed.
    """
    have = source.teacher
    if place is not None and ("://" in place or Path(place).is_dir()):
        cache = FeatureCache.open(place)
        _require_same(
            have, cache.spec.teacher, f"the cache {place} is of {cache.spec.teacher.name}"
        )
        return cache.teacher_weights
    if place is not None and "/" not in place:
        raise UsageError(f"--clip {place} is neither a cache that is there nor MODEL/WEIGHTS")
    if place is None and have.weights.startswith("file:"):
        raise UsageError(
            f"this recogniser goes on with the CLIP of the weights file {have.weights[5:]}; pass "
            f"it by --clip {have.model}/PATH, or the cache that keeps it by --clip CACHE"
        )
    instead = f"Pass the file: --clip {have.model}/PATH, or a cache that keeps them"
    model, spec = load_weights(
        place or have.name, have.precision, have.activation, instead=f"{instead}: --clip CACHE"
    )
    _require_same(have, spec, spec.name)
    tensors = model.state_dict()
    return lambda names: {name: tensors[name] for name in names}


def _require_same(have: TeacherSpec, found: TeacherSpec, what: str) -> None:
    if found.weights_sha256 != have.weights_sha256:
        raise TeacherError(
            f"{what}, whose weights (sha256 {found.weights_sha256[:16]}...) are not those that "
            f"this recogniser was trained with, {have.name} (sha256 {have.weights_sha256[:16]}"
            f"...); pass these by --clip {have.model}/PATH"
        )


class ClipEncoder(nn.Module):
    """A part of CLIP, whose weights come by the names that open_clip's state dict has for them."""

    prefix: str
    """What those names begin with, before the names here."""

    def take(self, clip: ClipWeights) -> None:
        """Load the weights."""
        names = {name: self.prefix + name for name in self.state_dict()}
        found = clip(names.values())
        self.load_state_dict({name: found[of_clip] for name, of_clip in names.items()})

    def freeze(self, num_text_blocks: int) -> None:
        """Let be what a fine-tuning does not train; nothing of the image encoder."""


class ImageEncoder(ClipEncoder):
    """The image encoder, all of whose tokens are read."""

    prefix = ""

    def __init__(self, source: ClipSource) -> None:
        """Build it with weights that are not there yet."""
        super().__init__()
        self.view_px = source.view_px
        self.visual: Any = blank_model(source.teacher).visual.to_empty(device="cpu")
        mark_decayed(self.visual)

    def forward(self, images: Tensor, blocks: Sequence[int] = ()) -> tuple[list[Tensor], Tensor]:
        """Encode pictures that have CLIP's mean and std.

        Args:
            images: Shape: (B, 3, H, W).
            blocks: Whose streams are wanted, counted from 1.

        Returns:
            The streams, Shape: (B, T, D) each, and the tokens in the joint space,
            Shape: (B, T, E).
        """
        visual = self.visual
        patch_px = visual.conv1.kernel_size
        positions_TD = crop_positions(visual.positional_embedding, patch_px, self.view_px)
        last = len(visual.transformer.resblocks)
        embedded_BTD = embed_images(visual, positions_TD, images)
        kept = run_blocks(visual.transformer, embedded_BTD, (*blocks, last), None)
        final_BTE = project_image_tokens(visual, kept[last].to(embedded_BTD.dtype))
        return [kept[block] for block in blocks], final_BTE


class TextEncoder(ClipEncoder):
    """The text encoder over short texts, all of whose tokens are read."""

    def __init__(self, source: ClipSource) -> None:
        """Build it with weights that are not there yet."""
        super().__init__()
        text, self.prefix = _text_of(source)
        for name in ("token_embedding", "transformer", "ln_final"):
            setattr(self, name, getattr(text, name).to_empty(device="cpu"))
        for name in ("positional_embedding", "text_projection"):
            setattr(self, name, nn.Parameter(torch.empty(getattr(text, name).shape)))
        mask = torch.full((CONTEXT_LENGTH, CONTEXT_LENGTH), float("-inf")).triu_(1)
        self.register_buffer("mask", mask, persistent=False)
        mark_decayed(self)

    def forward(self, ids_NM: Tensor) -> Tensor:
        """Shape: (N, M) -> (N, M, E)."""
        parts: Any = self
        x = parts.token_embedding(ids_NM) + parts.positional_embedding[: ids_NM.shape[1]]
        last = len(parts.transformer.resblocks)
        kept = run_blocks(parts.transformer, x, (last,), parts.mask.to(x.dtype))
        encoded: Tensor = parts.ln_final(kept[last].to(x.dtype)) @ parts.text_projection
        return encoded

    def freeze(self, num_text_blocks: int) -> None:
        """Let embeddings and lower blocks be as they are (official ``freeze_cip_layers``)."""
        parts: Any = self
        for frozen in (parts.token_embedding, *parts.transformer.resblocks[:num_text_blocks]):
            frozen.requires_grad_(False)
        parts.positional_embedding.requires_grad_(False)


class TokenEmbeddings(ClipEncoder):
    """The embedding of each token by itself (official ``cross_token_embeding``)."""

    def __init__(self, source: ClipSource) -> None:
        """Build it with weights that are not there yet."""
        super().__init__()
        text, self.prefix = _text_of(source)
        self.token_embedding: nn.Embedding = text.token_embedding.to_empty(device="cpu")

    def forward(self, ids_NM: Tensor) -> Tensor:
        """Shape: (N, M) -> (N, M, E)."""
        embedded: Tensor = self.token_embedding(ids_NM)
        return embedded

    def freeze(self, num_text_blocks: int) -> None:
        """Let all of them be."""
        del num_text_blocks
        self.requires_grad_(False)


def _text_of(source: ClipSource) -> tuple[Any, str]:
    """Return the part of an open_clip model that reads text, without weights, and its prefix."""
    model = blank_model(source.teacher)
    return (model.text, "text.") if hasattr(model, "text") else (model, "")


def mark_decayed(module: nn.Module) -> None:
    """Name the matrices that AdamW decays besides those of layers: all of two axes and more.

    The official run passes only biases, norms and token embeddings over.
    """
    for part in module.modules():
        if isinstance(part, nn.Embedding | nn.Linear | nn.Conv2d):
            continue
        own = [name for name, p in part.named_parameters(recurse=False) if p.ndim > 1]
        if own:
            part.decayed = tuple(own)  # type: ignore[assignment]


@functools.cache
def byte_pairs() -> Any:
    """Return CLIP's tokenizer, which takes a while to read its merges."""
    return SimpleTokenizer()


class WordTokens:
    """Texts to the ids that the text encoder reads: the whole word's, cut to the context."""

    def __init__(self) -> None:
        self._bpe = byte_pairs()
        self._ids_of = functools.lru_cache(maxsize=200_000)(self._tokenize)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return ids, 0 after EOT. Shape: (N, M)."""
        return torch.tensor([self._ids_of(text) for text in texts], dtype=torch.long)

    def _tokenize(self, text: str) -> tuple[int, ...]:
        # CLIP does not tell cases apart, and punctuation only splits its words.
        word = "".join(character for character in text.lower() if character.isalnum())
        ids = [self._bpe.sot_token_id, *self._bpe.encode(word), self._bpe.eot_token_id]
        if len(ids) > CONTEXT_LENGTH:
            ids = [*ids[: CONTEXT_LENGTH - 1], self._bpe.eot_token_id]
        return (*ids, *[0] * (CONTEXT_LENGTH - len(ids)))


class ClipSizes(NamedTuple):
    """Sizes of a CLIP of open_clip."""

    joint_width: int
    """E."""
    width: int
    """D of the image encoder."""
    heads: int
    """Of each of its blocks."""
    blocks: int
    """Of the image encoder."""
    patch_px: int
    text_width: int


def sizes_of(source: ClipSource) -> ClipSizes:
    """Return the sizes of a CLIP.

    Raises:
        UsageError: open_clip does not know it.
    """
    config = config_of(source.teacher.model)
    vision = config["vision_cfg"]
    return ClipSizes(
        joint_width=config["embed_dim"],
        width=vision["width"],
        heads=vision["width"] // vision.get("head_width", 64),
        blocks=vision["layers"],
        patch_px=vision["patch_size"],
        text_width=config["text_cfg"]["width"],
    )
