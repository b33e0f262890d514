"""Hybrid search with reranking behind an HTTP API, for `uvicorn`. Needs fastapi.

app = create_app(AsyncClient(), "http://localhost:6333", "course")
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query

from bge_client import AsyncClient
from bge_retrieval import AsyncHybridSearch, AsyncStore, Plan


def create_app(client: AsyncClient, qdrant_url: str, collection: str) -> FastAPI:
    """Return an application with the route `/search?query=…&limit=…`."""
    store = AsyncStore.open(url=qdrant_url)
    engine = AsyncHybridSearch(store, client, collection, Plan(rerank=20))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with store:
            await engine.resolve()  # a missing collection ends the start
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/search")
    async def search(
        query: str, limit: Annotated[int, Query(ge=1, le=100)] = 10
    ) -> list[dict[str, Any]]:
        hits = await engine.search(query, limit)
        return [{"id": hit.document_id, "score": hit.score, "text": hit.text} for hit in hits]

    return app
