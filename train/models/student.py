"""The recogniser: a ViT encoder and an autoregressive decoder, each in four stages.

This is CLIP-OCR's student (``strhub/models/baseseq``), a PARSeq without permutations. The decoder
has two streams. *Content* is the label so far: token embeddings plus positions, computed once and
never updated. *Queries* are one learned vector per label position; layer by layer they read the
content before their position, then the image. As queries never attend to one another, decoding
one more character costs one query, and the keys and values of content and image can be kept.

Shapes: B batch, S student image tokens (class token first), D student width, L label
positions (characters of the longest label, plus EOS), C characters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...shared.errors import UsageError
from ...shared.geometry import IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX
from .layers import ENCODER_NORM_EPS, Attention, EncoderBlock, KeysValues, PatchEmbedding
from .tokenizer import LabelTokenizer

NUM_STAGES = 4
"""Stages of the encoder, and of the decoder, that a teacher can supervise."""

_FEW_ROWS = 3 / 4
"""Share of a batch's rows up to which it pays to go on with those alone: to single them out costs
about what a step does."""


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The size of a student; its charset is not part of it."""

    width: int = 384
    """D, of encoder and decoder alike."""
    patch_height_px: int = 4
    """Height of an image patch; must divide 32."""
    patch_width_px: int = 8
    """Width of an image patch; must divide 128."""
    encoder_layers: int = 12
    """Transformer blocks of the encoder, a quarter of them per stage."""
    encoder_heads: int = 6
    """Attention heads per encoder block; must divide `width`."""
    decoder_heads: int = 12
    """Attention heads per decoder layer (there are four, one per stage); must divide `width`."""
    mlp_ratio: int = 4
    """Hidden width of every feed-forward network, in multiples of `width`."""
    max_label_length: int = 25
    """Longest label the student can write, in characters."""
    dropout: float = 0.1
    """Dropout probability everywhere in the decoder; the encoder has none."""

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in vars(self).items() if name != "dropout"}
        problems = [f"{name} is {v}, expected 1 or more" for name, v in sizes.items() if v < 1]
        if not problems:
            problems = [
                f"{part_name} {part} does not divide {whole_name} {whole}"
                for part_name, part, whole_name, whole in (
                    ("patch_height_px", self.patch_height_px, "image height", IMAGE_HEIGHT_PX),
                    ("patch_width_px", self.patch_width_px, "image width", IMAGE_WIDTH_PX),
                    ("number of stages", NUM_STAGES, "encoder_layers", self.encoder_layers),
                    ("encoder_heads", self.encoder_heads, "width", self.width),
                    ("decoder_heads", self.decoder_heads, "width", self.width),
                )
                if whole % part
            ]
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout is {self.dropout}, expected 0 or more and less than 1")
        if problems:
            raise UsageError("student config: " + "; ".join(problems))

    @property
    def num_image_tokens(self) -> int:
        """S: one per patch and the class token."""
        rows, columns = (
            IMAGE_HEIGHT_PX // self.patch_height_px,
            IMAGE_WIDTH_PX // self.patch_width_px,
        )
        return 1 + rows * columns


STUDENT_PRESETS = {
    "tiny": StudentConfig(
        width=128,
        patch_height_px=32,
        patch_width_px=4,
        encoder_layers=4,
        encoder_heads=4,
        decoder_heads=4,
        mlp_ratio=2,
        dropout=0.0,
    ),
    "small": StudentConfig(),
    "base": StudentConfig(width=768, encoder_heads=12, decoder_heads=12),
}
"""``tiny`` learns clean print on a laptop's CPU in minutes: its patches are whole columns of the
picture, and dropout only slows so short a training. ``small`` is the paper's, ``base`` is ViT-B."""


@dataclass(frozen=True, kw_only=True)
class StudentOutput:
    """What one training forward yields: every stage a teacher may look at, and the prediction."""

    encoder_stages: tuple[Tensor, ...]
    """The residual stream after each quarter of the blocks, class token first; raw for the first
    three stages, through the final LayerNorm for the last. Shape: (B, S, D) each."""
    decoder_stages: tuple[Tensor, ...]
    """Each decoder layer's queries through the one final LayerNorm. Shape: (B, L, D) each."""
    logits: Tensor
    """Shape: (B, L, C + 1)."""


class DecoderLayer(nn.Module):
    """One pre-LN layer of the query stream: read the content, read the image, think."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        self.query_norm = nn.LayerNorm(width)
        self.content_norm = nn.LayerNorm(width)
        self.content_attention = Attention(width, config.decoder_heads, dropout)
        self.image_norm = nn.LayerNorm(width)
        self.image_attention = Attention(width, config.decoder_heads, dropout)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.mlp_ratio * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(config.mlp_ratio * width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def project_content(self, content_BLD: Tensor) -> KeysValues:
        """Project the static content stream for this layer."""
        return self.content_attention.project(self.content_norm(content_BLD))

    def project_memory(self, memory_BSD: Tensor) -> KeysValues:
        """Project the image memory, which the encoder has normalised, for this layer."""
        return self.image_attention.project(memory_BSD)

    def forward(
        self, query_BLD: Tensor, content: KeysValues, memory: KeysValues, mask: Tensor | None = None
    ) -> Tensor:
        """Advance the queries by one layer. `mask` is true where a query may read content."""
        x = query_BLD
        x = x + self.dropout(self.content_attention(self.query_norm(x), content, mask))
        x = x + self.dropout(self.image_attention(self.image_norm(x), memory))
        advanced_BLD: Tensor = x + self.dropout(self.mlp(x))
        return advanced_BLD


@dataclass(frozen=True, kw_only=True)
class DecoderState:
    """What decoding keeps from one position to the next: the keys and values of each layer."""

    memories: tuple[KeysValues, ...]
    """Of the image."""
    contents: tuple[KeysValues, ...] = ()
    """Of the tokens so far; none before the first."""

    @property
    def num_tokens(self) -> int:
        """Tokens so far, and so the position that is next."""
        return self.contents[0].keys_BHSD.shape[2] if self.contents else 0

    def extended(self, newest: Sequence[KeysValues]) -> DecoderState:
        """Return the state with the keys and values of one more token."""
        if self.contents:
            newest = [old.extended(new) for old, new in zip(self.contents, newest, strict=True)]
        return DecoderState(memories=self.memories, contents=tuple(newest))

    def of_rows(self, rows: Tensor) -> DecoderState:
        """Return the state of some rows of the batch. Shape of `rows`: (R,)."""
        return DecoderState(
            memories=tuple(memory.of_rows(rows) for memory in self.memories),
            contents=tuple(content.of_rows(rows) for content in self.contents),
        )


class Encoder(nn.Module):
    """A ViT with a class token, returning its four stages.

    It computes what timm's ``VisionTransformer`` computes, from parameters of the same names. It is
    written out here because timm imports torchvision and PIL, and training needs no pictures.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        width = config.width
        self.stage_layers = config.encoder_layers // NUM_STAGES
        self.patch_embed = PatchEmbedding(width, config.patch_height_px, config.patch_width_px)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, config.num_image_tokens, width))
        self.blocks = nn.ModuleList(
            EncoderBlock(width, config.encoder_heads, config.mlp_ratio)
            for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(width, eps=ENCODER_NORM_EPS)
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encode normalised images. Shape: (B, 3, 32, 128) -> four of (B, S, D)."""
        # Not len(images): whatever exports a student needs a size it can leave open.
        class_token_BSD = self.cls_token.expand(images.shape[0], -1, -1)
        x_BSD = torch.cat([class_token_BSD, self.patch_embed(images)], dim=1) + self.pos_embed
        stages = []
        for num_done, block in enumerate(self.blocks, start=1):
            x_BSD = block(x_BSD)
            if num_done % self.stage_layers == 0:
                stages.append(x_BSD)
        return (*stages[:-1], self.norm(x_BSD))


class Student(nn.Module):
    """A scene text recogniser that shows its stages while it trains."""

    def __init__(self, config: StudentConfig, tokenizer: LabelTokenizer) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.encoder = Encoder(config)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(NUM_STAGES))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, tokenizer.num_classes)
        self.embedding = nn.Embedding(tokenizer.num_tokens, config.width)
        self.positions = nn.Parameter(torch.empty(1, config.max_label_length + 1, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.apply(initialize)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, images: Tensor, token_ids_BL: Tensor) -> StudentOutput:
        """Predict each character from the image and the true characters before it.

        Args:
            images: Normalised images. Shape: (B, 3, 32, 128).
            token_ids_BL: From `LabelTokenizer.encode`, EOS included. Shape: (B, L + 1).
        """
        inputs_BL = token_ids_BL[:, :-1]
        num_positions = inputs_BL.shape[1]
        if num_positions > self.positions.shape[1]:
            raise UsageError(
                f"a label has {num_positions - 1} characters, "
                f"this student reads at most {self.config.max_label_length}"
            )
        encoder_stages = self.encoder(images)
        content_BLD = self.dropout(self._embed(inputs_BL))
        query_BLD = self.dropout(self.positions[:, :num_positions].expand(len(images), -1, -1))
        mask = self._content_mask(inputs_BL)
        decoder_stages = []
        for layer in self._decoder_layers():
            content = layer.project_content(content_BLD)
            memory = layer.project_memory(encoder_stages[-1])
            query_BLD = layer(query_BLD, content, memory, mask)
            decoder_stages.append(self.norm(query_BLD))
        return StudentOutput(
            encoder_stages=encoder_stages,
            decoder_stages=tuple(decoder_stages),
            logits=self.head(decoder_stages[-1]),
        )

    @torch.no_grad()
    def decode(self, images: Tensor, max_length: int | None = None) -> Tensor:
        """Read images greedily, one character a step, until every row has said EOS.

        Rows that have ended are left out of further steps now and then, so what follows a row's
        EOS is noise or zeros; `LabelTokenizer.decode` cuts it off.

        Args:
            images: Normalised images. Shape: (B, 3, 32, 128).
            max_length: Longest label to write, `max_label_length` if None or longer than that.

        Returns:
            Logits. Shape: (B, L, C + 1), L at most max_length + 1.
        """
        longest = self.config.max_label_length
        num_steps = 1 + (longest if max_length is None else min(max_length, longest))
        state = self.begin(self.encode(images))
        # R rows of the batch are still decoded; at first all.
        rows_R = torch.arange(len(images), device=images.device)
        tokens_R = torch.full_like(rows_R, self.tokenizer.bos_id)
        has_ended_R = torch.zeros_like(rows_R, dtype=torch.bool)
        logits = []
        for _ in range(num_steps):
            newest_RC, state = self.step(tokens_R, state)
            blank_BC = newest_RC.new_zeros(len(images), newest_RC.shape[1])
            logits.append(blank_BC.index_copy(0, rows_R, newest_RC))
            tokens_R = newest_RC.argmax(dim=-1)
            has_ended_R = has_ended_R | (tokens_R == self.tokenizer.eos_id)
            going_on = has_ended_R.logical_not().nonzero().squeeze(1)
            if not len(going_on):
                break
            if len(going_on) <= _FEW_ROWS * len(rows_R):
                state = state.of_rows(going_on)
                rows_R, tokens_R, has_ended_R = (
                    x[going_on] for x in (rows_R, tokens_R, has_ended_R)
                )
        return torch.stack(logits, dim=1)

    def encode(self, images: Tensor) -> Tensor:
        """Return the memory that decoding reads. Shape: (B, 3, 32, 128) -> (B, S, D)."""
        memory_BSD: Tensor = self.encoder(images)[-1]
        return memory_BSD

    def begin(self, memory_BSD: Tensor) -> DecoderState:
        """Return the state before the first position. Shape: (B, S, D)."""
        layers = self._decoder_layers()
        # Every step reads them, so it pays to move them together first.
        memories = (layer.project_memory(memory_BSD).contiguous() for layer in layers)
        return DecoderState(memories=tuple(memories))

    def step(self, tokens_B: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Decode one position.

        Args:
            tokens_B: The token before it: BOS, then what the last step's logits say. Shape: (B,).
            state: Of `begin`, then of the last step.

        Returns:
            Logits, Shape: (B, C + 1), and the state for the next step.
        """
        position = state.num_tokens
        token_BLD = self._embed(tokens_B[:, None], position)
        layers = self._decoder_layers()
        state = state.extended([layer.project_content(token_BLD) for layer in layers])
        query_BLD = self.positions[:, position : position + 1].expand(tokens_B.shape[0], -1, -1)
        for layer, content, memory in zip(layers, state.contents, state.memories, strict=True):
            query_BLD = layer(query_BLD, content, memory)
        logits_BLC: Tensor = self.head(self.norm(query_BLD))
        return logits_BLC[:, 0], state

    @torch.no_grad()
    def image_attention(self, images: Tensor, token_ids_BL: Tensor) -> Tensor:
        """Return how much the last layer reads each image token at each position, mean over heads.

        Args:
            images: Normalised images. Shape: (B, 3, 32, 128).
            token_ids_BL: What was read in them, from `LabelTokenizer.encode`. Shape: (B, L + 1).

        Returns:
            Weights, whose sum over the image tokens is 1. Shape: (B, L, S).
        """
        attention = self._decoder_layers()[-1].image_attention
        inputs: list[tuple[Tensor, KeysValues]] = []
        with attention.register_forward_pre_hook(lambda _, args: inputs.append(args)):
            self(images, token_ids_BL)
        return attention.weights(*inputs[0])

    def _decoder_layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    def _embed(self, token_ids_BL: Tensor, position: int = 0) -> Tensor:
        """Embed tokens standing at `position` and after. BOS, at 0, gets no position."""
        content_positions = F.pad(self.positions, (0, 0, 1, 0))
        end = position + token_ids_BL.shape[1]
        scale = math.sqrt(self.config.width)
        embedded: Tensor = scale * self.embedding(token_ids_BL)
        return embedded + content_positions[:, position:end]

    def _content_mask(self, token_ids_BL: Tensor) -> Tensor:
        """Allow a query BOS and the characters before it, not EOS or PAD. Shape: (B, 1, L, L)."""
        num_positions = token_ids_BL.shape[1]
        is_key_BL = (token_ids_BL != self.tokenizer.pad_id) & (
            token_ids_BL != self.tokenizer.eos_id
        )
        causal_LL = token_ids_BL.new_ones(num_positions, num_positions, dtype=torch.bool).tril()
        return causal_LL & is_key_BL[:, None, None, :]


def initialize(module: nn.Module) -> None:
    """Initialise one module as the official code and timm do; for `nn.Module.apply`.

    The encoder's convolution stays as PyTorch made it, as in timm.
    """
    match module:
        case nn.Linear():
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        case nn.Embedding():
            nn.init.trunc_normal_(module.weight, std=0.02)
        case nn.LayerNorm():
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        case Attention():
            # The official initialiser does not know the packed (3D, D) projection inside
            # nn.MultiheadAttention, so that keeps PyTorch's Xavier: std 0.036 for D = 384.
            width = module.query.in_features
            bound = math.sqrt(6 / (3 * width + width))
            nn.init.uniform_(module.query.weight, -bound, bound)
            nn.init.uniform_(module.key_value.weight, -bound, bound)
