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
