"""A Hugging Face hub on loopback: as much of its HTTP interface as clipocr's use of it takes.

That is reading ``hf://``, push and pull. The client is the real one. What it would upload by Xet it
uploads by LFS here, for which it has ``HF_HUB_DISABLE_XET``: Xet's own servers cannot be stood in
for by a few lines.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from urllib.parse import unquote, urlsplit

from loopback import LoopbackHandler, LoopbackServer


class Hub(LoopbackServer):
    """Keeps repositories in memory, each with one branch.

    A repository is ``someone/name`` if it holds a model, else ``datasets/someone/name``. `fault` is
    called with each request to read and how often it came before, and answers an HTTP status to
    fail with, or 0.
    """

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large_files: dict[str, bytes] = {}
        self.num_commits = 0
        self.needs_token = False
        self.fault: Callable[[str, int], int] = lambda _what, _before: 0
        self.requests: list[str] = []
        self.lock = threading.Lock()

    @property
    def sha(self) -> str:
        """Of the newest commit."""
        return f"{self.num_commits:040x}"


class _Handler(LoopbackHandler):
    server: Hub

    def do_POST(self) -> None:
        hub, path = self.server, urlsplit(self.path).path
        body = self._body()
        if hub.needs_token and not self.headers.get("Authorization"):
            self.answer(401, b"{}")
        elif path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in hub.repos:
                self.answer_json({"url": f"{hub.endpoint}/{repo}"}, status=409)
                return
            hub.repos[repo] = {}
            hub.private[repo] = asked.get("visibility") == "private" or asked.get("private", False)
            self.answer_json({"url": f"{hub.endpoint}/{repo}"})
        elif path.endswith("/preupload/main"):
            self.answer_json(
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
            self.answer_json({"transfer": "basic", "objects": objects})
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
            self.answer_json({"commitUrl": url, "commitOid": hub.sha, "success": True})
        else:
            self.answer(404, b"{}")

    def do_PUT(self) -> None:
        oid, body = self.path.removeprefix("/lfs/"), self._body()
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large_files[oid] = body
        self.answer(200, b"")

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        what = f"{path} {self.headers.get('Range', '')}"
        with hub.lock:
            status = hub.fault(what, hub.requests.count(what))
            hub.requests.append(what)
        if status:
            self.answer(status, b"{}")
            return
        for repo, files in hub.repos.items():
            about = f"/api/{repo}" if repo.startswith("datasets/") else f"/api/models/{repo}"
            if path == about or path.startswith(f"{about}/revision/"):
                name = repo.removeprefix("datasets/")
                self.answer_json({"id": name, "sha": hub.sha, "siblings": []})
                return
            for start, answer in (
                (f"{about}/tree/", self._answer_tree),
                (f"/{repo}/resolve/", self._answer_file),
            ):
                if path.startswith(start):
                    _revision, _, name = path.removeprefix(start).partition("/")
                    answer(files, name)
                    return
        self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _answer_tree(self, files: Mapping[str, bytes], folder: str) -> None:
        below = {
            name: data for name, data in files.items() if name.startswith(folder and f"{folder}/")
        }
        if not below:
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        entries = {}
        for name, data in below.items():
            parts = name.split("/")
            file = {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
            for depth in range(folder.count("/") + bool(folder) + 1, len(parts) + 1):
                path = "/".join(parts[:depth])
                is_file = depth == len(parts)
                folder_entry = {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
                entries[path] = file if is_file else folder_entry
                if "recursive=true" not in self.path.lower():
                    break
        self.answer_json(list(entries.values()))

    def _answer_file(self, files: Mapping[str, bytes], name: str) -> None:
        data = files.get(name)
        if data is None:
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": self.server.sha}
        self.answer_range(data, headers)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
