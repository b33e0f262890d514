"""Infinity's shapes under `/infinity`."""

from __future__ import annotations

import httpx

from fakes.serving import KEY, QUERY, TEXTS

HEADERS = {"Authorization": f"Bearer {KEY}"}


def test_reranked_documents_are_plain_strings(url: str, ranking: list[tuple[int, float]]) -> None:
    body = {
        "query": QUERY,
        "documents": TEXTS,
        "return_documents": True,
        "model": "bge-reranker-v2-m3",
    }
    reply = httpx.post(f"{url}/infinity/rerank", json=body, headers=HEADERS).raise_for_status()
    results = [(r["index"], r["relevance_score"], r["document"]) for r in reply.json()["results"]]
    assert results == [(index, score, TEXTS[index]) for index, score in ranking]


def test_embeddings_read_text_alone(url: str, vectors: list[list[float]]) -> None:
    body = {"input": TEXTS, "modality": "text"}
    reply = httpx.post(f"{url}/infinity/embeddings", json=body, headers=HEADERS).json()
    assert [item["embedding"] for item in reply["data"]] == vectors
    body["modality"] = "image"
    reply = httpx.post(f"{url}/infinity/embeddings", json=body, headers=HEADERS).json()
    assert '`modality` must be "text"' in reply["error"]["message"]
