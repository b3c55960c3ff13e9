"""What the servers that tests start on loopback have in common."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class LoopbackServer(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1."""

    daemon_threads = True

    def __init__(self, handler: type[LoopbackHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @classmethod
    @contextmanager
    def serving(cls, *args: object) -> Iterator[Self]:
        server = cls(*args)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join()

    def stop(self) -> None:
        """Listen no more; more than once does no harm."""
        self.shutdown()
        self.server_close()


class LoopbackHandler(BaseHTTPRequestHandler):
    """Answers whole bodies, and keeps quiet."""

    protocol_version = "HTTP/1.1"
    # Or each answer's body waits 40 ms for the acknowledgement of its headers.
    disable_nagle_algorithm = True

    def answer_json(self, content: object, status: int = 200) -> None:
        self.answer(status, json.dumps(content).encode())

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_range(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        """Answer with the range of a file that was asked for, or all of it."""
        headers, asked = headers or {}, self.headers.get("Range")
        if asked is None:
            self.answer(200, data, headers)
            return
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        span = f"{first}-{first + len(part) - 1}" if part else "*"
        headers = headers | {"Content-Range": f"bytes {span}/{len(data)}"}
        self.answer(206 if part else 416, part, headers)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""
