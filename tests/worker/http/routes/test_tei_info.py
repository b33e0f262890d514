"""TEI's routes without inference."""

from __future__ import annotations

import httpx

from fakes.serving import KEY, TEXTS

HEADERS = {"Authorization": f"Bearer {KEY}"}


def test_info_describes_one_model(url: str) -> None:
    embedder = httpx.get(f"{url}/info", headers=HEADERS).json()
    assert embedder["model_type"] == {"embedding": {"pooling": "cls"}}
    assert embedder["max_input_length"] == 8192
    reranker = httpx.get(f"{url}/reranker/info", headers=HEADERS).json()
    assert list(reranker["model_type"]) == ["reranker"]


def test_tokens_have_their_place_in_the_text(url: str) -> None:
    tokens = httpx.post(f"{url}/tokenize", json={"inputs": TEXTS}, headers=HEADERS).json()
    assert [t["text"] for t in tokens[0] if t["special"]] == ["<s>", "</s>"]
    for text, row in zip(TEXTS, tokens, strict=True):
        covered = {i for t in row for i in range(t["start"], t["stop"])}
        assert covered >= {i for i, character in enumerate(text) if not character.isspace()}
    ids = [[t["id"] for t in row] for row in tokens]
    decoded = httpx.post(f"{url}/decode", json={"ids": ids}, headers=HEADERS).json()
    assert decoded == [text.lower() for text in TEXTS]


def test_ids_outside_the_vocabulary_are_refused(url: str) -> None:
    reply = httpx.post(f"{url}/decode", json={"ids": [10**6]}, headers=HEADERS)
    assert reply.status_code == 422
    assert "`ids` must hold token ids from 0 to" in reply.json()["error"]
