"""Ollama's routes."""

from __future__ import annotations

import httpx

from fakes.serving import KEY, TEXTS

HEADERS = {"Authorization": f"Bearer {KEY}"}


def test_embed_names_the_model_with_its_tag(url: str, vectors: list[list[float]]) -> None:
    body = {"model": "bge-m3:latest", "input": TEXTS, "options": {"num_ctx": 8192}, "keep_alive": 0}
    reply = httpx.post(f"{url}/api/embed", json=body, headers=HEADERS).raise_for_status()
    assert reply.json()["embeddings"] == vectors
    assert reply.json()["model"] == "bge-m3:latest"
    assert "x-ignored-fields" not in reply.headers


def test_the_older_route_embeds_one_prompt(url: str, vectors: list[list[float]]) -> None:
    body = {"model": "bge-m3", "prompt": TEXTS[0]}
    reply = httpx.post(f"{url}/api/embeddings", json=body, headers=HEADERS).raise_for_status()
    assert reply.json() == {"embedding": vectors[0]}


def test_tags_list_the_embedding_models_names(url: str) -> None:
    models = httpx.get(f"{url}/api/tags", headers=HEADERS).json()["models"]
    assert [model["name"] for model in models] == ["miniature/bge-m3:latest", "bge-m3:latest"]
    error = httpx.post(f"{url}/api/embed", json={"model": "x", "input": "a"}, headers=HEADERS)
    assert error.status_code == 404
    assert "`model` must be one of" in error.json()["error"]
