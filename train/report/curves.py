"""The curves of a run as a picture, drawn from its TensorBoard log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = (
    ("loss/total", "total loss", "log"),
    ("loss/", "terms", "log"),
    ("val/", "validation", "linear"),
    ("train/learning_rate", "learning rate", "linear"),
    ("train/grad_norm", "gradient norm", "log"),
    ("train/samples_per_second", "samples/s", "linear"),
)
"""Tag or prefix of tags, title, scale of the axis."""

Curve = list[tuple[int, float]]
"""(Step, value) pairs."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Curves that share their axes."""

    title: str
    scale: str
    """``log`` or ``linear``; a value of 0 or less makes it linear."""
    curves: Mapping[str, Curve]
    """By name, without what all in the panel begin with."""


def read_panels(run: Path) -> list[Panel]:
    """Return what a run logged, without what a resumed run did over; nothing if it has no log."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run), size_guidance={"scalars": 2000})
    log.Reload()
    curves = {tag: [(e.step, e.value) for e in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
    panels = []
    for prefix, title, scale in _PANELS:
        named = {
            tag.partition("/")[2]: curves[tag]
            for tag in sorted(curves)
            if tag.startswith(prefix) and (tag != "loss/total" or prefix == tag)
        }
        if named:
            panels.append(Panel(title=title, scale=scale, curves=named))
    return panels


def draw_panel(axis: Axes, panel: Panel) -> None:
    """Draw the curves of a panel."""
    for name, curve in panel.curves.items():
        steps, values = zip(*curve, strict=True)
        marker = "o" if len(steps) < 20 else None
        axis.plot(steps, values, linewidth=1.2, marker=marker, markersize=3, label=name)
    axis.set_title(panel.title)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    values_of_all = (value for curve in panel.curves.values() for _, value in curve)
    if panel.scale == "log" and all(value > 0 for value in values_of_all):
        axis.set_yscale("log")
    if len(panel.curves) > 1:
        axis.legend(fontsize=7, ncols=2)


def draw_curves(run: Path) -> Path:
    """Draw what a run logged into its ``curves.png``; return the path.

    Raises:
        ImportError: matplotlib cannot be imported; training itself does without.
    """
    from matplotlib.figure import Figure

    panels = read_panels(run)
    num_rows = -(-len(panels) // 3)
    figure = Figure(figsize=(12, 3.2 * num_rows), layout="constrained")
    for position, panel in enumerate(panels, start=1):
        draw_panel(figure.add_subplot(num_rows, 3, position), panel)
    figure.suptitle(str(run.resolve().name))
    figure.savefig(run / "curves.png", dpi=110)
    return run / "curves.png"
