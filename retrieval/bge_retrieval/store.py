"""A Qdrant server, or a folder in Qdrant's local mode, with retries and the package's own errors.

Every call is idempotent, so a call whose response was lost is retried.
"""

from __future__ import annotations

import os
import re
import sqlite3
import sys
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from uuid import UUID

from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from qdrant_client.local.qdrant_local import QdrantLocal

from bge_client import (
    AuthenticationError,
    BGEError,
    ConfigurationError,
    HTTPStatusError,
    ProtocolError,
    RateLimitError,
    TooLargeError,
    TransportError,
    strict_json,
)
from bge_client.redaction import read_secret, redact

from .retry import retry

MIN_VERSION = (1, 17)  # weights in RRF; collection metadata needs 1.16
RETRY_SECONDS = 120.0
SNAPSHOT_SECONDS, SNAPSHOT_PAUSE = 3600.0, 0.5  # seconds
MAX_ERROR_CHARACTERS = 300
SERVER_ERRORS = UnexpectedResponse, ResponseHandlingException, ResourceExhaustedResponse
Payload = Mapping[str, Any]
PointId = int | str | UUID


class Store:
    """Typed access to Qdrant. Not thread-safe, because local mode is not."""

    def __init__(self, client: QdrantClient, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self._client = client
        self._parent_client: QdrantClient | None = None  # set after a fork, in the child
        self._retry_seconds = retry_seconds
        _stores.add(self)

    @property
    def client(self) -> QdrantClient:
        """Qdrant's client. After a fork, the child creates its own.

        Raises:
            ConfigurationError: the parent process has opened a folder, which cannot be shared.
        """
        if self._parent_client is self._client:
            if _lock_file(self._client) is not None:
                raise ConfigurationError(
                    "the folder of Qdrant's local mode is open in the parent process: open a Store "
                    "after the fork, or run a Qdrant server"
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the parent has shown them
                self._client = QdrantClient(**self._client.init_options)
        return self._client

    @classmethod
    def open(
        cls,
        *,
        url: str | None = None,
        path: str | Path | None = None,
        api_key: str | None = None,
        timeout: int = 60,
    ) -> Store:
        """Connect to the server at `url`, or open the local-mode folder `path`, creating it.

        Raises:
            ConfigurationError: neither or both are given, the `url` is invalid, or the folder is
                corrupt or open in another process.
        """
        if (url is None) == (path is None):
            raise ConfigurationError("pass either the `url` of a Qdrant server or a `path`")
        if url is not None:
            key = read_secret(api_key, "QDRANT_API_KEY")
            return cls(_remote_client(url.strip(), key, timeout))
        try:
            return cls(QdrantClient(path=os.fspath(path or "")))
        except OSError:
            raise
        except Exception as error:  # a corrupt meta.json or SQLite file raises any type
            if "already accessed" in str(error):
                raise ConfigurationError(
                    f"{path} is open in another process. Qdrant's local mode allows one process; "
                    "for several, run a Qdrant server and set `QDRANT_URL`"
                ) from None
            raise ConfigurationError(
                f"{path} cannot be read as a folder of Qdrant's local mode: {type(error).__name__}"
            ) from None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._parent_client is not self._client:
            self._client.close()

    def _call(self, method: str, **arguments: Any) -> Any:
        """Return `QdrantClient.<method>(**arguments)`. Retries while the server is busy.

        Raises:
            HTTPStatusError: the server refused (also RateLimitError, AuthenticationError).
            TooLargeError: the request is larger than the server's limit.
            TransportError: no response.
            ProtocolError: the response is invalid.
        """
        client = self.client

        def attempt() -> Any:
            try:
                return getattr(client, method)(**arguments)
            except SERVER_ERRORS as error:
                raise _server_error(error, method) from None
            except sqlite3.Error as error:  # local mode
                raise _disk_error(error) from None
            except (KeyError, ValueError, AssertionError, RecursionError) as error:
                raise self._local_error(error, method) from None

        return retry(attempt, self._retry_seconds)

    def _local_error(self, error: Exception, method: str) -> BGEError:
        """Convert an error of Qdrant's client: a refusal by local mode, whose text may quote a
        payload, or a body that could not be encoded or decoded."""
        if not isinstance(self._client._client, QdrantLocal):
            return ProtocolError(f"Qdrant's client failed in {method}: {type(error).__name__}")
        unknown = isinstance(error, KeyError) or "not found" in str(error)
        status = 404 if unknown else 400
        return HTTPStatusError(f"Qdrant's local mode failed in {method}: {error}", status)

    def check_version(self) -> None:
        """Raises ConfigurationError if the server is older than `MIN_VERSION`."""
        version = str(self._call("info").version)
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if numbers and numbers < MIN_VERSION:
            minimum = ".".join(map(str, MIN_VERSION))
            raise ConfigurationError(f"Qdrant {minimum} or later is needed. Given: {version}")

    # ------------------------------------------------------------------------- collections

    def exists(self, collection: str) -> bool:
        """Return whether a collection or an alias has this name."""
        return bool(self._call("collection_exists", collection_name=collection))

    def info(self, collection: str) -> models.CollectionInfo:
        """Raises ConfigurationError if there is no such collection."""
        if not self.exists(collection):
            names = [c.name for c in self._call("get_collections").collections]
            raise ConfigurationError(
                f"there is no collection `{collection}`. Existing: {', '.join(names) or 'none'}"
            )
        info: models.CollectionInfo = self._call("get_collection", collection_name=collection)
        return info

    def create_collection(self, collection: str, **settings: Any) -> None:
        """Create it with the keyword arguments of `QdrantClient.create_collection`."""
        self._call("create_collection", collection_name=collection, **settings)

    def update_metadata(self, collection: str, metadata: dict[str, Any]) -> None:
        self._call("update_collection", collection_name=collection, metadata=metadata)

    def delete_collection(self, collection: str) -> None:
        self._call("delete_collection", collection_name=collection)

    def create_vector_name(self, collection: str, name: str, config: Any) -> None:
        """Add a named vector to an existing collection. Needs Qdrant 1.18."""
        self._call(
            "create_vector_name",
            collection_name=collection,
            vector_name=name,
            vector_name_config=config,
        )

    def delete_vector_name(self, collection: str, name: str) -> None:
        """Remove a named vector from all points. Needs Qdrant 1.18."""
        self._call("delete_vector_name", collection_name=collection, vector_name=name)

    def create_snapshot(self, collection: str) -> str:
        """Create a snapshot on the server, and wait for it. Return its name.

        The server responds at once: a response after minutes would be a timeout here, and its
        retry another snapshot.

        Raises:
            ConfigurationError: local mode has no snapshots.
            TransportError: there is no snapshot after `SNAPSHOT_SECONDS`.
        """
        if isinstance(self._client._client, QdrantLocal):
            raise ConfigurationError("a snapshot needs a Qdrant server. Copy the folder instead")
        names_before = self._snapshots(collection)
        self._call("create_snapshot", collection_name=collection, wait=False)
        end = time.monotonic() + SNAPSHOT_SECONDS
        while not (names := self._snapshots(collection) - names_before):
            if time.monotonic() > end:
                raise TransportError(f"no snapshot after {SNAPSHOT_SECONDS} s: see Qdrant's log")
            time.sleep(SNAPSHOT_PAUSE)
        return min(names)

    def _snapshots(self, collection: str) -> set[str]:
        return {s.name for s in self._call("list_snapshots", collection_name=collection)}

    def create_payload_index(self, collection: str, field: str, field_schema: Any) -> None:
        self._call(
            "create_payload_index",
            collection_name=collection,
            field_name=field,
            field_schema=field_schema,
            wait=True,
        )

    def aliases(self) -> dict[str, str]:
        """Return the collection of each alias."""
        return {a.alias_name: a.collection_name for a in self._call("get_aliases").aliases}

    def resolve(self, name: str) -> str:
        """Return the collection of an alias, or `name` itself if it is not an alias."""
        return self.aliases().get(name, name)

    def point_alias(self, alias: str, collection: str) -> None:
        """Create the alias or move it atomically."""
        operation = models.CreateAliasOperation(
            create_alias=models.CreateAlias(collection_name=collection, alias_name=alias)
        )
        self._call("update_collection_aliases", change_aliases_operations=[operation])

    # ------------------------------------------------------------------------------ points

    def count(self, collection: str) -> int:
        result = self._call("count", collection_name=collection, exact=True)
        return int(result.count)

    def retrieve(
        self, collection: str, ids: Sequence[PointId], **options: bool
    ) -> list[models.Record]:
        """Return the points that exist, in any order. `options`: with_payload, with_vectors."""
        return list(self._call("retrieve", collection_name=collection, ids=ids, **options))

    def payloads(self, collection: str, ids: Sequence[PointId]) -> dict[PointId, Payload]:
        """Return the payloads of the points that exist."""
        return {record.id: record.payload or {} for record in self.retrieve(collection, ids)}

    def query(self, collection: str, **request: Any) -> list[models.ScoredPoint]:
        """Return the points, with payloads, for the arguments of `QdrantClient.query_points`."""
        options = {"collection_name": collection, "with_payload": True}
        return list(self._call("query_points", **options, **request).points)

    def sample(self, collection: str, count: int) -> list[models.ScoredPoint]:
        """Return random points with their payloads."""
        query = models.SampleQuery(sample=models.Sample.RANDOM)
        return self.query(collection, query=query, limit=count)

    def scroll(
        self, collection: str, *, page: int = 256, **options: Any
    ) -> Iterator[list[models.Record]]:
        """Yield all points by pages, in the order of ids. Concurrent writes are allowed."""
        offset = None
        while True:
            records, offset = self._call(
                "scroll", collection_name=collection, offset=offset, limit=page, **options
            )
            if records:
                yield records
            if offset is None:
                return

    def upsert(self, collection: str, points: list[models.PointStruct]) -> None:
        """Write the points. Splits them in half while they are too large for one request."""
        self._write("upsert", collection, points)

    def add_vectors(self, collection: str, points: Sequence[models.PointVectors]) -> None:
        """Add vectors to the points that exist, and keep their other vectors and payloads."""
        try:
            self._write("update_vectors", collection, points)
        except HTTPStatusError as error:  # 404: a point was deleted meanwhile
            if error.status != 404:
                raise
            middle = len(points) // 2
            if not middle and not self.exists(collection):
                raise
            for half in (points[:middle], points[middle:]) if middle else ():
                self.add_vectors(collection, half)

    def _write(self, method: str, collection: str, points: Sequence[Any]) -> None:
        try:
            self._call(method, collection_name=collection, points=points, wait=True)
        except TooLargeError:
            if len(points) == 1:
                raise TooLargeError(
                    f"point {points[0].id} alone exceeds the Qdrant server's limit for one request "
                    "(32 MB by default)"
                ) from None
            middle = len(points) // 2
            self._write(method, collection, points[:middle])
            self._write(method, collection, points[middle:])

    def set_payload(self, collection: str, ids: list[PointId], payload: Payload) -> None:
        """Set these keys of the points' payloads, and keep the other keys."""
        self._call(
            "set_payload", collection_name=collection, payload=payload, points=ids, wait=True
        )

    def delete(self, collection: str, ids: list[PointId]) -> None:
        selector = models.PointIdsList(points=ids)
        self._call("delete", collection_name=collection, points_selector=selector, wait=True)


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_stores):
        if (lock := _lock_file(store._client)) is not None:
            lock.close()  # unlocking it, as Qdrant's client does, would unlock it in the parent too
        if not _is_in_memory(store._client):
            store._parent_client = store._client


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)


def _lock_file(client: QdrantClient) -> IO[str] | None:
    """Return the open lock file of a local-mode folder."""
    return getattr(client._client, "_flock_file", None)


def _is_in_memory(client: QdrantClient) -> bool:
    """Return whether the data is in memory, where a forked child has its own copy."""
    return isinstance(client._client, QdrantLocal) and not client._client.persistent


def _remote_client(url: str, api_key: str | None, timeout: int) -> QdrantClient:
    host = _checked_host(url if "://" in url else f"//{url}")
    with warnings.catch_warnings():
        if host in ("localhost", "127.0.0.1", "::1"):
            warnings.simplefilter("ignore", UserWarning)  # a key over plain HTTP
        try:
            return QdrantClient(
                url=url, api_key=api_key, timeout=timeout, check_compatibility=False
            )
        except ValueError as error:
            raise ConfigurationError(f"the Qdrant server's `url` is invalid: {error}") from None


def _checked_host(url: str) -> str | None:
    """Return the host of an address.

    Raises:
        ConfigurationError: it is invalid or holds credentials. The message does not quote it.
    """
    try:
        parts = urlsplit(url)
        is_valid = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", parts.netloc)
    except ValueError:  # its message quotes the password
        is_valid = False
    if not is_valid:
        raise ConfigurationError("`url` must be an http(s) address, like http://localhost:6333")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError("`url` must hold neither a user, a query nor a fragment")
    return parts.hostname


def _server_error(error: Exception, method: str) -> BGEError:
    if isinstance(error, ResponseHandlingException):
        if isinstance(error.source, ValueError):  # pydantic's, which quotes the response
            return ProtocolError(f"Qdrant's response to {method} is invalid")
        return TransportError(f"no response from Qdrant to {method}: {_cause(error)}")
    if isinstance(error, ResourceExhaustedResponse):
        busy = RateLimitError(f"Qdrant limits the request rate: {error}", 429)
        busy.retry_after = float(error.retry_after_s)
        return busy
    assert isinstance(error, UnexpectedResponse)
    status, detail = error.status_code or 0, _error_text(error)
    message = f"Qdrant answered {method} with HTTP {status}: {detail}"
    if status == 401:
        return AuthenticationError("Qdrant rejects the API key: HTTP 401", status)
    if status == 403:
        return AuthenticationError(f"the key does not allow {method}: HTTP 403, {detail}", status)
    if status == 413 or "larger than allowed" in detail:  # by a proxy, by Qdrant (400)
        return TooLargeError(message)
    if status == 507 or "No space left" in detail or "disk space" in detail:
        return _disk_full(message, status)
    if status == 429:
        return RateLimitError(message, status)
    return HTTPStatusError(message, status)


def _disk_error(error: sqlite3.Error) -> HTTPStatusError:
    if "full" in str(error):
        return _disk_full(f"Qdrant's local mode: {error}", 507)
    return _without_retry(HTTPStatusError(f"Qdrant's local mode: {error}", 500))


def _disk_full(message: str, status: int) -> HTTPStatusError:
    advice = "The disk is full. Nothing is lost: free some space and run the command again"
    return _without_retry(HTTPStatusError(f"{message}. {advice}", status))


def _without_retry(error: HTTPStatusError) -> HTTPStatusError:
    error.retry = False
    return error


def _cause(error: ResponseHandlingException) -> str:
    cause = f"{type(error.source).__name__} {redact(str(error.source))}"
    return cause.strip()[:MAX_ERROR_CHARACTERS]


def _error_text(error: UnexpectedResponse) -> str:
    try:
        text = strict_json.loads(error.content)["status"]["error"]
    except (ValueError, KeyError, TypeError):
        text = error.content.decode("utf-8", "replace")
    return " ".join(redact(str(text)).split())[:MAX_ERROR_CHARACTERS]
