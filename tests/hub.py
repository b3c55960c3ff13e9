"""A Hugging Face hub on loopback: as much of its HTTP interface as reading ``hf://`` takes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPO = "datasets/someone/words"


class Hub(ThreadingHTTPServer):
    """Serves a folder as the main branch of `REPO`.

    `fault` is called with each request and how often it came before, and answers an HTTP status to
    fail with, or 0.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.fault: Callable[[str, int], int] = lambda _what, _before: 0
        self.requests: list[str] = []
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @classmethod
    @contextmanager
    def serving(cls, folder: Path) -> Iterator[Hub]:
        hub = cls(folder)
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            hub.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hub

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        what = f"{path} {self.headers.get('Range', '')}"
        with hub.lock:
            status = hub.fault(what, hub.requests.count(what))
            hub.requests.append(what)
        if status:
            self._answer(status, b"{}")
        elif path in (f"/api/{REPO}", f"/api/{REPO}/revision/main"):
            self._answer_json({"id": REPO.removeprefix("datasets/"), "sha": "0" * 40})
        elif path.startswith(tree := f"/api/{REPO}/tree/main"):
            self._answer_tree(path.removeprefix(tree).strip("/"))
        elif path.startswith(content := f"/{REPO}/resolve/main/"):
            self._answer_file(path.removeprefix(content))
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _answer_tree(self, folder: str) -> None:
        hub = self.server
        if not (hub.folder / folder).is_dir():
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        is_recursive = "recursive=true" in self.path.lower()
        paths = (hub.folder / folder).glob("**/*" if is_recursive else "*")
        self._answer_json(
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
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        data, asked = path.read_bytes(), self.headers.get("Range")
        if asked is None:
            self._answer(200, data)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self._answer(206, part, {"Content-Range": span})

    def _answer_json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode())

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""
