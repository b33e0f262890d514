"""Any request body gets a response that the route documents, in strict JSON, never a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_worker.engine.engine import Engine
from bge_worker.settings import Settings
from fakes.serving import serving
from fuzz.duration import fuzz_settings, rounds
from fuzz.mutation import mutated, mutated_bytes

TEXT = "море и суша"
BODIES: dict[str, Any] = {
    "/native/embed": {
        "texts": [TEXT, "a"],
        "return_sparse": True,
        "max_length": 16,
        "encoding_format": "base64",
        "dtype": "float16",
    },
    "/native/rerank": {"query": TEXT, "documents": [TEXT, {"text": "a"}], "top_n": 1},
    "/v1/embeddings": {"input": [TEXT], "model": "miniature/bge-m3", "dimensions": 512},
    "/rerank": {"query": TEXT, "documents": [TEXT], "return_documents": True},
    "/embed": {"inputs": TEXT, "truncate": True},
    "/v2/embed": {"texts": [TEXT], "embedding_types": ["int8", "float"], "truncate": "END"},
    "/api/embed": {"input": [TEXT], "model": "bge-m3:latest", "options": {}},
    "/score": {"text_1": TEXT, "text_2": [TEXT, "a"], "truncate_prompt_tokens": 20},
    "/tokenize": {"inputs": [TEXT], "add_special_tokens": True},
    "/decode": {"ids": [[0, 5, 2]], "skip_special_tokens": True},
    "/similarity": {"inputs": {"source_sentence": TEXT, "sentences": [TEXT, "a"]}},
    "/runsync": {
        "input": {"texts": [TEXT], "return_dense": True},
        "policy": {"ttl": 10_000, "executionTimeout": 10_000},
    },
    "/run": {"input": {"openai_route": "/v1/embeddings", "openai_input": {"input": TEXT}}},
}
DOCUMENTED = {200, 400, 404, 408, 413, 422, 429}


@pytest.fixture(scope="module")
def client(packed: Engine) -> Iterator[httpx.Client]:
    with serving(packed, Settings()) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def bodies(valid: Any) -> st.SearchStrategy[bytes]:
    """Mutated JSON as Python writes it, with NaN and lone surrogates, and damaged bytes."""
    return mutated(valid).map(lambda value: json.dumps(value).encode()) | mutated_bytes(
        json.dumps(valid).encode()
    )


@pytest.mark.parametrize("route", BODIES)
def test_any_body_is_answered(route: str, client: httpx.Client) -> None:
    @fuzz_settings(examples=15)
    @given(bodies(BODIES[route]))
    def check(body: bytes) -> None:
        reply = client.post(route, content=body)
        assert reply.status_code in DOCUMENTED
        answer = json.loads(reply.content, parse_constant=pytest.fail)
        if reply.status_code != 200:
            assert answer["error"]

    for _ in rounds():
        check()
