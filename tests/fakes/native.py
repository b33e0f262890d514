"""What a server's native routes reply to a query and three texts: the numbers of every client."""

from __future__ import annotations

from typing import NamedTuple

import httpx
import numpy as np

QUERY = "как найти минимум функции"
TEXTS = [
    "A transaction is all or nothing.",
    "Градиентный спуск ищет минимум функции.",
    "Море шумит у берега.",
]
TOLERANCE = 1e-5  # of a text alone and in a batch


class Native(NamedTuple):
    """Replies of the server at `url`; `key` is None for one that wants none."""

    url: str
    key: str | None
    vectors: np.ndarray
    ranking: list[tuple[int, float]]


def native_replies(url: str, key: str | None) -> Native:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=f"{url}/native", headers=headers, timeout=60) as client:
        embedded = client.post("/embed", json={"texts": TEXTS}).raise_for_status()
        reranked = client.post("/rerank", json={"query": QUERY, "documents": TEXTS})
    vectors = np.array(embedded.json()["embeddings"])
    results = reranked.raise_for_status().json()["results"]
    return Native(url, key, vectors, [(r["index"], r["relevance_score"]) for r in results])
