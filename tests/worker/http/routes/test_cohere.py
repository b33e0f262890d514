"""Cohere's own client."""

from __future__ import annotations

import cohere
import httpx
import pytest

KEY = "a-key-of-the-tests"


TEXTS = ["Градиентный спуск ищет минимум функции.", "A transaction is all or nothing."]


QUERY = "минимум функции"


EMBED, RERANK = "miniature/bge-m3", "miniature/bge-reranker-v2-m3"


def test_cohere(url: str, ranking: list[tuple[int, float]]) -> None:
    with httpx.Client() as transport:  # its own is never closed
        client = cohere.ClientV2(api_key=KEY, base_url=url, httpx_client=transport)
        reply = client.rerank(model=RERANK, query=QUERY, documents=TEXTS, top_n=2)
        assert [(r.index, r.relevance_score) for r in reply.results] == ranking
        with pytest.raises(cohere.UnprocessableEntityError, match="`top_n` must be at least 1"):
            client.rerank(model=RERANK, query=QUERY, documents=TEXTS, top_n=0)
