"""The curves of a run as a picture, drawn from its TensorBoard log."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

CURVES_NAME = "curves.png"

_PANELS = (
    ("loss/total", "total loss", "log"),
    ("loss/", "terms", "log"),
    ("val/accuracy", "validation accuracy, %", "linear"),
    ("val/1-NED", "validation 1-NED, %", "linear"),
    ("train/learning_rate", "learning rate", "linear"),
    ("train/grad_norm", "gradient norm", "log"),
    ("train/samples_per_second", "samples/s", "linear"),
)
"""Tag or prefix of tags, title, scale of the axis; a value of 0 or less makes it linear."""


def read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) pairs by tag, without what a resumed run did over."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run), size_guidance={"scalars": 2000})
    log.Reload()
    return {tag: [(e.step, e.value) for e in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def panels_of(curves: Collection[str]) -> list[tuple[str, str, list[str]]]:
    """Return title, scale and tags of each panel, of the tags that a run logged."""
    panels = []
    for prefix, title, scale in _PANELS:
        tags = [t for t in curves if t.startswith(prefix) and (t != "loss/total" or prefix == t)]
        # A single term is the total loss.
        if tags and (prefix != "loss/" or len(tags) > 1):
            panels.append((title, scale, sorted(tags)))
    return panels


def draw_curves(run: Path) -> Path:
    """Draw what a run logged into its `CURVES_NAME`; return the path.

    Raises:
        ImportError: matplotlib cannot be imported; training itself does without.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    curves = read_curves(run)
    panels = panels_of(curves)
    num_columns = 2 if len(panels) == 4 else 3
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(14, 3.2 * num_rows), layout="constrained")
    for position, (title, scale, tags) in enumerate(panels, start=1):
        axis = figure.add_subplot(num_rows, num_columns, position)
        for tag in tags:
            steps, values = zip(*curves[tag], strict=True)
            marker = "o" if len(steps) < 20 else None
            name = tag.removeprefix("loss/").removeprefix("val/")
            axis.plot(steps, values, linewidth=1.2, marker=marker, markersize=3, label=name)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if scale == "log" and all(value > 0 for tag in tags for _, value in curves[tag]):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
        if len(tags) > 1:
            axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    figure.suptitle(str(run.resolve().name))
    figure.savefig(run / CURVES_NAME, dpi=110)
    return run / CURVES_NAME
