"""Cohere's own client."""

from __future__ import annotations

import cohere
import httpx
import pytest

from fakes.serving import KEY, QUERY, RERANK_MODEL, TEXTS


def test_cohere(url: str, ranking: list[tuple[int, float]]) -> None:
    with httpx.Client() as transport:  # its own is never closed
        client = cohere.ClientV2(api_key=KEY, base_url=url, httpx_client=transport)
        reply = client.rerank(model=RERANK_MODEL, query=QUERY, documents=TEXTS, top_n=2)
        assert [(r.index, r.relevance_score) for r in reply.results] == ranking
        with pytest.raises(cohere.BadRequestError, match="`top_n` must be an integer"):
            client.rerank(model=RERANK_MODEL, query=QUERY, documents=TEXTS, top_n=0)
