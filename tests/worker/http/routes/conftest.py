"""A server with a key, and what its native routes reply."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from bge_worker.engine.engine import Engine
from bge_worker.settings import Settings
from fakes.serving import KEY, QUERY, TEXTS, serving


@pytest.fixture(scope="module")
def url(packed: Engine) -> Iterator[str]:
    with serving(packed, Settings(api_key=KEY)) as url:
        yield url


def native(url: str, route: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = httpx.post(
        f"{url}/native/{route}", json=body, headers={"Authorization": f"Bearer {KEY}"}
    )
    return dict(reply.raise_for_status().json())


@pytest.fixture(scope="module")
def vectors(url: str) -> list[list[float]]:
    return list(native(url, "embed", {"texts": TEXTS})["embeddings"])


@pytest.fixture(scope="module")
def ranking(url: str) -> list[tuple[int, float]]:
    reply = native(url, "rerank", {"query": QUERY, "documents": TEXTS})
    return [(r["index"], r["relevance_score"]) for r in reply["results"]]
