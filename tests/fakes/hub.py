"""A fake Hugging Face Hub on loopback, with the routes that downloads of single files need.

The Hub sends small files itself and redirects large ones to a storage host: a second server on
another port, since the client drops its token for another origin. No response has a Xet header, so
the client uses plain HTTP.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


@dataclass(frozen=True)
class SeenRequest:
    """A recorded request. `host` is "hub" or "storage"."""

    host: str
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass(frozen=True)
class HubFile:
    """A file's announced content, and the bytes that are sent."""

    announced: bytes
    sent: bytes
    large: bool

    @property
    def etag(self) -> str:
        """Git's blob id, or the sha256 of a large file, as on the Hub."""
        if self.large:
            return hashlib.sha256(self.announced).hexdigest()
        header = f"blob {len(self.announced)}\0".encode()
        return hashlib.sha1(header + self.announced, usedforsecurity=False).hexdigest()


class FakeHub:
    """`with FakeHub() as hub:` serves the files of `hub.add` at `hub.url`.

    Faults: `required_token`, `gated`, `outage`, `cut`, `hold`, and the argument `sent` of `add` for
    a file that differs from its headers.
    """

    def __init__(self) -> None:
        self.required_token: str | None = None
        self.gated = False
        self.outage: int | None = None
        self.requests: list[SeenRequest] = []
        self._repos: dict[str, dict[str, dict[str, HubFile]]] = {}
        self._cuts: dict[str, int] = {}
        self._held: dict[str, threading.Event] = {}
        self._hub = _Server(self, "hub")
        self._storage = _Server(self, "storage")
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            for server in (self._hub, self._storage)
        ]

    @property
    def url(self) -> str:
        return self._hub.url

    def add(
        self,
        repo: str,
        revision: str,
        name: str,
        content: bytes,
        *,
        large: bool = False,
        sent: bytes | None = None,
    ) -> None:
        """Publish a file. `sent` replaces the announced `content` in responses."""
        file = HubFile(content, content if sent is None else sent, large)
        self._repos.setdefault(repo, {}).setdefault(revision, {})[name] = file

    def cut(self, name: str, *, after: int) -> None:
        """Close the connection `after` so many bytes of the next response with `name`."""
        self._cuts[name] = after

    def hold(self, name: str) -> threading.Event:
        """Delay responses to GET of `name` until the event is set."""
        return self._held.setdefault(name, threading.Event())

    def wait(self, name: str) -> None:
        if name in self._held:
            self._held[name].wait(timeout=30)

    def take_cut(self, name: str) -> int | None:
        return self._cuts.pop(name, None)

    def revisions(self, repo: str) -> dict[str, dict[str, HubFile]] | None:
        return self._repos.get(repo)

    def storage_url(self, repo: str, revision: str, name: str) -> str:
        return f"{self._storage.url}/{repo}/resolve/{revision}/{name}"

    def downloads(self) -> list[str]:
        """Return the names of the requested files, in order."""
        return [
            request.path.rpartition("/")[2]
            for request in self.requests
            if request.method == "GET" and "/resolve/" in request.path
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for server in (self._hub, self._storage):
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()


class _Server(ThreadingHTTPServer):
    # server_close() joins the threads, so that none outlives the test.
    daemon_threads = False

    def __init__(self, hub: FakeHub, host: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.host = host

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Refusal(Exception):
    """An error response: status, X-Error-Code, X-Error-Message."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 5

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self._record()
        with self._refusals_sent():
            repo, revision, name = self._parse_path()
            if self.server.host == "storage":
                self._send_file(name, self._find_file(repo, revision, name), revision)
                return
            self._authorize(repo)
            file = self._find_file(repo, revision, name)
            if file.large:
                self._redirect(file, repo, revision, name)
            else:
                self._send_file(name, file, revision)

    def _record(self) -> None:
        request = SeenRequest(
            host=self.server.host,
            method=self.command,
            path=self.path,
            range=self.headers.get("Range"),
            authorization=self.headers.get("Authorization"),
        )
        self.server.hub.requests.append(request)

    @contextmanager
    def _refusals_sent(self) -> Iterator[None]:
        try:
            yield
        except _Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code is not None:
                headers["X-Error-Code"] = refusal.code
            self._send(refusal.status, headers, refusal.message.encode())

    def _parse_path(self) -> tuple[str, str, str]:
        repo, resolve, rest = self.path.removeprefix("/").partition("/resolve/")
        revision, slash, name = rest.partition("/")
        if not (resolve and slash):
            raise _Refusal(404, None, "Not found")
        return repo, revision, name

    def _authorize(self, repo: str) -> None:
        hub = self.server.hub
        if hub.outage is not None:
            raise _Refusal(hub.outage, None, "The Hub is down")
        authorization = self.headers.get("Authorization")
        if hub.required_token is None or authorization == f"Bearer {hub.required_token}":
            return
        if authorization is not None:
            raise _Refusal(401, None, "Invalid credentials in Authorization header")
        if hub.gated:
            raise _Refusal(401, "GatedRepo", f"Access to model {repo} is restricted")
        # Like the Hub, it does not distinguish private from missing repositories.
        raise _Refusal(401, "RepoNotFound", "Invalid username or password.")

    def _find_file(self, repo: str, revision: str, name: str) -> HubFile:
        revisions = self.server.hub.revisions(repo)
        if revisions is None:
            raise _Refusal(404, "RepoNotFound", "Repository not found")
        if revision not in revisions:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if name not in revisions[revision]:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        return revisions[revision][name]

    def _redirect(self, file: HubFile, repo: str, revision: str, name: str) -> None:
        location = self.server.hub.storage_url(repo, revision, name)
        headers = {
            "Location": location,
            "X-Repo-Commit": revision,
            "X-Linked-Etag": f'"{file.etag}"',
            "X-Linked-Size": str(len(file.announced)),
        }
        self._send(302, headers, f"Found. Redirecting to {location}".encode())

    def _send_file(self, name: str, file: HubFile, revision: str) -> None:
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": revision, "Accept-Ranges": "bytes"}
        start = self._range_start()
        if start is None:
            self._send(200, headers, file.sent, name=name)
            return
        total = len(file.sent)
        if start >= total:
            self._send(416, {"Content-Range": f"bytes */{total}"}, b"")
            return
        headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        self._send(206, headers, file.sent[start:], name=name)

    def _range_start(self) -> int | None:
        """Return the start of `Range: bytes=START-`, the only form the client sends."""
        header = self.headers.get("Range")
        return None if header is None else int(header.removeprefix("bytes=").removesuffix("-"))

    def _send(
        self, status: int, headers: dict[str, str], body: bytes, name: str | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "GET":
            cut = None if name is None else self.server.hub.take_cut(name)
            self.server.hub.wait(name or "")
            with suppress(ConnectionError):  # of a client that was killed
                self.wfile.write(body[:cut])

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: `FakeHub.requests` records all requests."""
