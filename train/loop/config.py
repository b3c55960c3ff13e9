"""What a run is asked for: what decides its weights, and where it reads and writes.

Both classes are the options of ``clipocr train``, and the first one's values are what ablation
tables set, and what ``run.json`` and checkpoints hold. Nothing here imports torch, because
``clipocr train --help`` reads it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from ...shared.charset import CHARSET_HELP, Charset, LabelRules
from ...shared.errors import UsageError
from ...shared.options import CACHE, FOLDER, Options, device_option, option, require_known
from ..methods import DEFAULT_METHOD, find_method, method_names
from ..methods.base import Method

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "small-gpu": {"accumulate": 8, "precision": "fp16"},
}
"""Values under one name. ``paper``: the defaults. ``small-gpu``: the same batches of 320 in parts
of 40, in half precision, for 4 to 6 GB; losses that relate rows then relate those of a part."""


_LABELS, _ROWS, _MACHINE = "Labels", "Part of the cache", "Memory and precision"


@dataclass(frozen=True, kw_only=True)
class Presets(Options):
    """The two options that decide what others there are, and what their defaults are."""

    group: ClassVar[str] = "Method"

    method: str = option(
        DEFAULT_METHOD,
        help="Training method, from the list at the end. --method NAME --help shows its options.",
        complete=method_names,
    )
    recipe: str = option(
        "paper",
        choices=tuple(RECIPES),
        help="Defaults of other options: the paper's (paper), or the same batches in parts and in "
        "fp16, for a GPU with 4 to 6 GB (small-gpu).",
    )


def _parse_charset(value: Any) -> Charset:
    """Read 36, 62, 94 or a file's name, or what `asdict` made of a charset."""
    if isinstance(value, Mapping):
        return Charset(**value)
    return Charset.load(str(value))  # TOML reads 36 as a number.


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """What decides the weights of a run."""

    group: ClassVar[str] = "Training steps"

    method: Method = field(default_factory=lambda: find_method(DEFAULT_METHOD)())
    charset: Charset = option(
        Charset.load("36"),
        group=_LABELS,
        help=f"Characters that can be read: {CHARSET_HELP}.",
        parse=_parse_charset,
        unparse=asdict,
        default_text="36",
    )
    max_label_length: int = option(
        LabelRules.max_label_length,
        group=_LABELS,
        help="Longest label to learn, in characters.",
        minimum=1,
    )
    epochs: int = option(5, help="Passes over the cache.", minimum=1)
    batch_size: int = option(320, help="Samples per optimizer step, over all processes.", minimum=1)
    accumulate: int = option(
        1,
        group=_MACHINE,
        help="Parts to compute each batch in, to save memory. Losses that compare samples see one "
        "part at a time.",
        minimum=1,
    )
    learning_rate: float = option(
        1.2374e-3,
        alias="lr",
        help="Peak learning rate of the OneCycle schedule. The default is the paper's, for its "
        "batch size.",
        above=0,
    )
    """The official 1.4e-3 is scaled by sqrt(2) * 160 / 256."""
    warmup_fraction: float = option(
        0.075, help="Share of the steps before the learning rate peaks.", above=0, below=1
    )
    weight_decay: float = option(0.0, help="Weight decay of AdamW, on matrices only.", minimum=0)
    """On the weights of linear and convolution layers."""
    grad_clip_norm: float = option(
        20.0, help="Norm above which the gradient is scaled down.", above=0
    )
    max_skipped_steps: int = option(
        25,
        help="Steps in a row that may be skipped, because their gradient is not finite, before the "
        "run stops.",
        minimum=0,
    )
    fraction: float = option(
        1.0, group=_ROWS, help="Share of the cache to train on.", above=0, maximum=1
    )
    """Of its units."""
    views: int | None = option(
        None,
        group=_ROWS,
        help="Views to train on, one per epoch, in turn.",
        default_text="all the cache has",
        minimum=1,
    )
    """K."""
    precision: str = option(
        "auto",
        group=_MACHINE,
        choices=("auto", "fp32", "bf16", "fp16"),
        help="Number format to compute in. auto is mixed precision on a GPU, else fp32.",
    )
    """``auto`` becomes one of the others when a run begins, and stays it when the run goes on."""
    compile: str = option(
        "auto",
        group=_MACHINE,
        choices=("auto", "on", "off"),
        help="Whether to use torch.compile: faster steps after a minute or two at the start. auto "
        "is on for a GPU.",
    )
    seed: int = option(0, help="Seed of weights, order of rows and dropout.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"batch_size {self.batch_size} cannot be cut into {self.accumulate} equal parts"
            )

    @classmethod
    def known_names(cls, method: Any) -> tuple[str, ...]:
        """Return the names of all values that `from_values` takes for a method."""
        return (*Presets.names(), *cls.names(), *method_of_runs(method).names())

    @classmethod
    def from_values(cls, values: Mapping[str, Any], **others: Any) -> Self:
        """Return the config that flat values mean, those of the method they name among them.

        ``recipe`` gives values that all others override, and the method has some of its own. What
        nothing names has its default.
        """
        presets = Presets.from_values(Presets.own(values))
        method = method_of_runs(presets.method)
        require_known(values, cls.known_names(presets.method))
        values = {**method.recipe(), **RECIPES[presets.recipe], **values}
        made = method.from_values(method.own(values))
        return super().from_values(cls.own(values), method=made, **others)

    def to_values(self) -> dict[str, Any]:
        """Return all values by name, flat: `from_values` inverted."""
        return {"method": self.method.name, **super().to_values()}


@dataclass(frozen=True, kw_only=True)
class TrainPlace(Options):
    """Where a run reads and writes; none of it changes the weights."""

    group: ClassVar[str] = "Input and output"

    cache: str | Path = option(
        help="Feature cache: a folder, or an address such as s3://bucket/mjst.cache.", type=CACHE
    )
    out: Path = option(help="Folder to write to.")
    cache_dir: Path | None = option(
        None,
        help="Folder for copies of what is read from an address.",
        default_text="~/.cache/clipocr",
    )
    cache_bytes: int = option(
        20_000_000_000,
        help="Bytes that these copies may take; the least recently used go first. 0 keeps none.",
        minimum=0,
    )
    val_data: tuple[Path, ...] = option(
        (),
        help="Folder with validation LMDBs, at any depth, for choosing best.pt. May be given more "
        "than once.",
        metavar="ROOT",
        type=FOLDER,
    )
    device: str = device_option()
    wandb: str | None = option(
        None,
        metavar="PROJECT",
        help="Weights & Biases project to log to as well.",
        default_text="none",
    )
    command: tuple[str, ...] = ()
    """The command line, for run.json."""

    def to_values(self) -> dict[str, Any]:
        """Return where a run goes on reading, wherever the command is typed; not ``out``."""
        values = super().to_values()
        del values["out"]
        absolute = str(self.cache) if "://" in str(self.cache) else os.path.abspath(self.cache)
        return values | {
            "cache": absolute,
            "val_data": [os.path.abspath(root) for root in self.val_data],
            "cache_dir": None if self.cache_dir is None else os.path.abspath(self.cache_dir),
        }


def method_of_runs(name: Any) -> type[Method]:
    """Return the method of that name, whose options stand beside those that every run has.

    Raises:
        UsageError: there is none, or one of its options is called like one of a run.
    """
    method = find_method(name)
    of_runs = {name for kind in (Presets, TrainConfig, TrainPlace) for name in kind.names()}
    if twice := of_runs & set(method.names()):
        raise UsageError(
            f"method {method.name} has an option {', '.join(sorted(twice))}, which every run has; "
            "expected another name for it"
        )
    return method
