"""Runs of CLIP4STR: cached is online, resuming is exact, and reading finds the right CLIP."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from commands import invoke
from runs import note_steps, train_in_two_parts
from samples import EQUAL_TEACHER, WORDS, tiny_build, write_words

from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.teacher.clip import Teacher, load_teacher
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.cache.spec import TeacherSpec
from clipocr.shared.charset import Charset
from clipocr.shared.errors import CacheMismatchError, TeacherError, UsageError
from clipocr.shared.geometry import ViewSize
from clipocr.train.ablation.runs import ablate
from clipocr.train.ablation.table import AblationTable, Variant, load_table
from clipocr.train.data.batch import Batch
from clipocr.train.data.loader import CacheLoader
from clipocr.train.data.preflight import Preflight
from clipocr.train.loop.checkpoint import load_checkpoint, load_recogniser
from clipocr.train.loop.config import TrainConfig, TrainPlace
from clipocr.train.loop.run import train
from clipocr.train.methods.clip4str.clip import weights_at
from clipocr.train.methods.clip4str.settings import Clip4Str, ClipSource
from clipocr.train.reading.readers import load_reader

CPU = torch.device("cpu")
METHOD = Clip4Str(decoder_heads=4, permutations=2, rungs=(1, 3), text_frozen_blocks=2)
CONFIG = TrainConfig(
    method=METHOD, epochs=2, batch_size=8, learning_rate=2e-3, compile="off", weight_decay=0.2
)
NEW_WORDS = ["anchor", "Basil2", "cedar", "delta"]


def write_data(folder: Path) -> Path:
    write_words(folder / "data" / "words", WORDS)
    return folder / "data"


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip4str")
    config = tiny_build(
        write_data(folder),
        folder / "words.cache",
        teacher=EQUAL_TEACHER,
        image_taps=(1, 3, "final"),
        codec="fp16",
    )
    build_cache(config)
    return config.out


@pytest.fixture(scope="module")
def test_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("test")
    write_words(root / "SVT", NEW_WORDS)
    return root


@pytest.fixture
def place(cache_folder: Path, tmp_path: Path) -> TrainPlace:
    return TrainPlace(cache=cache_folder, out=tmp_path / "run", device="cpu")


@dataclass
class OnlineLoader:
    """What the cached loader yields, the picture's features asked of the teacher again."""

    loader: CacheLoader
    teacher: Teacher

    @property
    def batches_per_epoch(self) -> int:
        return self.loader.batches_per_epoch

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        for batch in self.loader.epoch(epoch, first_batch):
            assert batch.views is not None
            features = self.teacher.image_features(batch.views)
            images = {name: values.half() for name, values in features.items()}
            yield replace(batch, views=None, images=images)


@pytest.mark.parametrize("tune", ["none", "adapter", "ladder"])
def test_a_cached_run_is_an_online_run_bit_for_bit(
    tune: str, place: TrainPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = note_steps(monkeypatch)
    config = replace(CONFIG, method=replace(METHOD, tune=tune), epochs=13)
    num_steps = train(config, place).num_steps
    assert num_steps >= 50
    taps = (1, 3, "final") if tune == "ladder" else ("final",)
    teacher = load_teacher(
        EQUAL_TEACHER, image_taps=taps, text_taps=(1,), precision="fp32", device=CPU
    )
    cached = Preflight.loader

    def online(preflight: Preflight, **options: object) -> OnlineLoader:
        needs = replace(preflight.needs, pixels=True, images=())
        loader = cached(replace(preflight, needs=needs), **options)  # type: ignore[arg-type]
        return OnlineLoader(loader, teacher)

    monkeypatch.setattr(Preflight, "loader", online)
    other = replace(place, out=tmp_path / "online")
    train(config, other)
    assert torch.equal(torch.stack(steps[:num_steps]), torch.stack(steps[num_steps:]))
    a, b = (load_checkpoint(p.out / "last.pt")["recogniser"] for p in (place, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("tune", ["none", "all"])
def test_it_resumes_to_the_bit(
    tune: str, place: TrainPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, method=replace(METHOD, tune=tune))
    train(config, place)
    other = replace(place, out=tmp_path / "resumed")
    train_in_two_parts(config, other, monkeypatch, num_steps=5)
    a, b = (load_checkpoint(p.out / "last.pt") for p in (place, other))
    assert all(torch.equal(a["recogniser"][k], b["recogniser"][k]) for k in a["recogniser"])
    assert a["training"]["history"] == b["training"]["history"]


@pytest.mark.parametrize("changes", [{"tune": "none"}, {"tune": "all"}])
def test_it_learns_the_words_it_sees(changes: dict[str, str], place: TrainPlace) -> None:
    """By memory, which is all that a few steps teach; both branches, read in four stages."""
    method = replace(METHOD, **changes, decoder_dropout=0.0)
    summary = train(replace(CONFIG, method=method, epochs=30, learning_rate=3e-3), place)
    assert summary.last_loss < 0.7 * summary.first_loss


def test_frozen_clip_is_in_no_checkpoint_and_is_found_again(
    cache_folder: Path, place: TrainPlace, test_root: Path, tmp_path: Path
) -> None:
    train(CONFIG, place)
    weights = load_checkpoint(place.out / "last.pt")["recogniser"]
    assert {name.partition(".")[0] for name in weights} == {"visual", "cross"}
    picture = torch.zeros(1, 3, 32, 128)
    by_name = load_recogniser(place.out, CPU).decode(picture)
    by_cache = load_reader(place.out, device="cpu", clip=str(cache_folder))
    assert torch.equal(by_name, by_cache.recogniser.decode(picture))
    # The image encoder and 49,408 token embeddings of 32.
    of_clip = by_cache.num_parameters - sum(p.numel() for p in by_cache.recogniser.parameters())
    assert of_clip == sum(
        value.numel()
        for name, value in FeatureCache.open(cache_folder).teacher_weights().items()
        if name.startswith("visual.") or name == "token_embedding.weight"
    )
    with pytest.raises(UsageError, match="--clip wordscache is neither a cache that is there nor"):
        load_reader(place.out, device="cpu", clip="wordscache")
    with pytest.raises(TeacherError, match=r"ViT-equal-test/random:1, whose weights .* are not"):
        load_reader(place.out, device="cpu", clip="ViT-equal-test/random:1")

    shutil.copytree(place.out, tmp_path / "moved")
    for command in ("eval", "latency"):
        result = invoke(command, tmp_path / "moved", "--data", test_root, "--clip", cache_folder)
        assert result.exit_code == 0, result.output
    assert invoke("read", tmp_path / "moved", test_root, "--device", "cpu").exit_code == 1
    held = tmp_path / "held.safetensors"
    result = invoke("export", place.out, "--format", "safetensors", "--self-contained", "--out",
                    held)  # fmt: skip
    assert result.exit_code == 0, result.output
    needs_clip = [load_recogniser(path, CPU).needs_clip for path in (place.out, held)]
    assert needs_clip == [True, False]
    assert torch.equal(load_reader(held, device="cpu").recogniser.decode(picture), by_name)
    refused = invoke("eval", held, "--data", test_root, "--clip", cache_folder)
    assert "reads without CLIP; leave it out" in refused.output


def test_weights_of_a_file_have_to_be_passed(
    data_root: Path, test_root: Path, tmp_path: Path
) -> None:
    import open_clip

    file = tmp_path / "weights.pt"
    torch.save(open_clip.create_model("ViT-equal-test").state_dict(), file)
    config = tiny_build(
        data_root,
        tmp_path / "words.cache",
        teacher=f"ViT-equal-test/{file}",
        activation="gelu",
        image_taps=("final",),
    )
    build_cache(config)
    run = tmp_path / "run"
    train(replace(CONFIG, epochs=1), TrainPlace(cache=config.out, out=run, device="cpu"))
    result = invoke("eval", run, "--data", test_root)
    assert result.exit_code == 1
    assert "pass it by --clip ViT-equal-test/PATH, or the cache" in result.output
    for place in (config.out, f"ViT-equal-test/{file}"):
        assert invoke("eval", run, "--data", test_root, "--clip", place).exit_code == 0
    # A table has the cache of each run, and so needs no file.
    settings = {**CONFIG.to_values(), "epochs": 1}
    del settings["seed"]
    table = AblationTable(
        title="", columns=(), settings=settings, seeds=(0,),
        variants=(Variant(name="one", cells=(), settings={}),),
    )  # fmt: skip
    result = ablate(
        table, TrainPlace(cache=config.out, out=tmp_path / "out", device="cpu"), [test_root]
    )
    assert (result.num_finished, result.failed) == (1, {})


def test_it_goes_on_from_a_run_of_another_charset(place: TrainPlace, tmp_path: Path) -> None:
    train(replace(CONFIG, charset=Charset.load("94")), place)
    other = replace(place, out=tmp_path / "fine")
    train(replace(CONFIG, epochs=1, learning_rate=1e-9), other, init=place.out)
    before, after = (load_recogniser(p.out, CPU) for p in (place, other))
    for branch in ("visual", "cross"):
        heads = [getattr(model, branch).head.weight for model in (before, after)]
        # EOS, and the 36 characters, with which the 94 begin.
        assert torch.allclose(heads[0][:37], heads[1], atol=1e-6)


def test_what_was_trained_on_a_frozen_clip_goes_on_with_all_of_it(
    place: TrainPlace, tmp_path: Path
) -> None:
    ladder = replace(CONFIG, method=replace(METHOD, tune="ladder"))
    train(ladder, place)
    before = load_checkpoint(place.out / "last.pt")["recogniser"]
    for tune in ("ladder", "none", "all"):
        here = replace(place, out=tmp_path / tune)
        config = replace(ladder, method=replace(METHOD, tune=tune), epochs=1, learning_rate=1e-9)
        train(config, here, init=place.out)
        after = load_checkpoint(here.out / "last.pt")["recogniser"]
        taken = {name for name in before if tune == "ladder" or "adapter" not in name}
        assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in taken)
    assert any(name.startswith("image_encoder.") for name in after)


def test_fine_tuning_holds_clip(place: TrainPlace) -> None:
    """Its upper half and the image encoder are trained, slowly; the rest is as it was."""
    train(replace(CONFIG, method=replace(METHOD, tune="all")), place)
    trained = load_checkpoint(place.out / "last.pt")["recogniser"]
    clip = FeatureCache.open(place.cache).teacher_weights()
    as_before = {
        name
        for name, value in trained.items()
        if name.startswith(("image_encoder", "text_encoder"))
        and torch.equal(value, clip[name.partition(".")[2]])
    }
    text = {name for name in as_before if name.startswith("text_encoder.")}
    assert as_before == text
    assert {name.split(".")[3] for name in text if ".resblocks." in name} == {"0", "1"}
    assert "text_encoder.text_projection" not in text


def test_pictures_validate_a_run_that_reads_none(place: TrainPlace, test_root: Path) -> None:
    summary = train(CONFIG, replace(place, val_data=(test_root,)))
    assert summary.best_accuracy is not None
    assert (place.out / "best.pt").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(precision: str, place: TrainPlace, test_root: Path) -> None:
    method = replace(METHOD, tune="ladder", text="encoder")
    summary = train(replace(CONFIG, method=method, precision=precision), place)
    assert summary.num_skipped == 0
    result = invoke("eval", place.out, "--data", test_root, "--precision", precision)
    assert result.exit_code == 0, result.output


def test_other_views_need_no_other_method(tmp_path: Path, test_root: Path) -> None:
    """Of 64x64, without pixels; pictures are read at that size."""
    config = tiny_build(
        write_data(tmp_path),
        tmp_path / "words.cache",
        teacher=EQUAL_TEACHER,
        image_taps=("final",),
        view_size=ViewSize(64, 64),
        pixels=False,
    )
    build_cache(config)
    here = TrainPlace(cache=config.out, out=tmp_path / "run", device="cpu")
    train(CONFIG, here)
    recogniser = load_recogniser(here.out, CPU)
    assert recogniser.view_px == (64, 64)
    assert invoke("eval", here.out, "--data", test_root).exit_code == 0
    with pytest.raises(CacheMismatchError, match="pixels"):
        train(
            replace(CONFIG, method=replace(METHOD, tune="all")), replace(here, out=tmp_path / "a")
        )


def test_attention_is_over_the_picture_and_the_text(place: TrainPlace) -> None:
    train(CONFIG, place)
    recogniser = load_recogniser(place.out, CPU)
    ids = recogniser.tokenizer.encode(["ab", "c"])
    attention = recogniser.image_attention(torch.zeros(2, 3, 32, 128), ids)
    assert attention is not None
    assert attention.places.shape == (2, 3, 2, 8)
    together = attention.places.flatten(2).sum(-1) + attention.elsewhere
    assert torch.allclose(together, torch.ones(2, 3))
    assert attention.elsewhere.min() > 0


def test_its_table_trains_every_row(
    cache_folder: Path, test_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipocr.train.ablation.runs.draw_curves", lambda _: None)
    table = load_table("clip4str")
    small = {"rungs": [1, 3], "decoder_heads": 4, "epochs": 1, "batch_size": 16, "permutations": 2}
    table = replace(table, settings={**table.settings, **small}, seeds=(0,))
    out = tmp_path / "out"
    result = ablate(table, TrainPlace(cache=cache_folder, out=out, device="cpu"), [test_root])
    assert (result.num_finished, result.failed) == (len(table.variants), {})
    losses = set()
    for variant in table.variants:
        record = json.loads((out / f"{variant.name}-seed0" / "run.json").read_text())
        losses.add(tuple(record["history"][0].items()))
    # Reading once more is no matter of training; all else is.
    assert len(losses) == len(table.variants) - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_heads": 5}, "decoder_heads 5 does not divide the 32 values"),
        ({"tune": "ladder", "rungs": (1, 2)}, r"block2.*--image-taps"),
        ({"tune": "ladder", "rungs": (1, 4)}, "rungs is .* expected blocks before the last of 4"),
        (
            {"tune": "ladder", "ladder_pruning": 5},
            "does not divide the 32 values of a head, expected one of 1, 2, 4, 8, 16, 32",
        ),
    ],
)
def test_what_does_not_fit_is_said(
    changes: dict[str, object], message: str, place: TrainPlace
) -> None:
    with pytest.raises((UsageError, CacheMismatchError), match=message):
        train(replace(CONFIG, method=replace(METHOD, **changes)), place)  # type: ignore[arg-type]


def test_a_cache_without_clips_weights_says_how_to_add_them(
    tmp_path: Path, cache_path: Path
) -> None:
    method = replace(METHOD, tune="all", text="encoder")
    here = TrainPlace(cache=cache_path, out=tmp_path / "run", device="cpu")
    with pytest.raises(CacheMismatchError, match="clipocr cache weights"):
        train(replace(CONFIG, method=method), here)
    assert not here.out.exists()


def test_a_run_that_asks_clip_for_nothing_needs_its_weights_all_the_same(
    cache_folder: Path, tmp_path: Path
) -> None:
    """Validation and evaluation read with them, which must not be found out an epoch later."""
    cache = shutil.copytree(cache_folder, tmp_path / "words.cache")
    for part in ("sealed.json", "commits/teacher.json"):
        (cache / part).unlink()
    here = TrainPlace(cache=cache, out=tmp_path / "run", device="cpu")
    with pytest.raises(CacheMismatchError, match="clipocr cache weights"):
        train(replace(CONFIG, method=replace(METHOD, cross=False)), here)


def test_where_clip_is_can_be_said_for_several_runs(
    place: TrainPlace, cache_folder: Path, test_root: Path, tmp_path: Path
) -> None:
    """One that reads without CLIP stands beside one that reads with it."""
    train(replace(CONFIG, epochs=1), place)
    held = tmp_path / "held.safetensors"
    assert invoke("export", place.out, "--format", "safetensors", "--self-contained", "--out",
                  held).exit_code == 0  # fmt: skip
    both = invoke("eval", place.out, held, "--data", test_root, "--clip", cache_folder)
    assert both.exit_code == 0, both.output
    refused = invoke("eval", held, held, "--data", test_root, "--clip", cache_folder)
    assert "these RUNs read without CLIP; leave it out" in refused.output


def test_a_run_begins_with_an_export_that_holds_clip(place: TrainPlace, tmp_path: Path) -> None:
    train(replace(CONFIG, epochs=1), place)
    held = tmp_path / "held.safetensors"
    assert invoke("export", place.out, "--format", "safetensors", "--self-contained", "--out",
                  held).exit_code == 0  # fmt: skip
    weights = []
    for init in (place.out, held):
        other = replace(place, out=tmp_path / f"from-{init.name}")
        train(replace(CONFIG, epochs=1), other, init=init)
        weights.append(load_checkpoint(other.out / "last.pt")["recogniser"])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_clip_that_cannot_be_had_is_to_be_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the option that reading has, which is not that of a build."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    teacher = TeacherSpec(
        model="ViT-B-16",
        weights="openai",
        weights_sha256="0" * 64,
        activation="quickgelu",
        precision="fp32",
    )
    with pytest.raises(TeacherError) as raised:
        weights_at(ClipSource(teacher=teacher, view_px=(224, 224)))
    assert "--clip ViT-B-16/PATH, or a cache that keeps them: --clip CACHE" in str(raised.value)
    assert "--teacher" not in str(raised.value)


def test_nobody_says_which_clip_a_run_trains_on() -> None:
    with pytest.raises(UsageError, match="clip is 'ViT-B-16', but the cache of a run decides it"):
        Clip4Str.from_values({"clip": "ViT-B-16"})
