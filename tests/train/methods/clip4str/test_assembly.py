"""CLIP4STR's reading put together from modules: what an ONNX file of it computes."""

from __future__ import annotations

import random
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eager import Eager
from known_numbers import BLANK_TEACHER
from torch import Tensor, nn

from clipocr.shared.charset import Charset
from clipocr.shared.clip.weights import blank_model
from clipocr.shared.errors import UsageError
from clipocr.shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize
from clipocr.train.deploy.export import check
from clipocr.train.deploy.onnx_format import open_onnx, write_onnx
from clipocr.train.methods.clip4str.assembly import Merge, Pieces, context_of
from clipocr.train.methods.clip4str.clip import WordTokens
from clipocr.train.methods.clip4str.recogniser import Clip4StrRecogniser
from clipocr.train.methods.clip4str.settings import Clip4Str, ClipSource
from clipocr.train.models.tokenizer import LabelTokenizer

TOKENIZER = LabelTokenizer(Charset.load("94"), 25)
METHOD = Clip4Str(
    clip=ClipSource(teacher=BLANK_TEACHER, view_px=(32, 128)), decoder_heads=4, rungs=(1, 3)
)

TEXTS = [
    *("", "a", "7", "Street", "HOTEL", "internationalization", "photographers'", "o'Clock", "x9"),
    *("1999", "b2b4", "4ever2", "A-B-C", "...", "!?", "don't", "it's", "<start_of_text>"),
    *("aaaaaaaaaaaaaaaaaaaaaaaaa", "abababababababababababab", "mississippi", "bananarama"),
    *("9876543210987654321098765", "pneumonoultramicroscopics", "qzxjkvwpfyqzxjkvwpfyqzxjk"),
    # All 26 positions without an EOS.
    *("abcdefghijklmnopqrstuvwxyz", "a1b2c3d4e5f6g7h8i9j0k1l2m3", "thequickbrownfoxjumpsoverx"),
]


def written(texts: list[str]) -> Tensor:
    """Return logits that say the texts, and anything after their EOS. Shape: (B, 26, C + 1)."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, TOKENIZER.num_classes, (len(texts), 26), generator=generator)
    for row, text in zip(ids, texts, strict=True):
        said = TOKENIZER.encode([text])[0, 1:27]
        row[: len(said)] = said
    return nn.functional.one_hot(ids, TOKENIZER.num_classes).float()


def tokens_of(texts: list[str]) -> Tensor:
    graph = Eager()
    pieces, lengths = graph.call(Pieces(TOKENIZER), written(texts))
    assert lengths.tolist() == [min(len(text) + 1, 26) for text in texts]
    (merged,), _ = graph.loop(Merge(), [pieces], [], 25)
    return context_of(merged)


def test_the_tokenizer_is_clips() -> None:
    assert tokens_of(TEXTS).tolist() == WordTokens()(TEXTS).tolist()


@pytest.mark.parametrize(
    "characters",
    [string.ascii_lowercase, string.printable[:94], "abc1", "einrst"],
    ids=["letters", "printable", "few", "frequent"],
)
def test_of_random_texts_too(characters: str) -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choices(characters, k=rng.randrange(26))) for _ in range(200)]
    assert tokens_of(texts).tolist() == WordTokens()(texts).tolist()


def test_merging_ends_when_no_row_has_a_pair() -> None:
    graph = Eager()
    (pieces, _) = graph.call(Pieces(TOKENIZER), written(["5", "qz", "the"]))
    graph.loop(Merge(), [pieces], [], 25)
    # t + h, then th + e; q + z is no pair.
    assert graph.times == [3]


def recogniser(tokenizer: LabelTokenizer = TOKENIZER, **changes: Any) -> Clip4StrRecogniser:
    """Return one of random weights that writes texts of many lengths."""
    torch.manual_seed(3)
    made = Clip4StrRecogniser(replace(METHOD, **changes), tokenizer).eval()
    clip = {
        name: weight.normal_(std=0.3 if weight.ndim > 1 else 0.1).add_(
            1.0 if ".ln_" in name and "weight" in name else 0.0
        )
        for name, weight in blank_model(BLANK_TEACHER).to_empty(device="cpu").state_dict().items()
    }
    made.begin_with(lambda names: {name: clip[name] for name in names})
    for decoder in (made.visual, made.cross):
        if decoder is not None:
            for parameter in decoder.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.5)
            with torch.no_grad():
                decoder.head.bias[0] += 4
    return made


def views(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 128, 3), np.uint8)


def read_eagerly(made: Clip4StrRecogniser, given: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return made.assemble(Eager(), torch.from_numpy(given)).softmax(dim=-1).numpy()


@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"tune": "none", "cross": False},
        {"tune": "ladder", "cross": False},
        {"tune": "none", "text": "embedding"},
        {"tune": "adapter", "text": "encoder"},
        {"tune": "ladder", "text": "encoder", "ladder_pruning": 2},
        {"tune": "all", "text": "embedding", "decoder_layers": 2},
        {"tune": "all", "text": "encoder", "normalization": "half"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_what_is_put_together_is_what_decode_computes(
    changes: dict[str, Any], refine: bool
) -> None:
    made = recogniser(refine=refine, **changes)
    agreement = check(lambda given: read_eagerly(made, given), made, views(24), what="it")
    assert agreement.num_texts > 5


def test_a_limit_ends_a_text_whoever_is_beside_it() -> None:
    made = recogniser(tune="none", refine=False)
    images = normalize(torch.from_numpy(views(24)), STUDENT_MEAN, STUDENT_STD)
    stages = made.decode_stages(images)
    first, crossed = (TOKENIZER.decode(x.softmax(dim=-1))[0] for x in stages.values())
    alone = [TOKENIZER.decode(made.decode(image[None]).softmax(dim=-1))[0][0] for image in images]
    assert crossed == alone
    assert all(len(c) <= len(f) + 1 for c, f in zip(crossed, first, strict=True))
    assert any(len(c) == len(f) + 1 for c, f in zip(crossed, first, strict=True))


@pytest.mark.slow
@pytest.mark.timeout(300)  # PyTorch's exporter takes 20 s of one core, and there may be others.
def test_an_onnx_file_holds_both_branches_and_clip(tmp_path: Path) -> None:
    made = recogniser(tune="ladder", text="encoder")
    made.decode(torch.zeros(1, 3, 32, 128))
    assert made.hold_clip() == {"clip_is_held": True}
    path = tmp_path / "model.onnx"
    write_onnx(path, made, {"clipocr_version": "1"})
    agreement = check(open_onnx(path), made, views(24), what="the file")
    assert agreement.num_texts > 5
    # Weights are there once, though both texts go through the encoder; the rest is the tokenizer.
    assert path.stat().st_size < 1.25 * sum(weight.nbytes for weight in made.parameters())


def test_letters_beyond_ascii_need_something_else() -> None:
    charset = Charset(name="mine", characters="abcé€")
    message = "charset 'mine' holds 'é'.* pass --format safetensors, or train with --no-cross"
    with pytest.raises(UsageError, match=message):
        recogniser(LabelTokenizer(charset, 5)).assemble(Eager(), torch.zeros(0))
    for made in (
        recogniser(LabelTokenizer(charset, 5), cross=False),
        recogniser(LabelTokenizer(Charset(name="mine", characters="abc€"), 5)),
    ):
        assert read_eagerly(made, views(2)).shape[0] == 2
