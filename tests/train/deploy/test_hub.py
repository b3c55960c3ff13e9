"""Pushing and pulling with the hub's own client, against a hub that the test serves itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from commands import invoke
from hub import Hub
from huggingface_hub import ModelCard
from safetensors import safe_open
from samples import draw_word, write_words
from small_student import SMALL_STUDENT

import clipocr
from clipocr.shared.charset import Charset
from clipocr.train.deploy.model_card import model_card, plain
from clipocr.train.loop.checkpoint import load_recogniser, save_checkpoint
from clipocr.train.methods.clip_ocr.settings import ClipOcr
from clipocr.train.models.tokenizer import LabelTokenizer

REPO = "someone/word-reader"

# The hub's client of its own HTTP library, when it uploads by LFS.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CONFIG = SMALL_STUDENT
RECORD = {
    "config": {
        "batch_size": 16,
        "seed": 3,
        "precision": "fp32",
        "encoder_weights": "/home/me/secret/weights.pth",
    },
    "cache": {
        "id": "abc",
        "teacher": "ViT-B-16//home/me/secret/clip.pt",
        "teacher_is_random": False,
        "sources": ["MJ/train", "a|b"],
    },
    "place": {"cache": "/home/me/secret/words.cache", "val_data": ["/home/me/secret/val"]},
    "init": {"checkpoint": "/home/me/secret/other.pt", "sha256": "0"},
    "commands": [["clipocr", "train", "/home/me/secret"]],
    "history": [],
    "steps": 1500,
    "num_parameters": 1234567,
}
FIGURES = {
    "checkpoint": "/home/me/secret/run/best.pt",
    "charset": "36",
    "sets": {"IIIT5k": {"num_samples": 3000, "accuracy": 93.456, "1-NED": 97.1}},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # The client reads the environment when it is imported, which may have been long ago.
    constants = huggingface_hub.constants
    with Hub.serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        address = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
        yield hub


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    torch.manual_seed(0)
    save(run, teacher=RECORD["cache"]["teacher"])
    (run / "run.json").write_text(json.dumps(RECORD))
    (run / "eval.json").write_text(json.dumps(FIGURES))
    return run


def save(run: Path, teacher: str) -> None:
    method, tokenizer = ClipOcr(student=CONFIG), LabelTokenizer(Charset.load("36"), 25)
    student = method.recogniser(tokenizer)
    save_checkpoint(run / "best.pt", method, tokenizer, student, teacher=teacher)


def test_a_student_goes_up_and_comes_down(hub: Hub, run_path: Path, tmp_path: Path) -> None:
    pushed = invoke("push", run_path, REPO, "--license", "apache-2.0")
    assert pushed.exit_code == 0, pushed.stderr
    assert pushed.stdout == f"Wrote {hub.endpoint}/{REPO}/commit/{1:040x}: {run_path} as {REPO}.\n"
    assert hub.private == {REPO: True}
    assert set(hub.repos[REPO]) == {"model.safetensors", "run.json", "eval.json", "README.md"}

    folder = tmp_path / "model"
    pulled = invoke("pull", REPO, folder)
    assert pulled.exit_code == 0, pulled.stderr
    assert "model.safetensors, run.json, eval.json, README.md of someone/word-reader" in (
        pulled.stdout
    )
    assert {path.name for path in folder.iterdir()} == set(hub.repos[REPO])
    cpu = torch.device("cpu")
    before, after = load_recogniser(run_path, cpu), load_recogniser(folder, cpu)
    assert before.state_dict().keys() == after.state_dict().keys()
    assert all(torch.equal(after.state_dict()[k], v) for k, v in before.state_dict().items())

    # What was pulled is a run to eval and to read.
    picture = draw_word("word")
    assert clipocr.load(folder).read(picture) == clipocr.load(run_path).read(picture)
    write_words(tmp_path / "data" / "words", ["alpha", "bravo"])
    measured = invoke("eval", folder, "--data", tmp_path / "data")
    assert measured.exit_code == 0, measured.stderr
    # And can be pushed again, with the figures that came with it or with these.
    assert invoke("push", folder, REPO, "--public").exit_code == 0
    assert hub.num_commits == 2


def test_nothing_of_this_machine_goes_up(hub: Hub, run_path: Path) -> None:
    assert invoke("push", run_path, REPO).exit_code == 0
    files = hub.repos[REPO]
    assert all(b"secret" not in data and b"/home" not in data for data in files.values())
    record = json.loads(files["run.json"])
    assert record["cache"]["teacher"] == "ViT-B-16/clip.pt"
    assert (record["steps"], record["commands"]) == (1500, [])
    assert json.loads(files["eval.json"])["checkpoint"] == "model.safetensors"


def test_the_card_says_what_was_recorded_and_measured(hub: Hub, run_path: Path) -> None:
    assert invoke("push", run_path, REPO, "--license", "apache-2.0").exit_code == 0
    card = ModelCard(hub.repos[REPO]["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "clipocr"
    assert card.data.pipeline_tag == "image-to-text"
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == (
        "IIIT5k",
        "accuracy",
        93.46,
    )
    assert "| IIIT5k |     3,000 |      93.46 |   97.10 |" in card.text
    assert "1,500 steps of 16, seed 3, fp32" in card.text
    assert "1,234,567" in card.text
    assert r"MJ/train, a\|b" in card.text
    assert "clipocr pull someone/word-reader model" in card.text
    assert "Warning" not in card.text


def test_a_random_teacher_is_said_and_missing_figures_too(hub: Hub, run_path: Path) -> None:
    save(run_path, teacher="ViT-B-16/random:0")
    for name in ("run.json", "eval.json"):
        (run_path / name).unlink()
    assert invoke("push", run_path, REPO).exit_code == 0
    card = ModelCard(hub.repos[REPO]["README.md"].decode())
    assert "the teacher of this model had random weights" in card.text
    assert "Not measured." in card.text
    assert card.data.license is None
    with safe_open_of(hub.repos[REPO]["model.safetensors"], run_path) as file:
        assert json.loads(file.metadata()["teacher_is_random"]) is True


def safe_open_of(data: bytes, folder: Path):
    path = folder / "copy.safetensors"
    path.write_bytes(data)
    return safe_open(path, framework="pt")


def test_names_from_elsewhere_cannot_format_the_card() -> None:
    evil = "x\n---\nlicense: evil\n# [a](javascript:b) <script>|"
    assert plain(evil) == r"x --- license: evil \# \[a\]\(javascript:b\) \<script\>\|"
    description = {
        "teacher": evil,
        "teacher_is_random": False,
        "method": evil,
        "settings": {evil: evil},
        "charset": {"name": evil, "characters": "ab"},
        "max_label_length": 25,
        "preprocessing": {"height_px": 32, "width_px": 128},
        "clipocr_version": "0",
        "checkpoint_sha256": "0",
    }
    figures = {"charset": evil, "sets": {evil: FIGURES["sets"]["IIIT5k"]}}
    text = model_card(
        repo=REPO, description=description, record=None, figures=figures, license_id=evil
    )
    card = ModelCard(text, ignore_metadata_errors=False)
    assert card.data.license == evil
    assert card.data.eval_results[0].dataset_name == evil
    assert "<script>" not in card.text.replace(r"\<script\>", "")
    assert text.count("\n# ") == 1


def test_a_card_says_that_clip_is_needed() -> None:
    description = {
        "teacher": "ViT-B-16/openai",
        "teacher_is_random": False,
        "method": "clip4str",
        "settings": {},
        "charset": {"name": "36", "characters": "ab"},
        "max_label_length": 25,
        "preprocessing": {"height_px": 224, "width_px": 224},
        "clipocr_version": "0",
        "checkpoint_sha256": "0",
    }
    cards = [
        model_card(
            repo=REPO,
            description=description,
            record=None,
            figures=None,
            license_id=None,
            needs_clip=needs_clip,
        )
        for needs_clip in (True, False)
    ]
    said = ["reads with its teacher, ViT-B-16/openai" in card for card in cards]
    assert said == [True, False]


def test_what_is_refused(hub: Hub, run_path: Path, tmp_path: Path) -> None:
    hub.repos["someone/other"] = {"README.md": b"something else", "model.bin": b"a pickle"}
    hub.repos["someone/broken"] = {"model.safetensors": b"nonsense"}
    for args, said in (
        (("push", run_path, "word-reader"), "'word-reader' is not the name of a repository"),
        (("push", run_path, "a/b/c"), "expected OWNER/NAME"),
        (
            ("pull", "someone/none", tmp_path / "m"),
            "someone/none: the hub says: .*HF_TOKEN. By hand: bring model.safetensors, .* from "
            f"{hub.endpoint}/someone/none/resolve/main/ to ",
        ),
        (("pull", "someone/other", tmp_path / "m"), "holds no model.safetensors"),
        (("pull", "someone/broken", tmp_path / "m"), "cannot be read as safetensors"),
        (("pull", REPO, run_path), r"holds a run of its own \(best.pt\)"),
    ):
        result = invoke(*args)
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1].startswith("Error: ")
        assert re.search(said, result.stderr), result.stderr
    assert not (tmp_path / "m").exists()
    (run_path / "eval.json").write_text(json.dumps(FIGURES | {"checkpoint": "last.pt"}))
    refused = invoke("push", run_path, REPO)
    assert "eval.json is of last.pt; what is pushed is best.pt." in refused.stderr
    # The run went on, and its best.pt is another.
    (run_path / "eval.json").write_text(json.dumps(FIGURES | {"moment": {"epoch": 1, "step": 5}}))
    refused = invoke("push", run_path, REPO)
    assert "eval.json is of best.pt, epoch 1, step 5; what is pushed is best.pt." in refused.stderr
    for figures in ([], FIGURES | {"sets": {"a": {}}}, FIGURES | {"sets": []}):
        (run_path / "eval.json").write_text(json.dumps(figures))
        assert "is not what clipocr eval writes" in invoke("push", run_path, REPO).stderr
    assert REPO not in hub.repos


def test_a_hub_that_does_not_let_one_in_or_is_not_there(
    hub: Hub, run_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.needs_token = True
    monkeypatch.delenv("HF_TOKEN")
    refused = invoke("push", run_path, REPO)
    assert refused.exit_code == 1
    assert "hf auth login, or HF_TOKEN" in refused.stderr
    hub.server_close()
    gone = invoke("push", run_path, REPO)
    assert gone.exit_code == 1
    assert "Error: someone/word-reader: the hub says: " in gone.stderr
