"""Cohere's own client."""

from __future__ import annotations

import cohere
import httpx
import numpy as np
import pytest

from fakes.serving import KEY, QUERY, RERANK_MODEL, TEXTS


def test_cohere(url: str, ranking: list[tuple[int, float]]) -> None:
    with httpx.Client() as transport:  # its own is never closed
        client = cohere.ClientV2(api_key=KEY, base_url=url, httpx_client=transport)
        reply = client.rerank(model=RERANK_MODEL, query=QUERY, documents=TEXTS, top_n=2)
        assert [(r.index, r.relevance_score) for r in reply.results] == ranking
        with pytest.raises(cohere.BadRequestError, match="`top_n` must be an integer"):
            client.rerank(model=RERANK_MODEL, query=QUERY, documents=TEXTS, top_n=0)


@pytest.mark.parametrize("path", ["/v1/embed", "/v2/embed"])
def test_every_embedding_type_is_a_view_of_the_same_vectors(
    path: str, url: str, vectors: list[list[float]]
) -> None:
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    body = {"texts": TEXTS, "input_type": "search_query", "embedding_types": types}
    headers = {"Authorization": f"Bearer {KEY}"}
    embeddings = httpx.post(url + path, json=body, headers=headers).json()["embeddings"]
    assert list(embeddings) == types
    assert embeddings["float"] == vectors
    vector = np.array(vectors[0])
    np.testing.assert_allclose(
        embeddings["int8"][0], vector * 127 / np.abs(vector).max(), atol=0.51
    )
    assert embeddings["ubinary"][0] == np.packbits(vector > 0).tolist()


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (
            "/v2/embed",
            {"texts": ["a"], "embedding_types": ["x"]},
            "`embedding_types[0]` must be one",
        ),
        ("/embeddings", {"input": "a", "embedding_type": "x"}, "`embedding_type` must be one of"),
        ("/rerank", {"query": "q", "documents": ["a"], "return_documents": "x"}, '"true", "false"'),
    ],
)
def test_an_unknown_keyword_is_refused(
    path: str, body: dict[str, object], reason: str, url: str
) -> None:
    reply = httpx.post(url + path, json=body, headers={"Authorization": f"Bearer {KEY}"})
    assert reply.status_code in (400, 422)
    assert reason in reply.text.replace("\\", "")
