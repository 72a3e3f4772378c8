"""A hub on this machine: the few requests that fetching makes, with ways to misbehave."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "c" * 40  # what every branch stands for


class FakeHub:
    """Serves directories as repositories.

    Args:
        repositories: directories by "owner/name".
    """

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.asked: list[str] = []
        """Method, range and path of each request for a file."""
        self.cut: dict[str, int] = {}
        """After how many bytes the connection is cut, once, by the file's name."""
        self.silent = False
        self.ending = threading.Event()

    def listing(self, repository: str) -> list[dict]:
        rows = []
        folder = self.repositories[repository]
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            data = file.read_bytes()
            row = {"type": "file", "path": str(file.relative_to(folder)), "size": len(data), "oid": "a" * 40}
            if file.suffix in (".safetensors", ".bin"):
                row["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            rows.append(row)
        return rows


@contextmanager
def running_hub(repositories: dict[str, Path], cache: Path, patch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Run one; this process's hub library asks it, keeps what it gets in ``cache``, and is not patient."""
    hub = FakeHub(repositories)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            if hub.silent:
                hub.ending.wait(30)
                self.close_connection = True
                return
            path = unquote(urlsplit(self.path).path)
            if path.startswith("/api/models/"):
                repository, _, rest = path.removeprefix("/api/models/").partition("/tree/")
                if not rest:
                    repository = repository.partition("/revision/")[0]
                if repository not in hub.repositories:
                    self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
                elif rest:
                    self.reply(200, json.dumps(hub.listing(repository)).encode(), {})
                else:
                    self.reply(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": []}).encode(), {})
                return
            repository, _, rest = path.strip("/").partition("/resolve/")
            commit, _, name = rest.partition("/")
            if repository not in hub.repositories:
                self.reply(404, b"", {})
                return
            self.serve(hub.repositories[repository] / name, commit)

        def serve(self, file: Path, commit: str) -> None:
            asked = self.headers.get("Range", "")
            hub.asked.append(f"{self.command} {asked} {file.name}")
            data = file.read_bytes()
            start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
            headers = {
                "X-Repo-Commit": COMMIT if commit == "main" else commit,
                "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "Accept-Ranges": "bytes",
            }
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            cut = hub.cut.pop(file.name, None) if self.command == "GET" else None
            self.reply(206 if start else 200, data[start:], headers, cut)

        def reply(self, code: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setenv("HF_HOME", str(cache))
    patch.setattr("huggingface_hub.constants.ENDPOINT", address)
    patch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "hub"))
    patch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)
    patch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    for name in ("DEFAULT_REQUEST_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        patch.setattr(f"huggingface_hub.constants.{name}", 0.5)
    patch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.address = address  # type: ignore[attr-defined]
    try:
        yield hub
    finally:
        hub.ending.set()
        server.shutdown()
        thread.join()
        server.server_close()
