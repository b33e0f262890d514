"""A Qdrant server, or a folder in Qdrant's local mode, with retries and the package's own errors.

Every request is idempotent, so one whose response was lost is retried.
"""

from __future__ import annotations

import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID

from qdrant_client import QdrantClient, models
from qdrant_client.local.qdrant_local import QdrantLocal

from bge_client import (
    BGEError,
    ConfigurationError,
    HTTPStatusError,
    TooLargeError,
    TransportError,
)
from bge_client.deadline import Deadline
from bge_client.retry import Retries

from . import fork
from .connection import connect, open_folder
from .qdrant_errors import QDRANT_ERRORS, bge_error, unknown_collection

MIN_VERSION = (1, 17)  # weights in RRF; collection metadata needs 1.16
RETRY_SECONDS = 120.0
SNAPSHOT_SECONDS, SNAPSHOT_PAUSE = 3600.0, 0.5  # seconds
Payload = Mapping[str, object]
PointId = int | str | UUID
Vectors = models.VectorParams | Mapping[str, models.VectorParams]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Point = TypeVar("Point", models.PointStruct, models.PointVectors)


def _request(
    method: Callable[Concatenate[Store, Arguments], Result],
) -> Callable[Concatenate[Store, Arguments], Result]:
    """Make a method that calls Qdrant's client once retry while the server is busy.

    Raises:
        HTTPStatusError: the server refused (also RateLimitError, AuthenticationError).
        TooLargeError: the request is larger than the server's limit.
        TransportError: no response.
        ProtocolError: the response is invalid.
    """
    name = method.__name__.strip("_")

    @wraps(method)
    def send(store: Store, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        retries = started_retries(store._retry_seconds)
        while True:
            try:
                with store._local_lock():
                    return method(store, *args, **kwargs)
            except BGEError:  # of `client`; a ConfigurationError is a ValueError too
                raise
            except QDRANT_ERRORS as error:
                failure = bge_error(error, name, is_local=store._is_local)
            time.sleep(retries.pause(failure))

    return send


class Store:
    """Typed access to Qdrant. Threads may share it; in local mode they wait for each other."""

    def __init__(self, client: QdrantClient, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self._client = client
        self._parent_client: QdrantClient | None = None  # set after a fork, in the child
        self._retry_seconds = retry_seconds
        self._lock = threading.RLock()
        fork.register(self)

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
        if url is not None and path is None:
            return cls(connect(QdrantClient, url, api_key, timeout))
        if path is not None and url is None:
            return cls(open_folder(path))
        raise ConfigurationError("pass either the `url` of a Qdrant server or a `path`")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._parent_client is not self._client:
            self._client.close()

    @property
    def client(self) -> QdrantClient:
        """Qdrant's client. After a fork, the child creates its own.

        Raises:
            ConfigurationError: the parent process has opened a folder, which cannot be shared.
        """
        if self._parent_client is self._client:
            with self._lock:
                if self._parent_client is self._client:
                    self._client = _reopened(self._client)
        return self._client

    def renew_after_fork(self) -> None:
        """Give up the parent's connections and lock. Called in the child of a fork."""
        self._lock = threading.RLock()
        if (lock_file := _lock_file(self._client)) is not None:
            # Unlocking it, as Qdrant's client does, would unlock it in the parent too.
            lock_file.close()
        if not self._is_local or lock_file is not None:  # data in memory are the child's own copy
            self._parent_client = self._client

    @property
    def _is_local(self) -> bool:
        return isinstance(self._client._client, QdrantLocal)

    def _local_lock(self) -> AbstractContextManager[object]:
        """Local mode serves one thread at a time."""
        return self._lock if self._is_local else nullcontext()

    # ------------------------------------------------------------------------- collections

    def check_version(self) -> None:
        """Raises ConfigurationError if the server is older than `MIN_VERSION`."""
        version = self._version()
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if numbers and numbers < MIN_VERSION:
            minimum = ".".join(map(str, MIN_VERSION))
            raise ConfigurationError(f"Qdrant {minimum} or later is needed. Given: {version}")

    @_request
    def _version(self) -> str:
        return str(self.client.info().version)

    @_request
    def exists(self, collection: str) -> bool:
        """Return whether a collection or an alias has this name."""
        return self.client.collection_exists(collection)

    @_request
    def collections(self) -> list[str]:
        return [collection.name for collection in self.client.get_collections().collections]

    def info(self, collection: str) -> models.CollectionInfo:
        """Raises ConfigurationError if there is no such collection."""
        try:
            return self._info(collection)
        except HTTPStatusError as error:
            if error.status != 404:
                raise
        raise unknown_collection(collection, self.collections())

    @_request
    def _info(self, collection: str) -> models.CollectionInfo:
        return self.client.get_collection(collection)

    @_request
    def create_collection(
        self,
        collection: str,
        *,
        vectors_config: Vectors | None = None,
        sparse_vectors_config: Mapping[str, models.SparseVectorParams] | None = None,
        metadata: Payload | None = None,
        shard_number: int | None = None,
        replication_factor: int | None = None,
        write_consistency_factor: int | None = None,
        on_disk_payload: bool | None = None,
        strict_mode_config: models.StrictModeConfig | None = None,
    ) -> None:
        self.client.create_collection(
            collection,
            vectors_config=vectors_config,
            sparse_vectors_config=sparse_vectors_config,
            metadata=None if metadata is None else dict(metadata),
            shard_number=shard_number,
            replication_factor=replication_factor,
            write_consistency_factor=write_consistency_factor,
            on_disk_payload=on_disk_payload,
            strict_mode_config=strict_mode_config,
        )

    @_request
    def update_metadata(self, collection: str, metadata: Payload) -> None:
        self.client.update_collection(collection, metadata=dict(metadata))

    @_request
    def set_indexing_threshold(self, collection: str, kilobytes: int) -> None:
        """Set from how many kilobytes of vectors on a segment is indexed; 0 turns indexing off.

        Local mode has no index and ignores it.
        """
        optimizers = models.OptimizersConfigDiff(indexing_threshold=kilobytes)
        self.client.update_collection(collection, optimizers_config=optimizers)

    @_request
    def delete_collection(self, collection: str) -> None:
        self.client.delete_collection(collection)

    @_request
    def create_vector_name(
        self, collection: str, name: str, config: models.VectorNameConfig
    ) -> None:
        """Add a named vector to an existing collection. Needs Qdrant 1.18."""
        self.client.create_vector_name(collection, name, config)

    @_request
    def delete_vector_name(self, collection: str, name: str) -> None:
        """Remove a named vector from all points. Needs Qdrant 1.18."""
        self.client.delete_vector_name(collection, name)

    def create_snapshot(self, collection: str) -> str:
        """Create a snapshot on the server, and wait for it. Return its name.

        The server responds at once: a response after minutes would be a timeout here, and its
        retry another snapshot.

        Raises:
            ConfigurationError: local mode has no snapshots.
            TransportError: there is no snapshot after `SNAPSHOT_SECONDS`.
        """
        if self._is_local:
            raise ConfigurationError("a snapshot needs a Qdrant server. Copy the folder instead")
        names_before = self._snapshots(collection)
        self._start_snapshot(collection)
        end = time.monotonic() + SNAPSHOT_SECONDS
        while not (names := self._snapshots(collection) - names_before):
            if time.monotonic() > end:
                raise TransportError(f"no snapshot after {SNAPSHOT_SECONDS} s: see Qdrant's log")
            time.sleep(SNAPSHOT_PAUSE)
        return min(names)

    @_request
    def _start_snapshot(self, collection: str) -> None:
        self.client.create_snapshot(collection, wait=False)

    @_request
    def _snapshots(self, collection: str) -> set[str]:
        return {snapshot.name for snapshot in self.client.list_snapshots(collection)}

    @_request
    def create_payload_index(
        self, collection: str, field: str, field_schema: models.PayloadFieldSchema
    ) -> None:
        self.client.create_payload_index(collection, field, field_schema, wait=True)

    @_request
    def aliases(self) -> dict[str, str]:
        """Return the collection of each alias."""
        aliases = self.client.get_aliases().aliases
        return {alias.alias_name: alias.collection_name for alias in aliases}

    def resolve(self, name: str) -> str:
        """Return the collection of an alias, or `name` itself if it is not an alias."""
        return self.aliases().get(name, name)

    @_request
    def point_alias(self, alias: str, collection: str) -> None:
        """Create the alias or move it atomically."""
        operation = models.CreateAliasOperation(
            create_alias=models.CreateAlias(collection_name=collection, alias_name=alias)
        )
        self.client.update_collection_aliases([operation])

    # ------------------------------------------------------------------------------ points

    @_request
    def count(self, collection: str) -> int:
        return self.client.count(collection, exact=True).count

    @_request
    def retrieve(
        self,
        collection: str,
        ids: Sequence[PointId],
        *,
        with_payload: bool = True,
        with_vectors: bool = False,
    ) -> list[models.Record]:
        """Return the points that exist, in any order."""
        return self.client.retrieve(collection, ids, with_payload, with_vectors)

    def payloads(self, collection: str, ids: Sequence[PointId]) -> dict[PointId, Payload]:
        """Return the payloads of the points that exist."""
        return {record.id: record.payload or {} for record in self.retrieve(collection, ids)}

    @_request
    def query_points(
        self, collection: str, request: models.QueryRequest
    ) -> list[models.ScoredPoint]:
        arguments = query_arguments(request, is_local=self._is_local)
        return self.client.query_points(collection, **arguments).points

    def sample(
        self, collection: str, count: int, filter: models.Filter | None = None
    ) -> list[models.ScoredPoint]:
        """Return random points, of those that pass the filter, with their payloads."""
        query = models.SampleQuery(sample=models.Sample.RANDOM)
        request = models.QueryRequest(query=query, filter=filter, limit=count, with_payload=True)
        return self.query_points(collection, request)

    def scroll(
        self,
        collection: str,
        *,
        page: int = 256,
        start: PointId | None = None,
        scroll_filter: models.Filter | None = None,
        with_payload: bool = True,
        with_vectors: bool = False,
    ) -> Iterator[list[models.Record]]:
        """Yield all points by pages, in the order of ids, from the id `start` if it is given.

        Concurrent writes are allowed.
        """
        offset = start
        while True:
            records, offset = self._scroll(
                collection, scroll_filter, page, offset, with_payload, with_vectors
            )
            if records:
                yield records
            if offset is None:
                return

    @_request
    def _scroll(
        self,
        collection: str,
        scroll_filter: models.Filter | None,
        limit: int,
        offset: PointId | None,
        with_payload: bool,
        with_vectors: bool,
    ) -> tuple[list[models.Record], PointId | None]:
        return self.client.scroll(
            collection,
            scroll_filter,
            limit,
            offset=offset,
            with_payload=with_payload,
            with_vectors=with_vectors,
        )

    def upsert(self, collection: str, points: Sequence[models.PointStruct]) -> None:
        """Write the points. Splits them in half while they are too large for one request."""
        try:
            self._upsert(collection, points)
        except TooLargeError:
            for half in _halves(points):
                self.upsert(collection, half)

    @_request
    def _upsert(self, collection: str, points: Sequence[models.PointStruct]) -> None:
        self.client.upsert(collection, points, wait=True)

    def add_vectors(self, collection: str, points: Sequence[models.PointVectors]) -> None:
        """Add vectors to the points that exist, and keep their other vectors and payloads.

        Splits the points in half while they are too large for one request.
        """
        try:
            self._update_vectors(collection, points)
        except TooLargeError:
            for half in _halves(points):
                self.add_vectors(collection, half)
        except HTTPStatusError as error:
            if error.status != 404:
                raise
            if len(points) > 1:  # one of them was deleted meanwhile
                for half in _halves(points):
                    self.add_vectors(collection, half)
            elif not self.exists(collection):
                raise

    @_request
    def _update_vectors(self, collection: str, points: Sequence[models.PointVectors]) -> None:
        self.client.update_vectors(collection, points, wait=True)

    @_request
    def set_payload(self, collection: str, ids: list[PointId], payload: Payload) -> None:
        """Set these keys of the payloads of the points that exist, and keep the other keys."""
        # Ids by themselves would make a deleted point an error.
        existing = models.Filter(must=[models.HasIdCondition(has_id=ids)])
        self.client.set_payload(collection, dict(payload), existing, wait=True)

    @_request
    def delete(self, collection: str, ids: list[PointId]) -> None:
        self.client.delete(collection, models.PointIdsList(points=ids), wait=True)


def started_retries(seconds: float) -> Retries:
    """Return the retries of one request, which may be repeated for so many seconds."""
    deadline = Deadline(seconds)
    deadline.start()
    return Retries(deadline, logger="bge_retrieval")


def query_arguments(request: models.QueryRequest, *, is_local: bool) -> dict[str, Any]:
    """Return the arguments of `query_points`. `query_batch_points` would copy the vectors first,
    which takes most of the time of a search. Local mode has no search parameters."""
    return {
        "query": request.query,
        "using": request.using,
        "prefetch": request.prefetch,
        "query_filter": request.filter,
        "search_params": None if is_local else request.params,
        "limit": request.limit,
        "with_payload": request.with_payload,
    }


def _halves(points: Sequence[Point]) -> tuple[Sequence[Point], Sequence[Point]]:
    """Raises TooLargeError if there is only one point."""
    if len(points) == 1:
        raise TooLargeError(
            f"point {points[0].id} alone exceeds the Qdrant server's limit for one request "
            "(32 MB by default)"
        ) from None
    middle = len(points) // 2
    return points[:middle], points[middle:]


def _reopened(client: QdrantClient) -> QdrantClient:
    """Return a client like that of the parent process, with connections of its own."""
    if _lock_file(client) is not None:
        raise ConfigurationError(
            "the folder of Qdrant's local mode is open in the parent process: open a Store "
            "after the fork, or run a Qdrant server"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the parent has shown them
        return QdrantClient(**client.init_options)


def _lock_file(client: QdrantClient) -> IO[str] | None:
    """Return the open lock file of a local-mode folder."""
    return getattr(client._client, "_flock_file", None)
