"""Views of another size, and caches that hold none: alike in cache, training, reading, exports."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnxruntime
import open_clip
import pytest
import torch
import torch.nn.functional as F
from commands import invoke
from methods import install_methods
from PIL import Image
from samples import TINY_TEACHER, WORDS, draw_word, tiny_build, write_words
from torch import Tensor, nn

import clipocr
from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.builder.config import BuildConfig
from clipocr.precompute.inspect import measure
from clipocr.precompute.inspect.info import describe_cache
from clipocr.precompute.teacher.clip import Teacher
from clipocr.shared.cache.codecs.codecs import measure_fidelity
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.charset import Charset
from clipocr.shared.clip.weights import load_weights
from clipocr.shared.errors import CacheMismatchError, UsageError
from clipocr.shared.geometry import ViewSize
from clipocr.train.data.batch import Batch
from clipocr.train.data.preflight import Preflight
from clipocr.train.loop.checkpoint import load_recogniser
from clipocr.train.methods.base import Method, Needs, Shapes
from clipocr.train.methods.clip_ocr import METHOD as CLIP_OCR
from clipocr.train.methods.dptr import METHOD as DPTR
from clipocr.train.methods.trainee import Trainee
from clipocr.train.models.recogniser import ImageAttention, Recogniser
from clipocr.train.models.tokenizer import LabelTokenizer
from clipocr.train.report.pictures import attention_pictures

CPU = torch.device("cpu")
SIZES = {"wide": (32, 64), "square": (64, 64)}
"""Of the caches: views and two arrays of 2x4 patches; `final` alone, of 4x4, without views."""


@pytest.fixture(scope="module")
def words_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_words(root / "set", WORDS[:20], images={3: b"not an image"})
    return root


@pytest.fixture(scope="module")
def caches(words_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("caches")
    arguments = {
        "wide": ("--view-size", "32x64", "--image-taps", "2,final", "--codec", "fp16,int8"),
        "square": ("--view-size", "64x64", "--image-taps", "final", "--no-pixels"),
    }
    for name, own in arguments.items():
        build(words_root, folder / name, *own, *(() if "--codec" in own else ("--codec", "fp16")))
    return {name: folder / name for name in arguments}


def build(root: Path, out: Path, *args: object) -> str:
    result = invoke("cache", "build", "--data", root, "--out", out, "--teacher", TINY_TEACHER,
                    "--text-taps", "1,2,3", "--unit-rows", 16, "--chunk-rows", 8,
                    "--device", "cpu", *args)  # fmt: skip
    assert result.exit_code == 0, result.output
    return result.stdout


def view_of(word: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return the view of a drawn word, by Pillow alone."""
    with Image.open(io.BytesIO(draw_word(word))) as image:
        return np.array(image.resize(size[::-1], Image.Resampling.BICUBIC))


@torch.no_grad()
def clips_own(views: npt.NDArray[np.uint8]) -> dict[str, Tensor]:
    """Return block 2 and `final` by open_clip's own forward, of a model for such pictures."""
    model = load_weights(TINY_TEACHER, "fp32")[0].visual
    rows, columns = (side // 16 for side in views.shape[1:3])
    kept = [0, *(1 + 14 * row + column for row in range(rows) for column in range(columns))]
    model.positional_embedding = nn.Parameter(model.positional_embedding[kept])
    model.output_tokens = True
    seen: dict[str, Tensor] = {}
    model.transformer.resblocks[1].register_forward_hook(
        lambda _, __, output: seen.update(block2=output)
    )
    mean, std = (
        torch.tensor(x).view(3, 1, 1)
        for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    pooled, tokens = model((torch.from_numpy(views).permute(0, 3, 1, 2) / 255 - mean) / std)
    return seen | {"final": torch.cat([pooled[:, None], tokens @ model.proj], dim=1)}


@pytest.mark.parametrize("name", SIZES)
def test_a_cache_holds_what_clip_says_of_such_views(caches: dict[str, Path], name: str) -> None:
    words = clipocr.open_cache(caches[name])
    assert len(words) == 19
    views = np.stack([view_of(word.label, SIZES[name]) for word in words])
    expected = clips_own(views)
    assert set(words.image_names) == ({"block2", "final"} if name == "wide" else {"final"})
    for array in words.image_names:
        found = torch.from_numpy(np.stack([word.images[array] for word in words]))
        of_clip = expected[array]
        if (name, array) == ("wide", "final"):  # By int8, which keeps a token standardised.
            of_clip = F.layer_norm(of_clip, of_clip.shape[-1:])
        torch.testing.assert_close(found, of_clip, rtol=2e-2, atol=2e-2)
    if name == "wide":
        np.testing.assert_array_equal(np.stack([word.view for word in words]), views)
    else:
        assert {word.view for word in words} == {None}


def test_batches_are_of_the_caches_size(caches: dict[str, Path]) -> None:
    words = {word.label: word for word in clipocr.open_cache(caches["wide"])}
    loader = clipocr.open_cache(caches["wide"]).loader(
        batch_size=5, images=["final", "block2"], charset="94", pixels=True, device="cpu",
        text=(),
    )  # fmt: skip
    seen = set()
    for batch in loader.epoch(0):
        assert batch.normalized_views().shape[1:] == (3, 32, 64)
        for label, view, final, block2 in zip(
            batch.labels, batch.views, batch.images["final"], batch.images["block2"], strict=True
        ):
            seen.add(label)
            np.testing.assert_array_equal(view, view_of(label, (32, 64)))
            np.testing.assert_array_equal(final.float(), words[label].images["final"])
            np.testing.assert_array_equal(block2.float(), words[label].images["block2"])
    assert seen == words.keys()


def test_what_looks_at_a_cache_follows_its_size(
    caches: dict[str, Path], words_root: Path, tmp_path: Path
) -> None:
    cache = shutil.copytree(caches["wide"], tmp_path / "cache")
    assert ("views", "1, clean, 32x64") in describe_cache(cache).facts
    assert "image final" in dict(describe_cache(cache).facts)
    cpu = ("--device", "cpu")
    for args in (
        ("cache", "verify", cache, "--recompute", 10, "--data", words_root, *cpu),
        ("cache", "text", cache, "--charset", "94", *cpu),
        ("cache", "show", cache, "--out", tmp_path / "sheet.png", "--rows", 20),
        ("cache", "align", cache, "--out", tmp_path / "align.png", "--words", 5, *cpu),
        ("cache", "copy", cache, tmp_path / "copy"),
    ):
        result = invoke(*args)
        assert result.exit_code == 0, (args, result.output)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    # Twice as large, right of the labels, and below each its colours.
    cells = [pixels[100 + 152 * row :, 256:][:64, :128] for row in range(20)]
    expected = {word: view_of(word, (32, 64)).repeat(2, 0).repeat(2, 1) for word in WORDS[:20]}
    drawn = {w for w, view in expected.items() if any(np.array_equal(c, view) for c in cells)}
    assert drawn == {*WORDS[:20]} - {"charlie"}


def test_what_is_lost_is_made_again(
    caches: dict[str, Path], words_root: Path, tmp_path: Path
) -> None:
    for name, array in (("wide", "pixels"), ("square", "final")):
        cache = shutil.copytree(caches[name], tmp_path / name)
        shards = (cache / f"image/view0/{array}/c/0").rglob("*")
        damaged = next(shard for shard in shards if shard.is_file())
        before = damaged.read_bytes()
        damaged.write_bytes(before[:-1])
        assert invoke("cache", "verify", cache, "--repair").exit_code == 0
        own = ("--view-size", "32x64", "--image-taps", "2,final", "--codec", "fp16,int8")
        if name == "square":
            own = ("--view-size", "64x64", "--image-taps", "final", "--codec", "fp16",
                   "--no-pixels")  # fmt: skip
        assert "16 views built" in build(words_root, cache, *own)
        assert damaged.read_bytes() == before
        assert "nothing was missing" in build(words_root, cache, *own)


def test_views_are_added(words_root: Path, tmp_path: Path) -> None:
    changes = {"augment": "randaugment", "view_size": ViewSize(32, 64), "image_taps": ("final",)}
    for num_views in (1, 2):
        build_cache(tiny_build(words_root, tmp_path / "cache", views=num_views, **changes))
    views = [clipocr.open_cache(tmp_path / "cache", view=i)[0].view for i in (0, 1)]
    assert [view.shape for view in views] == [(32, 64, 3)] * 2
    assert (views[0] != views[1]).any()


def test_a_plan_follows_size_arrays_and_pixels(
    words_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_BATCH_BUDGET_S", 0.01)
    result = invoke("cache", "plan", "--data", words_root, "--teacher", TINY_TEACHER,
                    "--view-size", "64x64", "--image-taps", "final", "--no-pixels", "--text-taps",
                    "1,2,3", "--unit-rows", 16, "--chunk-rows", 8, "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    build(words_root, tmp_path / "x", "--view-size", "64x64", "--image-taps", "final",
          "--no-pixels", "--codec", "fp16")  # fmt: skip
    shards = (tmp_path / "x/image/view0/final/c").rglob("*")
    built = sum(shard.stat().st_size for shard in shards if shard.is_file())
    (fp16,) = (line for line in result.stdout.splitlines() if re.match(r"\| fp16 +\| K=1 ", line))
    assert [cell.strip() for cell in fp16.split("|")][3:5] == ["0 bytes", f"{built / 1000:.1f} kB"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--view-size 32", "view size is '32', expected HEIGHTxWIDTH, such as 224x224"),
        ("--view-size 32x72", "32x72 cannot be cut into the 16x16 patches of ViT-tiny-test; pass "
         "multiples of those, such as --view-size 32x64"),
        ("--view-size 32x256", "32x256 do not fit this teacher, whose grid of positions covers "
         "224x224"),
        ("--image-taps final,2", "image taps final,2 are not possible"),
        ("--image-taps 2,last", "image tap is 'last', expected a block's number, or final"),
        ("--image-taps 0", "image tap is '0', expected"),
        ("--image-taps none", "image taps none leave nothing to ask"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["build", "plan"])
def test_what_cannot_be_built_is_refused_before_any_work(
    words_root: Path, tmp_path: Path, command: str, options: str, said: str
) -> None:
    own = options if "taps" in options else f"--image-taps 1 {options}"
    result = invoke("cache", command, "--data", words_root, "--out", tmp_path / "out",
                    "--teacher", TINY_TEACHER, "--text-taps", 1, "--device", "cpu",
                    *own.split())  # fmt: skip
    assert result.exit_code == 1
    assert said in " ".join(result.output.split())
    assert not (tmp_path / "out/manifest.json").exists()


def test_each_array_has_a_codec_and_there_is_one(words_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is of 3 image arrays, there are 2"):
        tiny_build(words_root, tmp_path, image_taps=(2, "final"), codec="int8,int8,int8")
    with pytest.raises(UsageError, match="image taps none leave nothing to ask"):
        build_cache(tiny_build(words_root, tmp_path, image_taps=()))


def test_a_cache_of_broken_patches_from_before_they_were_refused_goes_on(
    words_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of such as ViT-L-14, whose patches of 14 do not divide 32x128."""
    args = (words_root, tmp_path / "cache", "--image-taps", 1, "--view-size", "40x70")
    with monkeypatch.context() as patched:
        patched.setattr(Teacher, "require_whole_patches", lambda _: None)
        build(*args)
    (tmp_path / "cache/commits/view0/unit-00001.json").unlink()
    (tmp_path / "cache/sealed.json").unlink()
    assert "4 views built" in build(*args)
    result = invoke("cache", "text", tmp_path / "cache", "--charset", "94", "--device", "cpu")
    assert result.exit_code == 0, result.output


def test_options_have_one_value_each_in_json_too() -> None:
    config = BuildConfig.from_values(
        {"data": ["a"], "out": "b", "image_taps": [1, 2, "final"], "view_size": "224x224"}
    )
    assert (config.image_taps, config.view_size) == ((1, 2, "final"), (224, 224))
    assert list(config.codecs) == ["block1", "block2", "final"]
    values = config.to_values()
    assert (values["image_taps"], values["view_size"]) == ([1, 2, "final"], "224x224")
    assert BuildConfig.from_values(values) == config


def test_a_cache_without_pixels_says_so(
    caches: dict[str, Path], words_root: Path, tmp_path: Path
) -> None:
    cache = caches["square"]
    assert not (cache / "image/view0/pixels").exists()
    assert ("views", "1, clean, 64x64; no pixels stored") in describe_cache(cache).facts
    assert "image-000000003" in invoke("cache", "info", cache, "--bad").stdout
    for args in (
        ("cache", "show", cache, "--out", tmp_path / "sheet.png"),
        ("cache", "align", cache, "--out", tmp_path / "align.png", "--device", "cpu"),
        ("cache", "verify", cache, "--recompute", 3, "--data", words_root, "--device", "cpu"),
        ("train", "--cache", cache, "--out", tmp_path / "run", "--image-stages", "none"),
    ):
        result = invoke(*args)
        assert result.exit_code == 1
        assert "holds no pictures (it was built with --no-pixels)" in result.output
        assert "clipocr cache build --data ROOT --out FOLDER --pixels" in result.output
    assert invoke("cache", "verify", cache).exit_code == 0
    assert invoke("cache", "text", cache, "--charset", "94", "--tokenizer", "word",
                  "--device", "cpu").exit_code == 0  # fmt: skip


def test_fidelity_of_many_tokens_is_that_of_few_rows_at_a_time() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(22, 197, 8, generator=generator)
    decoded = features + 0.1 * torch.randn(22, 197, 8, generator=generator)
    sums, count = 0.0, 0
    for some in range(0, 22, 10):  # 2,048 tokens at most.
        grams = [
            (rows := F.normalize(x[some : some + 10].double().flatten(0, 1))) @ rows.T
            for x in (features, decoded)
        ]
        sums, count = sums + float((grams[0] - grams[1]).abs().sum()), count + grams[0].numel()
    assert measure_fidelity(features, decoded)["gram_l1"] == pytest.approx(sums / count, rel=1e-4)


# -- a recogniser that reads such views ----------------------------------------------------------


class Linear(Recogniser):
    """Reads all characters at once from all pixels of a 32x64 view."""

    view_px = (32, 64)

    def __init__(self, tokenizer: LabelTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        num_logits = (tokenizer.max_label_length + 1) * tokenizer.num_classes
        self.head = nn.Linear(3 * 32 * 64, num_logits)

    def forward(self, images: Tensor) -> Tensor:
        """Shape: (B, 3, 32, 64) -> (B, L, C + 1)."""
        return self.head(images.flatten(1)).unflatten(1, (-1, self.tokenizer.num_classes))

    @torch.no_grad()
    def decode(self, images: Tensor, max_length: int | None = None) -> Tensor:
        """See `Recogniser.decode`."""
        assert max_length is None
        return self(images)

    def image_attention(self, images: Tensor, token_ids_BL: Tensor) -> ImageAttention:
        """Return the same for each place of 2x4."""
        assert images.shape == (1, 3, 32, 64)
        places = torch.full((1, token_ids_BL.shape[1] - 1, 2, 4), 1 / 8)
        return ImageAttention(places=places, elsewhere=places.new_zeros(places.shape[:2]))


class LinearTrainee(Trainee):
    """The recogniser, and a head for CLIP's projected class token."""

    recogniser: Linear
    term_names = ("characters", "clip")

    def __init__(self, tokenizer: LabelTokenizer, shapes: Shapes) -> None:
        super().__init__()
        assert shapes.images == {"final": (9, 24)}
        self.recogniser = Linear(tokenizer)
        self.to_clip = nn.Linear(3, shapes.images["final"][1])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return both terms."""
        images = batch.normalized_views()
        logits_BLC, targets_BL = self.recogniser(images), batch.token_ids[:, 1:]
        logits_BLC = logits_BLC[:, : targets_BL.shape[1]]
        ignored = targets_BL.where(targets_BL < logits_BLC.shape[-1], -100)
        clip = batch.images["final"][:, 0].float()
        return {
            "characters": F.cross_entropy(logits_BLC.flatten(0, 1), ignored.flatten()),
            "clip": F.mse_loss(self.to_clip(images.mean((2, 3))), clip),
        }


@dataclass(frozen=True, kw_only=True)
class ToyWide(Method):
    """A linear recogniser of 32x64."""

    name: ClassVar[str] = "toy-wide"
    summary: ClassVar[str] = "reads views of 32x64"

    def needs(self) -> Needs:
        """Return views of 32x64 and one array."""
        return Needs(view_px=(32, 64), images=("final",))

    def recogniser(self, tokenizer: LabelTokenizer) -> Linear:
        """Return the untrained recogniser."""
        return Linear(tokenizer)

    def trainee(self, tokenizer: LabelTokenizer, shapes: Shapes) -> LinearTrainee:
        """Return it with its head."""
        return LinearTrainee(tokenizer, shapes)


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_methods(tmp_path / "site", {"toy-wide": f"{__name__}:ToyWide"}, monkeypatch)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[ToyWide.__module__])


def train(cache: Path, out: Path, *args: object) -> str:
    result = invoke("train", "--method", "toy-wide", "--cache", cache, "--out", out, "--batch-size",
                    19, "--epochs", 1, "--device", "cpu", *args)  # fmt: skip
    return "" if result.exit_code == 0 else result.output


@pytest.fixture
def run(caches: dict[str, Path], words_root: Path, tmp_path: Path) -> Path:
    assert train(caches["wide"], tmp_path / "run", "--val-data", words_root) == ""
    return tmp_path / "run"


def test_what_reads_follows_the_recogniser(run: Path, words_root: Path) -> None:
    recogniser = load_recogniser(run, CPU)
    views = np.stack([view_of(word, (32, 64)) for word in WORDS[:20] if word != "charlie"])
    images = (torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    texts, _ = recogniser.tokenizer.decode(recogniser.decode(images).softmax(dim=-1))
    reader = clipocr.load(run, device="cpu")
    assert [reader.read(draw_word(word)).text for word in WORDS[:2]] == texts[:2]
    evaluated = clipocr.evaluate(reader, words_root)
    assert [word.text for word in evaluated.words if word.problem is None] == texts

    result = invoke("latency", run, "--data", words_root, "--images", 3, "--device", "cpu")
    assert result.exit_code == 0, result.output
    report = run / "report"
    result = invoke("eval", run, "--data", words_root, "--device", "cpu", "--report", report)
    assert result.exit_code == 0, result.output
    (first, *_) = attention_pictures(recogniser, draw_word("alpha"), "alpha") or ()
    encoded = base64.b64decode(first.picture.partition(",")[2])
    with Image.open(io.BytesIO(encoded)) as picture:
        assert picture.size == (64, 32)


def test_what_is_exported_says_and_reads_its_size(run: Path) -> None:
    for file_format in ("onnx", "safetensors"):
        result = invoke("export", run, "--format", file_format)
        assert result.exit_code == 0, result.output
    assert load_recogniser(run / "model.safetensors", CPU).view_px == (32, 64)
    session = onnxruntime.InferenceSession(run / "model.onnx")
    assert session.get_inputs()[0].shape[1:] == [32, 64, 3]
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["input"])["shape"] == ["batch", 32, 64, 3]
    preprocessing = json.loads(about["preprocessing"])
    assert (preprocessing["height_px"], preprocessing["width_px"]) == (32, 64)
    view = view_of("alpha", (32, 64))[None]
    (probabilities,) = session.run(None, {"images": view})
    expected = load_recogniser(run, CPU).decode(
        (torch.from_numpy(view).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    )
    np.testing.assert_allclose(probabilities, expected.softmax(dim=-1), atol=1e-5)


def test_a_cache_of_another_size_is_refused(
    caches: dict[str, Path], words_root: Path, tmp_path: Path
) -> None:
    build(words_root, tmp_path / "usual", "--image-taps", "1,final")
    said = train(tmp_path / "usual", tmp_path / "run")
    assert "holds views of 32x128, this run needs 32x64" in said
    assert "clipocr cache build --view-size 32x64" in said
    cache = FeatureCache.open(caches["square"])

    def check(needs: Needs) -> Preflight:
        charset = Charset.load("36")
        return Preflight.check(
            cache, needs, charset=charset, max_label_length=25, fraction=1.0, views=None
        )

    of_clip_ocr = CLIP_OCR(image_stages=()).needs()
    assert of_clip_ocr.view_px == (32, 128)
    with pytest.raises(CacheMismatchError, match="holds no pictures"):
        check(of_clip_ocr)
    with pytest.raises(CacheMismatchError, match="views of 64x64, this run needs 32x128"):
        check(Needs(pixels=False, images=("final",)))
    with pytest.raises(CacheMismatchError, match=r"arrays final, .* block3; build .*-taps 3 "):
        check(Needs(pixels=False, images=("block3",)))
    assert DPTR().needs().view_px is None
    for size in ((64, 64), None):
        shapes = check(Needs(pixels=False, images=("final",), view_px=size)).shapes
        assert shapes.images == {"final": (17, 24)}


@pytest.mark.parametrize(
    ("size", "rows"),
    [((32, 128), 256), ((64, 64), 256), ((224, 224), 16), ((32, 32), 256), ((4096, 4096), 1)],
)
def test_chunks_of_large_views_have_fewer_rows(
    size: tuple[int, int], rows: int, tmp_path: Path
) -> None:
    config = BuildConfig(data=(tmp_path,), out=tmp_path / "c", view_size=ViewSize(*size))
    assert config.rows_per_chunk == rows
    assert replace(config, chunk_rows=8).rows_per_chunk == 8


def test_a_size_is_written_as_height_by_width() -> None:
    assert str(ViewSize.parse("224x32")) == "224x32"
    assert ViewSize.parse("224x32") == (224, 32)
    for text in ("", "32x", "32X128", "32x128x3", "-32x128", "03x4", "٣x4"):
        with pytest.raises(UsageError, match="expected HEIGHTxWIDTH"):
            ViewSize.parse(text)
