"""The part of `Store` that searches need, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from qdrant_client import AsyncQdrantClient, models
from qdrant_client.local.async_qdrant_local import AsyncQdrantLocal

from bge_client import HTTPStatusError

from .connection import connect
from .qdrant_errors import QDRANT_ERRORS, bge_error, unknown_collection
from .store import RETRY_SECONDS, PointId, query_arguments, started_retries

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _request(
    method: Callable[Concatenate[AsyncStore, Arguments], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[AsyncStore, Arguments], Coroutine[Any, Any, Result]]:
    """Make a method that calls Qdrant's client once retry while the server is busy.

    Raises:
        BGEError: those of a `Store`.
    """
    name = method.__name__.strip("_")

    @wraps(method)
    async def send(
        store: AsyncStore, /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        retries = started_retries(store._retry_seconds)
        while True:
            try:
                return await method(store, *args, **kwargs)
            except QDRANT_ERRORS as error:
                failure = bge_error(error, name, is_local=store._is_local)
            await asyncio.sleep(retries.pause(failure))

    return send


class AsyncStore:
    """Typed access to Qdrant for asyncio, to search. Index and migrate with `Store`.

    Tasks may share it. A forked child needs its own. Local mode blocks the event loop.
    """

    def __init__(self, client: AsyncQdrantClient, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self.client = client
        self._retry_seconds = retry_seconds
        self._is_local = isinstance(client._client, AsyncQdrantLocal)

    @classmethod
    def open(cls, *, url: str, api_key: str | None = None, timeout: int = 60) -> AsyncStore:
        """Connect to the server at `url`.

        Raises:
            ConfigurationError: the `url` is invalid.
        """
        return cls(connect(AsyncQdrantClient, url, api_key, timeout))

    async def __aenter__(self) -> AsyncStore:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self.client.close()

    @_request
    async def collections(self) -> list[str]:
        response = await self.client.get_collections()
        return [collection.name for collection in response.collections]

    async def info(self, collection: str) -> models.CollectionInfo:
        """Raises ConfigurationError if there is no such collection."""
        try:
            return await self._info(collection)
        except HTTPStatusError as error:
            if error.status != 404:
                raise
        raise unknown_collection(collection, await self.collections())

    @_request
    async def _info(self, collection: str) -> models.CollectionInfo:
        return await self.client.get_collection(collection)

    @_request
    async def aliases(self) -> dict[str, str]:
        """Return the collection of each alias."""
        response = await self.client.get_aliases()
        return {alias.alias_name: alias.collection_name for alias in response.aliases}

    async def resolve(self, name: str) -> str:
        """Return the collection of an alias, or `name` itself if it is not an alias."""
        return (await self.aliases()).get(name, name)

    @_request
    async def retrieve(self, collection: str, ids: Sequence[PointId]) -> list[models.Record]:
        """Return the points that exist, in any order, without vectors."""
        return await self.client.retrieve(collection, ids)

    @_request
    async def query_points(
        self, collection: str, request: models.QueryRequest
    ) -> list[models.ScoredPoint]:
        arguments = query_arguments(request, is_local=self._is_local)
        response = await self.client.query_points(collection, **arguments)
        return response.points
