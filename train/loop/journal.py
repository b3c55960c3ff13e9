"""What a run writes for people while it trains; the first process does it for all.

stderr, log.txt       a line an epoch, and what is to be known
metrics.csv           the same figures, a row an epoch
curves.png            drawn again after each epoch
events.out.tfevents   TensorBoard's log: every tenth step, each epoch, words that were read
"""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ...shared.atomic import replacing
from ...shared.distribution import install_command
from ...shared.errors import UsageError
from ...shared.terminal import duration
from .curves import draw_curves

if TYPE_CHECKING:
    from .validation import Example

METRICS_NAME = "metrics.csv"
LOG_NAME = "log.txt"
_DRAWS_AFTER_S = 20.0
"""Curves take a second or two to draw, so not after every epoch of a few seconds."""
_GRID_COLUMNS = 6
_EVENTS_PREFIX = "events.out.tfevents"


class Journal:
    """The journal of a run: nothing but `say` before it is open, and nothing where it is silent."""

    def __init__(
        self, out: Path, num_epochs: int, *, is_silent: bool, wandb: str | None = None
    ) -> None:
        self._out, self._num_epochs, self._is_silent = out, num_epochs, is_silent
        self._wandb_project = wandb
        self._lines: list[str] = []
        """Lines that are not in the file yet, because the folder may not be a run's."""
        self._is_open = False
        self._board: Any = None
        self._rows: list[Mapping[str, Any]] = []
        self._epoch_seconds: list[float] = []
        self._epoch_began_at = self._drawn_at = time.monotonic()

    def say(self, text: str) -> None:
        """Say a line on stderr, above a progress bar, and in the file."""
        if self._is_silent or not text:
            return
        tqdm.write(text, file=sys.stderr)
        self._lines.append(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n")
        self._write_lines()

    @contextmanager
    def opened(
        self, step: int, num_epochs_done: int, settings: Mapping[str, Any]
    ) -> Iterator[None]:
        """Write to the run's folder while the block runs.

        Args:
            step: Steps that the run has taken; what was logged of later ones is forgotten.
            num_epochs_done: The same in epochs.
            settings: Of the run, for TensorBoard.
        """
        if self._is_silent:
            yield
            return
        # Imported here: it takes a second that other commands need not spend.
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._is_open = True
        self._write_lines()
        self._rows = _read_rows(self._out / METRICS_NAME)[:num_epochs_done]
        self._epoch_began_at = self._drawn_at = time.monotonic()
        _number_event_files(self._out)
        with (
            self._mirrored(settings),
            SummaryWriter(str(self._out), purge_step=step + 1) as self._board,
        ):
            plain = {
                name: value if isinstance(value, bool | int | float) else str(value)
                for name, value in settings.items()
            }
            # By its own method they would be another run, in a folder of its own.
            found = hparams(plain, {"val/accuracy": 0.0, "loss/total": 0.0})  # type: ignore[no-untyped-call]
            for summary in found:
                self._board.file_writer.add_summary(summary, step)
            yield

    @contextmanager
    def _mirrored(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Let Weights & Biases follow what goes to TensorBoard, if there is a project of its."""
        if self._wandb_project is None:
            yield
            return
        try:
            import wandb
        except ImportError as e:
            raise UsageError(f"--wandb needs the package wandb; {install_command('wandb')}") from e
        with wandb.init(
            project=self._wandb_project,
            name=self._out.resolve().name,
            dir=self._out,
            config=dict(settings),
            sync_tensorboard=True,
        ):
            yield

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log values of a step to TensorBoard."""
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def end_epoch(
        self,
        step: int,
        entry: Mapping[str, float],
        *,
        learning_rate: float,
        samples_per_second: float,
        data_wait_fraction: float,
        examples: Sequence[Example],
    ) -> None:
        """Write what an epoch came to, wherever it is written.

        Args:
            step: The epoch's last.
            entry: Figures by name, as the run's history has them.
            learning_rate: Of that step.
            samples_per_second: Of the epoch's steps, all processes together.
            data_wait_fraction: Share of their time spent waiting for the loader.
            examples: Words that the validation read.
        """
        if self._board is None:
            return
        now = time.monotonic()
        self._epoch_seconds.append(now - self._epoch_began_at)
        self._epoch_began_at = now
        num_left = self._num_epochs - int(entry["epoch"])
        seconds_left = num_left * sum(self._epoch_seconds) / len(self._epoch_seconds)
        self.say(
            f"epoch {entry['epoch']:.0f} of {self._num_epochs}: {_describe(entry)}; learning rate "
            f"{learning_rate:.2e}; {samples_per_second:,.0f} samples/s; "
            + (f"{duration(seconds_left)} left" if num_left else "done")
        )
        row = {
            "epoch": int(entry["epoch"]),
            "step": step,
            **{name: value for name, value in entry.items() if name != "epoch"},
            "learning_rate": learning_rate,
            "samples_per_second": samples_per_second,
            "data_wait_fraction": data_wait_fraction,
            "seconds": self._epoch_seconds[-1],
        }
        self._rows = [*self._rows, row]
        _write_rows(self._out / METRICS_NAME, self._rows)
        self.log(step, {name: v for name, v in entry.items() if name.startswith("val/")})
        if examples:
            self._board.add_figure("words", _draw_examples(examples), step)
        if now - self._drawn_at >= _DRAWS_AFTER_S:
            self._board.flush()
            draw_curves(self._out)
            self._drawn_at = time.monotonic()

    def _write_lines(self) -> None:
        if self._is_open:
            with (self._out / LOG_NAME).open("a", encoding="utf-8") as file:
                file.writelines(self._lines)
            self._lines.clear()


def _describe(entry: Mapping[str, float]) -> str:
    """Return an epoch's losses and validation in words."""
    terms = [
        f"{name.removeprefix('loss/')} {value:.3f}"
        for name, value in entry.items()
        if name.startswith("loss/") and name != "loss/total"
    ]
    text = f"loss {entry['loss/total']:.3f}" if "loss/total" in entry else "no finite loss"
    if len(terms) > 1:
        text += f" ({', '.join(terms)})"
    if entry["skipped_steps"]:
        text += f", {entry['skipped_steps']:.0f} steps skipped"
    if "val/accuracy" in entry:
        text += f"; read {entry['val/accuracy']:.1f} %, 1-NED {entry['val/1-NED']:.1f}"
        of_sets = [
            f"{name.removeprefix('val/accuracy/')} {value:.1f} %, "
            f"{entry[name.replace('accuracy', '1-NED', 1)]:.1f}"
            for name, value in entry.items()
            if name.startswith("val/accuracy/")
        ]
        text += f" ({'; '.join(of_sets)})" if of_sets else ""
    return text


def _number_event_files(run: Path) -> None:
    """Rename the event files of earlier processes, so that a new one is read after them.

    TensorBoard reads files in the order of their names. These hold the second and the process they
    began in, and neither need grow: a run goes on within a second, or where the clock is behind. A
    file read too late discards what was logged after it began.
    """
    for index, path in enumerate(sorted(run.glob(f"{_EVENTS_PREFIX}*"))):
        path.rename(run / f"{_EVENTS_PREFIX}.{index:010d}")


def _read_rows(path: Path) -> list[Mapping[str, Any]]:
    """Return the rows of earlier processes of the run."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    # An epoch of which no step was finite has no losses.
    columns = dict.fromkeys(name for row in reversed(rows) for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")


def _draw_examples(examples: Sequence[Example]) -> Any:
    """Return a figure of pictures, each under its label and what was read in it."""
    from matplotlib.figure import Figure

    num_rows = -(-len(examples) // _GRID_COLUMNS)
    figure = Figure(figsize=(2.0 * _GRID_COLUMNS, 1.1 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, _GRID_COLUMNS, squeeze=False)
    for axis in grid.flat:
        axis.axis("off")
    for axis, example in zip(grid.flat, examples, strict=False):
        axis.imshow(example.picture)
        is_right = example.text == example.label
        title = example.label if is_right else f"{example.label}\n{example.text or '(nothing)'}"
        axis.set_title(
            title, fontsize=8, color="green" if is_right else "firebrick", parse_math=False
        )
    return figure
