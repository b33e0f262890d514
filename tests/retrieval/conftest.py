"""A Qdrant server: that of `QDRANT_URL`, or else the stand-in."""

from __future__ import annotations

import os
from collections.abc import Iterator

import portalocker
import pytest

from bge_retrieval import Store
from fakes.qdrant_server import QdrantServer


@pytest.fixture
def qdrant_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty Qdrant server."""
    url = os.environ.get("QDRANT_URL")
    if url is None:
        with QdrantServer() as server:
            yield server.url
            assert server.conformance_errors() == []
        return
    # The processes of pytest-xdist share the server, so they take turns.
    lock = tmp_path_factory.getbasetemp().parent / "qdrant.lock"
    with portalocker.Lock(lock, timeout=200), Store.open(url=url) as store:
        if names := store.collections():
            pytest.fail(f"the server at QDRANT_URL must be empty. Given: {', '.join(names)}")
        yield url
        for name in store.collections():
            store.delete_collection(name)


@pytest.fixture
def qdrant(qdrant_url: str) -> Iterator[Store]:
    with Store.open(url=qdrant_url) as store:
        yield store
