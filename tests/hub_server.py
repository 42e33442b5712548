"""A stand-in for the Hugging Face hub on 127.0.0.1: the few endpoints that its client asks, to read and to write."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import yaml

WRITER = "hf_writer"
"""The token that may write."""


@dataclass
class Repo:
    """A repository with one commit, which main points to."""

    commit: str
    files: dict[str, bytes]
    gated: bool = False


@dataclass
class HubServer:
    """Serves `repos` ("models/owner/name", "datasets/owner/name") while entered; `requests` keeps what was asked."""

    repos: dict[str, Repo]
    requests: list[str] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files that were sent, by sha256; they are in no repository before a commit names them."""
    created: dict[str, Any] = field(default_factory=dict)
    """What was asked for with each repository that was made."""
    failing: bool = False
    """Whether uploads of large files fail."""

    def __enter__(self) -> HubServer:
        outer = self

        class Handler(_Handler):
            hub = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        write = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(preupload|commit|branch)/(.+)", path)
        batch = re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path)
        if path == "/api/validate-yaml":
            yaml.safe_load(json.loads(sent)["content"].split("---")[1])
            self._json({"errors": [], "warnings": []})
            return
        if not (write or batch or path == "/api/repos/create"):
            self._answer(body=True)
            return
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.headers.get("Authorization") != f"Bearer {WRITER}":
            self._send(403, b'{"error": "this token may not write"}', {}, True)
        elif batch:
            self._json(self._batch(json.loads(sent)))
        elif write and write[2] == "preupload":
            modes = [self._mode(entry) for entry in json.loads(sent)["files"]]
            self._json({"files": modes})
        elif write and write[2] == "commit":
            self._commit(write[1], [json.loads(line) for line in sent.splitlines()])
        elif write:
            self._json({})
        else:
            asked = json.loads(sent)
            key = f"models/{asked['organization']}/{asked['name']}"
            self.hub.created[key] = asked
            self.hub.repos.setdefault(key, Repo("0" * 40, {}))
            self._json({"url": f"{self.hub.endpoint}/{key.removeprefix('models/')}"})

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        digest = self.path.rpartition("/")[2]
        if hashlib.sha256(data).hexdigest() != digest or self.hub.failing:
            self._send(400, b"{}", {}, True)
            return
        self.hub.objects[digest] = data
        self._send(200, b"", {"ETag": '"1"'}, True)

    @staticmethod
    def _mode(entry: dict[str, Any]) -> dict[str, Any]:
        large = entry["path"].endswith((".safetensors", ".gguf"))
        return {"path": entry["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Where each object goes; one that is here already needs no action."""
        found = []
        for entry in asked["objects"]:
            answer = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{entry['oid']}"}}
            found.append(answer)
        return {"transfer": "basic", "objects": found}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        """All files of a commit at once, as the hub does it."""
        repo = self.hub.repos[f"models/{name}"]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.objects[value["oid"]]
        repo.commit = hashlib.sha1(repr(sorted(repo.files)).encode()).hexdigest()
        self._json({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{repo.commit}", "commitOid": repo.commit})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, True)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, body: bool) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        api = re.fullmatch(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(revision|tree)/([^/]+))?(/.*)?", path)
        resolve = re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        if api:
            self._api(f"{api[1]}/{api[2]}", api[3], api[4], (api[5] or "").strip("/"), body)
        elif resolve:
            kind = "datasets" if resolve[1] else "models"
            self._file(f"{kind}/{resolve[2]}", resolve[3], resolve[4], body)
        else:
            self._send(404, b"{}", {}, body)

    def _repo(self, key: str, revision: str | None, body: bool) -> Repo | None:
        repo = self.hub.repos.get(key)
        if repo is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        elif revision not in (None, "main", repo.commit):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        else:
            return repo
        return None

    def _api(self, key: str, verb: str | None, revision: str | None, folder: str, body: bool) -> None:
        repo = self._repo(key, revision, body)
        if repo is None:
            return
        if verb == "tree":
            answer: Any = _tree(repo.files, folder, recursive="recursive=true" in self.path)
            if not answer:
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
                return
        else:
            names = [{"rfilename": name} for name in repo.files]
            owner_name = key.partition("/")[2]
            answer = {"id": owner_name, "sha": repo.commit, "siblings": names, "private": False, "gated": repo.gated}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)

    def _file(self, key: str, revision: str, name: str, body: bool) -> None:
        repo = self._repo(key, revision, body)
        if repo is None:
            return
        if repo.gated and not self.headers.get("Authorization"):
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
            return
        data = repo.files.get(name)
        if data is None:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
            return
        headers = {
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            "X-Repo-Commit": repo.commit,
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            self._send(200, data, headers, body)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._send(206, data[first : last + 1], headers, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """The entries below `folder`, as the hub lists them: without `recursive` a deeper file shows as its directory."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for name, data in files.items():
        rest = name.removeprefix(prefix)
        if not name.startswith(prefix):
            continue
        if "/" in rest and not recursive:
            path = prefix + rest.partition("/")[0]
            entries[path] = {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()}
        else:
            entries[name] = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    return list(entries.values())
