"""Native routes."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from bge_worker.engine.engine import Engine
from bge_worker.settings import Settings
from fakes.serving import KEY, QUERY, TEXTS, serving


def test_the_plan_s_own_calls(packed: Engine, vectors: list[list[float]]) -> None:
    """As its TypeScript clients make them: no model, no key, fields that are null."""
    with serving(packed, Settings()) as url:
        reply = httpx.post(f"{url}/embeddings", json={"input": TEXTS})
        assert [item["embedding"] for item in reply.raise_for_status().json()["data"]] == vectors
        body = {"query": QUERY, "documents": TEXTS, "top_n": None, "return_documents": False}
        for route in ("/rerank", "/native/rerank"):
            results = httpx.post(url + route, json=body).raise_for_status().json()["results"]
            assert [result["index"] for result in results] == [0, 1]
        job = httpx.post(f"{url}/runsync", json={"input": body}).raise_for_status().json()
        assert job["output"]["results"] == results
        assert httpx.get(f"{url}/health").status_code == 200


def test_info_is_that_of_the_payload(url: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    info = httpx.get(f"{url}/native/info", headers=headers).raise_for_status().json()
    job = httpx.post(f"{url}/runsync", json={"input": {"info": True}}, headers=headers).json()
    assert info == job["output"]
    assert httpx.get(f"{url}/native/info").status_code == 401


@pytest.mark.parametrize(
    ("body", "details"),
    [
        ({"texts": ["a", ""]}, {"field": "texts", "index": 1}),
        ({"texts": ["a", 7]}, {"field": "texts", "index": 1}),
        ({"texts": "a", "max_length": 9000}, {"field": "max_length", "limit": 8192}),
        (
            {"texts": ["a", "a b c d"], "max_length": 3, "truncate": False},
            {"field": "texts", "index": 1, "limit": 3},
        ),
        ({"texts": "a", "colour": 1}, {}),
    ],
)
def test_an_error_has_its_details_beside_the_message(
    url: str, body: dict[str, Any], details: dict[str, Any]
) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    error = httpx.post(f"{url}/native/embed", json=body, headers=headers).json()
    assert error.pop("error").startswith("ValidationError: ")
    assert error == details
