"""A method is one folder: these two live in this file, and no other file knows of them.

Copy this test to begin a method of your own. `toy` trains a recogniser from the pictures, one image
array and one text array. `toy-labels` has no pictures and leaves nothing that reads images.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from methods import install_methods
from samples import write_words
from torch import Tensor, nn

from clipocr.cli import main
from clipocr.shared.cache.reader import FeatureCache
from clipocr.shared.errors import UsageError
from clipocr.shared.options import option
from clipocr.train.data.batch import Batch
from clipocr.train.loop.checkpoint import load_checkpoint, load_recogniser
from clipocr.train.loop.log import Meter
from clipocr.train.methods import find_method, method_names
from clipocr.train.methods.base import Method, Needs, Shapes, TextNeeds
from clipocr.train.methods.trainee import Trainee
from clipocr.train.models.recogniser import Recogniser
from clipocr.train.models.tokenizer import LabelTokenizer


class Columns(Recogniser):
    """Reads all characters at once, from the mean brightness of columns of the picture."""

    def __init__(self, tokenizer: LabelTokenizer, width: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.hidden = nn.Linear(3 * 128, width)
        self.dropout = nn.Dropout(0.2)
        num_logits = (tokenizer.max_label_length + 1) * tokenizer.num_classes
        self.head = nn.Linear(width, num_logits)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: (B, 3, 32, 128) -> (B, D) and (B, L, C + 1)."""
        hidden_BD = self.dropout(self.hidden(images.mean(2).flatten(1)).relu())
        return hidden_BD, self.head(hidden_BD).unflatten(1, (-1, self.tokenizer.num_classes))

    @torch.no_grad()
    def decode(self, images: Tensor, max_length: int | None = None) -> Tensor:
        """See `Recogniser.decode`."""
        return self(images)[1][:, : None if max_length is None else max_length + 1]


class ToyTrainee(Trainee):
    """The recogniser, and two heads that guess what the teacher says."""

    recogniser: Columns

    def __init__(self, method: Toy, tokenizer: LabelTokenizer, shapes: Shapes) -> None:
        super().__init__()
        self.recogniser = method.recogniser(tokenizer)
        (_, image_width), (text_width,) = shapes.images["block2"], shapes.text["eot"]
        self.to_image = nn.Linear(method.toy_width, image_width)
        self.to_text = nn.Linear(method.toy_width, text_width)
        self.term_names = ("characters", "image", "text")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the three terms."""
        assert batch.images.keys() == {"block2"}
        assert batch.text.keys() == {"eot"}
        hidden_BD, logits_BLC = self.recogniser(batch.normalized_views())
        targets_BL = batch.token_ids[:, 1:]
        logits_BLC = logits_BLC[:, : targets_BL.shape[1]].float()
        ignored = targets_BL.where(targets_BL < logits_BLC.shape[-1], -100)
        return {
            "characters": F.cross_entropy(logits_BLC.flatten(0, 1), ignored.flatten()),
            "image": F.mse_loss(self.to_image(hidden_BD), batch.images["block2"].float().mean(1)),
            "text": F.mse_loss(self.to_text(hidden_BD).float(), batch.text["eot"].float()),
        }


@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """Columns of the picture, and what the teacher says of it."""

    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "a linear recogniser of columns"

    toy_width: int = option(32, help="Hidden width of the toy.", minimum=1)

    def needs(self) -> Needs:
        """Return pictures, one image array and one text array."""
        return Needs(images=("block2",), text=TextNeeds(tokenizer="char", arrays=("eot",)))

    def recogniser(self, tokenizer: LabelTokenizer) -> Columns:
        """Return the untrained recogniser."""
        return Columns(tokenizer, self.toy_width)

    def trainee(self, tokenizer: LabelTokenizer, shapes: Shapes) -> ToyTrainee:
        """Return it with its heads."""
        return ToyTrainee(self, tokenizer, shapes)


class LabelTrainee(Trainee):
    """Guesses the text feature of a label from how often each character is in it."""

    def __init__(self, tokenizer: LabelTokenizer, shapes: Shapes) -> None:
        super().__init__()
        self.recogniser = None
        self.tokenizer = tokenizer
        self.embedding = nn.EmbeddingBag(tokenizer.num_tokens, shapes.text["eot"][0], mode="mean")
        self.term_names = ("text",)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the one term."""
        assert batch.views is None
        assert not batch.images
        guessed = self.embedding(batch.token_ids)
        return {"text": F.mse_loss(guessed.float(), batch.text["eot"].float())}


@dataclass(frozen=True, kw_only=True)
class ToyLabels(Method):
    """Pre-trains on text features alone."""

    name: ClassVar[str] = "toy-labels"
    summary: ClassVar[str] = "text features of labels; no picture"

    def needs(self) -> Needs:
        """Return labels, and one text array."""
        return Needs(
            pixels=False, text=TextNeeds(tokenizer="char", arrays=("eot",)), epoch="labels"
        )

    def recogniser(self, tokenizer: LabelTokenizer) -> None:
        """Return nothing: it only pre-trains."""

    def trainee(self, tokenizer: LabelTokenizer, shapes: Shapes) -> LabelTrainee:
        """Return what is pre-trained."""
        return LabelTrainee(tokenizer, shapes)


@pytest.fixture(autouse=True)
def _installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install this file as another package would be: by the entry points of its distribution."""
    site = tmp_path_factory.mktemp("site")
    (site / "toy_methods.py").write_text("raise ImportError('this one is broken')\n")
    points = {
        "toy": f"{__name__}:Toy",
        "toy-labels": f"{__name__}:ToyLabels",
        "broken": "toy_methods:Broken",
        "misnamed": f"{__name__}:Toy",
    }
    install_methods(site, points, monkeypatch)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Toy.__module__])


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def train(cache: Path, out: Path, *args: object) -> Result:
    of_run = ("--batch-size", 16, "--epochs", 3, "--learning-rate", 0.01, "--device", "cpu")
    return invoke("train", "--cache", cache, "--out", out, *of_run, *args)


@pytest.fixture
def run(cache_path: Path, data_root: Path, tmp_path: Path) -> Path:
    result = train(cache_path, tmp_path / "run", "--method", "toy", "--val-data", data_root)
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


def test_it_is_found_and_the_command_shows_its_options() -> None:
    assert method_names() == (
        "clip-ocr", "broken", "clip4str", "dptr", "misnamed", "toy", "toy-labels",
    )  # fmt: skip
    shown = invoke("train", "--method", "toy", "--help").output
    assert "Method toy:\n  --toy-width N" in shown
    assert "--image-taps" not in shown
    usual = invoke("train", "--help").output
    assert "Student:\n  --student" in usual
    assert "--toy-width" not in usual
    for help_text in (shown, usual):
        methods = help_text.partition("Methods:\n")[2]
        assert re.search(r"^  toy +a linear recogniser of columns$", methods, flags=re.M)
        assert re.search(r"^  broken +\(.*cannot be", methods, flags=re.M)


@pytest.mark.parametrize(
    ("args", "exit_code", "said"),
    [
        (
            ("--method", "toi"),
            2,
            "method is 'toi', expected one of clip-ocr, broken, clip4str, dptr, misnamed",
        ),
        (("--method=toy", "--image-taps", "1,2,3"), 2, "--image-taps"),
        (("--method", "toy", "--toy-width", 0), 2, "0 is not in the range x>=1"),
        (("--toy-width", 3), 2, "--toy-width"),
        (("--method", "broken"), 2, "toy_methods:Broken) cannot be imported: this one is broken"),
        (("--method", "misnamed"), 2, "expected a subclass of clipocr.train.methods.base.Method"),
    ],
)
def test_what_is_wrong_is_said(
    cache_path: Path, tmp_path: Path, args: tuple[object, ...], exit_code: int, said: str
) -> None:
    result = train(cache_path, tmp_path / "run", *args)
    assert result.exit_code == exit_code
    assert said in " ".join(result.output.split())


def test_an_option_that_every_run_has_is_none_of_a_method(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Greedy(Toy):
        epochs: int = option(1, help="Its own.")

    monkeypatch.setattr(sys.modules[Toy.__module__], "Toy", Greedy)
    result = invoke("train", "--method", "toy", "--help")
    assert result.exit_code == 2
    assert "has an option epochs, which every run has" in " ".join(result.output.split())


def test_it_trains_and_validates(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    assert (record["config"]["method"], record["config"]["toy_width"]) == ("toy", 32)
    losses = [entry["loss/total"] for entry in record["history"]]
    assert losses[-1] < losses[0]
    first = record["history"][0]
    terms = ("characters", "image", "text")
    assert first["loss/total"] == pytest.approx(sum(first[f"loss/{term}"] for term in terms))
    assert (run / "best.pt").exists()
    assert type(load_recogniser(run, torch.device("cpu"))).__name__ == "Columns"


def test_it_reads_no_array_that_it_does_not_need(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    real = FeatureCache.image_reader
    monkeypatch.setattr(
        FeatureCache, "image_reader", lambda *args: (read.add(args[2]), real(*args))[1]
    )
    assert train(cache_path, tmp_path / "a", "--method", "toy").exit_code == 0
    assert read == {"pixels", "block2"}
    read.clear()
    assert train(cache_path, tmp_path / "b", "--method", "toy-labels").exit_code == 0
    assert read == set()


def stop_after(steps: int) -> Callable[[Meter, Tensor], None]:
    """Return a `Meter.add` that asks the run to stop after some steps."""
    real, taken = Meter.add, iter(range(1, 1000))

    def add(meter: Meter, values: Tensor) -> None:
        real(meter, values)
        if next(taken) == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    return add


def tensors(run: Path) -> Iterator[tuple[str, Tensor]]:
    checkpoint = load_checkpoint(run / "last.pt")
    yield from (checkpoint["recogniser"] or {}).items()
    yield from checkpoint["training"]["trainee"].items()
    for i, moments in checkpoint["training"]["optimizer"]["adamw"]["state"].items():
        yield from ((f"{i}.{name}", value) for name, value in moments.items())


@pytest.mark.parametrize("method", ["toy", "toy-labels"])
def test_it_resumes_to_the_bit(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(cache_path, whole, "--method", method).exit_code == 0
    with monkeypatch.context() as patched:
        patched.setattr(Meter, "add", stop_after(3))
        assert train(cache_path, parts, "--method", method).exit_code == 128 + signal.SIGTERM
    assert load_checkpoint(parts / "last.pt")["training"]["step"] == 3
    result = invoke("train", "--resume", parts)
    assert result.exit_code == 0, result.output
    left, right = dict(tensors(whole)), dict(tensors(parts))
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_another_setting_is_not_the_same_run(run: Path) -> None:
    result = invoke("train", "--resume", run, "--toy-width", 8)
    assert result.exit_code == 1
    assert "toy_width was 32, now 8" in result.output


def test_it_begins_with_the_recogniser_of_another_run(
    run: Path, cache_path: Path, tmp_path: Path
) -> None:
    result = train(cache_path, tmp_path / "tuned", "--method", "toy", "--init", run)
    assert result.exit_code == 0, result.output
    assert f"Beginning with {run / 'best.pt'}." in result.stderr


def test_it_is_evaluated_and_exported(run: Path, data_root: Path) -> None:
    result = invoke("eval", run, "--data", data_root, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert json.loads((run / "eval.json").read_text())["sets"]["ST"]["num_samples"] == 13
    result = invoke("export", run)
    assert result.exit_code == 0, result.output
    assert (run / "model.onnx").exists()


def test_what_its_stages_change_is_said(
    run: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode_stages(self: Columns, images: Tensor) -> dict[str, Tensor]:
        logits = self.decode(images)
        return {"blank": torch.zeros_like(logits), "seen": logits}  # 0 is EOS.

    args = ("--data", data_root, "--device", "cpu")
    assert "| stage" not in invoke("eval", run, *args).stdout
    monkeypatch.setattr(Columns, "decode_stages", decode_stages)
    result = invoke("eval", run, *args)
    assert result.exit_code == 0, result.output
    assert "\n\nStages\n\n| stage" in result.stdout
    record = json.loads((run / "eval.json").read_text())
    seen = record["stages"]["seen"]
    num_correct = sum(of_set["num_correct"] for of_set in record["sets"].values())
    assert (seen["num_corrected"], seen["num_spoiled"]) == (num_correct, 0)
    both = invoke("eval", run, run / "last.pt", *args)
    assert "\n\nStages of run/last.pt\n\n| stage" in both.stdout


def test_a_table_of_runs_takes_it(cache_path: Path, tmp_path: Path) -> None:
    table = tmp_path / "toys.toml"
    table.write_text(
        'title = "Toys"\ncolumns = ["width"]\nseeds = [0]\n'
        'settings = {method = "toy", epochs = 1, batch_size = 36}\n'
        'variants = [{name = "w8", cells = ["8"], settings = {toy_width = 8}},\n'
        '            {name = "w16", cells = ["16"], settings = {toy_width = 16}}]\n'
    )
    write_words(tmp_path / "test" / "SVT", ["alpha", "tango"])
    result = invoke("ablate", table, "--cache", cache_path, "--out", tmp_path / "out",
                    "--data", tmp_path / "test", "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "2 of 2 runs finished" in result.output


def test_without_a_recogniser_there_is_nothing_to_evaluate(
    cache_path: Path, data_root: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = train(cache_path, run, "--method", "toy-labels")
    assert result.exit_code == 0, result.output
    history = json.loads((run / "run.json").read_text())["history"]
    assert history[-1]["loss/text"] < history[0]["loss/text"]
    for args in (("eval", run, "--data", data_root), ("export", run)):
        result = invoke(*args)
        assert result.exit_code == 1
        assert "holds nothing that reads images: its method, toy-labels, only pre-trains" in (
            result.output
        )
    for more, option_name in (
        (("--val-data", data_root), "--val-data"),
        (("--init", run), "--init"),
    ):
        result = train(cache_path, tmp_path / "other", "--method", "toy-labels", *more)
        assert result.exit_code == 1
        assert f"toy-labels has nothing that reads images; leave {option_name} out" in (
            result.output
        )
    result = train(cache_path, tmp_path / "other", "--method", "toy-labels", "--compile", "on")
    assert "toy-labels has nothing to compile" in result.output


def test_a_method_that_is_not_there_any_more_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipocr.train.methods.ENTRY_POINTS", "clipocr.nothing")
    result = invoke("eval", run, "--data", run)
    assert result.exit_code == 1
    assert (
        "method is 'toy', expected one of clip-ocr, clip4str, dptr. Install the package"
        in result.output
    )
    with pytest.raises(UsageError, match="expected one of clip-ocr"):
        find_method("toy")
