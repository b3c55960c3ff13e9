"""Runs of DPTR: cached is online, resuming is exact, a recogniser begins with what they leave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from commands import invoke
from natural_images import write_images
from PIL import Image
from runs import note_steps, train_in_two_parts
from samples import EQUAL_TEACHER, WORDS, tiny_build, write_words
from storage_contract import FolderServer

from clipocr.precompute.builder.build import build_cache, build_labels, build_pool
from clipocr.precompute.builder.config import LabelsConfig, PoolConfig, TextConfig
from clipocr.precompute.builder.text import add_text_table
from clipocr.precompute.teacher.clip import Teacher, load_teacher
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.charset import Charset
from clipocr.shared.data.images import center_crop, decode_image
from clipocr.shared.errors import CacheMismatchError, UsageError
from clipocr.train.data.batch import Batch
from clipocr.train.data.loader import CacheLoader
from clipocr.train.data.preflight import Preflight
from clipocr.train.loop import run as run_module
from clipocr.train.loop.checkpoint import load_checkpoint, load_recogniser
from clipocr.train.loop.config import TrainConfig, TrainPlace
from clipocr.train.loop.run import train
from clipocr.train.methods.clip_ocr.settings import ClipOcr
from clipocr.train.methods.dptr.settings import Dptr
from clipocr.train.models.config import PermutedDecoder

CPU = torch.device("cpu")
DECODER = PermutedDecoder(decoder_layers=2, decoder_width=32, decoder_heads=4)
DEEPER = replace(DECODER, decoder_layers=4, permutations=2)
METHOD = Dptr(decoder=DECODER, held_out_share=0.2)
CONFIG = TrainConfig(method=METHOD, epochs=2, batch_size=8, learning_rate=2e-3, compile="off")
LEXICON = sorted({a + b for a in ("un", "re", "pre", "") for b in map(str.lower, WORDS)})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "natural")


@pytest.fixture(scope="module")
def words_cache(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of a lexicon, and a pool; no picture of a word."""
    folder = tmp_path_factory.mktemp("lexicon")
    (folder / "words.txt").write_text("\n".join(LEXICON))
    config = LabelsConfig(
        words=folder / "words.txt",
        out=folder / "words.cache",
        teacher=EQUAL_TEACHER,
        text_taps=(1, 2, 3),
        unit_rows=64,
        chunk_rows=16,
        device="cpu",
    )
    build_labels(config)
    build_pool(PoolConfig(cache=config.out, images=images, device="cpu"))
    return config.out


@pytest.fixture
def place(words_cache: Path, tmp_path: Path) -> TrainPlace:
    return TrainPlace(cache=words_cache, out=tmp_path / "pre", device="cpu")


@dataclass
class OnlineLoader:
    """What the cached loader yields, all features of it asked of the teacher again."""

    loader: CacheLoader
    cache: FeatureCache
    images: Path
    teacher: Teacher

    @property
    def batches_per_epoch(self) -> int:
        return self.loader.batches_per_epoch

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        drawn: list[np.ndarray] = []
        draw = self.loader._draw_pool

        def note(*args: object) -> np.ndarray:
            drawn.append(draw(*args))  # type: ignore[arg-type]
            return drawn[-1]

        self.loader._draw_pool = note  # type: ignore[method-assign]
        assert self.cache.pool is not None
        names, rows = self.cache.pool.labels(), self.cache.pool.rows(0)["label"]
        for number, batch in enumerate(self.loader.epoch(epoch, first_batch)):
            tokens = torch.cat([open_clip.tokenize(f"a photo of a '{w}'") for w in batch.labels])
            said = self.teacher.text_features(tokens, tokens.argmax(dim=1), ("eot", "ln_final"))
            pictures = [
                center_crop(decode_image((self.images / names[rows[i]]).read_bytes()), 224)
                for i in drawn[number]
            ]
            features = self.teacher.image_features(torch.from_numpy(np.stack(pictures)))
            yield replace(
                batch,
                text={name: values.half() for name, values in said.items()},
                pool=features["final"].half(),
            )
        self.loader._draw_pool = draw  # type: ignore[method-assign]


def test_a_cached_run_is_an_online_run_bit_for_bit(
    words_cache: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = note_steps(monkeypatch)
    config = replace(CONFIG, method=replace(METHOD, held_out_share=0.0), epochs=4)
    places = [TrainPlace(cache=words_cache, out=tmp_path / n, device="cpu") for n in ("a", "b")]
    num_steps = train(config, places[0]).num_steps
    assert num_steps >= 50
    teacher = load_teacher(
        *(EQUAL_TEACHER,), image_taps=("final",), text_taps=(1, 2, 3), precision="fp32", device=CPU,
        view_px=(224, 224),
    )  # fmt: skip
    cached = Preflight.loader

    def online(preflight: Preflight, **options: object) -> OnlineLoader:
        loader = cached(preflight, **options)  # type: ignore[arg-type]
        return OnlineLoader(loader, preflight.cache, images, teacher)

    monkeypatch.setattr(Preflight, "loader", online)
    train(config, places[1])
    assert torch.equal(torch.stack(steps[:num_steps]), torch.stack(steps[num_steps:]))
    a, b = (load_checkpoint(place.out / "last.pt")["recogniser"] for place in places)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns_to_read_features_and_reads_held_out_ones(place: TrainPlace) -> None:
    config = replace(CONFIG, epochs=3)
    summary = train(config, place)
    history = load_checkpoint(place.out / "last.pt")["training"]["history"]
    assert summary.last_loss < summary.first_loss
    assert all(0 <= entry["val/1-NED"] <= 100 for entry in history)
    assert summary.checkpoint.name == "best.pt"


def test_held_out_labels_are_not_learned(words_cache: Path) -> None:
    preflight = run_module.check_cache(CONFIG, FeatureCache.open(words_cache))
    of = {
        held_out: [
            label
            for batch in preflight.loader(
                batch_size=8, seed=0, device=CPU, held_out=held_out
            ).epoch(0)
            for label in batch.labels
        ]
        for held_out in (False, True)
    }
    charset = Charset.load("36")
    assert sorted(of[False] + of[True]) == sorted({charset.adapt(word) for word in LEXICON})
    assert 0.1 < len(of[True]) / len(LEXICON) < 0.3


def test_holding_out_nothing_of_a_few_labels_is_said(place: TrainPlace) -> None:
    config = replace(CONFIG, method=replace(METHOD, held_out_share=1e-6))
    with pytest.raises(UsageError, match="none is held out by a share of 1e-06; hold out more"):
        train(config, place)


def test_every_row_of_a_batch_has_another_image(words_cache: Path) -> None:
    loader = run_module.check_cache(CONFIG, FeatureCache.open(words_cache)).loader(
        batch_size=8, seed=0, device=CPU
    )
    pools = [batch.pool for batch in loader.epoch(0)]
    for pool in pools:
        assert pool is not None
        assert pool.shape[1:] == (197, 32)
        assert len(torch.unique(pool.flatten(1), dim=0)) == len(pool)
    assert not torch.equal(pools[0], pools[1])  # type: ignore[arg-type]
    (first, *_), (again, *_) = pools, [batch.pool for batch in loader.epoch(0)]
    assert torch.equal(first, again)  # type: ignore[arg-type]


def test_each_label_has_its_image_whatever_the_number_of_processes(words_cache: Path) -> None:
    preflight = run_module.check_cache(CONFIG, FeatureCache.open(words_cache))

    def images_of_labels(world_size: int) -> list[dict[str, float]]:
        parts = [
            preflight.loader(batch_size=8, seed=0, device=CPU, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        found = []
        for shares in zip(*(part.epoch(0) for part in parts), strict=True):
            found.append({})
            for share in shares:
                assert share.pool is not None
                sums = share.pool.double().flatten(1).sum(1).tolist()
                found[-1] |= dict(zip(share.labels, sums, strict=True))
        return found

    assert images_of_labels(1) == images_of_labels(2) == images_of_labels(3)


def test_it_resumes_to_the_bit(
    place: TrainPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(CONFIG, place)
    other = replace(place, out=tmp_path / "resumed")
    train_in_two_parts(CONFIG, other, monkeypatch, num_steps=5)
    a, b = (load_checkpoint(p.out / "last.pt") for p in (place, other))
    assert all(torch.equal(a["recogniser"][k], b["recogniser"][k]) for k in a["recogniser"])
    assert a["training"]["history"] == b["training"]["history"]


def test_a_run_from_an_address_is_that_from_the_folder(place: TrainPlace, tmp_path: Path) -> None:
    """Prompts and pool included: what a folder maps into memory is read from an address."""
    with FolderServer.serving(Path(place.cache).parent) as server:
        address = f"{server.endpoint}/{Path(place.cache).name}"
        remote = replace(place, cache=address, cache_bytes=0, out=tmp_path / "remote")
        train(CONFIG, remote)
    train(CONFIG, place)
    a, b = (load_checkpoint(p.out / "last.pt") for p in (place, remote))
    assert all(torch.equal(a["recogniser"][k], b["recogniser"][k]) for k in a["recogniser"])
    assert a["training"]["history"] == b["training"]["history"]


@pytest.fixture(scope="module")
def pictures_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_words(folder / "data" / "words", WORDS * 2)
    build_cache(tiny_build(folder / "data", folder / "words.cache", teacher=EQUAL_TEACHER))
    return folder / "words.cache"


STUDENT = (
    "--decoder permuted --decoder-layers 4 --decoder-width 32 --decoder-heads 4 --permutations 2 "
    "--student tiny --merge fmu --batch-size 16 --epochs 1 --image-taps 1,2,3 --text-taps 1,2,3 "
    "--device cpu"
).split()


@pytest.mark.slow
def test_a_recogniser_begins_with_the_decoder_and_works_like_any_other(
    place: TrainPlace, pictures_cache: Path, tmp_path: Path
) -> None:
    """With distillation by CLIP-OCR on top; then eval, read and export."""
    train(replace(CONFIG, method=replace(METHOD, decoder=DEEPER), epochs=1), place)
    fine = tmp_path / "fine"
    result = invoke(
        "train", "--cache", pictures_cache, "--out", fine, "--init", place.out, *STUDENT
    )
    assert result.exit_code == 0, result.output
    assert "Beginning with" in result.output
    assert "anew: encoder and to_memory and merge" in result.output
    recogniser = load_recogniser(fine, CPU)
    assert recogniser.state_dict()["decoder.layers.3.mlp.1.weight"].shape == (128, 32)
    data = pictures_cache.parent / "data"
    assert invoke("eval", fine, "--data", data).exit_code == 0
    picture = tmp_path / "word.png"
    Image.new("RGB", (80, 30)).save(picture)
    assert invoke("read", fine, picture).exit_code == 0
    exported = invoke("export", fine, "--format", "onnx")
    assert exported.exit_code == 0, exported.output
    other = invoke(
        "train", "--cache", pictures_cache, "--out", tmp_path / "no", "--init", place.out,
        *STUDENT, "--decoder-layers", "5",
    )  # fmt: skip
    assert other.exit_code == 1
    assert "decoder_layers is 4, this run's 5" in other.output


def test_the_decoder_really_is_the_pretrained_one(
    place: TrainPlace, pictures_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(replace(CONFIG, epochs=1), place)
    given = load_checkpoint(place.out / "best.pt")["recogniser"]
    seen: dict[str, torch.Tensor] = {}

    def stop(run: run_module._Run, *_args: object) -> None:
        assert run.trainee.recogniser is not None
        seen.update(run.trainee.recogniser.state_dict())
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module._Run, "_take_step", stop)
    method = ClipOcr.from_values(
        {"decoder": "permuted", **DECODER.to_values(), "student": "tiny",
         "image_stages": [], "text_stages": [], "word": False}
    )  # fmt: skip
    fine = TrainPlace(cache=pictures_cache, out=tmp_path / "fine", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(replace(CONFIG, method=method), fine, init=place.out)
    assert given.keys() == {name for name in seen if name.startswith("decoder.")}
    assert all(torch.equal(given[name], seen[name]) for name in given)


def test_a_cache_of_pictures_serves_it_too(
    pictures_cache: Path, images: Path, tmp_path: Path
) -> None:
    """Without a prompt table the run says which command makes it."""
    place = TrainPlace(cache=pictures_cache, out=tmp_path / "pre", device="cpu")
    with pytest.raises(CacheMismatchError, match="--tokenizer prompt --template"):
        train(CONFIG, place)
    add_text_table(TextConfig(cache=pictures_cache, charset=Charset.load("36"), tokenizer="prompt"))
    with pytest.raises(CacheMismatchError, match="has no pool of natural images"):
        train(CONFIG, place)
    build_pool(PoolConfig(cache=pictures_cache, images=images, device="cpu"))
    assert train(replace(CONFIG, epochs=1), place).num_steps > 0
