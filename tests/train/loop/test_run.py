"""A run learns, can be interrupted anywhere, and is fully described by its folder."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from devices import assert_repeats
from host_waits import HostWaits
from PIL import Image
from samples import WORDS, tiny_build, write_words
from small_student import SMALL_METHOD
from small_student import SMALL_RUN as CONFIG
from tensorboard.summary.writer import event_file_writer

from clipocr.precompute.builder.build import build_cache
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.charset import Charset
from clipocr.shared.errors import (
    CacheMismatchError,
    DataError,
    OutOfMemoryError,
    TrainingError,
    UsageError,
)
from clipocr.shared.interrupts import Interrupted
from clipocr.train.data.batch import Batch
from clipocr.train.data.loader import CacheLoader
from clipocr.train.loop import compilation
from clipocr.train.loop import optimizer as optimizer_module
from clipocr.train.loop import run as run_module
from clipocr.train.loop.checkpoint import load_checkpoint
from clipocr.train.loop.config import TrainConfig, TrainPlace
from clipocr.train.loop.curves import draw_curves, panels_of, read_curves
from clipocr.train.loop.log import Meter
from clipocr.train.loop.optimizer import one_cycle, parameter_groups
from clipocr.train.loop.run import _Run, check_cache, train
from clipocr.train.methods.clip_ocr.alignment import ImageAlignment
from clipocr.train.methods.clip_ocr.settings import ClipOcr, LossSettings
from clipocr.train.models.config import StudentConfig
from clipocr.train.models.tokenizer import LabelTokenizer
from clipocr.train.reading.readers import Reader

CPU = torch.device("cpu")


@pytest.fixture
def place(cache_path: Path, tmp_path: Path, device: str) -> TrainPlace:
    return TrainPlace(
        cache=cache_path,
        out=tmp_path / "run",
        device=device,
    )


def state(path: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a run: student, heads and optimizer."""
    checkpoint = load_checkpoint(path / "last.pt")
    training = checkpoint["training"]
    moments = training["optimizer"]["adamw"]["state"]
    return {
        **checkpoint["recogniser"],
        **training["trainee"],
        **{f"adam.{i}.{k}": v for i, entry in moments.items() for k, v in entry.items()},
        "step": torch.tensor(training["step"]),
    }


def assert_equal_runs(a: Path, b: Path) -> None:
    left, right = state(a), state(b)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert_repeats(tensor, right[name])
    histories = [load_checkpoint(p / "last.pt")["training"]["history"] for p in (a, b)]
    assert [entry.keys() for entry in histories[0]] == [entry.keys() for entry in histories[1]]
    for one, other in zip(*histories, strict=True):
        assert_repeats(*(torch.tensor(list(h.values()), dtype=torch.float64) for h in (one, other)))


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int, how: Callable[[], None]) -> None:
    """Call `how` during the step after `step` steps were taken."""
    real = optimizer_module.one_cycle

    def schedule(at: int, *rest: float) -> float:
        if at == step:
            how()
        return real(at, *rest)

    monkeypatch.setattr(optimizer_module, "one_cycle", schedule)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16", "accumulate": 2},
        {"method": replace(SMALL_METHOD, loss=LossSettings(kind="kl"))},
    ],
    ids=["default", "bf16 in two parts", "kl"],
)
def test_no_step_makes_the_host_wait_for_a_gpu(
    changes: dict[str, object], place: TrainPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second step on, the batch's decoding and the optimizer included."""
    real, found = _Run._take_step, {}

    def watched(run: _Run, *args: object) -> None:
        step = run.step
        with HostWaits() as waits:
            real(run, *args)
        found[step] = waits.found

    monkeypatch.setattr(_Run, "_take_step", watched)
    train(replace(CONFIG, epochs=1, **changes), place)
    del found[0]
    assert found == {step: [] for step in range(1, 5)}


def test_losses_fall_and_the_folder_tells_the_story(place: TrainPlace, data_root: Path) -> None:
    summary = train(CONFIG, replace(place, val_data=(data_root,)))
    assert summary.num_steps == 3 * 5  # 72 usable rows in batches of 16, the last of 8.
    assert summary.last_loss < summary.first_loss
    assert summary.checkpoint == place.out / "best.pt"
    record = json.loads((place.out / "run.json").read_text())
    assert record["config"]["charset"]["name"] == "36"
    assert record["config"]["student"]["width"] == 32
    assert TrainConfig.from_values(record["config"]) == CONFIG
    assert record["cache"]["teacher"] == "ViT-tiny-test/random:0"
    assert record["cache"]["teacher_is_random"] is True
    assert [entry["epoch"] for entry in record["history"]] == [1, 2, 3]
    terms = ("recognition", "image_1", "image_2", "image_3", "word", "text_1", "text_2", "text_3")
    for entry in record["history"]:
        # The total is the plain sum of its terms.
        assert entry["loss/total"] == pytest.approx(sum(entry[f"loss/{t}"] for t in terms))
        assert 0 <= entry["val/accuracy"] <= 100
    assert any(p.name.startswith("events.out.tfevents") for p in place.out.iterdir())


def test_a_student_that_follows_nothing_has_no_teacher(place: TrainPlace, tmp_path: Path) -> None:
    method = replace(SMALL_METHOD, image_stages=(), text_stages=(), word=False)
    alone = replace(CONFIG, epochs=1, method=method)
    assert not train(alone, place).teacher_is_random
    assert load_checkpoint(place.out / "last.pt")["teacher"] is None
    # Its loss has one term, which is not drawn twice.
    titles = [title for title, _, _ in panels_of(read_curves(place.out))]
    assert titles == ["total loss", "learning rate", "gradient norm", "samples/s"]
    # What was taught before has had one.
    taught = train(replace(CONFIG, epochs=1), replace(place, out=tmp_path / "taught"))
    assert taught.teacher_is_random
    goes_on = train(alone, replace(place, out=tmp_path / "on"), init=taught.checkpoint)
    assert goes_on.teacher_is_random
    assert load_checkpoint(goes_on.checkpoint)["teacher"] == "ViT-tiny-test/random:0"


def test_the_same_seed_gives_the_same_weights(place: TrainPlace, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(replace(CONFIG, epochs=1), replace(place, out=tmp_path / name))
    train(replace(CONFIG, epochs=1, seed=1), replace(place, out=tmp_path / "c"))
    assert_equal_runs(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(
        state(tmp_path / "a")["decoder.positions"], state(tmp_path / "c")["decoder.positions"]
    )


@pytest.mark.parametrize(
    ("step", "signal_number"),
    [
        *((step, number) for number in (signal.SIGTERM, signal.SIGINT) for step in (0, 6, 9)),
        (6, signal.SIGHUP),
        (6, signal.SIGUSR1),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    place: TrainPlace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    signal_number: signal.Signals,
) -> None:
    train(CONFIG, replace(place, out=tmp_path / "whole"))
    with monkeypatch.context() as patched:
        interrupt_after(patched, step, lambda: os.kill(os.getpid(), signal_number))
        with pytest.raises(Interrupted, match=signal_number.name):
            train(CONFIG, place)
    assert load_checkpoint(place.out / "last.pt")["training"]["step"] == step + 1
    train(CONFIG, place, resume=True)
    assert_equal_runs(place.out, tmp_path / "whole")


def test_a_crash_loses_only_what_came_after_the_last_checkpoint(
    place: TrainPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(CONFIG, replace(place, out=tmp_path / "whole"))

    def crash() -> None:
        raise MemoryError

    monkeypatch.setattr(run_module, "_SAVE_EVERY_S", 0)
    with monkeypatch.context() as patched:
        interrupt_after(patched, 8, crash)
        with pytest.raises(MemoryError):
            train(CONFIG, place)
    assert load_checkpoint(place.out / "last.pt")["training"]["step"] == 8
    train(CONFIG, place, resume=True)
    assert_equal_runs(place.out, tmp_path / "whole")


def test_a_run_goes_on_with_the_units_it_began_with(
    place: TrainPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "half.cache"
    shutil.copytree(place.cache, half)
    hidden = [half / "sealed.json", half / "commits/view0/unit-00001.json"]
    contents = [path.read_bytes() for path in hidden]
    for path in hidden:
        path.unlink()
    place = replace(place, cache=half)
    train(CONFIG, replace(place, out=tmp_path / "whole"))
    with monkeypatch.context() as patched:
        interrupt_after(patched, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(CONFIG, place)
    for path, content in zip(hidden, contents, strict=True):
        path.write_bytes(content)  # The build was finished meanwhile.
    train(CONFIG, place, resume=True)
    assert_equal_runs(place.out, tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(place: TrainPlace) -> None:
    first = train(CONFIG, place)
    before = state(place.out)
    again = train(CONFIG, place, resume=True)
    assert all(torch.equal(v, before[k]) for k, v in state(place.out).items())
    assert (again.num_steps, again.last_loss) == (first.num_steps, first.last_loss)


def test_a_run_folder_is_not_taken_twice(place: TrainPlace) -> None:
    train(replace(CONFIG, epochs=2), place)
    with pytest.raises(UsageError, match=r"holds a run already.*clipocr train --resume"):
        train(CONFIG, place)
    with pytest.raises(
        UsageError, match=r"differently: epochs was 2, now 1\. Go on with the same options"
    ):
        train(replace(CONFIG, epochs=1), place, resume=True)


def test_a_run_may_get_more_epochs_and_goes_on_along_their_schedule(
    place: TrainPlace, capsys: pytest.CaptureFixture[str]
) -> None:
    train(replace(CONFIG, epochs=1), place)
    train(CONFIG, place, resume=True)
    said = capsys.readouterr().err
    # 5 steps an epoch: step 5 of 15, and the last of 5.
    now, was = (one_cycle(step, n, 2e-3, CONFIG.warmup_fraction) for step, n in ((5, 15), (4, 5)))
    assert f"Note: 3 epochs instead of 1. The learning rate goes on at {now:.2e}" in said
    assert f"that of 1 had come to {was:.2e}" in said
    record = json.loads((place.out / "run.json").read_text())
    assert (record["config"]["epochs"], record["steps"], len(record["history"])) == (3, 15, 3)
    # It goes on with what it said, and with no more notes.
    train(CONFIG, place, resume=True)
    assert "Note: 3 epochs" not in capsys.readouterr().err


def test_a_run_that_the_cache_cannot_serve_is_refused_before_it_begins(place: TrainPlace) -> None:
    for config, said in (
        (replace(CONFIG, charset=Charset.load("94")), "text for charset 36 .*this run needs 94"),
        (replace(CONFIG, method=ClipOcr()), "holds image arrays block1, .*this run needs block3"),
        (
            replace(CONFIG, max_label_length=30),
            "up to 25 characters, this run needs 30",
        ),
    ):
        with pytest.raises(CacheMismatchError, match=said):
            train(config, place)
    assert not place.out.exists()


def test_steps_that_are_not_finite_are_skipped_until_they_are_too_many(
    place: TrainPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_SAVE_EVERY_S", 0)
    config = replace(CONFIG, learning_rate=1e30, grad_clip_norm=1e30, max_skipped_steps=3)
    with pytest.raises(
        TrainingError, match=r"steps \d+ to \d+ had to be skipped; .*--learning-rate"
    ):
        train(config, place)
    weights = load_checkpoint(place.out / "last.pt")["recogniser"]
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_the_guard_counts_on_over_the_end_of_an_epoch(place: TrainPlace) -> None:
    # Five steps an epoch, and eight may be skipped in a row.
    config = replace(CONFIG, learning_rate=1e30, grad_clip_norm=1e30, max_skipped_steps=8)
    with pytest.raises(TrainingError, match=r"steps \d+ to 1\d had to be skipped"):
        train(config, place)


def test_a_run_goes_on_with_the_validation_it_began_with(
    place: TrainPlace, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt_after(patched, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(CONFIG, replace(place, val_data=(data_root,)))
    with pytest.raises(UsageError, match=r"validation.ST was 13, now None"):
        train(CONFIG, place, resume=True)


def test_a_second_sigterm_does_not_kill(place: TrainPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    interrupt_after(monkeypatch, 2, twice)
    with pytest.raises(Interrupted, match="SIGTERM"):
        train(CONFIG, place)
    assert load_checkpoint(place.out / "last.pt")["training"]["step"] == 3


def test_validation_sets_are_opened_before_the_first_step(
    place: TrainPlace, tmp_path: Path
) -> None:
    write_words(tmp_path / "val" / "set", ["!!", "??"])
    with pytest.raises(DataError, match="no label is left"):
        train(CONFIG, replace(place, val_data=(tmp_path / "val",)))
    assert not place.out.exists()


def test_dropout_goes_on_after_a_validation(
    place: TrainPlace, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[bool] = []
    take_step = _Run._take_step

    def noted(run: _Run, *args: object) -> None:
        modes.append(all(module.training for module in run.trainee.modules()))
        take_step(run, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(_Run, "_take_step", noted)
    train(CONFIG, replace(place, val_data=(data_root,)))
    assert modes == [True] * 15


def test_an_epoch_survives_a_validation_that_fails(
    place: TrainPlace, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = replace(place, val_data=(data_root,))

    def fail(*_args: object, **_options: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("clipocr.train.loop.validation.evaluate_sets", fail)
        with pytest.raises(MemoryError):
            train(CONFIG, place)
    assert load_checkpoint(place.out / "last.pt")["training"]["step"] == 5
    summary = train(CONFIG, place, resume=True)
    assert summary.best_accuracy is not None
    assert len(json.loads((place.out / "run.json").read_text())["history"]) == 3


def test_a_run_that_memory_is_not_enough_for_says_what_takes_less_and_begins_anew(
    place: TrainPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    with monkeypatch.context() as patched:
        interrupt_after(patched, 0, run_out)
        said = (
            r"CUDA out of memory\. Tried to allocate 2\.00 GiB\): "
            ".*--batch-size, .*--accumulate .*--recipe small-gpu"
        )
        with pytest.raises(OutOfMemoryError, match=said):
            train(replace(CONFIG, batch_size=72), place)
    assert (place.out / "run.json").exists()
    train(replace(CONFIG, epochs=1), place)
    assert len(json.loads((place.out / "run.json").read_text())["commands"]) == 1
    # What has a checkpoint is not taken.
    (place.out / "last.pt").rename(place.out / "best.pt")
    with pytest.raises(UsageError, match="holds a run already"):
        train(replace(CONFIG, epochs=1), place)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_validation_after_its_batch(
    place: TrainPlace,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    signal_number: signal.Signals,
) -> None:
    place = replace(place, val_data=(data_root,))
    train(CONFIG, replace(place, out=tmp_path / "whole"))
    read_batch, num_read = Reader.read_views, 0

    def read_views(self: Reader, views: torch.Tensor) -> object:
        nonlocal num_read
        num_read += 1
        os.kill(os.getpid(), signal_number)
        # Said by the handler, not when the batch is through.
        assert f"{signal_number.name}: stopping" in capfd.readouterr().err
        return read_batch(self, views)

    with monkeypatch.context() as patched:
        patched.setattr(Reader, "read_views", read_views)
        with pytest.raises(Interrupted, match=signal_number.name):
            train(CONFIG, place)
    assert num_read == 1  # Of two sets.
    assert load_checkpoint(place.out / "last.pt")["training"]["step"] == 5
    assert not (place.out / "best.pt").exists()
    train(CONFIG, place, resume=True)
    assert_equal_runs(place.out, tmp_path / "whole")


def test_weight_decay_spares_biases_norms_and_embeddings() -> None:
    student = CONFIG.method.recogniser(LabelTokenizer(CONFIG.charset, 25))
    decayed, spared = parameter_groups(student, 0.1)
    names = {id(p): name for name, p in student.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    spared_names = {names[id(p)] for p in spared["params"]}
    assert {
        "decoder.positions",
        "decoder.embedding.weight",
        "decoder.head.bias",
        "decoder.norm.weight",
        "encoder.model.pos_embed",
    } <= spared_names
    assert "decoder.head.weight" in {names[id(p)] for p in decayed["params"]}
    head = ImageAlignment(student_tokens=3, student_width=4, teacher_tokens=2, teacher_width=5)
    decayed, _ = parameter_groups(head, 0.1)
    # P, and the linear layer.
    assert {id(p) for p in decayed["params"]} == {
        id(head.mixing_TS),
        id(head.align.project.weight),
    }


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_precisions(place: TrainPlace, precision: str) -> None:
    summary = train(replace(CONFIG, epochs=1, precision=precision), place)
    assert math.isfinite(summary.last_loss)


def test_accumulated_parts_make_one_step(place: TrainPlace, tmp_path: Path) -> None:
    # Each part is a batch of its own to the loader; the last step of an epoch has what is left.
    config = replace(CONFIG, epochs=1, batch_size=32, accumulate=2)
    summary = train(config, place)
    assert summary.num_steps == 3  # 72 rows: parts of 16, 16 | 16, 16 | 8.
    # One part of every batch: the same rows, half the gradient steps, another loss.
    whole = train(replace(config, accumulate=1), replace(place, out=tmp_path / "whole"))
    assert whole.num_steps == 3
    assert whole.first_loss != summary.first_loss


def test_an_accumulated_gradient_is_that_of_the_batch(
    place: TrainPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where rows are not related and labels are of one length, a batch in parts is the batch."""
    write_words(tmp_path / "data" / "set", [word for word in WORDS if len(word) == 5] * 3)
    build_cache(tiny_build(tmp_path / "data", tmp_path / "cache"))
    student = StudentConfig(size=replace(CONFIG.method.student.size, dropout=0.0))
    method = replace(CONFIG.method, student=student, loss=LossSettings(kind="l1"))
    config = replace(CONFIG, method=method, epochs=1, batch_size=24)
    values = []
    add = Meter.add
    monkeypatch.setattr(Meter, "add", lambda m, v: (values.append(v), add(m, v))[1])
    for parts in (1, 3):
        out = tmp_path / str(parts)
        train(replace(config, accumulate=parts), replace(place, cache=tmp_path / "cache", out=out))
    assert len(values) == 2
    # The loss terms, their total, and the norm of the whole gradient.
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-5)


def test_interrupted_in_parts_and_resumed_equals_uninterrupted(
    place: TrainPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, batch_size=32, accumulate=2)
    train(config, replace(place, out=tmp_path / "whole"))
    with monkeypatch.context() as patched:
        interrupt_after(patched, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(config, place)
    train(config, place, resume=True)
    assert_equal_runs(place.out, tmp_path / "whole")


def test_one_step_that_is_not_finite_is_skipped_and_counted(
    place: TrainPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CacheLoader.epoch

    def poisoned(loader: CacheLoader, epoch: int, first_batch: int) -> Iterator[Batch]:
        for batch_idx, batch in enumerate(real(loader, epoch, first_batch)):
            if (epoch, batch_idx) == (0, 2):
                batch.images["block1"][:] = float("nan")
            yield batch

    monkeypatch.setattr(CacheLoader, "epoch", poisoned)
    summary = train(CONFIG, place)
    assert (summary.num_skipped, summary.num_steps) == (1, 15)
    assert math.isfinite(summary.first_loss)
    weights = load_checkpoint(place.out / "last.pt")["recogniser"]
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.fixture
def aot_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile without Inductor, which spends 40 s in the C++ compiler, but to the same graphs."""
    compile_with_inductor = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda m: compile_with_inductor(m, backend="aot_eager")
    )
    torch._dynamo.reset()


@pytest.mark.usefixtures("aot_eager")
def test_a_compiled_student_learns_the_same(
    place: TrainPlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(CONFIG, epochs=1, batch_size=9, compile="off")
    plain = train(config, place)
    assert "compile" not in capsys.readouterr().err
    counters = torch._dynamo.utils.counters
    counters.clear()
    fused = train(replace(config, compile="on"), replace(place, out=tmp_path / "fused"))
    assert "Steps are compiled" in capsys.readouterr().err
    assert fused.first_loss == pytest.approx(plain.first_loss, rel=1e-3)
    weights = load_checkpoint(tmp_path / "fused" / "last.pt")["recogniser"]
    assert weights.keys() == load_checkpoint(place.out / "last.pt")["recogniser"].keys()
    # One shape, any length of labels, any number of rows; one is the probe's.
    lengths = {batch.num_positions for batch in cache_loader_of(config, place).epoch(0)}
    assert len(lengths) > 3
    assert counters["stats"]["unique_graphs"] <= 4
    assert not counters["graph_break"]


def cache_loader_of(config: TrainConfig, place: TrainPlace) -> CacheLoader:
    preflight = check_cache(config, FeatureCache.open(place.cache))
    return preflight.loader(batch_size=config.batch_size, seed=config.seed, device=CPU)


def test_what_cannot_be_compiled_is_refused_and_said(
    place: TrainPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_to_nothing(module: torch.nn.Module) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("\nFailed to find C compiler.\nPlease specify one via CC.")

        module.register_forward_pre_hook(fail)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_to_nothing)
    why = r"torch.compile does not work here (Failed to find C compiler.)"
    with pytest.raises(UsageError, match=re.escape(f"{why}; leave --compile out")):
        train(replace(CONFIG, compile="on"), place)
    # By itself a run goes on without; on a GPU, so here nothing may be computed.
    monkeypatch.setattr(compilation, "_try", lambda _: "Failed to find C compiler.")
    preflight = check_cache(CONFIG, FeatureCache.open(place.cache))
    trainee = CONFIG.method.trainee(LabelTokenizer(CONFIG.charset, 25), preflight.shapes)
    said = compilation.compile_trainee(trainee, "auto", torch.device("cuda"), "clip-ocr")
    assert said == f"Steps are not compiled, so slower: {why}."
    assert compilation.compile_trainee(trainee, "auto", CPU, "clip-ocr") == ""
    assert not any(module._forward_pre_hooks for module in trainee.modules())


def test_curves_are_drawn_without_what_was_done_over(
    place: TrainPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        # A clock that stands: the processes of a run can begin within the same second.
        clock = SimpleNamespace(time=lambda: 1_700_000_000.0)
        patched.setattr(event_file_writer, "time", clock)
        patched.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
        for step in (7, 12):
            with monkeypatch.context() as interrupted:
                interrupt_after(interrupted, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
                with pytest.raises(Interrupted):
                    train(CONFIG, place, resume=(place.out / "last.pt").exists())
        train(CONFIG, place, resume=True)
    curves = read_curves(place.out)
    assert [step for step, _ in curves["loss/total"]] == [5, 10, 15]
    assert {"loss/word", "train/grad_norm", "train/learning_rate"} <= curves.keys()
    with Image.open(draw_curves(place.out)) as picture:
        assert min(picture.size) > 200


def test_a_warm_up_of_one_step_begins_at_the_peak() -> None:
    assert one_cycle(0, 10, 1e-3, 0.1) == 1e-3
    assert one_cycle(9, 10, 1e-3, 0.1) == pytest.approx(1e-3 / 25 / 1e4)


def test_schedule_is_torchs_one_cycle() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.2374e-3, total_steps=200, pct_start=0.075, cycle_momentum=False
    )
    for step in range(200):
        ours = one_cycle(step, 200, 1.2374e-3, 0.075)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        if step < 199:
            theirs.step()


def test_heads_are_not_part_of_the_student(place: TrainPlace) -> None:
    train(replace(CONFIG, epochs=1), place)
    weights = load_checkpoint(place.out / "last.pt")["recogniser"]
    assert not [name for name in weights if "heads" in name or "word_head" in name]
    assert not [name for name in weights if "clip" in name.lower()]
