"""A Qdrant server, or a folder in Qdrant's local mode, behind one door: retries and clear errors.

Every call is one that may be repeated (reads, and writes that say what shall be), so a call whose
answer was lost is simply made again.
"""

from __future__ import annotations

import os
import re
import sqlite3
import sys
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from uuid import UUID

from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from qdrant_client.local.qdrant_local import QdrantLocal

from .. import strict_json
from ..deadline import Deadline
from ..errors import (
    AuthenticationError,
    BGEError,
    ConfigurationError,
    HTTPStatusError,
    ProtocolError,
    RateLimitError,
    TooLargeError,
    TransportError,
)
from ..redaction import read_secret, redact
from ..transport import retry, split_url

MIN_VERSION = (1, 17)  # collections' metadata (1.16), weights in RRF
RETRY_SECONDS = 120.0  # seconds that a call is tried again for
MAX_ERROR_CHARACTERS = 300
Payload = Mapping[str, Any]
PointId = int | str | UUID


class Store:
    """Qdrant as the library uses it. Not thread-safe, because local mode is not."""

    def __init__(self, client: QdrantClient, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self._client = client
        self._parent_client: QdrantClient | None = None  # after a fork, the parent's
        self._retry_seconds = retry_seconds
        _stores.add(self)

    @property
    def client(self) -> QdrantClient:
        """After a fork, the child's own.

        Raises:
            ConfigurationError: the folder was opened by the parent, and is its own.
        """
        if self._parent_client is self._client:
            if _lock_file(self._client) is not None:
                raise ConfigurationError(
                    "the folder of Qdrant's local mode belongs to the process that forked this "
                    "one: open a Store after the fork, or run a Qdrant server"
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the parent has seen them
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
        """A server by its `url`, or a folder for local mode, made if there is none.

        Raises:
            ConfigurationError: neither or both are given, the `url` is none, or the folder is
                another process' or broken.
        """
        if (url is None) == (path is None):
            raise ConfigurationError("say either the `url` of a Qdrant server or a `path`")
        if url is not None:
            key = read_secret(api_key, "QDRANT_API_KEY")
            return cls(_remote_client(url.strip(), key, timeout))
        try:
            return cls(QdrantClient(path=os.fspath(path or "")))
        except OSError:
            raise
        except Exception as error:  # whatever reading a broken meta.json or SQLite file ends in
            if "already accessed" in str(error):
                raise ConfigurationError(
                    f"{path} is open in another process, and Qdrant's local mode bears one at a "
                    "time. For several, run a Qdrant server and set `QDRANT_URL`"
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
            HTTPStatusError: the server says no; RateLimitError, AuthenticationError among them.
            TooLargeError: the request is larger than the server takes.
            TransportError: no answer.
        """

        client = self.client

        def attempt() -> Any:
            try:
                return getattr(client, method)(**arguments)
            except (
                UnexpectedResponse,
                ResponseHandlingException,
                ResourceExhaustedResponse,
            ) as error:
                raise _server_error(error, method) from None
            except sqlite3.Error as error:  # local mode
                raise _disk_error(error) from None
            except (KeyError, ValueError, AssertionError, RecursionError) as error:
                raise self._local_error(error, method) from None

        with Deadline(self._retry_seconds) as deadline:
            return retry(deadline, attempt, (TransportError, HTTPStatusError))

    def _local_error(self, error: Exception, method: str) -> BGEError:
        """What Qdrant's client raises itself: local mode's refusals, or it could not write or
        read a body. Its words may quote a payload."""
        if not isinstance(self._client._client, QdrantLocal):
            return ProtocolError(f"Qdrant's client cannot {method}: {type(error).__name__}")
        unknown = isinstance(error, KeyError) or "not found" in str(error)
        status = 404 if unknown else 400
        return HTTPStatusError(f"Qdrant's local mode cannot {method}: {error}", status)

    def check_version(self) -> None:
        """Raises ConfigurationError: the server is older than what we ask of it."""
        version = str(self._call("info").version)
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if numbers and numbers < MIN_VERSION:
            minimum = ".".join(map(str, MIN_VERSION))
            raise ConfigurationError(
                f"Qdrant {minimum} or later is needed. This server is {version}"
            )

    # ------------------------------------------------------------------------- collections

    def exists(self, collection: str) -> bool:
        """Of a collection, or of an alias."""
        return bool(self._call("collection_exists", collection_name=collection))

    def info(self, collection: str) -> models.CollectionInfo:
        """Raises ConfigurationError: there is none of that name."""
        if not self.exists(collection):
            names = [c.name for c in self._call("get_collections").collections]
            raise ConfigurationError(
                f"there is no collection `{collection}`. There are: {', '.join(names) or 'none'}"
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

    def create_payload_index(self, collection: str, field: str, field_schema: Any) -> None:
        self._call(
            "create_payload_index",
            collection_name=collection,
            field_name=field,
            field_schema=field_schema,
            wait=True,
        )

    def aliases(self) -> dict[str, str]:
        """Of each alias, its collection."""
        return {a.alias_name: a.collection_name for a in self._call("get_aliases").aliases}

    def resolve(self, name: str) -> str:
        """The collection of an alias; any other name as it is."""
        return self.aliases().get(name, name)

    def point_alias(self, alias: str, collection: str) -> None:
        """Point it there in one step, wherever it pointed before: no moment without it."""
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
        records: list[models.Record] = self._call(
            "retrieve", collection_name=collection, ids=ids, **options
        )
        return records

    def payloads(self, collection: str, ids: Sequence[PointId]) -> dict[PointId, Payload]:
        """Return the payloads of the points that exist."""
        return {record.id: record.payload or {} for record in self.retrieve(collection, ids)}

    def query(self, collection: str, **request: Any) -> list[models.ScoredPoint]:
        """Return the points, with payloads, for the arguments of `QdrantClient.query_points`."""
        response = self._call(
            "query_points", collection_name=collection, with_payload=True, **request
        )
        return list(response.points)

    def sample(self, collection: str, count: int) -> list[models.ScoredPoint]:
        """Return random points with their payloads."""
        query = models.SampleQuery(sample=models.Sample.RANDOM)
        return self.query(collection, query=query, limit=count)

    def scroll(
        self, collection: str, *, page: int = 256, **options: Any
    ) -> Iterator[list[models.Record]]:
        """All points in the order of their ids, a page at a time. Bears writes meanwhile."""
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
        """All of them, in halves if they are too large for one request."""
        self._write("upsert", collection, points)

    def add_vectors(self, collection: str, points: Sequence[models.PointVectors]) -> None:
        """To those of these points that there are; their other vectors and payloads stay."""
        try:
            self._write("update_vectors", collection, points)
        except HTTPStatusError as error:  # 404: one was deleted meanwhile
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
                    f"point {points[0].id} alone is larger than the Qdrant server takes in one "
                    "request (32 MB by default)"
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
            lock.close()  # to unlock it, as Qdrant's client does at the end, opens the parent's too
        if not _is_in_memory(store._client):
            store._parent_client = store._client


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)


def _lock_file(client: QdrantClient) -> IO[str] | None:
    """The open file that is locked while a folder is in use."""
    return getattr(client._client, "_flock_file", None)


def _is_in_memory(client: QdrantClient) -> bool:
    """Then a child has a copy, which works like any other."""
    return isinstance(client._client, QdrantLocal) and not client._client.persistent


def _remote_client(url: str, api_key: str | None, timeout: int) -> QdrantClient:
    parts = split_url(url if "://" in url else f"//{url}", "url")
    with warnings.catch_warnings():
        if parts.hostname in ("localhost", "127.0.0.1", "::1"):
            warnings.simplefilter("ignore", UserWarning)  # that a key goes over plain http
        try:
            return QdrantClient(
                url=url, api_key=api_key, timeout=timeout, check_compatibility=False
            )
        except ValueError as error:
            raise ConfigurationError(f"the Qdrant server's `url` is none: {error}") from None


def _server_error(error: Exception, method: str) -> BGEError:
    if isinstance(error, ResponseHandlingException):
        if isinstance(error.source, ValueError):  # pydantic's; it quotes what it could not read
            return ProtocolError(f"what Qdrant answered to {method} cannot be read")
        return TransportError(f"Qdrant gave no answer to {method}: {_cause(error)}")
    if isinstance(error, ResourceExhaustedResponse):
        busy = RateLimitError(f"Qdrant is asked too much: {error}", 429)
        busy.retry_after = float(error.retry_after_s)
        return busy
    assert isinstance(error, UnexpectedResponse)
    status, detail = error.status_code or 0, _error_text(error)
    message = f"Qdrant answered {method} with HTTP {status}: {detail}"
    if status == 401:
        return AuthenticationError("Qdrant does not accept the key: HTTP 401", status)
    if status == 403:
        return AuthenticationError(
            f"the key may not {method} in Qdrant: HTTP 403, {detail}", status
        )
    if status == 413 or "larger than allowed" in detail:  # a proxy's, Qdrant's own (400)
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
    advice = "No room on the disk: nothing is lost, make some and run the same again"
    return _without_retry(HTTPStatusError(f"{message}. {advice}", status))


def _without_retry(error: HTTPStatusError) -> HTTPStatusError:
    """Not to be tried again."""
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
