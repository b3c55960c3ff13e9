from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from commands import invoke
from samples import draw_word, write_words

import clipocr
from clipocr.cli import main
from clipocr.shared.charset import Charset
from clipocr.shared.errors import DataError, ExportError, UsageError
from clipocr.shared.geometry import STUDENT_MEAN, STUDENT_STD, normalize
from clipocr.train.deploy import export as export_module
from clipocr.train.deploy.description import settings_without_folders
from clipocr.train.deploy.export import check, drawn_views, export, given_views
from clipocr.train.deploy.onnx_format import open_onnx, write_onnx
from clipocr.train.loop.checkpoint import find_checkpoint, load_recogniser, save_checkpoint
from clipocr.train.methods.clip_ocr.settings import ClipOcr
from clipocr.train.models.config import StudentConfig, StudentSize
from clipocr.train.models.recogniser import Recogniser
from clipocr.train.models.student import Student
from clipocr.train.models.tokenizer import LabelTokenizer

CONFIG = StudentConfig(
    size=StudentSize(
        width=32,
        patch_height_px=16,
        encoder_layers=4,
        encoder_heads=2,
        decoder_heads=4,
    )
)
TOKENIZER = LabelTokenizer(Charset.load("36"), 6)


@pytest.fixture(scope="module")
def student() -> Student:
    """Untrained, but with weights so large that what it reads depends on the picture."""
    torch.manual_seed(0)
    student = Student(CONFIG, TOKENIZER).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return student


@pytest.fixture(scope="module")
def run_path(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    save(run / "best.pt", student)
    return run


def save(path: Path, student: Student) -> None:
    method = ClipOcr(student=CONFIG)
    save_checkpoint(path, method, TOKENIZER, student, teacher="ViT-B-16//home/me/clip.pt")


def probabilities_of(student: Student, views: np.ndarray) -> np.ndarray:
    images = normalize(torch.from_numpy(views), STUDENT_MEAN, STUDENT_STD)
    return student.decode(images).softmax(dim=-1).numpy()


def export_command(*args: object) -> Result:
    result = CliRunner().invoke(main, ["export", *map(str, args)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def read_without_clipocr(path: Path, picture: Path) -> tuple[str, float]:
    """What the README tells people to write who have an ONNX file and nothing else."""
    import onnxruntime
    from PIL import Image

    session = onnxruntime.InferenceSession(path)
    about = session.get_modelmeta().custom_metadata_map
    characters = json.loads(about["charset"])["characters"]
    image = Image.open(picture).convert("RGB").resize((128, 32), Image.Resampling.BICUBIC)
    (probabilities,) = session.run(None, {"images": np.asarray(image)[None]})
    text, confidence = "", 1.0
    for position in probabilities[0]:
        confidence *= position.max()
        if position.argmax() == 0:
            break
        text += characters[position.argmax() - 1]
    return text, confidence


class Exported(NamedTuple):
    model: Path
    said: str


@pytest.fixture(scope="module")
def exported(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = tmp_path_factory.mktemp("exported") / "model.onnx"
    result = export_command(run_path, "--out", model)
    assert result.exit_code == 0, result.stderr
    return Exported(model, result.stdout.strip())


@pytest.mark.timeout(300)  # PyTorch's exporter takes 15 s of one core, and there may be others.
def test_onnx_holds_the_whole_way_and_says_how_to_use_it(
    run_path: Path, exported: Exported, tmp_path: Path
) -> None:
    import onnx

    out = exported.model
    said = r"agrees with PyTorch on 32 drawn pictures, (\d+) different texts, .* within (\S+)\.$"
    num_texts, difference = re.search(said, exported.said).groups()
    assert int(num_texts) > 20
    assert float(difference) <= 1e-4
    model = onnx.load(out)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert (model.opset_import[0].version, about["opset"]) == (20, "20")
    assert (model.producer_name, model.model_version) == ("clipocr", 1)
    assert about["teacher"] == "ViT-B-16/clip.pt"
    assert json.loads(about["eos_id"]) == 0
    assert json.loads(about["max_label_length"]) == 6
    assert json.loads(about["preprocessing"])["mean"] == [0.5, 0.5, 0.5]
    assert json.loads(about["input"])["shape"] == ["batch", 32, 128, 3]
    # No stack traces of the exporter: they name folders of this machine.
    assert str(Path(clipocr.__file__).parent).encode() not in out.read_bytes()
    reader = clipocr.load(run_path)
    for word in ("alpha", "bravo", "x"):
        picture = tmp_path / f"{word}.png"
        picture.write_bytes(draw_word(word))
        text, confidence = read_without_clipocr(out, picture)
        expected = reader.read(picture)
        assert text == expected.text
        assert confidence == pytest.approx(expected.confidence, rel=1e-3)


@pytest.mark.timeout(300)  # As above.
def test_an_onnx_file_is_evaluated_and_timed_like_its_run(
    run_path: Path, exported: Exported, tmp_path: Path
) -> None:
    write_words(tmp_path / "test" / "SVT", ["alpha", "bravo", "x"])
    data = ("--data", tmp_path / "test")
    both = (run_path, exported.model)
    result = invoke("eval", *both, *data, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    files = sorted((tmp_path / "out").glob("*.predictions.jsonl"))
    of_model, of_run = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in files
    )
    assert [word["text"] for word in of_model] == [word["text"] for word in of_run]
    assert [word["confidence"] for word in of_model] == pytest.approx(
        [word["confidence"] for word in of_run], rel=1e-3
    )
    result = invoke("latency", *both, *data, "--batch-sizes", "1,3")
    assert result.exit_code == 0, result.stderr
    rows = [[c.strip() for c in r.split("|")[1:-1]] for r in result.stdout.splitlines() if "|" in r]
    name = run_path.name
    assert [(row[0], row[3]) for row in rows[2:]] == [
        (name, "1"), (name, "3"), ("model.onnx", "1"), ("model.onnx", "3"),
    ]  # fmt: skip
    # An ONNX file says how many parameters it was made of, but not what it multiplies.
    assert rows[2][1] == rows[4][1]
    assert float(rows[2][2]) > 0
    assert rows[4][2] == "-"
    assert "; onnxruntime " in result.stdout
    (tmp_path / "no.onnx").write_text("no graph")
    result = invoke("eval", tmp_path / "no.onnx", *data)
    assert result.exit_code == 1
    assert "no.onnx is no recogniser of clipocr" in result.stderr


class OnePass(Recogniser):
    """Has nothing but `decode`: every column of the picture is a position."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = LabelTokenizer(Charset.load("36"), 5)
        self.patches = torch.nn.Conv2d(3, self.tokenizer.num_classes, (32, 20), stride=20)

    @torch.no_grad()
    def decode(self, images: torch.Tensor, max_length: int | None = None) -> torch.Tensor:
        return 20 * self.patches(images).squeeze(2).transpose(1, 2)[:, : (max_length or 5) + 1]


@pytest.mark.timeout(300)  # As above.
def test_a_recogniser_with_nothing_but_decode_is_exported_in_one_pass(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recogniser = OnePass().eval()
    write_onnx(tmp_path / "model.onnx", recogniser, {"clipocr_version": "1"})
    views = drawn_views(recogniser)
    agreement = check(open_onnx(tmp_path / "model.onnx"), recogniser, views, what="the file")
    assert agreement.num_texts > 20


def test_a_recogniser_of_single_characters_has_no_graph(tmp_path: Path) -> None:
    one = Student(CONFIG, LabelTokenizer(TOKENIZER.charset, 1)).eval()
    with pytest.raises(UsageError, match=r"one character at most.*--format safetensors"):
        write_onnx(tmp_path / "model.onnx", one, {})


def test_of_a_setting_that_is_a_path_the_name_alone_leaves_the_machine() -> None:
    settings = {"encoder": "resnet18", "encoder_weights": "/home/me/r18.pth", "text_taps": [3]}
    left = settings | {"encoder_weights": "r18.pth"}
    assert settings_without_folders(settings) == left


def test_safetensors_is_a_checkpoint(run_path: Path, student: Student, tmp_path: Path) -> None:
    out = tmp_path / "model" / "model.safetensors"
    assert export(run_path, "safetensors", out).largest_difference == 0
    assert find_checkpoint(out.parent) == out
    again = load_recogniser(out.parent, torch.device("cpu"))
    assert again.config == CONFIG
    assert again.tokenizer.charset == student.tokenizer.charset
    weights = student.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in again.state_dict().items())


def test_pictures_of_one_s_own(run_path: Path, student: Student, tmp_path: Path) -> None:
    write_words(tmp_path / "lmdb", ["alpha", "bravo", "x"], {2: b"broken"})
    folder = tmp_path / "folder"
    folder.mkdir()
    for word in ("alpha", "x"):
        (folder / f"{word}.png").write_bytes(draw_word(word))
    np.testing.assert_array_equal(
        given_views(tmp_path / "lmdb", student), given_views(folder, student)
    )
    out = tmp_path / "model.safetensors"
    result = export_command(run_path, "--format", "safetensors", "--out", out,
                            "--check-images", tmp_path / "lmdb")  # fmt: skip
    assert "agrees with PyTorch on 2 given pictures" in result.stdout
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no picture"):
        given_views(tmp_path / "empty", student)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p + 2e-4 * (np.arange(p.shape[2]) == p.shape[2] - 1), "differs .* by 0.0002"),
        (lambda p: np.where(np.arange(p.shape[2]) == 0, np.nan, p), "the file (reads|differs)"),
        (lambda p: np.roll(p, 1, axis=2), "the file reads '.*', PyTorch '"),
        (lambda p: p[:, :-1], r"returns shape .*, expected"),
    ],
)
def test_what_reads_otherwise_is_refused(student: Student, change, said: str) -> None:
    views = drawn_views(student)
    with pytest.raises(ExportError, match=said):
        check(lambda v: change(probabilities_of(student, v)), student, views, what="the file")


def test_less_than_the_tolerance_passes_and_is_reported(student: Student) -> None:
    views = drawn_views(student)
    last = np.arange(student.tokenizer.num_classes) == student.tokenizer.num_classes - 1
    agreement = check(
        lambda v: (probabilities_of(student, v) + 5e-5 * last).astype(np.float32),
        student,
        views,
        what="the file",
    )
    assert agreement.largest_difference == pytest.approx(5e-5, rel=0.01)
    assert agreement.num_texts > 20


def test_a_file_that_fails_its_check_is_not_written(
    run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.safetensors"
    out.write_bytes(b"an earlier one")
    monkeypatch.setattr(export_module, "PROBABILITY_TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="expected at most -1"):
        export(run_path, "safetensors", out)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert out.read_bytes() == b"an earlier one"


def test_missing_packages_are_named(run_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = export_command(run_path)
    assert result.exit_code == 1
    assert "pip install 'clipocr-str[export]'" in result.stderr
    assert "ONNX needs onnxruntime" in result.stderr
