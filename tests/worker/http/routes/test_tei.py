"""text-embeddings-inference's routes."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from fakes.serving import KEY, TEXTS


def test_bodies_and_replies(url: str) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        body = {"texts": TEXTS, "return_sparse": True}
        native = client.post("/native/embed", json=body).json()
        dense = client.post("/embed", json={"inputs": TEXTS}).json()
        sparse = client.post("/embed_sparse", json={"inputs": TEXTS}).json()
        body = {"query": "минимум", "texts": TEXTS, "return_text": True}
        ranked = client.post("/rerank", json=body).json()
    np.testing.assert_allclose(dense, native["embeddings"], atol=1e-6)
    assert [{v["index"]: v["value"] for v in vector} for vector in sparse] == [
        dict(zip(v["indices"], v["values"], strict=True)) for v in native["sparse_embeddings"]
    ]
    assert [(r["index"], r["text"]) for r in ranked] == [(0, TEXTS[0]), (1, TEXTS[1])]
    assert ranked[0]["score"] > ranked[1]["score"]


def test_huggingface_inference_client_raises_its_own_errors(url: str) -> None:
    client = InferenceClient(model=f"{url}/embed", token=KEY)
    with pytest.raises(HfHubHTTPError, match="422"):
        client.feature_extraction(" ")


def post(url: str, path: str, body: dict[str, object]) -> httpx.Response:
    return httpx.post(f"{url}{path}", json=body, headers={"Authorization": f"Bearer {KEY}"})


def test_similarity_refuses_a_text_that_is_too_long_unless_told_to_truncate(url: str) -> None:
    body = {"inputs": {"source_sentence": "a", "sentences": ["b", "слово " * 9000]}}
    refused = post(url, "/similarity", body)
    assert refused.status_code == 422
    assert "`inputs.sentences[1]`" in refused.json()["error"]
    assert post(url, "/similarity", body | {"parameters": {"truncate": True}}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"texts": None, "inputs": "x"}),
        ("/rerank", {"documents": None, "query": "x", "texts": ["y"]}),
        ("/tokenize", {"prompt": None, "inputs": "x"}),
    ],
)
def test_a_null_does_not_choose_the_dialect(url: str, path: str, body: dict[str, object]) -> None:
    assert post(url, path, body).status_code == 200


def test_errors_are_in_the_dialect_of_the_body(url: str) -> None:
    tei = post(url, "/tokenize", {"inputs": ""})
    assert (tei.status_code, type(tei.json()["error"])) == (422, str)
    vllm = post(url, "/tokenize", {"prompt": 1})
    assert (vllm.status_code, type(vllm.json()["error"])) == (400, dict)
