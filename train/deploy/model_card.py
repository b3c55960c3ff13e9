"""The card of a model on the Hugging Face hub, from what a run recorded and an evaluation measured.

Whatever comes from elsewhere (names of test sets, of teachers, of charsets) is shown as text: it
can neither format the page nor leave its place in the header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ...shared.distribution import install_command
from ...shared.terminal import markdown_table

_TAGS = ("ocr", "scene-text-recognition", "clip")
_FIGURES = ("num_samples", "accuracy", "1-NED")
_ACTIVE = re.compile(r"([\\`*_{}\[\]<>()#|~$&!@])")
"""What Markdown or HTML would take for more than a character."""


def model_card(
    *,
    repo: str,
    description: Mapping[str, Any],
    record: Mapping[str, Any] | None,
    figures: Mapping[str, Any] | None,
    license_id: str | None,
    needs_clip: bool = False,
) -> str:
    """Return a model card as Markdown with the hub's YAML header.

    Args:
        repo: ``owner/name``.
        description: Of `description.describe`.
        record: ``run.json``, if there is one.
        figures: ``eval.json``, if there is one.
        license_id: Of the hub, such as ``apache-2.0``; None states none.
        needs_clip: Whether it reads with its teacher, whose weights are not in the model file.
    """
    method = description["method"]
    results = {} if figures is None else results_of(figures)
    measured = [
        EvalResult(
            task_type="image-to-text",
            task_name="Scene text recognition",
            dataset_type=re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") or "test",
            dataset_name=name,
            metric_type="accuracy",
            metric_name="Word accuracy (%)",
            metric_value=round(of_set["accuracy"], 2),
        )
        for name, of_set in results.items()
    ]
    header = ModelCardData(
        license=license_id,
        library_name="clipocr",
        pipeline_tag="image-to-text",
        tags=[*_TAGS, method],
        metrics=["accuracy", "cer"] if measured else None,
        model_name=repo.rpartition("/")[2] if measured else None,
        eval_results=measured or None,
    )
    parts = [
        f"---\n{header.to_yaml()}\n---",
        f"# {plain(repo)}",
        "A scene text recogniser: it reads pictures of single cropped words, not pages. Trained "
        f"with clipocr from a cache of CLIP's features, by the method {plain(method)}.",
    ]
    if description["teacher_is_random"]:
        parts.append(
            "> **Warning:** the teacher of this model had random weights. Such a model tries out "
            "the pipeline; it has learned nothing from CLIP."
        )
    parts += ["## What it is", _facts(description, record), "## Accuracy"]
    if figures is None:
        parts.append("Not measured.")
    else:
        rows = [
            [plain(name), f"{r['num_samples']:,.0f}", f"{r['accuracy']:.2f}", f"{r['1-NED']:.2f}"]
            for name, r in results.items()
        ]
        parts += [
            markdown_table(rows, ["set", "samples", "accuracy", "1-NED"]),
            "Word accuracy and 1 - NED in percent, under test charset "
            f"{plain(figures.get('charset'))}: ground truth and prediction both pass through it.",
        ]
    parts += ["## Use", _USE.format(repo=repo, install=install_command())]
    if needs_clip:
        parts.append(
            f"It reads with its teacher, {plain(description['teacher'])}, whose weights are not in "
            "this repository. They are downloaded, or passed by `clipocr read model word.png "
            '--clip MODEL/PATH` and `clipocr.load("model", clip="MODEL/PATH")`; others are refused.'
        )
    return "\n\n".join(parts) + "\n"


def plain(value: object) -> str:
    """Return a value as one line of Markdown that shows just its characters."""
    return _ACTIVE.sub(r"\\\1", " ".join(str(value).split()))


def _facts(description: Mapping[str, Any], record: Mapping[str, Any] | None) -> str:
    charset, settings = description["charset"], description["settings"]
    seen = description["preprocessing"]
    facts = {
        "teacher": description["teacher"] or "none",
        "method": description["method"],
        "settings": ", ".join(f"{name} {value}" for name, value in settings.items()),
        "charset": f"{charset['name']}: {len(charset['characters'])} characters",
        "longest label": f"{description['max_label_length']} characters",
        "input": f"RGB, stretched to {seen['height_px']}x{seen['width_px']} by Pillow's bicubic "
        "filter, mean and std 0.5",
        "clipocr": description["clipocr_version"],
        "digest of the checkpoint": f"sha256 {description['checkpoint_sha256']}",
    }
    if record is not None:
        config, sources = record["config"], record["cache"].get("sources", [])
        facts |= {
            "parameters": f"{record['num_parameters']:,}",
            "training data": ", ".join(sources) or "not recorded",
            "training": f"{record['steps']:,} steps of {config['batch_size']}, "
            f"seed {config['seed']}, {config['precision']}",
        }
    return markdown_table([[name, plain(value)] for name, value in facts.items()], ["", ""])


def results_of(figures: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return what the card shows of each test set of an ``eval.json``."""
    return {
        name: {figure: float(of_set[figure]) for figure in _FIGURES}
        for name, of_set in figures["sets"].items()
    }


_USE = """```console
$ {install}
$ clipocr pull {repo} model
$ clipocr read model word.png
```

```python
import clipocr

reader = clipocr.load("model")
print(reader.read("word.png").text)
```

The weights are safetensors; their header says how they are used."""
