"""Faults of a Qdrant server are retried or raised as by `Store`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from qdrant_client import AsyncQdrantClient

from bge_client import AuthenticationError, HTTPStatusError, ProtocolError, TransportError, retry
from bge_retrieval import AsyncStore
from fakes.qdrant_server import QdrantServer, busy, cut, refusing
from fakes.scripted import raw


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "MIN_PAUSE", 0.001)


def resolve(server: QdrantServer) -> str:
    async def resolve() -> str:
        async with AsyncStore.open(url=server.url) as store:
            return await store.resolve("c")

    return asyncio.run(resolve())


@pytest.mark.parametrize("fault", [busy(0), refusing(502, "bad gateway"), cut])
def test_transient_faults_are_retried(fault: Any) -> None:
    with QdrantServer() as server:
        server.fail(fault, on="GET /aliases", times=3)
        assert resolve(server) == "c"
        assert len(server.routes()) == 4


@pytest.mark.parametrize(
    ("fault", "attempts", "kind"),
    [
        (refusing(401, "key"), 1, AuthenticationError),
        (refusing(400, "wrong"), 1, HTTPStatusError),
        (raw(b"<html>"), 1, ProtocolError),
        (cut, 7, TransportError),
    ],
)
def test_a_lasting_fault_is_raised(fault: Any, attempts: int, kind: type[Exception]) -> None:
    with QdrantServer() as server:
        server.fail(fault, on="GET /aliases", times=attempts)
        with pytest.raises(kind, match=r"aliases|rejects the API key"):
            resolve(server)
        assert len(server.routes()) == attempts


def test_local_mode_names_an_unknown_collection() -> None:
    async def count() -> None:
        store = AsyncStore(AsyncQdrantClient(":memory:"))
        with pytest.raises(ValueError, match=r"no collection `c`\. Existing: none"):
            await store.info("c")
        await store.aclose()

    asyncio.run(count())
