from __future__ import annotations

import asyncio

import numpy as np
import pytest

from bge_client import AsyncClient, Client, Embedding, ValidationError
from bge_retrieval.integrations.calls import ModelCalls, dense_list, sparse_lists

TEXTS = ["A transaction is all or nothing.", "Градиентный спуск ищет минимум функции."]
QUERY = "минимум функции"
NOWHERE = "http://127.0.0.1:1"


def check_embeddings(embeddings: list[Embedding], client: Client) -> None:
    for embedding, expected in zip(embeddings, client.embed(TEXTS, sparse=True), strict=True):
        assert expected.sparse is not None
        np.testing.assert_allclose(dense_list(embedding), expected.dense, atol=1e-5)
        indices, values = sparse_lists(embedding)
        assert indices == expected.sparse.indices.tolist()
        np.testing.assert_allclose(values, expected.sparse.values, atol=1e-5)


@pytest.mark.parametrize("is_threaded", [True, False])
def test_asynchronous_calls_give_what_the_client_gives(
    worker: Client, served: str, is_threaded: bool
) -> None:
    async def check() -> None:
        async with AsyncClient(served) as async_client:
            calls = ModelCalls(worker, None if is_threaded else async_client)
            check_embeddings(await calls.aembed(TEXTS, dense=True, sparse=True), worker)
            assert await calls.arerank(QUERY, TEXTS, 1) == worker.rerank(QUERY, TEXTS, top_n=1)
            with pytest.raises(ValidationError, match=r"`texts\[1\]` must not be empty or blank"):
                await calls.aembed(["text", " "], sparse=True)

    asyncio.run(check())


def test_no_texts_give_no_vectors_and_no_scores() -> None:
    async def check() -> None:
        async with AsyncClient(NOWHERE) as async_client:
            calls = ModelCalls(Client(NOWHERE), async_client)
            assert calls.embed([], dense=True) == await calls.aembed([], dense=True) == []
            assert calls.rerank(QUERY, [], 1) == await calls.arerank(QUERY, [], 1) == []

    asyncio.run(check())
