"""A Hugging Face hub on loopback: as much of its HTTP interface as reading ``hf://`` takes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from loopback import LoopbackHandler, LoopbackServer

REPO = "datasets/someone/words"


class Hub(LoopbackServer):
    """Serves a folder as the main branch of `REPO`.

    `fault` is called with each request and how often it came before, and answers an HTTP status to
    fail with, or 0.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(_Handler)
        self.folder = folder
        self.fault: Callable[[str, int], int] = lambda _what, _before: 0
        self.requests: list[str] = []
        self.lock = threading.Lock()


class _Handler(LoopbackHandler):
    server: Hub

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        what = f"{path} {self.headers.get('Range', '')}"
        with hub.lock:
            status = hub.fault(what, hub.requests.count(what))
            hub.requests.append(what)
        if status:
            self.answer(status, b"{}")
        elif path in (f"/api/{REPO}", f"/api/{REPO}/revision/main"):
            self.answer_json({"id": REPO.removeprefix("datasets/"), "sha": "0" * 40})
        elif path.startswith(tree := f"/api/{REPO}/tree/main"):
            self._answer_tree(path.removeprefix(tree).strip("/"))
        elif path.startswith(content := f"/{REPO}/resolve/main/"):
            self._answer_file(path.removeprefix(content))
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _answer_tree(self, folder: str) -> None:
        hub = self.server
        if not (hub.folder / folder).is_dir():
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        is_recursive = "recursive=true" in self.path.lower()
        paths = (hub.folder / folder).glob("**/*" if is_recursive else "*")
        self.answer_json(
            [
                {
                    "type": "directory" if path.is_dir() else "file",
                    "path": path.relative_to(hub.folder).as_posix(),
                    "size": 0 if path.is_dir() else path.stat().st_size,
                    "oid": "0" * 40,
                }
                for path in sorted(paths)
            ]
        )

    def _answer_file(self, name: str) -> None:
        path = self.server.folder / name
        if not path.is_file():
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        data, asked = path.read_bytes(), self.headers.get("Range")
        if asked is None:
            self.answer(200, data)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self.answer(206, part, {"Content-Range": span})
