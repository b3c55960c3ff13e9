"""Tall pictures: turned or stretched, alike in cache, training, reading and exported files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from samples import WORDS, draw_word, tiny_build, write_words
from small_student import SMALL_METHOD

import clipocr
from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.inspect.info import describe_cache
from clipocr.precompute.upkeep.config import VerifyConfig
from clipocr.precompute.upkeep.recompute import recompute_rows
from clipocr.shared.charset import Charset
from clipocr.shared.data.images import decode_image, make_view, stretch, upright
from clipocr.shared.errors import CheckpointError, UsageError
from clipocr.train.deploy.description import load_described
from clipocr.train.deploy.export import export, given_views
from clipocr.train.evaluation.evaluate import evaluate
from clipocr.train.loop.checkpoint import find_checkpoint, load_recogniser, save_checkpoint
from clipocr.train.loop.config import TrainConfig, TrainPlace
from clipocr.train.loop.run import train
from clipocr.train.models.tokenizer import LabelTokenizer
from clipocr.train.reading.readers import load_reader

CPU = torch.device("cpu")
CONFIG = TrainConfig(method=SMALL_METHOD, epochs=1, batch_size=16)


def turned(encoded: bytes, how: Image.Transpose) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encoded)).transpose(how).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same words: lying to the right, and as a person would turn them back by hand."""
    drawn = {idx: draw_word(word) for idx, word in enumerate(WORDS, start=1)}
    lying = {idx: turned(png, Image.Transpose.ROTATE_270) for idx, png in drawn.items()}
    folder = tmp_path_factory.mktemp("words")
    for name, images in (("lying", lying), ("upright", drawn)):
        write_words(folder / name / "set", WORDS, images)
    return {name: folder / name for name in ("lying", "upright")}


@pytest.fixture(scope="module")
def caches(roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("caches")
    for tall in ("rotate", "stretch"):
        build_cache(tiny_build(roots["lying"], folder / tall, tall=tall))
    return {tall: folder / tall for tall in ("rotate", "stretch")}


@pytest.fixture(scope="module")
def runs(caches: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for tall, cache in caches.items():
        train(CONFIG, TrainPlace(cache=cache, out=folder / tall, device="cpu"))
    return {tall: folder / tall for tall in caches}


@pytest.mark.parametrize(
    ("width_px", "height_px", "is_turned"),
    [(20, 30, True), (20, 29, False), (30, 20, False), (20, 20, False), (1, 2, True)],
)
def test_only_tall_pictures_are_turned(width_px: int, height_px: int, is_turned: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height_px, width_px, 3), np.uint8)
    image = Image.fromarray(pixels)
    expected = np.rot90(pixels) if is_turned else pixels
    np.testing.assert_array_equal(np.asarray(upright(image, "rotate")), expected)
    np.testing.assert_array_equal(np.asarray(upright(image, "stretch")), pixels)
    np.testing.assert_array_equal(make_view(image, "stretch", (32, 128)), stretch(image))


@pytest.mark.parametrize("augment", ["clean", "randaugment"])
def test_a_cache_of_turned_pictures_is_that_of_pictures_turned_before(
    roots: dict[str, Path], tmp_path: Path, augment: str
) -> None:
    made: dict[str, dict[int, npt.NDArray[np.uint8]]] = {}
    for name, root in roots.items():
        build_cache(tiny_build(root, tmp_path / name, augment=augment, tall="rotate"))
        # Augmentation is keyed by the sample, which is the same in both.
        words = clipocr.open_cache(tmp_path / name)
        made[name] = {word.lmdb_index: np.array(word.view) for word in words}
    assert len(made["lying"]) == len(WORDS)
    for index, view in made["lying"].items():
        np.testing.assert_array_equal(view, made["upright"][index])


def test_only_a_cache_of_turned_pictures_records_it(caches: dict[str, Path]) -> None:
    manifests = {t: json.loads((c / "manifest.json").read_text()) for t, c in caches.items()}
    assert manifests["rotate"]["spec"]["view"]["tall"] == "rotate"
    # Digests of caches that were built before there was a choice are of records without it.
    assert "tall" not in manifests["stretch"]["spec"]["view"]
    assert ("views", "1, clean, tall pictures turned") in describe_cache(caches["rotate"]).facts
    assert ("views", "1, clean") in describe_cache(caches["stretch"]).facts


@pytest.mark.parametrize("tall", ["rotate", "stretch"])
def test_rows_that_are_made_again_follow_the_cache(
    caches: dict[str, Path], roots: dict[str, Path], tall: str
) -> None:
    config = VerifyConfig(cache=caches[tall], recompute=8, data=(roots["lying"],), device="cpu")
    assert recompute_rows(config).differing_views == ()


def test_what_reads_follows_the_students_cache(
    runs: dict[str, Path], roots: dict[str, Path], tmp_path: Path
) -> None:
    lying = turned(draw_word("alpha"), Image.Transpose.ROTATE_270)
    for tall, run in runs.items():
        reader = load_reader(run, device="cpu")
        assert reader.recogniser.tall == tall
        views = torch.tensor(make_view(decode_image(lying), tall, (32, 128))[None])
        (read,) = reader.read_views(views)
        word = reader.read(lying)
        assert (word.text, word.character_confidence) == (read.text, read.character_confidence)
        by_hand, as_it_is = (
            [word.character_confidence for word in evaluate(reader, roots[name]).words]
            for name in ("upright", "lying")
        )
        assert (by_hand == as_it_is) is (tall == "rotate")

        out = tmp_path / f"{tall}.safetensors"
        export(run, "safetensors", out, pictures=roots["lying"] / "set")
        assert load_recogniser(out, CPU).tall == tall
        about = load_described(run)[1]["preprocessing"]
        assert about.get("tall", "stretch") == tall
        assert ("tall_ratio" in about) is (tall == "rotate")
    turning = load_recogniser(runs["rotate"], CPU)
    views = {name: given_views(root / "set", turning) for name, root in roots.items()}
    np.testing.assert_array_equal(views["lying"], views["upright"])


def test_a_student_of_the_other_kind_is_refused(
    caches: dict[str, Path], runs: dict[str, Path], tmp_path: Path
) -> None:
    place = TrainPlace(cache=caches["rotate"], out=tmp_path / "run", device="cpu")
    said = r"--init .*stretch.* as --tall stretch, .*rotate was built with --tall rotate; "
    with pytest.raises(UsageError, match=said):
        train(CONFIG, place, init=runs["stretch"])
    train(CONFIG, place, init=runs["rotate"])
    other = TrainPlace(cache=caches["stretch"], out=place.out, device="cpu")
    with pytest.raises(UsageError, match="cache_id was"):
        train(CONFIG, other, resume=True)


def test_checkpoints_without_it_stretch_and_with_an_unknown_one_are_refused(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    content = torch.load(find_checkpoint(runs["rotate"]), weights_only=True)
    del content["tall"]
    torch.save(content, tmp_path / "older.pt")
    assert load_recogniser(tmp_path / "older.pt", CPU).tall == "stretch"
    torch.save(content | {"tall": "skip"}, tmp_path / "newer.pt")
    with pytest.raises(CheckpointError, match="tall is 'skip', expected one of stretch, rotate"):
        load_recogniser(tmp_path / "newer.pt", CPU)


def test_a_method_that_reads_nothing_records_the_default(tmp_path: Path) -> None:
    tokenizer = LabelTokenizer(Charset.load("36"), 25)
    save_checkpoint(tmp_path / "last.pt", SMALL_METHOD, tokenizer, None)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["tall"] == "stretch"
