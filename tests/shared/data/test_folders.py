"""Folders that cannot be listed end a command; none is left out in silence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import save_untrained
from commands import invoke
from samples import draw_word, write_words

from clipocr.shared.data.folders import as_text, files_below, folders_below
from clipocr.shared.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two LMDBs in folders of their own."""
    for name in ("A", "B"):
        write_words(tmp_path / "root" / name / "words", ["one", "two"])
    return tmp_path / "root"


def deny(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder one that may not be listed, for root as well, who runs tests in containers."""
    real: Callable[..., object] = os.scandir

    def scandir(path: object = ".") -> object:
        if not isinstance(path, int) and os.fspath(path) == str(folder):  # type: ignore[call-overload]
            raise PermissionError(13, "Permission denied", str(folder))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize(
    "command",
    [
        "data check {root}",
        "data nonwords {root} {out} --mode random --count 1",
        "data import {root} {out} --labels {root}/gt.tsv",
        "data render {out} --words {root}/words.txt --count 1 --fonts {root}",
        "cache build --data {root} --out {out} --teacher ViT-tiny-test/random:0",
        "cache plan --data {root} --teacher ViT-tiny-test/random:0",
        "eval {run} --data {root}",
        "read {run} {root}",
    ],
)
@pytest.mark.parametrize("what", ["denied", "dangling"])
def test_every_command_names_what_it_cannot_see(
    command: str,
    what: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (root / "words.txt").write_text("one")
    if what == "denied":
        deny(root / "B", monkeypatch)
        said = f"{root / 'B'} cannot be listed: Permission denied"
    else:
        (root / "C").symlink_to(tmp_path / "not mounted")
        said = f"{root / 'C'} is a link to {tmp_path / 'not mounted'}, which is not there"
    (root / "gt.tsv").write_text("a.png\tone")
    (root / "a.png").write_bytes(draw_word("one"))
    run = save_untrained(tmp_path / "run" / "best.pt")
    result = invoke(*command.format(root=root, out=tmp_path / "out", run=run).split())
    assert result.exit_code == 1
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_links_are_followed_once(root: Path) -> None:
    (root / "again").symlink_to(root / "A")
    (root / "A" / "up").symlink_to(root)
    folders = [folder.relative_to(root).as_posix() for folder, _ in folders_below(root)]
    assert folders == [".", "A", "A/words", "B", "B/words"]


def test_a_picture_that_is_a_dangling_link_is_a_file_like_any_other(root: Path) -> None:
    (root / "A" / "word.PNG").symlink_to(root / "gone")
    assert files_below(root, (".png",)) == [root / "A" / "word.PNG"]
    (root / "A" / "gt.txt").symlink_to(root / "gone")
    with pytest.raises(DataError, match=r"gt\.txt is a link to"):
        files_below(root, (".png",))


def test_a_name_that_is_not_utf8_becomes_a_text() -> None:
    assert as_text(os.fsdecode(b"caf\xe9/ok")) == "caf\\xe9/ok"
    assert as_text("käse") == "käse"
