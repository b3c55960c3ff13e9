"""CLIP4STR's recogniser: two decoders that predict, then refine, on CLIP's image tokens.

Shapes: B batch, L label positions, N texts, T image tokens, M text tokens, E joint width, C
characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ....shared.errors import UsageError
from ....shared.geometry import CLIP_MEAN, CLIP_STD, STUDENT_MEAN, STUDENT_STD, per_channel
from ...models.assembly import Assembler, V
from ...models.autoregressive import num_positions, text_lengths, write_once, written_tokens
from ...models.decoder import Decoder, DecoderPart
from ...models.recogniser import ImageAttention, Recogniser, RecogniserPart
from ...models.tokenizer import LabelTokenizer
from .adapters import ClipWeights, Ladder, LinearAdapter
from .assembly import assemble
from .clip import (
    ClipEncoder,
    ImageEncoder,
    TextEncoder,
    TokenEmbeddings,
    WordTokens,
    sizes_of,
    weights_at,
)
from .settings import Clip4Str

_NUM_PREFIX_TOKENS = 1
"""The class token."""


def _of_both(axes: Mapping[str, int]) -> dict[str, int]:
    """Return axes of a decoder's parameters for those of the two here."""
    return {
        name.replace("decoder.", f"{branch}."): axis
        for branch in ("visual", "cross")
        for name, axis in axes.items()
    }


class Clip4StrRecogniser(Recogniser):
    """Reads with the visual branch, corrects with the cross branch, and does both once more.

    Unless CLIP is trained, its weights are lent: they come when something first needs them, are
    named by their hash, and are in no checkpoint.
    """

    token_axes = _of_both(DecoderPart.token_axes)
    position_axes = _of_both(DecoderPart.position_axes)

    def __init__(self, method: Clip4Str, tokenizer: LabelTokenizer) -> None:
        """Build decoders with random weights; CLIP's come by `lend`.

        Raises:
            UsageError: the settings name no CLIP, or the decoders do not fit it.
        """
        super().__init__()
        if method.clip is None:
            raise UsageError("clip is missing; expected settings from a run, which has a cache")
        self.method, self.tokenizer, self.source = method, tokenizer, method.clip
        self.view_px = method.clip.view_px
        sizes = sizes_of(method.clip)
        self.visual = Decoder(method.decoder(sizes.joint_width), tokenizer)
        self.cross = Decoder(method.decoder(sizes.joint_width), tokenizer) if method.cross else None
        self.adapter: nn.Module | None = None
        if method.tune == "adapter":
            self.adapter = LinearAdapter(sizes.joint_width, method.adapter_ratio)
        elif method.tune == "ladder":
            self.adapter = Ladder(
                method.rungs,
                sizes.width,
                sizes.joint_width,
                sizes.heads,
                method.clip.teacher.activation,
                method.ladder_pruning,
            )
        self._words = WordTokens()
        self._weights: ClipWeights | None = None
        self._lent: dict[str, ClipEncoder] = {}
        if method.holds_clip:
            self.image_encoder = ImageEncoder(self.source)
            if method.cross:
                self.text_encoder = self._new_text_encoder()

    # -- CLIP ------------------------------------------------------------------------------------

    def lend(self, weights: ClipWeights) -> None:
        """Say where CLIP's weights are, for what is not the recogniser's own."""
        self._weights = weights
        self._lent = {}

    def begin_with(self, weights: ClipWeights) -> None:
        """Begin a training: what is the recogniser's own begins as it is in CLIP."""
        self.lend(weights)
        self.let_train()
        for encoder in self.children():
            if isinstance(encoder, ClipEncoder):
                encoder.take(weights)
        if isinstance(self.adapter, Ladder):
            self.adapter.take(weights)

    def bring_clip(self, place: str | None) -> None:
        """Load CLIP's weights; see `Recogniser`."""
        if self.method.holds_clip:
            super().bring_clip(place)
            return
        self.lend(weights_at(self.source, place))
        self._encoder("image_encoder")
        if self.method.cross:
            self._encoder("text_encoder")
        self._weights = None  # All that is needed was copied.

    def reading_parameters(self) -> Iterator[nn.Parameter]:
        """Return all parameters that it reads with, lent ones among them."""
        yield from self.parameters()
        for encoder in self._lent.values():
            yield from encoder.parameters()

    def hold_clip(self) -> dict[str, Any]:
        """Make the lent encoders its own."""
        for name, encoder in self._lent.items():
            setattr(self, name, encoder)
        self._lent = {}
        return {"clip_is_held": self.method.tune != "all"}

    def take_from(self, other: RecogniserPart) -> str:
        """Copy weights; see `Recogniser`.

        Of a run on a frozen CLIP that is what it trained: decoders, which may go on with another
        `tune`, and an adapter to go on with the same.
        """
        if isinstance(other, Clip4StrRecogniser) and other.method.tune != "all":
            trained = RecogniserPart()
            trained.tokenizer = other.tokenizer
            trained.visual = other.visual
            if other.cross is not None:
                trained.cross = other.cross
            if other.adapter is not None and other.method.tune == self.method.tune:
                trained.adapter = other.adapter
            other = trained
        return super().take_from(other)

    @property
    def needs_clip(self) -> bool:
        """Whether CLIP's weights are lent."""
        return not self.method.holds_clip

    def let_train(self) -> None:
        """Let those parameters be trained that the settings say."""
        for encoder in self.children():
            if isinstance(encoder, ClipEncoder):
                encoder.requires_grad_(self.method.tune == "all")
                encoder.freeze(self.method.text_frozen_blocks)

    def _encoder(self, name: str) -> Any:
        """Return an encoder that is here, or lent, on the device of the decoders."""
        if name in self._modules:
            return self._modules[name]
        if name not in self._lent:
            if self._weights is None:
                self._weights = weights_at(self.source)
            is_image = name == "image_encoder"
            encoder = ImageEncoder(self.source) if is_image else self._new_text_encoder()
            encoder.take(self._weights)
            self._lent[name] = encoder.eval().requires_grad_(False)
        return self._lent[name].to(self.visual.positions.device)

    def _new_text_encoder(self) -> ClipEncoder:
        is_encoder = self.method.reads == "encoder"
        return TextEncoder(self.source) if is_encoder else TokenEmbeddings(self.source)

    # -- what the decoders read ------------------------------------------------------------------

    def memory(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return what the decoders read of pictures.

        Args:
            features: The image arrays that the settings name. Shape: (B, T, D) or (B, T, E).

        Returns:
            Shape: (B, T, E).
        """
        *rungs, final_BTE = (features[name].float() for name in self.method.image_arrays)
        if isinstance(self.adapter, Ladder):
            climbed_BTE: Tensor = self.adapter(rungs, final_BTE)
            return climbed_BTE
        return final_BTE if self.adapter is None else self.adapter(final_BTE)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Encode pictures with mean and std 0.5. Shape: (B, 3, H, W) -> image arrays by name."""
        blocks = self.method.rungs if self.method.tune == "ladder" else ()
        streams, final_BTE = self._encoder("image_encoder")(images, blocks)
        return dict(zip(self.method.image_arrays, (*streams, final_BTE), strict=True))

    def text_tokens(self, logits_NLC: Tensor) -> Tensor:
        """Return what the cross branch reads of predicted texts. Shape: (N, L, C) -> (N, M, E)."""
        texts = self.tokenizer.decode_ids(logits_NLC.argmax(dim=-1))
        # Orders of one label often predict the same.
        place_of = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        ids_UM = self._words(list(place_of)).to(logits_NLC.device)
        places_N = torch.tensor([place_of[text] for text in texts], device=logits_NLC.device)
        return self.encode_text(ids_UM)[places_N]

    def encode_text(self, ids_UM: Tensor) -> Tensor:
        """Return what the cross branch reads of tokenised texts. Shape: (U, M) -> (U, M, E)."""
        tokens_UME: Tensor = self._encoder("text_encoder")(ids_UM)
        return tokens_UME

    # -- reading ---------------------------------------------------------------------------------

    def assemble(self, graph: Assembler[V], images: V) -> V:
        """Put together what `decode` does; see `Recogniser`.

        Raises:
            UsageError: there is a cross branch, and the charset has letters or digits beyond ASCII.
        """
        return assemble(self, graph, images)

    @torch.no_grad()
    def decode(self, images: Tensor, max_length: int | None = None) -> Tensor:
        """Read images: the last stage. Shape: (B, 3, H, W) -> (B, L, C + 1)."""
        return list(self.decode_stages(images, max_length).values())[-1]

    @torch.no_grad()
    def decode_stages(self, images: Tensor, max_length: int | None = None) -> dict[str, Tensor]:
        """Read images, and return what each stage wrote, by its name (official ``forward``).

        The cross branch writes no more characters than the visual one did. There the longest text
        of a batch decides that for all of its rows, here each row's own does, so that no picture's
        text depends on its neighbours.

        Returns:
            Logits; what follows a row's EOS is noise or zeros. Shape: (B, L, C + 1) each.
        """
        memory_BTE = self.memory(self.features(self.normalized(images)))
        length = num_positions(self.tokenizer, max_length)
        stages = {}
        state = self.visual.begin(memory_BTE)
        stages["visual"] = first = write_once(self.visual, state, max_length)
        if self.cross is not None:
            of_image = self.cross.begin(memory_BTE)
            of_both = of_image.joined(self.cross.begin(self.text_tokens(first)))
            limits_B = text_lengths(self.tokenizer, first.argmax(dim=-1))
            stages["cross"] = crossed = write_once(self.cross, of_both, max_length, limits_B)
        if self.method.refine:
            tokens_BL = written_tokens(self.tokenizer, first, length)
            stages["refined visual"] = refined = self.visual.refine(tokens_BL, state)
            if self.cross is not None:
                of_both = of_image.joined(self.cross.begin(self.text_tokens(refined)))
                # What stands at a row's last place is no context, even if it is no EOS.
                tokens_BL = written_tokens(self.tokenizer, crossed, length, limits_B)
                stages["refined cross"] = self.cross.refine(tokens_BL, of_both)
        return stages

    def normalized(self, images: Tensor) -> Tensor:
        """Give pictures with mean and std 0.5 CLIP's; unless they shall be read without."""
        if self.method.normalization == "half" and not self.training:
            return images
        mean, std, own_mean, own_std = (
            per_channel(values, images.device)
            for values in (CLIP_MEAN, CLIP_STD, STUDENT_MEAN, STUDENT_STD)
        )
        return (images * own_std + own_mean - mean) / std

    @torch.no_grad()
    def image_attention(self, images: Tensor, token_ids_BL: Tensor) -> ImageAttention:
        """Return how much the last branch read each place of the image, mean over heads."""
        memory_BTE = self.memory(self.features(self.normalized(images)))
        num_tokens, decoder = memory_BTE.shape[1], self.cross or self.visual
        if self.cross is not None:
            texts = self.tokenizer.decode_ids(token_ids_BL[:, 1:])
            ids_BM = self._words(texts).to(memory_BTE.device)
            memory_BTE = torch.cat([memory_BTE, self.encode_text(ids_BM)], dim=1)
        weights_BLS = decoder.image_attention(memory_BTE, token_ids_BL)
        places = slice(_NUM_PREFIX_TOKENS, num_tokens)
        patch_px = sizes_of(self.source).patch_px
        rows, columns = (view // patch_px for view in self.view_px)
        batch, written, _ = weights_BLS.shape
        of_places = weights_BLS[..., places]
        return ImageAttention(
            places=of_places.reshape(batch, written, rows, columns),
            elsewhere=weights_BLS.sum(dim=-1) - of_places.sum(dim=-1),
        )

    def architecture(self) -> dict[str, Any]:
        """Return what decides the shapes of its weights."""
        method = self.method
        names = ("tune", "cross", "decoder_layers", "decoder_heads")
        return {name: getattr(method, name) for name in names} | {"clip": self.source.teacher.model}
