"""A stand-in for the hub on this machine. It serves the repositories below a folder to huggingface_hub's own client.

with serving(folder) as hub:        # folder/OWNER/NAME/ are the repositories, read anew at each request
    use(monkeypatch, hub, home)     # for this process; `environment` is for others. home: where downloads go
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

Files = dict[str, Path]  # path in the repository, with "/" -> file


@dataclass
class Hub:
    root: Path
    url: str
    asked: list[str] = field(default_factory=list)  # every request, such as "GET /api/models/owner/name/revision/main"
    private: set[str] = field(default_factory=set)  # ids of repositories that are there, but not for us
    down: bool = False  # answers every request with an error of the server

    def repository(self, id: str) -> Path:
        """The folder of a repository, which is made if it is missing."""
        folder = self.root / id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def asked_for(self, id: str) -> int:
        """How often the client has asked what is in a repository."""
        return sum(one.startswith(f"GET /api/models/{id}/revision/") for one in self.asked)

    def files(self, id: str) -> Files | None:
        folder = self.root / id
        if id in self.private or not folder.is_dir():
            return None
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path for path in found}


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """Serves the repositories below `root` on a free port, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.hub = Hub(root, f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """Variables for another process that is to use the hub."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


def use(monkeypatch: pytest.MonkeyPatch, hub: Hub, home: Path) -> None:
    """Makes this process use the hub. huggingface_hub read its variables when it was imported."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def _commit(files: Files) -> str:
    """40 hex digits that follow from the content."""
    digest = hashlib.sha1()
    for name, path in files.items():
        digest.update(f"{name}\0{_blob(path)}\n".encode())
    return digest.hexdigest()


def _blob(path: Path) -> str:
    """Git's name for the content."""
    data = path.read_bytes()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: object) -> None:
        """Keeps quiet: `Hub.asked` has the requests."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        place = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {place}")
        if self.hub.down:
            self._send(503, b"down")
            return
        api = place.startswith("/api/models/")
        parts = place.removeprefix("/api/models" if api else "").split("/")[1:]
        owner, name, what, revision = [*parts, "", "", "", ""][:4]
        files = self.hub.files(f"{owner}/{name}") if owner and name else None
        if files is None:
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif revision not in ("main", commit := _commit(files)):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif api and what == "revision":
            self._json({"id": f"{owner}/{name}", "sha": commit, "siblings": [{"rfilename": one} for one in files]})
        elif api and what == "tree":
            sizes = {one: path.stat().st_size for one, path in files.items()}
            self._json([{"type": "file", "path": one, "size": sizes[one], "oid": _blob(files[one])} for one in files])
        elif not api and what == "resolve":
            self._file(files, commit, "/".join(parts[4:]))
        else:
            self._send(404, b"{}")

    def _file(self, files: Files, commit: str, name: str) -> None:
        if name not in files:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_blob(files[name])}"', "Accept-Ranges": "bytes"}
        self._send(200, files[name].read_bytes(), headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
