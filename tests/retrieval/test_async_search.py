"""`AsyncHybridSearch` is `HybridSearch` for asyncio."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from bge_client import BGEError, Client, ConfigurationError
from bge_retrieval import (
    AsyncHybridSearch,
    AsyncStore,
    HybridSearch,
    Plan,
    Store,
    index,
    search_run,
)
from fakes.async_models import ThreadedClient
from fakes.qdrant_server import PendingExchange, QdrantServer


@pytest.fixture
def server(worker: Client) -> Iterator[QdrantServer]:
    """Collections `one` and `two`, the first one behind the alias `live`."""
    with QdrantServer() as server:
        with Store.open(url=server.url) as store:
            for name in ("one", "two"):
                index(store, worker, name, [{"_id": name, "text": "море"}])
            store.point_alias("live", "one")
        server.calls.clear()
        yield server
        assert server.conformance_errors() == []


def move(server: QdrantServer, *, drop: bool = False) -> None:
    with Store.open(url=server.url) as store:
        store.point_alias("live", "two")
        if drop:
            store.delete_collection("one")


def run(
    server: QdrantServer,
    worker: Client,
    scenario: Callable[[AsyncHybridSearch], Coroutine[Any, Any, None]],
    collection: str = "live",
) -> None:
    async def run_scenario() -> None:
        async with AsyncStore.open(url=server.url) as store:
            client = ThreadedClient(worker)
            await scenario(AsyncHybridSearch(store, client, collection, Plan(rerank=1)))

    asyncio.run(run_scenario())


async def document_ids(engine: AsyncHybridSearch) -> list[str]:
    return [hit.document_id for hit in await engine.search("море")]


def test_signatures_and_docstrings_are_those_of_the_threaded_search() -> None:
    def shape(kind: type, name: str) -> list[Any]:
        parameters = inspect.signature(getattr(kind, name)).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    def public(kind: type) -> set[str]:
        return {name for name, member in vars(kind).items() if inspect.isfunction(member)}

    for name in ("__init__", "search", "resolve"):
        assert shape(AsyncHybridSearch, name) == shape(HybridSearch, name)
        assert getattr(AsyncHybridSearch, name).__doc__ == getattr(HybridSearch, name).__doc__
    assert public(HybridSearch) - public(AsyncHybridSearch) == {"renew_after_fork"}
    assert public(AsyncHybridSearch) <= public(HybridSearch)


def test_tasks_resolve_the_alias_once(server: QdrantServer, worker: Client) -> None:
    async def scenario(engine: AsyncHybridSearch) -> None:
        results = await asyncio.gather(*[document_ids(engine) for _ in range(8)])
        assert results == [["one"]] * 8
        move(server, drop=True)
        results = await asyncio.gather(*[document_ids(engine) for _ in range(8)])
        assert results == [["two"]] * 8

    run(server, worker, scenario)
    # At the start, and when the collection was gone.
    assert server.routes().count("GET /aliases") == 2


def test_one_task_resolves_a_stale_alias_while_others_search(
    server: QdrantServer, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(engine: AsyncHybridSearch) -> None:
        await engine.resolve()
        move(server)
        monkeypatch.setattr(search_run, "ALIAS_TTL_SECONDS", 0.0)
        loop, resolving, proceed = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        def hold(exchange: PendingExchange) -> None:
            loop.call_soon_threadsafe(resolving.set)
            asyncio.run_coroutine_threadsafe(proceed.wait(), loop).result(20)
            exchange.answer()

        server.fail(hold, on="GET /aliases")
        search = asyncio.create_task(document_ids(engine))
        await resolving.wait()
        assert await document_ids(engine) == ["one"]
        proceed.set()
        assert await search == ["two"]

    run(server, worker, scenario)


def test_a_cancelled_search_leaves_the_alias_to_the_next(
    server: QdrantServer, worker: Client
) -> None:
    async def scenario(engine: AsyncHybridSearch) -> None:
        search = asyncio.create_task(document_ids(engine))
        await asyncio.sleep(0)
        search.cancel()
        with pytest.raises(asyncio.CancelledError):
            await search
        assert await document_ids(engine) == ["one"]

    run(server, worker, scenario)


def test_a_missing_collection_is_named(server: QdrantServer, worker: Client) -> None:
    async def scenario(engine: AsyncHybridSearch) -> None:
        with pytest.raises(ConfigurationError, match=r"no collection `c`. Existing: one, two"):
            await engine.search("море")

    run(server, worker, scenario, "c")


def test_a_dropped_collection_whose_alias_has_not_moved_is_an_error(
    server: QdrantServer, worker: Client
) -> None:
    async def scenario(engine: AsyncHybridSearch) -> None:
        await engine.resolve()
        with Store.open(url=server.url) as store:
            store.delete_collection("one")
        with pytest.raises(BGEError):
            await engine.search("море")

    run(server, worker, scenario)
