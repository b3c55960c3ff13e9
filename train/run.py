"""`clipocr train`: one run, from a cache to a student.

    cache ──► loader ──► student ──► method's losses ──► AdamW, OneCycle ──► checkpoints
                                                             └─► validation, TensorBoard, run.json

The loop knows no method's name: a method is heads with a forward that returns named loss terms.
Recipe: CLIP-OCR's (``reference``: ``strhub/models/base.py`` 88-97, ``configs/main.yaml``).
"""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ..shared.cache import FeatureCache
from ..shared.device import autocast
from ..shared.errors import CacheError, CheckpointError, TrainingError, UsageError
from ..shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize
from ..shared.schema import MANIFEST_NAME
from .batch import Batch
from .checkpoint import BEST_NAME, LAST_NAME, load_checkpoint, save_checkpoint
from .clock import Clock
from .config import TrainConfig, TrainPlace
from .loader import CacheLoader, choose_num_views, choose_units
from .optimizer import one_cycle, parameter_groups
from .stopping import StopRequestedError, stop_signals
from .student import Student
from .tokenizer import LabelTokenizer

if TYPE_CHECKING:
    from .evaluate import TestSet

RUN_NAME = "run.json"
"""Everything needed to repeat a run, and what came of it."""

_LOG_EVERY_STEPS = 10


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
    """Over the training steps of this process, validation and start-up left out."""
    data_wait_fraction: float
    """Share of that time spent waiting for the loader."""
    best_accuracy: float | None
    """Validation word accuracy in percent."""
    teacher_is_random: bool
    """Whether the cache's teacher was never trained."""


def train(config: TrainConfig, place: TrainPlace, *, resume: bool = False) -> TrainSummary:
    """Train a student from a cache, or go on where an interrupted run stopped.

    Raises:
        CacheError: the cache is missing, damaged, or not the one this run needs.
        UsageError: the run folder is in use by another run.
        TrainingError: the loss is no longer finite.
        StopRequestedError: a signal ended the run; last.pt holds it.
    """
    cache = FeatureCache.open(
        place.cache, cache_dir=place.cache_dir, max_cache_bytes=place.max_cache_bytes
    )
    max_label_length = config.student.max_label_length
    text_spec = cache.require_text(config.charset, max_label_length, config.method.tokens)
    cache.require_taps("image", config.method.image_taps)
    cache.require_taps("text", config.method.text_taps)
    run = _Run(config, place, cache)
    run.take_state(resume=resume)
    loader = CacheLoader(
        cache,
        cache.text_table(text_spec.name),
        image_taps=config.method.image_taps,
        text_taps=config.method.text_taps,
        max_label_length=max_label_length,
        batch_size=config.batch_size,
        seed=config.seed,
        device=place.device,
        units=run.units,
        num_views=run.num_views,
    )
    try:
        return run.train(loader)
    except CacheError:
        # Reading failed between two steps, so the state is whole.
        if run.step:
            run.save()
        raise


class _Run:
    """The state of one run, and the steps that change it."""

    def __init__(self, config: TrainConfig, place: TrainPlace, cache: FeatureCache) -> None:
        self.config, self.place, self.cache = config, place, cache
        torch.manual_seed(config.seed)
        tokenizer = LabelTokenizer(config.charset)
        self.student = Student(config.student, tokenizer).to(place.device)
        self.method = config.method.build(config.student, cache.spec.teacher).to(place.device)
        self.parameters = [*self.student.parameters(), *self.method.parameters()]
        self.optimizer = torch.optim.AdamW(
            parameter_groups([self.student, self.method], config.weight_decay),
            lr=config.learning_rate,
            fused=place.device.type == "cuda",
        )
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=config.precision == "fp16")
        self.units = choose_units(cache, config.fraction)
        self.num_views = choose_num_views(cache, self.units, config.num_views)
        self.test_sets = self._open_validation()
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best_accuracy: float | None = None
        self._epoch_sums: dict[str, float | torch.Tensor] = {}
        self._commands: list[list[str]] = []

    # -- beginning, saving, resuming ---------------------------------------------------------

    def take_state(self, *, resume: bool) -> None:
        """Take up the state in the run folder when resuming; else make sure that there is none."""
        out = self.place.out
        last, record = out / LAST_NAME, out / RUN_NAME
        if (out / MANIFEST_NAME).exists():
            raise UsageError(f"{out} is a feature cache; choose another --out for the run")
        if not resume:
            if last.exists() or record.exists():
                raise UsageError(
                    f"{out} holds a run already; go on with it by --resume, or choose another --out"
                )
            return
        if not last.exists() and not record.exists():
            raise CheckpointError(f"{out} holds no run to resume; drop --resume to begin one")
        if record.exists():
            self._commands = json.loads(record.read_text(encoding="utf-8"))["commands"]
        if last.exists():
            self._restore(last)

    def _open_validation(self) -> list[TestSet]:
        """Open the validation sets before the first step, not after hours of training."""
        if not self.place.val_data:
            return []
        # Imported here: only validation opens LMDBs and pictures; a cache needs neither.
        from .evaluate import open_test_sets

        longest = self.config.student.max_label_length
        return open_test_sets(self.place.val_data, self.place.val_charset, longest)

    def save(self) -> None:
        """Write last.pt: the student and all that resuming needs.

        Raises:
            TrainingError: a loss was not finite, and so the weights are not; last.pt stays.
        """
        self._require_finite({name: float(v) for name, v in self._epoch_sums.items()})
        save_checkpoint(
            self.place.out / LAST_NAME,
            self.student,
            {
                "config": self.config.to_json(),
                "cache_id": self.cache.manifest.cache_id,
                "units": list(self.units),
                "num_views": self.num_views,
                "step": self.step,
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": torch.get_rng_state(),
                "random_cuda": _cuda_random_state(self.place.device),
                "history": self.history,
                "epoch_sums": {name: float(value) for name, value in self._epoch_sums.items()},
                "best_accuracy": self.best_accuracy,
            },
        )

    def _restore(self, path: Path) -> None:
        checkpoint = load_checkpoint(path)
        training = checkpoint["training"]
        wanted, had = self.config.to_json(), training["config"]
        differ = [
            f"{key} was {had.get(key)!r}, now {wanted[key]!r}"
            for key in wanted
            if wanted[key] != had.get(key)
        ]
        if training["cache_id"] != self.cache.manifest.cache_id:
            differ.append(f"the cache was {training['cache_id']}")
        if differ:
            raise UsageError(
                f"{path} was begun differently: {'; '.join(differ)}. Resume with the same "
                "options, or begin another run with another --out"
            )
        self.student.load_state_dict(checkpoint["student"]["weights"])
        self.method.load_state_dict(training["method"])
        self.optimizer.load_state_dict(training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])
        torch.set_rng_state(training["random"])
        if training["random_cuda"] is not None and self.place.device.type == "cuda":
            torch.cuda.set_rng_state(training["random_cuda"], self.place.device)
        # The cache may have grown since; this run goes on with the rows it began with.
        self.units, self.num_views = training["units"], training["num_views"]
        self.step = training["step"]
        self.history = training["history"]
        self._epoch_sums = training["epoch_sums"]
        self.best_accuracy = training["best_accuracy"]

    # -- training ----------------------------------------------------------------------------

    def train(self, loader: CacheLoader) -> TrainSummary:
        """Take every step that is left."""
        # Imported here: TensorBoard takes a second that other commands need not spend.
        from torch.utils.tensorboard import SummaryWriter

        steps_per_epoch = loader.steps_per_epoch
        num_steps = steps_per_epoch * self.config.epochs
        clock = Clock()
        self.place.out.mkdir(parents=True, exist_ok=True)
        self._commands.append(list(self.place.command))
        self._write_run_json()
        with (
            SummaryWriter(
                str(self.place.out), purge_step=self.step + 1 if self.step else None
            ) as board,
            stop_signals() as stop,
        ):
            while True:
                # Also after a resume: the signal may have come with an epoch's last step.
                if len(self.history) < self.step // steps_per_epoch:
                    self._end_epoch(board, steps_per_epoch)
                if self.step >= num_steps:
                    break
                epoch, first_step = divmod(self.step, steps_per_epoch)
                bar = tqdm(
                    total=steps_per_epoch,
                    initial=first_step,
                    desc=f"epoch {epoch + 1}/{self.config.epochs}",
                    unit="step",
                )
                with bar:
                    for batch in clock.waiting(loader.epoch(epoch, first_step)):
                        terms = self._take_step(batch, num_steps)
                        clock.num_samples += len(batch.labels)
                        self._log(board, bar, terms, clock)
                        if stop:
                            self.save()
                            raise StopRequestedError(stop[0])
                        if self.step % self.place.checkpoint_every_steps == 0:
                            self.save()
                clock.pause()
        return self._summary(clock)

    def _take_step(self, batch: Batch, num_steps: int) -> dict[str, torch.Tensor]:
        """Take one optimizer step; return the loss terms, and what is logged beside them."""
        config, device = self.config, self.place.device
        self.student.train()
        learning_rate = one_cycle(
            self.step, num_steps, config.learning_rate, config.warmup_fraction
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        token_ids = self.student.tokenizer.encode(batch.labels).to(device)
        images = normalize(batch.views, STUDENT_MEAN, STUDENT_STD)
        with autocast(device, config.precision):
            output = self.student(images, token_ids)
            terms: dict[str, torch.Tensor] = self.method(output, token_ids, batch)
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.grad_clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        terms = {name: term.detach() for name, term in terms.items()}
        return {**terms, "total": loss.detach(), "grad_norm": norm}

    def _log(
        self, board: Any, bar: tqdm[Any], terms: Mapping[str, torch.Tensor], clock: Clock
    ) -> None:
        # On a GPU every look at a value waits for the device, so the sums stay there.
        for name, term in terms.items():
            if name != "grad_norm":
                self._epoch_sums[name] = self._epoch_sums.get(name, 0.0) + term.double()
        bar.update(1)
        if self.step % _LOG_EVERY_STEPS and bar.n < (bar.total or 0):
            return
        values = {name: float(term) for name, term in terms.items()}
        # Under fp16 a gradient may overflow; the scaler then skips the step.
        self._require_finite(
            {k: v for k, v in values.items() if k != "grad_norm" or not self.scaler.is_enabled()}
        )
        bar.set_postfix(loss=f"{values['total']:.3f}")
        for name, value in values.items():
            folder = "loss" if name != "grad_norm" else "train"
            board.add_scalar(f"{folder}/{name}", value, self.step)
        board.add_scalar("train/learning_rate", self.optimizer.param_groups[0]["lr"], self.step)
        board.add_scalar("train/samples_per_second", clock.samples_per_second, self.step)
        board.add_scalar("train/data_wait_fraction", clock.wait_fraction, self.step)

    def _require_finite(self, values: Mapping[str, float]) -> None:
        not_finite = [name for name, value in values.items() if not math.isfinite(value)]
        if not_finite:
            last = self.place.out / LAST_NAME
            kept = f"{last} holds an earlier state" if last.exists() else "nothing was saved yet"
            raise TrainingError(
                f"step {self.step}: {', '.join(not_finite)} is no longer finite. Lower "
                f"--learning-rate or pass --precision fp32; {kept}"
            )

    def _end_epoch(self, board: Any, steps_per_epoch: int) -> None:
        # First of all: whatever happens in validation, the epoch is not lost.
        self.save()
        entry = {f"loss/{k}": float(v) / steps_per_epoch for k, v in self._epoch_sums.items()}
        if self.test_sets:
            entry |= self._validate()
            for name in ("val/accuracy", "val/1-NED"):
                board.add_scalar(name, entry[name], self.step)
        self.history.append({"epoch": len(self.history) + 1.0, **entry})
        self._epoch_sums = {}
        self.save()
        self._write_run_json()

    def _validate(self) -> dict[str, float]:
        from .evaluate import evaluate, total

        self.student.eval()
        counts = total(evaluate(self.student, self.test_sets, precision=self.config.precision))
        if self.best_accuracy is None or counts.accuracy > self.best_accuracy:
            self.best_accuracy = counts.accuracy
            save_checkpoint(self.place.out / BEST_NAME, self.student)
        return {"val/accuracy": counts.accuracy, "val/1-NED": counts.one_minus_ned}

    # -- the record --------------------------------------------------------------------------

    def _summary(self, clock: Clock) -> TrainSummary:
        return TrainSummary(
            checkpoint=self.place.out
            / (BEST_NAME if self.best_accuracy is not None else LAST_NAME),
            num_steps=self.step,
            first_loss=self.history[0]["loss/total"],
            last_loss=self.history[-1]["loss/total"],
            samples_per_second=clock.samples_per_second,
            data_wait_fraction=clock.wait_fraction,
            best_accuracy=self.best_accuracy,
            teacher_is_random=self.cache.spec.teacher.is_random,
        )

    def _write_run_json(self) -> None:
        spec = self.cache.spec
        record = {
            "commands": self._commands,
            "config": self.config.to_json(),
            "cache": {
                "path": str(self.place.cache),
                "id": self.cache.manifest.cache_id,
                "teacher": spec.teacher.name,
                "teacher_is_random": spec.teacher.is_random,
                "units": list(self.units),
                "num_views": self.num_views,
                "sources": [source.name for source in spec.sources],
            },
            "validation": [str(root) for root in self.place.val_data],
            "versions": {
                package: importlib.metadata.version(package)
                for package in ("clipocr", "torch", "timm", "numpy")
            },
            "device": str(self.place.device),
            "student_parameters": sum(p.numel() for p in self.student.parameters()),
            "steps": self.step,
            "history": self.history,
            "best_accuracy": self.best_accuracy,
        }
        partial = self.place.out / f".{RUN_NAME}.partial"
        partial.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(self.place.out / RUN_NAME)


def _cuda_random_state(device: torch.device) -> torch.Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None
