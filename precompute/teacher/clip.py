"""The frozen CLIP teacher: open_clip's model, read after the blocks that are tapped.

The image encoder sees views through the crop of its positional embedding (class row and the
top-left block of the grid), never an interpolation; blocks after the last tap are not run. The text
encoder sees character-split labels. Both as in the official code (``strhub/models/baseseq/
system.py`` 255-285, ``clip/model.py`` 206-257, 367-382).

Shapes: B batch, H and W height and width of a view, T image tokens, C context tokens, D width, E
joint width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import open_clip
import torch

from ...shared.cache import names
from ...shared.cache.codecs.codecs import Pixels
from ...shared.cache.spec import TeacherSpec
from ...shared.clip.encoders import (
    crop_positions,
    embed_images,
    project_image_tokens,
    run_blocks,
)
from ...shared.clip.weights import config_of, load_weights
from ...shared.device import PRECISIONS, autocast
from ...shared.errors import TeacherError, UsageError
from ...shared.geometry import CLIP_MEAN, CLIP_STD, VIEW_PX, ViewSize, normalize

_FOREIGN_TEXT = {
    "hf_model_name": "another text encoder than CLIP's",
    "hf_tokenizer_name": "another tokenizer than CLIP's",
    "embed_cls": "a class token that stands for EOT",
    "no_causal_mask": "a text encoder that is not causal",
}
"""Settings of open_clip's ``text_cfg`` under which a label prefix would not decide its features."""


def why_no_teacher(model_name: str) -> str:
    """Say what a model of open_clip has that is not CLIP's; nothing if it can be a teacher.

    Its configuration tells, so nothing is built or downloaded.

    Raises:
        UsageError: open_clip does not know the model.
    """
    config = config_of(model_name)
    image, text = config["vision_cfg"], config.get("text_cfg", {})
    if image.get("timm_model_name"):
        return "timm's image encoder, which is not CLIP's"
    if isinstance(image.get("layers"), list):
        return "a ResNet, which has no tokens"
    return next((what for key, what in _FOREIGN_TEXT.items() if text.get(key)), "")


def teacher_models() -> list[str]:
    """Return the names of all models of open_clip that can be teachers."""
    return [name for name in open_clip.list_models() if not why_no_teacher(name)]


def published_teachers() -> list[str]:
    """Return ``MODEL/TAG`` of all teachers whose weights are published."""
    return [
        f"{name}/{tag}"
        for name in teacher_models()
        # A tag says which activation it needs, with either name.
        if "quickgelu" not in name
        for tag in open_clip.list_pretrained_tags_by_model(name)
    ]


def _require_teacher(model_name: str) -> None:
    if why := why_no_teacher(model_name):
        published = dict.fromkeys(name.partition("/")[0] for name in published_teachers())
        raise TeacherError(
            f"{model_name} has {why}; teachers with published weights are {', '.join(published)}"
        )


class Teacher:
    """Frozen CLIP on one device, at one precision."""

    def __init__(
        self,
        model: torch.nn.Module,
        spec: TeacherSpec,
        device: torch.device,
        *,
        image_arrays: Sequence[str],
        text_taps: Sequence[int],
        view_px: tuple[int, int] = VIEW_PX,
    ) -> None:
        """Put a model to use.

        Args:
            model: Of open_clip.
            spec: What it is.
            device: Where it computes.
            image_arrays: What `image_features` returns: ``block3``, ..., ``final``.
            text_taps: Text blocks that a table of labels holds.
            view_px: Height and width of what the image encoder sees.

        Raises:
            TeacherError: an array is not possible.
            UsageError: the size is not.
        """
        self.spec = spec
        self.device = device
        self._text_taps = tuple(text_taps)
        if device.type == "cuda":
            store_products_in(PRECISIONS[spec.precision], model)
        self._model = model.to(device)
        visual: Any = model.visual
        text: Any = getattr(model, "text", model)
        self._visual, self._text = visual, text
        self._view_px, self._patch_px = ViewSize(*view_px), ViewSize(*visual.conv1.kernel_size)
        self._image_positions = crop_positions(
            visual.positional_embedding.detach(), self._patch_px, view_px
        )
        self.context_length: int = text.positional_embedding.shape[0]
        num_tokens, width = self._image_positions.shape
        self.image_shapes = dict.fromkeys(image_arrays, (num_tokens, width))
        """(T, D) of a row of each array of `image_features`."""
        if names.FINAL in self.image_shapes:
            self._require_projection()
            self.image_shapes[names.FINAL] = num_tokens, visual.proj.shape[1]
        projection = text.text_projection
        is_layer = isinstance(projection, torch.nn.Linear)
        self._project = projection if is_layer else lambda eot: eot @ projection
        self._text_width: int = text.positional_embedding.shape[1]
        self._joint_width: int = projection.out_features if is_layer else projection.shape[1]

    def text_widths(self, of_prompts: bool = False) -> dict[str, int]:
        """Return D of each text array that a table of labels, or of prompts, holds."""
        by_token = (names.LN_FINAL,) if of_prompts else names.block_names(self._text_taps)
        return {**dict.fromkeys(by_token, self._text_width), names.EOT: self._joint_width}

    def require_room(self, max_label_length: int) -> None:
        """Refuse labels that do not fit into the text encoder, between SOT and EOT."""
        longest = self.context_length - 2
        if max_label_length > longest:
            raise UsageError(
                f"max label length is {max_label_length}, but the text encoder of "
                f"{self.spec.model} has room for {longest} characters"
            )

    def require_whole_patches(self) -> None:
        """Refuse views of which the image encoder would not see the last rows or columns."""
        pairs = list(zip(self._view_px, self._patch_px, strict=True))
        if any(view % patch for view, patch in pairs):
            nearest = ViewSize(*(max(1, view // patch) * patch for view, patch in pairs))
            raise UsageError(
                f"views of {self._view_px} cannot be cut into the {self._patch_px} patches of "
                f"{self.spec.model}; pass multiples of those, such as --view-size {nearest}"
            )

    @torch.no_grad()
    def image_features(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the image arrays by name, in float32; blocks after the last one are not run.

        Shape: (B, H, W, 3) uint8 -> (B, T, D) each.
        """
        visual = self._visual
        num_blocks = len(visual.transformer.resblocks)
        block_of = {name: names.block_of(name) or num_blocks for name in self.image_shapes}
        with self._exact():
            x = self._embed(views)
            kept = run_blocks(visual.transformer, x, tuple(block_of.values()), None)
            found = {name: kept[block] for name, block in block_of.items()}
            if names.FINAL in found:
                last = found[names.FINAL].to(x.dtype)
                found[names.FINAL] = project_image_tokens(visual, last).float()
            return found

    def chunk_features(
        self, views: Pixels, chunk_rows: int, places: Sequence[int] | None = None
    ) -> dict[str, torch.Tensor]:
        """Return `image_features` of some rows, run as a full chunk.

        The shape of the batch is always the same, because on a GPU it decides the last bits.

        Args:
            views: At most a chunk of them. Shape: (B, H, W, 3).
            chunk_rows: Rows of a chunk.
            places: Where in the chunk each row stands; None: at its beginning.
        """
        at = slice(len(views)) if places is None else list(places)
        # Pinned on the way to a GPU, for the copy there to need no wait.
        is_pinned = self.device.type == "cuda"
        chunk = torch.zeros((chunk_rows, *views.shape[1:]), dtype=torch.uint8, pin_memory=is_pinned)
        chunk.numpy()[at] = views
        features = self.image_features(chunk)
        return {name: of_chunk[at] for name, of_chunk in features.items()}

    @torch.no_grad()
    def image_embeddings(self, views: torch.Tensor) -> torch.Tensor:
        """Return the projected class token, which CLIP compares with the projected EOT, in float32.

        A model that pools its image tokens in another way is refused.

        Shape: (B, H, W, 3) uint8 -> (B, E).
        """
        visual = self._visual
        self._require_projection()
        with self._exact():
            num_blocks = len(visual.transformer.resblocks)
            x = self._embed(views)
            last = run_blocks(visual.transformer, x, (num_blocks,), None)[num_blocks]
            pooled: torch.Tensor = visual.ln_post(last[:, 0].to(x.dtype)) @ visual.proj
            return pooled.float()

    def _require_projection(self) -> None:
        visual = self._visual
        pools = visual.pool_type != "tok" or getattr(visual, "attn_pool", None) is not None
        if pools or visual.proj is None:
            raise TeacherError(
                f"{self.spec.model} does not project its class token, as CLIP does; choose a "
                "teacher such as ViT-B-16"
            )

    @property
    def logit_scale(self) -> float:
        """What CLIP multiplies cosines by before its softmax; 100 for OpenAI's weights."""
        scale: Any = self._model.logit_scale
        return float(scale.exp())

    @contextlib.contextmanager
    def _exact(self) -> Iterator[None]:
        # Unless told not to, cuDNN computes the patch embedding in TF32 even under fp32. `enabled`
        # is said, because the context manager's default switches cuDNN off.
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with exact, autocast(self.device, self.spec.precision):
            yield

    def _embed(self, views: torch.Tensor) -> torch.Tensor:
        """Return what the first image block sees. Shape: (B, H, W, 3) uint8 -> (B, T, D)."""
        images = normalize(views.to(self.device, non_blocking=True), CLIP_MEAN, CLIP_STD)
        return embed_images(self._visual, self._image_positions, images)

    @torch.no_grad()
    def text_features(
        self,
        tokens: torch.Tensor,
        eot_position: torch.Tensor,
        arrays: Collection[str] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return text arrays by name, in float32; None: those of a table of labels.

        Shape: (B, C) ids, (B,) positions -> (B, C, D) each, of ``eot`` (B, E).
        """
        text = self._text
        context = tokens.shape[1]
        tokens = tokens.to(self.device)
        arrays = self.text_widths() if arrays is None else arrays
        with autocast(self.device, self.spec.precision):
            x = text.token_embedding(tokens) + text.positional_embedding[:context]
            mask = text.attn_mask[:context, :context]
            num_blocks = len(text.transformer.resblocks)
            taps = [block for name in arrays if (block := names.block_of(name)) is not None]
            kept = run_blocks(text.transformer, x, (*taps, num_blocks), mask)
            final = text.ln_final(kept[num_blocks].to(x.dtype))
            rows = torch.arange(len(tokens), device=self.device)
            eot = final[rows, eot_position.to(self.device)]
            found = {names.block_name(block): kept[block] for block in taps}
            found |= {names.LN_FINAL: final.float(), names.EOT: self._project(eot).float()}
            return {name: found[name] for name in arrays}


def store_products_in(dtype: torch.dtype, model: torch.nn.Module) -> None:
    """Keep the weights of products in the type in which autocast computes them.

    It would cast 380 MB of them for every chunk. Everything else, which autocast leaves in float32,
    stays as it is, so a GPU gives the same features to the bit. A CPU does not: there PyTorch
    ignores autocast in attention, unless its weights are of another type.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.to(dtype)
        elif isinstance(module, torch.nn.MultiheadAttention):
            for name in ("in_proj_weight", "in_proj_bias"):
                if (parameter := getattr(module, name)) is not None:
                    parameter.data = parameter.data.to(dtype)


def load_teacher(
    name: str,
    *,
    image_taps: Sequence[int | str],
    text_taps: Sequence[int],
    precision: str,
    device: torch.device,
    activation: str | None = None,
    view_px: tuple[int, int] = VIEW_PX,
) -> Teacher:
    """Load `MODEL/WEIGHTS`, frozen, in eval mode.

    Args:
        name: ``MODEL/WEIGHTS``.
        image_taps: Blocks, counted from 1, whose residual streams are image arrays; then maybe
            ``final``.
        text_taps: Blocks whose residual streams are text arrays.
        precision: Of matrix products.
        device: Where it computes.
        activation: See `load_weights`.
        view_px: Height and width of what the image encoder sees.

    Raises:
        UsageError: the name, a block or the size is not possible.
        TeacherError: the weights cannot be had, or the model is not CLIP's two transformers.
    """
    model_name, is_pair, _ = name.partition("/")
    if is_pair:  # What is none is refused below.
        _require_teacher(model_name)
    model, spec = load_weights(name, precision, activation)
    text: Any = getattr(model, "text", model)
    _require_taps("image", image_taps, len(model.visual.transformer.resblocks))
    _require_taps("text", text_taps, len(text.transformer.resblocks))
    return Teacher(
        model,
        spec,
        device,
        image_arrays=names.image_names(image_taps),
        text_taps=text_taps,
        view_px=view_px,
    )


def _require_taps(kind: str, taps: Sequence[int | str], num_blocks: int) -> None:
    is_image = kind == "image"
    possible: list[int | str] = [block for block in range(1, num_blocks + 1) if block in taps]
    if is_image and names.FINAL in taps:
        possible.append(names.FINAL)
    # A cache of words has no image arrays.
    if list(taps) != possible or not (is_image or taps):
        raise UsageError(
            f"{kind} taps {','.join(map(str, taps)) or 'none'} are not possible; expected "
            f"increasing block numbers from 1 to {num_blocks}"
            f"{f', and after them {names.FINAL} or not' if is_image else ''}"
        )
