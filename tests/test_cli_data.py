"""`clipocr data`: what each command prints where, and its exit code."""

import errno
import io
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import click
import matplotlib
import numpy as np
import pytest
import torch
from commands import invoke
from PIL import Image

import clipocr
from clipocr.cli import main
from clipocr.shared.data.word_lmdb import WordLmdb, WordLmdbWriter
from clipocr.shared.errors import DataError


def png(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 30), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "src"
    source.mkdir()
    for i in range(3):
        (source / f"{i}.png").write_bytes(png(i))
    (source / "gt.tsv").write_text("0.png\tnull\n1.png\teins\n", encoding="utf-8")
    return source


@pytest.fixture
def words_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("eins\nzwei\n")
    return path


def commands(command: click.Command, path: tuple[str, ...] = ()):
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))
    else:
        yield path


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from clipocr.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'open_clip', 'numpy', 'PIL', 'lmdb', 'zarr', 'tqdm')"
        " if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.startswith("Usage: ")
    assert out.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("path", list(commands(main)), ids=" ".join)
def test_every_commands_help_has_an_example_and_explains_each_option(path) -> None:
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert f"Example:\n    clipocr {' '.join(path)} " in result.stdout
    command = main
    for name in path:
        command = command.commands[name]
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_version_is_said() -> None:
    assert invoke("--version").stdout == f"clipocr, version {clipocr.__version__}\n"


def test_import_says_what_it_wrote_and_lists_the_rest(folder, tmp_path) -> None:
    with (folder / "gt.tsv").open("a") as labels:
        labels.write("gone.png\tx\n")
    out = tmp_path / "out.lmdb"
    result = invoke("data", "import", folder, out)
    assert result.exit_code == 0
    kilobytes = (out / "data.mdb").stat().st_size / 1e3
    assert result.stdout == (
        f"Wrote {out}: 2 samples, {kilobytes:.1f} kB; 1 entry rejected, 1 image without a label.\n"
    )
    assert result.stderr == (
        f"Read {folder}/gt.tsv as tsv (file<TAB>label): 0.png is 'null'\n"
        "gone.png: no such file\n2.png: image without a label\n"
    )


def test_import_lists_twenty_and_counts_the_others(folder, tmp_path) -> None:
    (folder / "gt.tsv").write_text("0.png\tx\n" + "".join(f"m{i}.png\tx\n" for i in range(1033)))
    result = invoke("data", "import", folder, tmp_path / "out.lmdb")
    lines = result.stderr.splitlines()
    assert lines[1:21] == [f"m{i}.png: no such file" for i in range(20)]
    assert lines[21:] == ["... and 1,015 more"]  # 1033 entries and 2 images, less 20
    assert "1,033 entries rejected, 2 images without a label" in result.stdout


def test_import_of_nothing_lists_the_reasons_before_the_error(folder, tmp_path) -> None:
    (folder / "gt.tsv").write_text("m.png\tx\n")
    result = invoke("data", "import", folder, tmp_path / "out.lmdb")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1] == "m.png: no such file"
    assert result.stderr.splitlines()[2].startswith("Error: ")


def test_outputs_are_replaced_only_when_told(folder, tmp_path, words_file) -> None:
    out = tmp_path / "out.lmdb"
    for args in (
        ("data", "import", folder, out),
        ("data", "render", out, "--words", words_file, "--count", 3, "--jobs", 1),
    ):
        with WordLmdbWriter(out, overwrite=True) as writer:
            writer.add(b"old", "old")
        result = invoke(*args)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"Error: {out} exists; pass --overwrite to replace it\n"
        assert list(WordLmdb(out)) == [(1, b"old", "old")]
        assert invoke(*args, "--overwrite").exit_code == 0
        assert WordLmdb(out).image(1) != b"old"


def test_render_then_check(tmp_path, words_file) -> None:
    out = tmp_path / "out.lmdb"
    args = ("--words", words_file, "--count", 5, "--case", "lower", "--jobs", 1)
    result = invoke("data", "render", out, *args)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout.startswith(f"Wrote {out}: 5 samples of 2 words in 16 fonts, ")
    result = invoke("data", "check", out)
    assert result.exit_code == 0
    assert result.stdout == (
        f"{out}\n"
        "samples             5\n"
        "broken              0\n"
        "label lengths       1-5: 5\n"
        "outside charset 36  none\n"
        f"{picture_rows(out)}"
        "\n"
        "Checked 1 LMDB, 5 samples: 0 broken, 0 LMDBs unusable.\n"
    )


def test_scenes_before_pictures(tmp_path, words_file) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out.lmdb"
    pictures.mkdir()
    (pictures / "grey.png").write_bytes(png())
    (pictures / "no.jpg").write_bytes(b"none")
    fonts = tmp_path / "fonts"
    fonts.mkdir()
    shutil.copy(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", fonts)
    args = ("--count", 5, "--backgrounds", pictures, "--fonts", fonts, "--jobs", 1)
    rendered = ("data", "render", out, "--words", words_file, *args, "--style", "scene")
    result = invoke(*rendered)
    assert result.exit_code == 0
    assert result.stderr == f"{pictures / 'no.jpg'}: not an image\n"
    assert result.stdout.startswith(f"Wrote {out}: 5 samples of 2 words in ")
    made = ("data", "nonwords", out, tmp_path / "made", "--mode", "shuffle", *args)
    assert invoke(*made, "--style", "scene").exit_code == 0
    result = invoke(*made, "--overwrite")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: style mjsynth draws no pictures behind words; pass --style scene with "
        "--backgrounds\n"
    )


def picture_rows(path) -> str:
    """Return the rows about pictures, none of which is tall or there twice."""
    sizes = [Image.open(io.BytesIO(image)).size for _, image, _ in WordLmdb(path)]
    widths, heights = zip(*sizes, strict=True)
    ratios = [w / h for w, h in sizes]
    return (
        f"width, pixels       {min(widths)} to {max(widths)}, median {median(widths):.0f}\n"
        f"height, pixels      {min(heights)} to {max(heights)}, median {median(heights):.0f}\n"
        f"width / height      {min(ratios):.2f} to {max(ratios):.2f}, median {median(ratios):.2f}\n"
        "tall                none\n"
        "duplicates          none\n"
    )


def test_check_prints_broken_keys_and_exits_with_one(tmp_path) -> None:
    with WordLmdbWriter(tmp_path / "a") as writer:
        writer.add_all([(png(), "Grün-7"), (b"junk", "x" * 11), (png(), "x" * 30), (png(), "a-´b")])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "data.mdb").write_bytes(b"")
    result = invoke("data", "check", tmp_path)
    assert result.exit_code == 1
    assert result.stdout.startswith(
        f"{tmp_path / 'a'}\n"
        "samples             4\n"
        "broken              1\n"
        "label too long      1\n"
        "label lengths       1-5: 1  6-10: 1  11-15: 1\n"
        # NFKD takes an acute accent apart to a space and what ASCII has not.
        "outside charset 36  - 2  U+0020 1\n"
        "width, pixels       30 to 30, median 30\n"
        "height, pixels      9 to 9, median 9\n"
        "width / height      3.33 to 3.33, median 3.33\n"
        "tall                none\n"
        "duplicates          2 to the byte, 2 of them with another label\n"
        "image-000000002: not an image\n"
        "\n"
        f"{tmp_path / 'b'}\n"
        f"unusable: {tmp_path / 'b'} cannot be opened as an LMDB: "
    )
    assert result.stdout.endswith("Checked 2 LMDBs, 4 samples: 1 broken, 1 LMDB unusable.\n")


def sized(width_px: int, height_px: int, level: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width_px, height_px), level).save(buffer, "PNG")
    return buffer.getvalue()


def test_check_tells_sizes_tall_words_and_pages(tmp_path) -> None:
    sizes = [(10, 20), (40, 20), (60, 30), (1240, 1754), (15, 30)]
    with WordLmdbWriter(tmp_path / "a") as writer:
        writer.add_all((sized(*size), "word") for size in sizes)
    result = invoke("data", "check", tmp_path / "a")
    assert result.exit_code == 0
    assert (
        "width, pixels       10 to 1,240, median 40\n"
        "height, pixels      20 to 1,754, median 30\n"
        "width / height      0.50 to 2.00, median 0.71\n"
        "tall                2 (40.0 %), stretched unless built with --tall rotate\n"
        "duplicates          none\n"
    ) in result.stdout
    assert result.stderr == (
        f"Warning: {tmp_path}/a holds 1 picture of the size of a page or a line, such as "
        "image-000000004 (1240x1754); cut words out with a text detector first\n"
    )


def test_check_tells_what_training_and_test_data_have_in_common(tmp_path) -> None:
    # Labels are compared as the charset has them, pictures byte for byte.
    train = [(sized(9, 9, i), label) for i, label in enumerate(["One", "two", "two", "-", "five"])]
    test = [(sized(9, 9, 1), "ONE"), (sized(9, 9, 1), "TWO"), (sized(9, 9, 8), "six"),
            (sized(9, 9, 9), "!"), (b"junk", "five")]  # fmt: skip
    for name, samples in (("train/a", train[:3]), ("train/b", train[3:]), ("test/c", test)):
        with WordLmdbWriter(tmp_path / name) as writer:
            writer.add_all(samples)
    result = invoke("data", "check", tmp_path / "train", tmp_path / "test")
    assert " 1 to the byte, 1 of them with another label\n" in result.stdout
    assert (
        f"Of {tmp_path}/test, 2 of 4 pictures (50.0 %) and 2 of 3 labels are in "
        f"{tmp_path}/train too.\n"
    ) in result.stdout
    # Of one root, or of a root and a part of it, there is nothing to compare.
    for roots in (["train"], ["train", "train"], ["train", "train/a"]):
        out = invoke("data", "check", *(tmp_path / root for root in roots)).stdout
        assert " too." not in out


def test_check_warns_of_keys_nothing_reads(tmp_path) -> None:
    import lmdb

    with WordLmdbWriter(tmp_path / "a") as writer:
        writer.add_all([(png(), "a"), (png(), "b")])
    with lmdb.open(str(tmp_path / "a")) as env, env.begin(write=True) as txn:
        txn.put(b"num-samples", b"1")
    result = invoke("data", "check", tmp_path / "a")
    assert result.exit_code == 0
    assert "holds 2 keys beyond those of its num-samples (1)" in result.stderr


def test_check_options_reach_the_label_rules(tmp_path) -> None:
    (tmp_path / "jp.txt").write_text("東", encoding="utf-8")
    with WordLmdbWriter(tmp_path / "a") as writer:
        writer.add_all([(png(), "東京"), (png(), "東京東")])
    args = ("--keep-unicode", "--max-label-length", 2, "--charset", tmp_path / "jp.txt")
    out = invoke("data", "check", tmp_path / "a", *args).stdout
    assert "label too long      1\n" in out
    assert "outside charset jp  京 1\n" in out


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (["data", "import", "nowhere", "out"], 2, "Path 'nowhere' does not exist"),
        (["data", "import", "words.txt", "out"], 1, "is neither a folder nor a zip or tar archive"),
        (["data", "import", ".", "../out"], 1, "no label file"),
        (["data", "render", "out", "--words", "words.txt"], 2, "Missing option '--count'"),
        (["data", "render", "out", "--words", "words.txt", "--count", "0"], 2, "not in the range"),
        (["data", "check"], 2, "Missing argument"),
        (["data", "check", "."], 1, "no LMDB (a folder with data.mdb)"),
        (["data", "check", ".", "--charset", "35"], 1, "charset '35' is neither"),
        (["data", "check", ".", "--max-label-length", "0"], 2, "0 is not in the range"),
        (["data", "render", "words.txt/out", "--words", "words.txt", "--count", "1"], 1, "Error: "),
        (["dta"], 2, "No such command 'dta'"),
    ],
)
def test_mistakes_are_one_error(words_file, monkeypatch, args, exit_code, message) -> None:
    monkeypatch.chdir(words_file.parent)
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert message in result.stderr
    assert result.stderr.count("Error: ") == 1


@pytest.mark.parametrize(
    ("error", "exit_code", "stderr"),
    [
        (DataError("no good"), 1, "Error: no good\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 1, "Error: /x: No space left"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (MemoryError(), 1, "Error: memory ran out (MemoryError): end other programs, or pass less"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 25362432 bytes. Error code 12"
            ),
            1,
            "Error: memory ran out (DefaultCPUAllocator: can't allocate memory: you tried to",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. If reserved but"),
            1,
            "Error: memory ran out (CUDA out of memory. Tried to allocate 2 GiB): end other",
        ),
    ],
)
def test_expected_failures_print_one_line(folder, tmp_path, monkeypatch, error, exit_code, stderr):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr("clipocr.precompute.data.import_words.import_words", fail)
    result = invoke("data", "import", folder, tmp_path / "out")
    assert result.exit_code == exit_code
    assert result.stderr.startswith(stderr)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "error", [KeyError("bug"), OSError(errno.EBADF, "bug"), RuntimeError("bug")]
)
def test_bugs_keep_their_traceback(folder, tmp_path, monkeypatch, error) -> None:
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr("clipocr.precompute.data.import_words.import_words", fail)
    with pytest.raises(type(error)) as raised:
        invoke("data", "import", folder, tmp_path / "out")
    assert raised.value is error
