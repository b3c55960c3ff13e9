"""An S3 server on loopback (moto, a process of its own), and a proxy before it that misbehaves."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import s3fs
from loopback import LoopbackHandler, LoopbackServer

BUCKET = "bucket"


@contextmanager
def s3_server(log: Path) -> Iterator[int]:
    """Run moto's server; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as moto:
        try:
            deadline = time.monotonic() + 60
            while True:
                assert moto.poll() is None, log.read_text()
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.05)
            yield port
        finally:
            moto.terminate()


def upload(folder: Path, port: int, name: str) -> str:
    """Put a folder into the bucket; return its address."""
    endpoint = f"http://127.0.0.1:{port}"
    s3 = s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True)
    if not s3.exists(BUCKET):
        s3.mkdir(BUCKET)
    # Readable to everyone, so that plain HTTP serves it too.
    s3.put(f"{folder}/", f"{BUCKET}/{name}/", recursive=True, ACL="public-read")
    return f"s3://{BUCKET}/{name}"


class FaultyProxy(LoopbackServer):
    """Passes requests on to a server, except those that `fault` picks.

    `fault` is called with the path and range of each request and how often they were asked for
    before, and answers ``""`` or one of

        500    an internal error; likewise any other status
        hang   no answer, ever
        drop   the connection is closed without one
        cut    the connection is closed in the middle of the body
        short  half the body, as if that were all
        flip   one bit of the body is wrong
        die    no answer to this and all later requests; nothing listens any more
    """

    def __init__(self, upstream: int) -> None:
        super().__init__(_Handler)
        self.upstream = upstream
        self.fault: Callable[[str, int], str] = lambda _what, _before: ""
        self.requests: list[str] = []
        self.is_dead = threading.Event()
        self.lock = threading.Lock()

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that hung up; they were meant to."""

    def stop(self) -> None:
        self.is_dead.set()
        super().stop()


class _Handler(LoopbackHandler):
    server: FaultyProxy

    def do_GET(self) -> None:
        server = self.server
        what = f"{self.command} {self.path} {self.headers.get('Range', '')}"
        with server.lock:
            fault = server.fault(what, server.requests.count(what))
            server.requests.append(what)
        if server.is_dead.is_set() or fault in ("hang", "drop", "die"):
            self.close_connection = True
            if fault == "die":
                server.stop()
            elif fault == "hang":
                server.is_dead.wait()
            return
        upstream = http.client.HTTPConnection("127.0.0.1", server.upstream, timeout=30)
        upstream.request(self.command, self.path, headers=dict(self.headers))
        response = upstream.getresponse()
        body, status = response.read(), response.status
        upstream.close()
        length = response.getheader("Content-Length") or len(body)
        if fault.isdigit():
            code = {"403": "AccessDenied"}.get(fault, "InternalError")
            status, body = int(fault), f"<Error><Code>{code}</Code></Error>".encode()
            length = len(body)
            if self.command == "HEAD":
                body = b""
        elif fault == "short":
            body = body[: len(body) // 2]
            length = len(body)
        elif fault == "flip":
            body = body[:9] + bytes([body[9] ^ 4]) + body[10:]
        self.send_response(status)
        for name, value in response.getheaders():
            if name.lower() not in ("content-length", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        self.close_connection = fault == "cut"

    do_HEAD = do_GET
