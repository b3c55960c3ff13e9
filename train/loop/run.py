"""`clipocr train`: one run, from a cache to a recogniser.

    cache ──► loader ──► method's trainee ──► loss ──► AdamW, OneCycle ──► checkpoints, run.json
                                                            └─► validation ──► journal

A method is a module whose forward returns named loss terms; the loop knows no more of it. Under
torchrun every process trains on its part of each batch, and the first one writes.
Recipe: CLIP-OCR's (``reference``: ``strhub/models/base.py`` 88-97, ``configs/main.yaml``).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...shared.cache.reader import FeatureCache
from ...shared.cache.spec import TeacherSpec
from ...shared.cache.storage import hash_file
from ...shared.device import allow_fast_products, choose_precision
from ...shared.distribution import versions_with
from ...shared.errors import CacheError, UsageError, explained_memory
from ...shared.interrupts import Interrupted, collected
from ...shared.progress import progress_bar
from ..data.batch import Batch
from ..data.loader import CacheLoader
from ..data.preflight import Preflight
from ..models.recogniser import Recogniser
from ..models.tokenizer import LabelTokenizer
from .checkpoint import (
    BEST_NAME,
    LAST_NAME,
    build_kept,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from .compilation import compile_trainee
from .config import TrainConfig, TrainPlace
from .journal import Journal
from .log import Clock, Meter
from .memory import check_step, estimate_step, free_memory
from .optimizer import Optimizer, describe_longer_schedule
from .processes import Processes
from .record import RUN_NAME, check_folder, read_record, require_same_run, write_record

if TYPE_CHECKING:
    from tqdm import tqdm

    from .validation import Example, Validation

_LOG_EVERY_STEPS = 10
_SCORES = {"accuracy": "val/accuracy", "1-NED": "val/1-NED"}
"""Of a checkpoint, by their names in the history."""
_SAVE_EVERY_S = 300.0
"""Besides the end of each epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """What came of a run."""

    checkpoint: Path
    """The one to use: best by validation accuracy, or the last without validation."""
    num_steps: int
    first_loss: float
    """Mean total loss over the first epoch."""
    last_loss: float
    """Mean total loss over the last epoch."""
    samples_per_second: float
    """Of all processes, over the training steps; validation and start-up left out."""
    data_wait_fraction: float
    """Share of that time spent waiting for the loader."""
    num_skipped: int
    """Steps that were skipped because their gradient was not finite."""
    best_accuracy: float | None
    """Validation word accuracy in percent."""
    teacher_is_random: bool
    """Whether the teacher was never trained; not of a student that has none."""


def train(
    config: TrainConfig, place: TrainPlace, *, resume: bool = False, init: Path | None = None
) -> TrainSummary:
    """Train from a cache, or go on where an interrupted run stopped.

    Args:
        config: What decides the weights.
        place: Where the run reads and writes.
        resume: Whether to go on with the run that is there.
        init: Run folder or checkpoint whose recogniser this one begins with.

    Raises:
        CacheError: the cache is missing, damaged, or not the one this run needs.
        UsageError: the run folder is in use by another run, or an option is not possible here.
        TrainingError: too many steps in a row were not finite.
        OutOfMemoryError: a step takes more memory than there is.
        Interrupted: a signal ended the run; last.pt holds it.
    """
    if resume and init is not None:
        raise UsageError("--init begins a run and --resume goes on with one; leave one of them out")
    processes = Processes.of_torchrun()
    device = processes.choose_device(place.device)
    cache = open_cache(place)
    config, reason = settled(config, cache, device)
    preflight = check_cache(config, cache)
    journal = Journal(place.out, config.epochs, is_silent=not processes.is_first, wandb=place.wandb)
    journal.say(f"Training on {device} in {config.precision} ({reason}).")
    if unfinished := preflight.describe_unfinished():
        journal.say(f"Note: {unfinished}.")
    less_memory = (
        "pass a smaller --batch-size, a larger --accumulate (which cuts each batch into that many "
        "parts), or --recipe small-gpu. Begin again with the same --out if it holds no checkpoint "
        f"yet, else with another one, by --init {place.out} from its weights"
    )
    with processes.joined(device), explained_memory(less_memory):
        run = _Run(config, place, preflight, processes, journal, device, resume=resume, init=init)
        try:
            return run.train()
        except CacheError:
            # Reading failed between two steps, so the state is whole. Saving is work of all
            # processes together, and the others do not know of it.
            if run.step and processes.world_size == 1:
                run.save()
            raise


def open_cache(place: TrainPlace) -> FeatureCache:
    """Open the cache that runs at `place` train on."""
    return FeatureCache.open(
        place.cache, cache_dir=place.cache_dir, max_cache_bytes=place.cache_bytes
    )


def settled(
    config: TrainConfig, cache: FeatureCache, device: torch.device
) -> tuple[TrainConfig, str]:
    """Return a config with what cache and device decide of it, and why its precision is that."""
    precision, reason = choose_precision(config.precision, device)
    method = config.method.fitted(cache.spec)
    return replace(config, precision=precision, method=method), reason


def check_cache(config: TrainConfig, cache: FeatureCache) -> Preflight:
    """Check that a cache has everything a run needs, and return what the run will read of it.

    Raises:
        CacheError: it has not.
    """
    return Preflight.check(
        cache,
        config.method.needs(),
        charset=config.charset,
        max_label_length=config.max_label_length,
        fraction=config.fraction,
        views=config.views,
        batch_size=config.batch_size // config.accumulate,
    )


class _Run:
    """The state of one run, and the steps that change it."""

    def __init__(
        self,
        config: TrainConfig,
        place: TrainPlace,
        preflight: Preflight,
        processes: Processes,
        journal: Journal,
        device: torch.device,
        *,
        resume: bool,
        init: Path | None,
    ) -> None:
        """Make the run: at its first step, or where the one in the folder stopped."""
        self.config, self.place, self.device = config, place, device
        self.preflight, self.cache, self.processes = preflight, preflight.cache, processes
        self.journal = journal
        self.tokenizer = LabelTokenizer(config.charset, config.max_label_length)
        torch.manual_seed(config.seed)
        self.trainee = config.method.trainee(self.tokenizer, preflight.shapes).to(device)
        recogniser = self.trainee.recogniser
        if recogniser is not None:
            recogniser.tall = self.cache.spec.view.tall
        elif place.val_data or init is not None:
            raise UsageError(
                f"method {config.method.name} has nothing that reads images; leave "
                f"{'--val-data' if place.val_data else '--init'} out"
            )
        self.optimizer = Optimizer(self.trainee, config, device, processes.rank)
        names = (*self.trainee.term_names, "total", "grad_norm")
        self.meter = Meter(names, device, processes, config.max_skipped_steps)
        self.clock = Clock()
        self._logged = self._epoch_began = self.clock.read()
        self.validation: Validation | None = None
        if place.val_data and recogniser is not None:
            # Only this validation opens LMDBs; training from a cache needs none.
            from .validation import PictureValidation

            self.validation = PictureValidation(config, place, processes, recogniser)
        self.step = 0
        self.history: list[dict[str, float]] = []
        """Means of each finished epoch."""
        self.best: dict[str, float] | None = None
        """What best.pt has reached; see `save_checkpoint`."""
        self._fewer_epochs: int | None = None
        """How many the run was begun with, if it goes on with more."""
        self.begun_with: dict[str, str] | None = None
        """Which checkpoint the run began with; None: random weights."""
        self.commands: list[list[str]] = []
        self.stop: list[int] = []
        """Signals that came while the run trains."""
        self._is_checked = False
        """Whether memory will do for a step."""
        self._saved_at = time.monotonic()
        """Seconds, when last.pt was written, or the run was made."""

        check_folder(place.out, resume=resume)
        if resume and (place.out / RUN_NAME).exists():
            self.commands = read_record(place.out)["commands"]
        if resume and (place.out / LAST_NAME).exists():
            self._restore(place.out / LAST_NAME)
        elif init is not None and recogniser is not None:
            self._begin_with(init, recogniser)
        elif recogniser is not None:
            recogniser.load_pretrained()
        # Every process must have looked for a run here before the first one begins to write.
        processes.wait()
        allow_fast_products(config.precision)
        journal.say(compile_trainee(self.trainee, config.compile, device, config.method.name))
        for note in self.trainee.notes:
            journal.say(f"Note: {note}.")
        self.loader = self._loader(config.batch_size // config.accumulate)
        if self.validation is None and preflight.needs.held_out:
            from .validation import HeldOutValidation

            held_out = self._loader(config.batch_size, held_out=True)
            self.validation = HeldOutValidation(config, processes, self.trainee, held_out)

    # -- beginning, saving, resuming ---------------------------------------------------------

    def _begin_with(self, init: Path, recogniser: Recogniser) -> None:
        """Take up the recogniser of another run, or the part of one, as far as it fits."""
        path = find_checkpoint(init)
        other = build_kept(load_checkpoint(path), path)
        if other is None:
            raise UsageError(f"--init {path} holds no recogniser, and no part of one")
        if isinstance(other, Recogniser) and other.tall != recogniser.tall:
            raise UsageError(
                f"--init {path} was trained with tall pictures as --tall {other.tall}, "
                f"{self.cache.storage} was built with --tall {recogniser.tall}; begin with another "
                f"student, or build a cache with: clipocr cache build --tall {other.tall} ..."
            )
        new = recogniser.take_from(other)
        self.begun_with = {"checkpoint": os.path.abspath(path), "sha256": hash_file(path)}
        self.journal.say(f"Beginning with {path}{f'; anew: {new}' if new else ''}.")

    @property
    def _teacher(self) -> TeacherSpec | None:
        """The cache's; None if nothing of it is in the weights, nor maybe in those of --init."""
        is_taught = self.preflight.needs.of_teacher or self.begun_with is not None
        return self.cache.spec.teacher if is_taught else None

    @property
    def _kept_name(self) -> str:
        """What the names of the weights that checkpoints hold apart begin with, in the trainee."""
        return "part." if self.trainee.recogniser is None else "recogniser."

    @property
    def _steps_per_epoch(self) -> int:
        return -(-self.loader.batches_per_epoch // self.config.accumulate)

    def _loader(self, batch_size: int, *, held_out: bool = False) -> CacheLoader:
        return self.preflight.loader(
            batch_size=batch_size,
            seed=self.config.seed,
            device=self.device,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
            held_out=held_out,
        )

    def save(self) -> None:
        """Write last.pt: the recogniser and all that resuming needs. For all processes together.

        Random numbers are functions of the step, and the order of rows is one of the epoch, so
        neither has a state.
        """
        training = {
            **self._identity(),
            "place": self.place.to_values(),
            "units": self.preflight.units,
            "num_views": self.preflight.num_views,
            "step": self.step,
            # Beside the recogniser, whose weights the checkpoint holds by itself.
            "trainee": {
                name: value
                for name, value in self.trainee.state_dict().items()
                if not name.startswith(self._kept_name)
            },
            "optimizer": self.optimizer.state(),
            "history": self.history,
            "epoch_sums": self.meter.state(),
            "best": self.best,
            "init": self.begun_with,
        }
        self._saved_at = time.monotonic()
        self._write_checkpoint(LAST_NAME, self._reached(), training)

    def _reached(self) -> dict[str, float]:
        """Return how far the run is, with the scores of this very step, if it was validated."""
        reached = {"step": self.step, "epoch": len(self.history), "epochs": self.config.epochs}
        is_at_end = self.step == len(self.history) * self._steps_per_epoch
        scores = self.history[-1] if self.history and is_at_end else {}
        return reached | {name: scores[key] for name, key in _SCORES.items() if key in scores}

    def _identity(self) -> dict[str, Any]:
        """Return what a run must go on with as it began."""
        return {
            "config": self.config.to_values(),
            "cache_id": self.cache.manifest.cache_id,
            "validation": {} if self.validation is None else self.validation.num_samples,
        }

    def _write_checkpoint(
        self, name: str, reached: Mapping[str, float], training: Mapping[str, Any] | None = None
    ) -> None:
        if self.processes.is_first:
            save_checkpoint(
                self.place.out / name,
                self.config.method,
                self.tokenizer,
                self.trainee.recogniser or self.trainee.part,
                training,
                reached=reached,
                teacher=None if self._teacher is None else self._teacher.name,
            )

    def _restore(self, path: Path) -> None:
        """Take up the state of a checkpoint."""
        checkpoint = load_checkpoint(path)
        training = checkpoint["training"]
        wanted = self._identity()
        had = {name: training[name] for name in wanted}
        if (before := had["config"]["epochs"]) < self.config.epochs:
            had["config"] = {**had["config"], "epochs": self.config.epochs}
            self._fewer_epochs = before
        require_same_run(path, had=had, wanted=wanted)
        kept = checkpoint["recogniser"] or {}
        self.trainee.load_state_dict(
            {f"{self._kept_name}{name}": value for name, value in kept.items()}
            | training["trainee"]
        )
        self.optimizer.restore(training["optimizer"])
        self.step = training["step"]
        self.history = training["history"]
        self.meter.restore(training["epoch_sums"])
        self.best = training["best"]
        self.begun_with = training["init"]
        # The cache may have grown since; the run goes on with the rows it began with.
        self.preflight = replace(
            self.preflight, units=training["units"], num_views=training["num_views"]
        )

    # -- training ----------------------------------------------------------------------------

    def train(self) -> TrainSummary:
        """Take every step that is left."""
        out = self.place.out
        trainee: nn.Module = self.trainee
        if self.processes.world_size > 1:
            trainee = DistributedDataParallel(trainee, gradient_as_bucket_view=True)
        if self.processes.is_first:
            out.mkdir(parents=True, exist_ok=True)
        self.commands.append(list(self.place.command))
        if self._fewer_epochs is not None:
            note = describe_longer_schedule(
                self.config, self._fewer_epochs, self._steps_per_epoch, self.step
            )
            self.journal.say(f"Note: {note}")
        if self.begun_with is not None and self.step == 0:
            # A run that is killed before its first checkpoint must not begin at random.
            self.save()
        self._write_record()
        said = "stopping after this step or batch ..." if self.processes.is_first else ""
        journal = self.journal.opened(self.step, len(self.history), self.config.to_values())
        with journal, collected(said) as self.stop:
            for epoch in range(len(self.history), self.config.epochs):
                # None is left if a signal came with an epoch's last step.
                self._take_steps(trainee, epoch)
                self._end_epoch()
        clock = self.clock.read()
        return TrainSummary(
            checkpoint=out / (LAST_NAME if self.best is None else BEST_NAME),
            num_steps=self.step,
            first_loss=self.history[0].get("loss/total", float("nan")),
            last_loss=self.history[-1].get("loss/total", float("nan")),
            samples_per_second=clock.samples_per_second * self.processes.world_size,
            data_wait_fraction=clock.wait_fraction,
            num_skipped=int(sum(entry["skipped_steps"] for entry in self.history)),
            best_accuracy=None if self.best is None else self.best["accuracy"],
            teacher_is_random=self._teacher is not None and self._teacher.is_random,
        )

    def _take_steps(self, trainee: nn.Module, epoch: int) -> None:
        """Take the steps of an epoch that are left."""
        # Here, not in each step, because it takes a millisecond. Validation leaves the recogniser,
        # which is a part, in eval mode.
        self.trainee.train()
        num_batches, num_parts = self.loader.batches_per_epoch, self.config.accumulate
        steps_per_epoch = self._steps_per_epoch
        num_steps = steps_per_epoch * self.config.epochs
        first_step = self.step - epoch * steps_per_epoch
        bar = progress_bar(
            total=steps_per_epoch,
            initial=first_step,
            desc=f"epoch {epoch + 1} of {self.config.epochs}",
            unit="step",
            is_shown=self.processes.is_first,
        )
        loaded = self.loader.epoch(epoch, first_step * num_parts)
        batches = self.clock.timed(self._checked(loaded))
        with bar, contextlib.closing(batches):
            for step in range(first_step, steps_per_epoch):
                parts = min(num_parts, num_batches - step * num_parts)
                self._take_step(trainee, batches, parts, num_steps)
                self._after_step(bar, is_last=step + 1 == steps_per_epoch)

    def _checked(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, once it is clear that memory will do for the first."""
        on_cpu = self.device.type == "cpu" and self.config.compile != "on"
        for batch in batches:
            if on_cpu and not self._is_checked:
                estimate = estimate_step(self.trainee, batch, self.config.precision)
                has_student = "student" in self.config.method.names()
                self.journal.say(
                    check_step(
                        estimate, self.config.batch_size, free_memory(), has_student=has_student
                    )
                )
            self._is_checked = True
            yield batch

    def _take_step(
        self, trainee: nn.Module, batches: Iterator[Batch], num_parts: int, num_steps: int
    ) -> None:
        """Take one optimizer step on the next `num_parts` batches."""
        self.meter.add(self.optimizer.take_step(trainee, batches, num_parts, self.step, num_steps))
        self.step += 1

    def _after_step(self, bar: tqdm[Any], *, is_last: bool) -> None:
        """Log, stop and save, each when it is due; every process decides alike."""
        bar.update(1)
        is_logged = is_last or self.step % _LOG_EVERY_STEPS == 0
        if is_logged:
            self._log(bar)
        # One process alone decides at every step. Several have to agree, which on GPUs waits for
        # the device: when they log.
        elif self.processes.world_size > 1:
            return
        if self.processes.any(bool(self.stop), self.device):
            self.save()
            self._end_by(self.stop[0] if self.stop else signal.SIGTERM)
        is_due = time.monotonic() - self._saved_at >= _SAVE_EVERY_S
        if not is_last and self.processes.any(is_due, self.device):
            self.save()

    def _end_by(self, signal_number: int) -> NoReturn:
        """End by a signal, when the run is saved."""
        last = self.place.out / LAST_NAME
        self.journal.say(
            f"{last} holds the run; go on with: clipocr train --resume {self.place.out}"
        )
        # torchrun ends every process as soon as one of them is gone.
        self.processes.wait()
        raise Interrupted(signal_number)

    def _log(self, bar: tqdm[Any]) -> None:
        self.meter.check(self.step)
        values = self.meter.latest()
        bar.set_postfix(loss=f"{values['total']:.3f}")
        norm = values.pop("grad_norm")
        now = self.clock.read()
        lap, self._logged = now.since(self._logged), now
        speed = {
            "train/samples_per_second": lap.samples_per_second * self.processes.world_size,
            "train/data_wait_fraction": lap.wait_fraction,
        }
        self.journal.log(
            self.step,
            {f"loss/{name}": value for name, value in values.items()}
            | {
                "train/grad_norm": norm,
                "train/learning_rate": self.optimizer.learning_rate,
                "train/skipped_steps": float(self.meter.num_skipped),
            }
            | (speed if lap.num_samples else {}),
        )

    def _end_epoch(self) -> None:
        if self.validation is not None:
            # First of all: whatever happens in validation, the epoch is not lost.
            self.save()
        means = self.meter.means()
        entry = {k if k == "grad_norm" else f"loss/{k}": v for k, v in means.items()}
        entry["skipped_steps"] = float(self.meter.num_skipped)
        examples: tuple[Example, ...] = ()
        if self.validation is not None:
            result, signal_number = self.validation.read(self.stop)
            if signal_number:
                self._end_by(signal_number)
            entry |= result.scores
            examples = result.examples
        self.history.append({"epoch": len(self.history) + 1.0, **entry})
        self.meter.begin_epoch()
        reached = self._reached()
        if "accuracy" in reached and (self.best is None or _rank(reached) >= _rank(self.best)):
            self.best = reached
            self._write_checkpoint(BEST_NAME, reached)
        self.save()
        self._write_record()
        now = self.clock.read()
        of_epoch, self._epoch_began = now.since(self._epoch_began), now
        self.journal.end_epoch(
            self.step,
            self.history[-1],
            learning_rate=self.optimizer.learning_rate,
            samples_per_second=of_epoch.samples_per_second * self.processes.world_size,
            data_wait_fraction=of_epoch.wait_fraction,
            examples=examples,
        )

    def _write_record(self) -> None:
        if not self.processes.is_first:
            return
        cache, spec = self.cache, self.cache.spec
        kept = self.trainee.recogniser or self.trainee
        record = {
            "config": self.config.to_values(),
            "place": self.place.to_values(),
            "cache": {
                "id": cache.manifest.cache_id,
                "teacher": spec.teacher.name,
                "teacher_is_random": spec.teacher.is_random,
                "tall": spec.view.tall,
                "sources": [source.name for source in spec.sources],
            },
            "versions": versions_with("torch", "numpy"),
            "device": str(self.device),
            "processes": self.processes.world_size,
            "commands": self.commands,
            "init": self.begun_with,
            "units": self.preflight.units,
            "num_views": self.preflight.num_views,
            "num_parameters": sum(p.numel() for p in kept.parameters()),
            "steps": self.step,
            "history": self.history,
            "best": self.best,
        }
        write_record(self.place.out, record)


def _rank(reached: Mapping[str, float]) -> tuple[float, float]:
    """Return what makes one epoch better than another; the later one of equals is."""
    return reached["accuracy"], reached["1-NED"]
