"""A Hugging Face hub for models on loopback: as much of its HTTP interface as push and pull take.

The client is the real one. What it would upload by Xet it uploads by LFS here, for which it has
``HF_HUB_DISABLE_XET``: Xet's own servers cannot be stood in for by a few lines.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class ModelHub(ThreadingHTTPServer):
    """Keeps repositories in memory, each with one branch."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large_files: dict[str, bytes] = {}
        self.num_commits = 0
        self.needs_token = False

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def sha(self) -> str:
        """Of the newest commit."""
        return f"{self.num_commits:040x}"

    @classmethod
    @contextmanager
    def serving(cls) -> Iterator[ModelHub]:
        hub = cls()
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
    server: ModelHub

    def do_POST(self) -> None:
        hub, path = self.server, urlsplit(self.path).path
        body = self._body()
        if hub.needs_token and not self.headers.get("Authorization"):
            self._answer(401, b"{}")
        elif path == "/api/validate-yaml":
            self._answer_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in hub.repos:
                self._answer_json({"url": f"{hub.endpoint}/{repo}"}, status=409)
                return
            hub.repos[repo] = {}
            hub.private[repo] = asked.get("visibility") == "private" or asked.get("private", False)
            self._answer_json({"url": f"{hub.endpoint}/{repo}"})
        elif path.endswith("/preupload/main"):
            self._answer_json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if "safetensors" in file["path"] else "regular",
                            "shouldIgnore": False,
                        }
                        for file in json.loads(body)["files"]
                    ]
                }
            )
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**asked, "actions": {"upload": {"href": f"{hub.endpoint}/lfs/{asked['oid']}"}}}
                for asked in json.loads(body)["objects"]
            ]
            self._answer_json({"transfer": "basic", "objects": objects})
        elif path.endswith("/commit/main"):
            repo = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for operation in map(json.loads, body.splitlines()):
                value = operation["value"]
                if operation["key"] == "file":
                    hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    hub.repos[repo][value["path"]] = hub.large_files[value["oid"]]
            hub.num_commits += 1
            url = f"{hub.endpoint}/{repo}/commit/{hub.sha}"
            self._answer_json({"commitUrl": url, "commitOid": hub.sha, "success": True})
        else:
            self._answer(404, b"{}")

    def do_PUT(self) -> None:
        oid, body = self.path.removeprefix("/lfs/"), self._body()
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large_files[oid] = body
        self._answer(200, b"")

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        for repo, files in hub.repos.items():
            if path.startswith(f"/api/models/{repo}/revision/"):
                self._answer_json({"id": repo, "sha": hub.sha, "siblings": []})
                return
            if path.startswith(f"/api/models/{repo}/tree/"):
                self._answer_json(
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                        for name, data in files.items()
                    ]
                )
                return
            name = path.removeprefix(f"/{repo}/resolve/{hub.sha}/")
            if name in files:
                headers = {"ETag": f'"{_oid(files[name])}"', "X-Repo-Commit": hub.sha}
                self._answer(200, files[name], headers)
                return
        self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer_json(self, content: object, status: int = 200) -> None:
        self._answer(status, json.dumps(content).encode())

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
