"""What pages say is there is there: commands, options, files, functions, make targets, sections.

Their Python is run. Whether a page's figures are right no test can tell; that its commands run is
tested in `test_cli` and beside the commands.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from samples import WORDS, deep_build, draw_word, write_words

import clipocr
from clipocr.cli import main
from clipocr.precompute.builder.build import build_cache
from clipocr.precompute.builder.config import BuildConfig
from clipocr.shared.cache.codecs.codec import Codec
from clipocr.shared.charset import Charset
from clipocr.train.commands.train import _train_command
from clipocr.train.loop.config import TrainConfig, method_of_runs
from clipocr.train.methods import method_names
from clipocr.train.models.config import StudentConfig
from clipocr.train.models.student import Student
from clipocr.train.models.tokenizer import LabelTokenizer

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CHANGELOG.md",
    ROOT / "train/methods/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PAGES_FOR_PYTHON = [README, *(ROOT / "docs" / f"{name}.md" for name in ("own-loop", "own-model"))]
OTHER_PROGRAMS = ("pip", "tensorboard", "find", "curl", "hf")
ELSEWHERE = ("strhub/", "clip/", "my_method/")
OPTIONS_OF_OTHERS = {"--help", "--errors", "--gpus-per-task", "--nproc-per-node"}
ADDRESSES = ("http://", "https://", "#")


def prose_of(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def inline_code(page: Path) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose_of(page))]


def console_commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```$", page.read_text("utf-8"), flags=re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    # Without the comment of `make demo     # environment, ...`.
    return [line[2:].partition("  #")[0] for line in lines if line.startswith("$ ")]


def parsed(line: str) -> tuple[click.Command, list[str]] | None:
    """Return the command of a shell line and its arguments, or None if it is none of clipocr."""
    words = [word for word in shlex.split(line) if word != "..."]
    if words[:1] == ["torchrun"]:
        words = words[words.index("clipocr") :]
    if words[:1] != ["clipocr"]:
        return None
    command: click.Command = main
    words = words[1:]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{line!r}: there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    if command.name == "train" and "--method" in words:
        command = trains(words[words.index("--method") + 1])
    return command, words


def trains(method: str) -> click.Command:
    """Return ``clipocr train`` with the options of a method."""
    return _train_command(method_of_runs(method))


def options_of(command: click.Command) -> dict[str, click.Option]:
    options = [param for param in command.params if isinstance(param, click.Option)]
    return {name: option for option in options for name in (*option.opts, *option.secondary_opts)}


def all_commands(command: click.Command = main) -> list[click.Command]:
    children = command.commands.values() if isinstance(command, click.Group) else ()
    return [command, *(found for child in children for found in all_commands(child))]


def require_usable(command: click.Command, arguments: list[str], line: str) -> None:
    """Take a line apart as click does, up to where it would look for files."""
    context = click.Context(command)
    try:
        values, rest, _ = command.make_parser(context).parse_args(list(arguments))
    except click.UsageError as e:
        pytest.fail(f"{line!r}: {e.format_message()}")
    assert not rest, f"{line!r} has {rest} left over"
    for param in command.params:
        value = values.get(param.name)
        # Not given: None, or what newer versions of click have in its place.
        is_given = isinstance(value, str | bool) or bool(value and isinstance(value, list | tuple))
        assert is_given or not param.required, f"{line!r} lacks {param.opts[0]}"
        if is_given and isinstance(param.type, click.Choice | click.types.IntParamType):
            for one in value if isinstance(value, list | tuple) else [value]:
                param.type.convert(one, param, context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_can_be_typed(page: Path) -> None:
    parts = [part for line in console_commands(page) for part in line.split(" | ")]
    for line in parts:
        if line.startswith("make "):
            require_target(line)
        elif found := parsed(line):
            require_usable(*found, line)
        else:
            assert line.split()[0] in OTHER_PROGRAMS, f"{page.name}: {line!r} is not clipocr's"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_in_the_text_exists(page: Path) -> None:
    commands = [*all_commands(), *map(trains, method_names())]
    known = {name for command in commands for name in options_of(command)} | {"--help"}
    known |= {"--nproc-per-node"}  # torchrun's
    for code in inline_code(page):
        if code.startswith("make "):
            require_target(code)
        elif code.startswith(("clipocr ", "torchrun ")):
            found = parsed(code)
            assert found is not None, f"{page.name}: {code!r}"
            options = {word for word in found[1] if re.match(r"-{1,2}[a-z]", word)}
            unknown = options - {*options_of(found[0]), "--help"}
            assert not unknown, f"{page.name}: {code!r} has {unknown}"
        elif code.startswith("--"):
            assert code.split()[0] in known, f"{page.name}: there is no option {code!r}"


def require_target(line: str) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert line.split()[1] in targets, f"there is no {line!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_function_named_exists(page: Path) -> None:
    for code in inline_code(page):
        found = re.fullmatch(r"((?:[a-z_]+/)+[a-z_]+\.(?:py|md|toml))(?:::([A-Za-z_.]+))?", code)
        if found is None or code.startswith(ELSEWHERE):
            continue
        file, name = found.groups()
        assert (ROOT / file).is_file(), f"{page.name}: there is no {file}"
        if name:
            defined = names_in(ROOT / file)
            assert name in defined, f"{page.name}: {file} has no {name}"
    for target in re.findall(r"(?:\]\(|src(?:set)?=\")([^)\s\"]+)", prose_of(page)):
        if not target.startswith(ADDRESSES):
            file, _, section = target.partition("#")
            aim = page.parent / file if file else page
            assert aim.exists(), f"{page.name}: {target}"
            assert not section or section in sections_of(aim), f"{page.name}: {target}"


def sections_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def strings_of(path: Path) -> Iterator[str]:
    """Yield the strings of a module, whatever is filled in as X."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(p.value if isinstance(p, ast.Constant) else "X" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("package", ["precompute", "train", "shared"])
def test_commands_and_options_that_messages_name_exist(package: str) -> None:
    commands = [*all_commands(), *map(trains, method_names())]
    known = {name for command in commands for name in options_of(command)}
    num_commands = 0
    for path in sorted((ROOT / package).rglob("*.py")):
        for text in strings_of(path):
            named = set(re.findall(r"(?<![\w-])--[a-z-]*[a-z](?![a-z-])", text))
            assert named <= known | OPTIONS_OF_OTHERS, f"{path}: {named - known}"
            for words, rest in re.findall(r"clipocr ((?:[a-z]+ )+)([^;.`]*)", text):
                command: click.Command = main
                for word in words.split():
                    if not (isinstance(command, click.Group) and word in command.commands):
                        break
                    command = command.commands[word]
                if command is main:
                    continue  # "clipocr" is no command there.
                num_commands += 1
                alike = commands[-len(method_names()) :] if command.name == "train" else [command]
                has = {name for each in alike for name in options_of(each)} | {"--help"}
                wanted = set(re.findall(r"(?<![\w-])--[a-z-]*[a-z]", rest))
                assert wanted <= has, f"{path}: {command.name} has no {wanted - has}"
    assert num_commands > 10


def test_readme_tells_the_point_in_its_first_screen_and_the_rest_shortly() -> None:
    text = README.read_text(encoding="utf-8")
    screen = "\n".join(text.splitlines()[:40])
    for part in ("<picture>", "$ clipocr cache build", "$ clipocr train", "$ make demo", "nobody"):
        assert part in screen
    assert len(text.partition("## Reference")[0].split()) <= 1200


def test_disk_of_the_readme_follows_from_the_format() -> None:
    """Three taps of 17 tokens of 768 values, 4.7 kB of pixels, 43 GB of text."""
    found = re.findall(
        r"^\| .*--codec ([a-z0-9:]+)` \| (\d) \| ([\d.]+) TB", README.read_text("utf-8"), re.M
    )
    assert [codec for codec, _, _ in found] == ["klt:192", "klt:192", "fp16"]
    for codec, views, terabytes in found:
        row = 3 * 17 * Codec.parse(codec).token_bytes(768) + 4700
        total = (15_895_388 * int(views) * row + 43e9) / 1e12
        assert float(terabytes) == pytest.approx(total, rel=0.03)


def test_numbers_of_the_readme_are_those_of_the_options() -> None:
    text = README.read_text(encoding="utf-8")
    build = BuildConfig(data=(ROOT,), out=ROOT / "nowhere")
    assert f"| unit | {build.unit_rows:,} rows of one view by default" in text
    assert f"| chunk | {build.rows_per_chunk} rows by default" in text
    assert f"After {TrainConfig.max_skipped_steps} in a row the run stops" in text
    parameters = sum(
        p.numel()
        for p in Student(StudentConfig(), LabelTokenizer(Charset.load("36"), 25)).parameters()
    )
    assert f"a recogniser of {parameters / 1e6:.0f} M" in text


@pytest.fixture(scope="module")
def place_of_the_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the Python of the pages takes for granted."""
    place = tmp_path_factory.mktemp("pages")
    write_words(place / "data" / "train" / "words", WORDS)
    write_words(place / "data" / "test" / "words", WORDS[:3])
    (place / "word.png").write_bytes(draw_word("word"))
    build_cache(deep_build(place / "data" / "train", place / "words.cache"))
    clipocr.train(cache=place / "words.cache", out=place / "run", student="tiny", epochs=1)
    return place


@pytest.mark.parametrize("page", PAGES_FOR_PYTHON, ids=lambda page: page.name)
def test_python_of_the_pages_runs(
    page: Path,
    place_of_the_pages: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for entry in place_of_the_pages.iterdir():
        if page != README or entry.name != "run":  # The README trains it.
            (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), flags=re.M | re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, page.name, "exec"), {"my_model": lambda _: "alpha"})
    said = capsys.readouterr().out
    if page.name == "own-model.md":  # One word of three is alpha.
        assert re.search(r"\| words +\| +3 \| +33\.33 ", said), said
        assert (tmp_path / "report" / "index.html").is_file()
    else:
        assert "(17, 64)" in said or "torch.Size([30, 17, 64])" in said or "tensor(" in said


def names_in(path: Path) -> set[str]:
    """Return functions and classes, and methods as ``Class.method``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    definitions = (ast.FunctionDef, ast.ClassDef)
    names = set()
    for node in tree.body:
        if isinstance(node, definitions):
            names.add(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else []
            names |= {f"{node.name}.{part.name}" for part in inner if isinstance(part, definitions)}
    return names


def test_the_checks_above_see_mistakes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for text, failing in (
        (
            "```console\n$ clipocr train --cach x --out y\n```\n",
            test_every_command_line_can_be_typed,
        ),
        ("```console\n$ clipocr train --out y\n```\n", test_every_command_line_can_be_typed),
        ("```console\n$ clipocr trian\n```\n", test_every_command_line_can_be_typed),
        (
            "```console\n$ clipocr train --cache x --out y --loss l2\n```\n",
            test_every_command_line_can_be_typed,
        ),
        ("`--no-such-option 3`\n", test_every_command_and_option_in_the_text_exists),
        ("`clipocr eval run --views 3`\n", test_every_command_and_option_in_the_text_exists),
        (
            "`train/methods/clip_ocr/losses.py::no_such_function`\n",
            test_every_file_and_function_named_exists,
        ),
        ("[a page](nowhere.md)\n", test_every_file_and_function_named_exists),
    ):
        page.write_text(text)
        with pytest.raises((AssertionError, pytest.fail.Exception, click.UsageError)):
            failing(page)
