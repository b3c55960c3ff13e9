"""CLIP4STR's modules, beside what the authors' compute."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from known_numbers import BLANK_TEACHER, noise
from torch import Tensor, nn

from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.charset import Charset
from clipocr.shared.clip.weights import blank_model
from clipocr.shared.errors import UsageError
from clipocr.shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize
from clipocr.train.data.batch import Batch
from clipocr.train.methods.base import Shapes
from clipocr.train.methods.clip4str import trainee as trainee_module
from clipocr.train.methods.clip4str.clip import CONTEXT_LENGTH, ImageEncoder, WordTokens
from clipocr.train.methods.clip4str.recogniser import Clip4StrRecogniser
from clipocr.train.methods.clip4str.settings import Clip4Str, ClipSource
from clipocr.train.methods.clip4str.trainee import Clip4StrTrainee
from clipocr.train.models.tokenizer import LabelTokenizer

TOKENIZER = LabelTokenizer(Charset.load("94"), 25)
WORDS = ["Street", "table", "revenge", "ab", "x9", "Hello!"]
SOURCE = ClipSource(teacher=BLANK_TEACHER, view_px=(32, 128))
METHOD = Clip4Str(
    clip=SOURCE, decoder_heads=4, decoder_dropout=0.0, rungs=(1, 3), text_frozen_blocks=2
)
ORDERS = torch.tensor(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 8],
        [0, 8, 7, 6, 5, 4, 3, 2, 1],
        [0, 2, 5, 1, 7, 3, 6, 4, 8],
        [0, 4, 6, 3, 7, 1, 5, 2, 8],
    ]
)


def clip_weights() -> dict[str, Tensor]:
    """Return a CLIP whose every number its name and place decide."""
    found = {}
    for i, (name, weight) in enumerate(sorted(blank_model(BLANK_TEACHER).state_dict().items())):
        strength = 0.1 if weight.ndim < 2 else 0.3
        found[name] = strength * noise(*weight.shape, seed=i) + (
            ".ln_" in name and "weight" in name
        )
    return found


def fill(decoder: nn.Module, seed: int) -> None:
    with torch.no_grad():
        for i, (name, weight) in enumerate(sorted(decoder.named_parameters())):
            strength = 0.1 if weight.dim() == 1 else 0.35
            weight.copy_(strength * noise(*weight.shape, seed=seed + i) + ("norm.weight" in name))
        # So that some texts end.
        decoder.head.bias[0] += 1.5  # type: ignore[index,union-attr]


def trainee(**changes: Any) -> Clip4StrTrainee:
    """Return one whose decoders are filled and whose CLIP is that of `clip_weights`."""
    weights = clip_weights()

    def lent(names: Collection[str]) -> Mapping[str, Tensor]:
        return {name: weights[name] for name in names}

    shapes = Shapes(images={}, text={}, teacher_weights=lent)
    made = Clip4StrTrainee(replace(METHOD, **changes), TOKENIZER, shapes)
    fill(made.recogniser.visual, 500)
    if made.recogniser.cross is not None:
        fill(made.recogniser.cross, 700)
    return made


def views() -> Tensor:
    return (127.5 + 127.5 * noise(len(WORDS), 32, 128, 3, seed=9)).to(torch.uint8)


def batch(features: Mapping[str, Tensor] | None = None) -> Batch:
    return Batch(
        labels=WORDS,
        token_ids=TOKENIZER.encode(WORDS),
        views=views(),
        images=features or {},
        text={},
        device=torch.device("cpu"),
    )


def pictures() -> Tensor:
    return normalize(views(), STUDENT_MEAN, STUDENT_STD)


@pytest.fixture(autouse=True)
def _same_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainee_module, "draw_orders", lambda *_: ORDERS)


_BLOCK_1 = "image_encoder.visual.transformer.resblocks.1"
_TEXT_BLOCK_2 = "text_encoder.transformer.resblocks.2"

OFFICIAL: dict[str, Any] = {
    "adapter": {
        "gradients": {"adapter.down.weight": 0.2161182},
        "loss": 6.170755,
        "memory": 45.59748,
    },
    "embedding": {
        "confidence": [0.08592787, 0.06455518, 0.08098169, 0.09913621, 0.09065904, 0.08902836],
        "gradients": {
            "cross.head.weight": 1.127929,
            "cross.positions": 0.234681,
            "image_encoder.visual.conv1.weight": 15.91183,
            "image_encoder.visual.proj": 1.701538,
            "image_encoder.visual.transformer.resblocks.1.attn.in_proj_weight": 2.19683,
            "visual.head.weight": 1.271639,
        },
        "image tokens": 56.25004,
        "loss": 11.89489,
        "stages": {
            "cross": ["", "", "", "TTTT>", "TTT", ""],
            "refined cross": ["", "", "", ">TTT>>>TTTT>>TTTT>>>TTT>>>", "zTT", ""],
            "refined visual": [
                ",TTa",
                ",444",
                ",TTTwF,TTT",
                "3344",
                ",T@@jw,T'@@w,,T@@ww,T@@@w,",
                ",TTT",
            ],
            "visual": [
                "TTTTG99TTa",
                ",444",
                "TTTT,F,TTT",
                "3344",
                ",TTujw,T^C@w,,T@@ww,T@@@w,",
                "TTTT,F,TTT",
            ],
        },
        "text tokens": 11.26901,
    },
    "encoder": {
        "confidence": [0.08602984, 0.07415723, 0.08219195, 0.1015242, 0.1100249, 0.09844419],
        "gradients": {
            "cross.head.weight": 1.130922,
            "cross.positions": 0.2260383,
            "image_encoder.visual.conv1.weight": 15.91183,
            "image_encoder.visual.proj": 1.701538,
            "image_encoder.visual.transformer.resblocks.1.attn.in_proj_weight": 2.19683,
            "text_encoder.text_projection": 0.04525579,
            "text_encoder.transformer.resblocks.2.mlp.c_fc.weight": 0.04529019,
            "visual.head.weight": 1.271639,
        },
        "image tokens": 56.25004,
        "loss": 11.8844,
        "stages": {
            "cross": ["", "TTT", "", "TTTT>", "zTTT22MTT\\\\\\MTTT\\\\2zTT\\\\\\&", ""],
            "refined cross": [
                "",
                "zTT",
                "",
                ">TTT>>>TTTT>>TTTT>>>TTT>>>",
                "zTT\\\\\\MTT\\\\\\MzTT\\\\2zTT\\\\\\&",
                "",
            ],
            "refined visual": [
                ",TTa",
                ",444",
                ",TTTwF,TTT",
                "3344",
                ",T@@jw,T'@@w,,T@@ww,T@@@w,",
                ",TTT",
            ],
            "visual": [
                "TTTTG99TTa",
                ",444",
                "TTTT,F,TTT",
                "3344",
                ",TTujw,T^C@w,,T@@ww,T@@@w,",
                "TTTT,F,TTT",
            ],
        },
        "text tokens": 6.218673,
    },
    "ladder": {
        "gradients": {
            "adapter.blocks.1.up.weight": 0.640956,
            "adapter.gates": 0.1186247,
            "adapter.projection": 0.4970625,
        },
        "loss": 6.388814,
        "memory": 59.27324,
    },
    "pruned ladder": {
        "gradients": {
            "adapter.blocks.1.up.weight": 0.7423808,
            "adapter.gates": 0.5948965,
            "adapter.projection": 0.6857084,
        },
        "loss": 6.499358,
        "memory": 53.23455,
    },
}
"""Of ``VL4STR`` and ``STRAdapter``, VamosC/CLIP4STR at 7497c15, with the same weights and
orders; what they read was read one picture at a time. Norms, unless something else is said."""


def check_gradients(made: Clip4StrTrainee, expected: Mapping[str, float]) -> None:
    for name, norm in expected.items():
        gradient = made.recogniser.get_parameter(name).grad
        assert gradient is not None, name
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), name


@pytest.mark.parametrize("reads", ["encoder", "embedding"])
def test_fine_tuning_computes_what_the_official_system_does(reads: str) -> None:
    official, made = OFFICIAL[reads], trainee(tune="all", text=reads)
    model = made.recogniser
    features = model.features(model.normalized(pictures()))
    assert features["final"].norm().item() == pytest.approx(official["image tokens"], rel=1e-5)
    of_texts = model.text_tokens(3 * noise(4, 8, 95, seed=77))
    assert of_texts.norm().item() == pytest.approx(official["text tokens"], rel=1e-5)
    loss = sum(made(batch()).values(), torch.zeros(()))
    assert loss.item() == pytest.approx(official["loss"], rel=1e-5)
    loss.backward()
    check_gradients(made, official["gradients"])


@pytest.mark.parametrize("reads", ["encoder", "embedding"])
def test_every_stage_reads_what_the_official_one_does(reads: str) -> None:
    """In a batch too, for no text depends on those beside it."""
    official, made = OFFICIAL[reads], trainee(tune="all", text=reads).eval()
    stages = made.recogniser.decode_stages(pictures())
    texts = {name: TOKENIZER.decode(logits.softmax(-1))[0] for name, logits in stages.items()}
    assert texts == official["stages"]
    assert list(texts) == ["visual", "cross", "refined visual", "refined cross"]
    confidence = stages["refined cross"][:, 0].softmax(-1).max(dim=-1).values
    assert confidence.tolist() == pytest.approx(official["confidence"], rel=1e-5)
    assert torch.equal(made.recogniser.decode(pictures()), stages["refined cross"])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("adapter", {"tune": "adapter"}),
        ("ladder", {"tune": "ladder"}),
        ("pruned ladder", {"tune": "ladder", "ladder_pruning": 2}),
    ],
)
def test_adapters_compute_what_the_official_ones_do(name: str, changes: dict[str, Any]) -> None:
    official, made = OFFICIAL[name], trainee(cross=False, **changes)
    model = made.recogniser
    if name == "adapter":
        for i, layer in enumerate((model.adapter.down, model.adapter.up)):  # type: ignore[union-attr]
            with torch.no_grad():
                layer.weight.copy_(0.3 * noise(*layer.weight.shape, seed=40 + i))  # type: ignore[operator,union-attr]
    features = model.features(model.normalized(pictures()))
    assert model.memory(features).norm().item() == pytest.approx(official["memory"], rel=1e-5)
    (loss,) = made(batch(features)).values()
    assert loss.item() == pytest.approx(official["loss"], rel=1e-5)
    loss.backward()
    check_gradients(made, official["gradients"])


def test_gradients_stop_where_they_should() -> None:
    """The cross branch's loss trains that branch and the text encoder's upper half alone."""
    made = trainee(tune="all", text="encoder")
    made(batch())["cross"].backward()
    reached = {
        name
        for name, parameter in made.recogniser.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }
    assert not [name for name in reached if name.startswith(("visual.", "image_encoder."))]
    assert any(name.startswith("cross.") for name in reached)
    blocks = {name.split(".")[3] for name in reached if ".resblocks." in name}
    assert blocks == {"2", "3"}
    frozen = {name for name, p in made.recogniser.named_parameters() if not p.requires_grad}
    assert {"text_encoder.token_embedding.weight", "text_encoder.positional_embedding"} <= frozen


def test_published_sizes() -> None:
    """4.3 M a decoder; with B/16 158 M in all, of which 114 M are trained."""
    teacher = replace(BLANK_TEACHER, model="ViT-B-16")
    source = ClipSource(teacher=teacher, view_px=(224, 224))
    with torch.device("meta"):
        model = Clip4StrRecogniser(Clip4Str(clip=source, tune="all"), TOKENIZER)
    model.let_train()
    # The official 158,256,319 count CLIP's logit scale, which nothing reads.
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.visual, model)]
    assert sizes == [4_317_791, 158_256_318]
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    assert sum(trained) == 114_005_694


def test_words_are_cut_to_the_context() -> None:
    words = WordTokens()
    sot, eot = 49406, 49407
    ids = words(["Hello!", "", "9876543210987654321"]).tolist()
    # CLIP splits numbers into digits, and reads neither case nor punctuation here.
    assert ids[0] == [sot, 3306, eot, *[0] * 13]
    assert ids[1] == [sot, eot, *[0] * 14]
    assert (ids[2][0], ids[2][-1], len(ids[2])) == (sot, eot, CONTEXT_LENGTH)
    assert 0 not in ids[2]


def test_a_cropped_view_reads_the_same_positions_as_the_teacher() -> None:
    encoder = ImageEncoder(SOURCE)
    weights = clip_weights()
    encoder.take(lambda names: {name: weights[name] for name in names})
    streams, final = encoder(pictures(), (1, 4))
    assert [tuple(x.shape) for x in (*streams, final)] == [(6, 17, 64), (6, 17, 64), (6, 17, 32)]


def test_embeddings_of_another_width_are_refused(cache_path: Path) -> None:
    spec = FeatureCache.open(cache_path).spec
    message = "token embeddings have 32 values, its joint space 24; pass --text encoder"
    with pytest.raises(UsageError, match=message):
        METHOD.fitted(spec)
