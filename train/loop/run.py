"""`clipocr train`: one run, from a cache to a recogniser.

    cache ──► loader ──► method's trainee ──► loss ──► AdamW, OneCycle ──► checkpoints
                                                            └─► validation, TensorBoard, run.json

A method is a module whose forward returns named loss terms; the loop knows no more of it. Under
torchrun every process trains on its part of each batch, and the first one writes.
Recipe: CLIP-OCR's (``reference``: ``strhub/models/base.py`` 88-97, ``configs/main.yaml``).
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ...shared.cache.names import MANIFEST_NAME
from ...shared.cache.storage import hash_file
from ...shared.device import allow_fast_products, autocast, choose_precision
from ...shared.errors import CacheError, CheckpointError, UsageError
from ...shared.hashing import mix
from ..data.batch import Batch
from ..data.loader import CacheLoader
from ..models.recogniser import Recogniser
from ..models.tokenizer import LabelTokenizer
from .checkpoint import (
    BEST_NAME,
    LAST_NAME,
    find_checkpoint,
    load_checkpoint,
    load_recogniser,
    save_checkpoint,
)
from .config import TrainConfig, TrainPlace
from .log import Clock, Logbook, Meter
from .optimizer import one_cycle, parameter_groups
from .preflight import Preflight, check_cache, open_cache
from .processes import Processes, StopRequestedError, stop_signals
from .record import RUN_NAME, read_record, require_same_run, write_record

if TYPE_CHECKING:
    from ..evaluation.test_sets import TestSet

_LOG_EVERY_STEPS = 10
_RECOGNISER = "recogniser."
"""What the names of the recogniser's weights begin with among those of the trainee."""


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
    """Whether the cache's teacher was never trained."""


def train(
    config: TrainConfig, place: TrainPlace, *, resume: bool = False, init: Path | None = None
) -> TrainSummary:
    """Train from a cache, or go on where an interrupted run stopped.

    Args:
        config: What decides the weights.
        place: Where the run reads and writes.
        resume: Whether to go on with the run that is there.
        init: Run folder or checkpoint whose recogniser this one begins with; None: random weights.

    Raises:
        CacheError: the cache is missing, damaged, or not the one this run needs.
        UsageError: the run folder is in use by another run, or an option is not possible here.
        TrainingError: too many steps in a row were not finite.
        StopRequestedError: a signal ended the run; last.pt holds it.
    """
    if resume and init is not None:
        raise UsageError("--init begins a run and --resume goes on with one; leave one of them out")
    processes = Processes.of_torchrun()
    device = processes.choose_device(place.device)
    precision, reason = choose_precision(config.precision, device)
    config = replace(config, precision=precision)
    preflight = check_cache(config, open_cache(place))
    if processes.is_first:
        tqdm.write(f"Training on {device} in {precision} ({reason}).", file=sys.stderr)
    with processes.joined(device):
        run = _Run(config, place, preflight, processes, device, resume=resume, init=init)
        try:
            return run.train()
        except CacheError:
            # Reading failed between two steps, so the state is whole. Saving is work of all
            # processes together, and the others do not know of it.
            if run.step and processes.world_size == 1:
                run.save()
            raise


class _Run:
    """The state of one run, and the steps that change it."""

    def __init__(
        self,
        config: TrainConfig,
        place: TrainPlace,
        preflight: Preflight,
        processes: Processes,
        device: torch.device,
        *,
        resume: bool,
        init: Path | None,
    ) -> None:
        """Make the run: at its first step, or where the one in the folder stopped."""
        self.config, self.place, self.device = config, place, device
        self.cache, self.processes = preflight.cache, processes
        self.tokenizer = LabelTokenizer(config.charset, config.max_label_length)
        torch.manual_seed(config.seed)
        self.trainee = config.method.trainee(self.tokenizer, preflight.shapes).to(device)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.trainee, config.weight_decay),
            lr=config.learning_rate,
            fused=True,
        )
        # Whatever the precision, it is the scaler that skips steps that are not finite: on a GPU
        # it needs no look at the gradient from here. Only fp16 needs its scale.
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=2.0**16 if config.precision == "fp16" else 1.0
        )
        names = (*self.trainee.term_names, "total", "grad_norm")
        self.meter = Meter(names, device, processes, config.max_skipped_steps)
        self.test_sets = self._open_validation()
        self.step = 0
        self.units, self.num_views = preflight.units, preflight.num_views
        self.history: list[dict[str, float]] = []
        self.best_accuracy: float | None = None
        self.begun_with: dict[str, str] | None = None
        """Which checkpoint the run began with; None: random weights."""
        self.commands: list[list[str]] = []

        has_begun = _has_begun(place.out, resume=resume)
        if has_begun and (place.out / RUN_NAME).exists():
            self.commands = read_record(place.out)["commands"]
        if has_begun and (place.out / LAST_NAME).exists():
            self._restore(place.out / LAST_NAME)
        elif init is not None:
            self._begin_with(init)
        elif self.trainee.recogniser is not None:
            self.trainee.recogniser.load_pretrained()
        # Every process must have looked for a run here before the first one begins to write.
        processes.wait()
        allow_fast_products(config.precision)
        if config.compile:
            self._compile()
        self.loader = CacheLoader(
            self.cache,
            preflight.read_labels(config),
            preflight.needs,
            max_label_length=config.max_label_length,
            batch_size=config.batch_size // config.accumulate,
            seed=config.seed,
            device=device,
            units=self.units,
            num_views=self.num_views,
            rank=processes.rank,
            world_size=processes.world_size,
        )

    # -- beginning, saving, resuming ---------------------------------------------------------

    def _begin_with(self, init: Path) -> None:
        """Take up the recogniser of another run, as far as it fits."""
        path = find_checkpoint(init)
        recogniser = self._require_recogniser("--init")
        new = recogniser.take_from(load_recogniser(path, torch.device("cpu")))
        self.begun_with = {"checkpoint": str(path), "sha256": hash_file(path)}
        if self.processes.is_first:
            but = f"; anew: {new}" if new else ""
            tqdm.write(f"Beginning with {path}{but}.", file=sys.stderr)

    def _require_recogniser(self, option: str) -> Recogniser:
        """Return the recogniser that an option is for."""
        if self.trainee.recogniser is None:
            raise UsageError(
                f"method {self.config.method.name} has nothing that reads images; leave {option} "
                "out"
            )
        return self.trainee.recogniser

    def _open_validation(self) -> list[TestSet]:
        """Open the validation sets before the first step, not after hours of training."""
        if not self.place.val_data:
            return []
        self._require_recogniser("--val-data")
        # Imported here: only validation opens LMDBs and pictures; a cache needs neither.
        from ..evaluation.test_sets import open_test_sets

        return open_test_sets(
            self.place.val_data, self.config.charset, self.config.max_label_length
        )

    def _compile(self) -> None:
        parts = self.trainee.compilable()
        if not parts:
            raise UsageError(
                f"method {self.config.method.name} has nothing to compile; leave --compile out"
            )
        for part in parts:
            part.compile()

    def save(self) -> None:
        """Write last.pt: the recogniser and all that resuming needs. For all processes together.

        Random numbers are functions of the step, and the order of rows is one of the epoch, so
        neither has a state.
        """
        sums = self.meter.state()
        if not self.processes.is_first:
            return
        self._write_checkpoint(
            LAST_NAME,
            {
                "config": self.config.to_values(),
                "cache_id": self.cache.manifest.cache_id,
                "units": list(self.units),
                "num_views": self.num_views,
                "validation": self._validation(),
                "step": self.step,
                # Beside the recogniser, whose weights the checkpoint holds by itself.
                "trainee": {
                    name: value
                    for name, value in self.trainee.state_dict().items()
                    if not name.startswith(_RECOGNISER)
                },
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "history": self.history,
                "epoch_sums": sums,
                "best_accuracy": self.best_accuracy,
                "init": self.begun_with,
            },
        )

    def _write_checkpoint(self, name: str, training: Mapping[str, Any] | None = None) -> None:
        save_checkpoint(
            self.place.out / name,
            self.config.method,
            self.tokenizer,
            self.trainee.recogniser,
            training,
            teacher=self.cache.spec.teacher.name,
        )

    def _validation(self) -> dict[str, int]:
        """Return how many samples of each validation set count.

        Scores in best.pt are comparable only on the same validation samples.
        """
        return {test_set.name: len(test_set.pictures) for test_set in self.test_sets}

    def _restore(self, path: Path) -> None:
        checkpoint = load_checkpoint(path)
        training = checkpoint["training"]
        require_same_run(
            path,
            had={
                "config": training["config"],
                "cache": training["cache_id"],
                "validation samples": training["validation"],
            },
            wanted={
                "config": self.config.to_values(),
                "cache": self.cache.manifest.cache_id,
                "validation samples": self._validation(),
            },
        )
        of_recogniser = checkpoint["recogniser"] or {}
        self.trainee.load_state_dict(
            {f"{_RECOGNISER}{name}": value for name, value in of_recogniser.items()}
            | training["trainee"]
        )
        self.optimizer.load_state_dict(training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])
        # The cache may have grown since; this run goes on with the rows it began with.
        self.units, self.num_views = training["units"], training["num_views"]
        self.step = training["step"]
        self.history = training["history"]
        self.meter.restore(training["epoch_sums"])
        self.best_accuracy = training["best_accuracy"]
        self.begun_with = training["init"]

    # -- training ----------------------------------------------------------------------------

    def train(self) -> TrainSummary:
        """Take every step that is left."""
        config, loader = self.config, self.loader
        steps_per_epoch = -(-loader.batches_per_epoch // config.accumulate)
        num_steps = steps_per_epoch * config.epochs
        trainee = self._shared_by_processes()
        clock = Clock()
        if self.processes.is_first:
            self.place.out.mkdir(parents=True, exist_ok=True)
        self.commands.append(list(self.place.command))
        if self.begun_with is not None and self.step == 0:
            # A run that is killed before its first checkpoint must not begin at random.
            self.save()
        self._write_record()
        with self._logbook() as logbook, stop_signals() as stop:
            while True:
                # Also after a resume: the signal may have come with an epoch's last step.
                if len(self.history) < self.step // steps_per_epoch:
                    self._end_epoch(logbook)
                if self.step >= num_steps:
                    break
                epoch, first_step = divmod(self.step, steps_per_epoch)
                bar = tqdm(
                    total=steps_per_epoch,
                    initial=first_step,
                    desc=f"epoch {epoch + 1}/{config.epochs}",
                    unit="step",
                    disable=not self.processes.is_first,
                )
                first_batch = first_step * config.accumulate
                batches = clock.waiting(loader.epoch(epoch, first_batch))
                with bar, contextlib.closing(batches):
                    for step in range(first_step, steps_per_epoch):
                        num_left = loader.batches_per_epoch - step * config.accumulate
                        parts = min(config.accumulate, num_left)
                        self._take_step(trainee, batches, parts, num_steps)
                        is_last = step + 1 == steps_per_epoch
                        self._after_step(logbook, bar, clock, stop, is_last)
                clock.pause()
        return self._summary(clock)

    def _shared_by_processes(self) -> nn.Module:
        if self.processes.world_size == 1:
            return self.trainee
        return DistributedDataParallel(self.trainee, gradient_as_bucket_view=True)

    def _logbook(self) -> Logbook:
        return Logbook(self.place.out if self.processes.is_first else None, self.step)

    def _take_step(
        self, trainee: nn.Module, batches: Iterator[Batch], num_parts: int, num_steps: int
    ) -> None:
        """Take one optimizer step on the next `num_parts` batches."""
        config = self.config
        self.trainee.train()
        learning_rate = one_cycle(
            self.step, num_steps, config.learning_rate, config.warmup_fraction
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        values: torch.Tensor | None = None
        for part in range(num_parts):
            batch = next(batches)
            # Dropout is a function of seed, step, part and process: nothing of it to be saved.
            key = mix(config.seed, 2, self.step, part, self.processes.rank)
            torch.manual_seed(int(key[0]) >> 1)
            waits = part + 1 < num_parts and isinstance(trainee, DistributedDataParallel)
            with trainee.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                with autocast(self.device, config.precision):
                    terms = trainee(batch)
                stacked = torch.stack([terms[name] for name in self.trainee.term_names])
                loss = stacked.sum() / num_parts
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            stacked = stacked.detach() / num_parts
            values = stacked if values is None else values + stacked
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.trainee.parameters(), config.grad_clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update(None if config.precision == "fp16" else 1.0)
        self.step += 1
        assert values is not None
        self.meter.add(torch.cat([values, values.sum().view(1), norm.view(1)]))

    def _after_step(
        self, logbook: Logbook, bar: tqdm[Any], clock: Clock, stop: list[int], is_last: bool
    ) -> None:
        """Log, save and stop, each when it is due; every process decides alike."""
        bar.update(1)
        is_logged = is_last or self.step % _LOG_EVERY_STEPS == 0
        if is_logged:
            self._log(logbook, bar, clock)
        # One process alone stops at once. Several have to agree: on GPUs, where that waits for the
        # device, when they log.
        asked = bool(stop)
        if is_logged or self.processes.world_size == 1 or self.device.type == "cpu":
            asked = self.processes.any(asked, self.device)
            if asked:
                self.save()
                # torchrun ends every process as soon as one of them is gone.
                self.processes.wait()
                raise StopRequestedError(stop[0] if stop else signal.SIGTERM)
        if not is_last and self.step % self.place.checkpoint_every_steps == 0:
            self.save()

    def _log(self, logbook: Logbook, bar: tqdm[Any], clock: Clock) -> None:
        self.meter.check(self.step, self._advice())
        values = self.meter.latest()
        bar.set_postfix(loss=f"{values['total']:.3f}")
        speed = {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "samples_per_second": clock.samples_per_second * self.processes.world_size,
            "data_wait_fraction": clock.wait_fraction,
            "skipped_steps": float(self.meter.num_skipped),
        }
        logbook.write_step(self.step, values, speed)

    def _advice(self) -> str:
        last = self.place.out / LAST_NAME
        kept = f"{last} holds an earlier state" if last.exists() else "nothing was saved yet"
        return (
            "Begin again in another --out with a lower --learning-rate or with --precision fp32; "
            f"{kept}"
        )

    def _end_epoch(self, logbook: Logbook) -> None:
        if self.test_sets:
            # First of all: whatever happens in validation, the epoch is not lost.
            self.save()
        means = self.meter.means()
        entry = {k if k == "grad_norm" else f"loss/{k}": v for k, v in means.items()}
        entry["skipped_steps"] = float(self.meter.num_skipped)
        if self.test_sets:
            entry |= self._validate()
            logbook.write(self.step, {name: entry[name] for name in ("val/accuracy", "val/1-NED")})
        self.history.append({"epoch": len(self.history) + 1.0, **entry})
        self.meter.begin_epoch()
        self.save()
        self._write_record()

    def _validate(self) -> dict[str, float]:
        """Read the validation sets, each process its share of every one."""
        from ..evaluation.evaluate import evaluate_sets
        from ..evaluation.metrics import WordCounts
        from ..evaluation.options import EvalOptions
        from ..reading.readers import Reader

        recogniser = self._require_recogniser("--val-data").eval()
        rank, world_size = self.processes.rank, self.processes.world_size
        own = [test_set.share(rank, world_size) for test_set in self.test_sets]
        reader = Reader(
            recogniser, batch_size=EvalOptions.batch_size, precision=self.config.precision
        )
        counts = evaluate_sets(reader, own).counts
        figures = sum(self.processes.gather(counts), WordCounts()).figures
        if self.best_accuracy is None or figures.accuracy > self.best_accuracy:
            self.best_accuracy = figures.accuracy
            if self.processes.is_first:
                self._write_checkpoint(BEST_NAME)
        return {"val/accuracy": figures.accuracy, "val/1-NED": figures.one_minus_ned}

    # -- the record --------------------------------------------------------------------------

    def _summary(self, clock: Clock) -> TrainSummary:
        return TrainSummary(
            checkpoint=self.place.out
            / (BEST_NAME if self.best_accuracy is not None else LAST_NAME),
            num_steps=self.step,
            first_loss=self.history[0].get("loss/total", float("nan")),
            last_loss=self.history[-1].get("loss/total", float("nan")),
            samples_per_second=clock.samples_per_second * self.processes.world_size,
            data_wait_fraction=clock.wait_fraction,
            num_skipped=int(sum(entry["skipped_steps"] for entry in self.history)),
            best_accuracy=self.best_accuracy,
            teacher_is_random=self.cache.spec.teacher.is_random,
        )

    def _write_record(self) -> None:
        if not self.processes.is_first:
            return
        kept = self.trainee.recogniser or self.trainee
        write_record(
            self.place,
            self.config,
            self.cache,
            device=self.device,
            num_processes=self.processes.world_size,
            commands=self.commands,
            init=self.begun_with,
            units=list(self.units),
            num_views=self.num_views,
            num_parameters=sum(p.numel() for p in kept.parameters()),
            steps=self.step,
            history=self.history,
            best_accuracy=self.best_accuracy,
        )


def _has_begun(out: Path, *, resume: bool) -> bool:
    """Return whether a folder holds the run to go on with.

    Raises:
        CheckpointError: it holds none, and one is to be resumed.
        UsageError: it holds one, and none is to be resumed, or it is a cache.
    """
    has_begun = (out / LAST_NAME).exists() or (out / RUN_NAME).exists()
    if (out / MANIFEST_NAME).exists():
        raise UsageError(f"{out} is a feature cache; choose another --out for the run")
    if has_begun and not resume:
        raise UsageError(
            f"{out} holds a run already; go on with it by --resume, or choose another --out"
        )
    if resume and not has_begun:
        raise CheckpointError(f"{out} holds no run to resume; drop --resume to begin one")
    return has_begun
