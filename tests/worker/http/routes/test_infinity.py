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


def test_defaults_of_its_client_name_no_model_and_no_dimensions(
    url: str, vectors: list[list[float]], ranking: list[tuple[int, float]]
) -> None:
    model = {"model": "default/not-specified"}
    body = {"input": TEXTS, "dimensions": 0, **model}
    reply = httpx.post(f"{url}/infinity/embeddings", json=body, headers=HEADERS).json()
    assert [item["embedding"] for item in reply["data"]] == vectors
    body = {"query": QUERY, "documents": TEXTS, **model}
    reply = httpx.post(f"{url}/infinity/rerank", json=body, headers=HEADERS).json()
    assert [(r["index"], r["relevance_score"]) for r in reply["results"]] == ranking


def test_errors_are_lists_of_details(url: str) -> None:
    for field, value in (("dimensions", 8), ("output_dimension", 8)):
        body = {"input": TEXTS, field: value}
        reply = httpx.post(f"{url}/infinity/embeddings", json=body, headers=HEADERS)
        assert reply.status_code == 422
        (detail,) = reply.json()["detail"]
        assert "must be 512" in detail["msg"]
        assert detail["loc"] == ["body", field]


def test_models_and_health(url: str) -> None:
    models = httpx.get(f"{url}/infinity/models", headers=HEADERS).json()["data"]
    assert [(model["id"], model["capabilities"]) for model in models] == [
        *(("miniature/bge-m3", ["embed"]), ("bge-m3", ["embed"])),
        *(("miniature/bge-reranker-v2-m3", ["rerank"]), ("bge-reranker-v2-m3", ["rerank"])),
    ]
    assert models[0]["stats"]["queue_absolute"] == 0
    assert httpx.get(f"{url}/infinity/health", headers=HEADERS).json()["unix"] > 1e9
