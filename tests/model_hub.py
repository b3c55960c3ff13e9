"""A Hugging Face hub for models on loopback: as much of its HTTP interface as push and pull take.

The client is the real one. What it would upload by Xet it uploads by LFS here, for which it has
``HF_HUB_DISABLE_XET``: Xet's own servers cannot be stood in for by a few lines.
"""

from __future__ import annotations

import base64
import hashlib
import json
from urllib.parse import unquote, urlsplit

from loopback import LoopbackHandler, LoopbackServer


class ModelHub(LoopbackServer):
    """Keeps repositories in memory, each with one branch."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large_files: dict[str, bytes] = {}
        self.num_commits = 0
        self.needs_token = False

    @property
    def sha(self) -> str:
        """Of the newest commit."""
        return f"{self.num_commits:040x}"


class _Handler(LoopbackHandler):
    server: ModelHub

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
        for repo, files in hub.repos.items():
            if path.startswith(f"/api/models/{repo}/revision/"):
                self.answer_json({"id": repo, "sha": hub.sha, "siblings": []})
                return
            if path.startswith(f"/api/models/{repo}/tree/"):
                self.answer_json(
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                        for name, data in files.items()
                    ]
                )
                return
            name = path.removeprefix(f"/{repo}/resolve/{hub.sha}/")
            if name in files:
                headers = {"ETag": f'"{_oid(files[name])}"', "X-Repo-Commit": hub.sha}
                self.answer(200, files[name], headers)
                return
        self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

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


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
