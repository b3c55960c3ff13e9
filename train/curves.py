"""The curves of a run as a picture, drawn from its TensorBoard log."""

from __future__ import annotations

from pathlib import Path

CURVES_NAME = "curves.png"

_PANELS = (
    ("loss/total", "total loss", "log"),
    ("loss/", "terms", "log"),
    ("val/", "validation", "linear"),
    ("train/learning_rate", "learning rate", "linear"),
    ("train/grad_norm", "gradient norm", "log"),
    ("train/samples_per_second", "samples/s", "linear"),
)
"""Tag or prefix of tags, title, scale of the axis."""


def draw_curves(run: Path) -> Path:
    """Draw what a run logged into its `CURVES_NAME`.

    Raises:
        ImportError: matplotlib cannot be imported; training itself does without.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = _read_curves(run)
    panels = [panel for panel in _PANELS if any(tag.startswith(panel[0]) for tag in curves)]
    figure = Figure(figsize=(12, 3.2 * -(-len(panels) // 3)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(-(-len(panels) // 3), 3, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, (prefix, title, scale) in zip(axes, panels, strict=False):
        tags = [tag for tag in sorted(curves) if tag.startswith(prefix)]
        if prefix == "loss/":
            tags.remove("loss/total")
        for tag in tags:
            steps, values = zip(*curves[tag], strict=True)
            marker = "o" if len(steps) < 20 else None
            axis.plot(steps, values, linewidth=1.2, marker=marker, markersize=3, label=tag)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if scale == "log" and all(v > 0 for tag in tags for _, v in curves[tag]):
            axis.set_yscale("log")
        if len(tags) > 1:
            axis.legend([tag.partition("/")[2] for tag in tags], fontsize=7, ncols=2)
    figure.suptitle(str(run.resolve().name))
    figure.savefig(run / CURVES_NAME, dpi=110)
    return run / CURVES_NAME


def _read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) pairs by tag, without what a resumed run did over."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run), size_guidance={"scalars": 2000})
    log.Reload()
    return {tag: [(e.step, e.value) for e in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
