"""Routing: a body goes to the route of its dialect, and every dialect gives the same numbers."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from fakes.serving import TEXTS


def test_dialects_agree(url: str) -> None:
    """The bodies need neither a model nor a key, and a null is an absent field."""
    with httpx.Client(base_url=url, timeout=60) as client:
        native, openai, tei, job = (
            client.post(path, json=body).raise_for_status().json()
            for path, body in (
                ("/native/embed", {"texts": TEXTS}),
                ("/embeddings", {"input": TEXTS, "model": None}),
                ("/embed", {"inputs": TEXTS}),
                ("/runsync", {"input": {"texts": TEXTS}}),
            )
        )
        vectors = [item["embedding"] for item in openai["data"]]
        for converted in (vectors, tei, job["output"]["embeddings"]):
            np.testing.assert_allclose(converted, native["embeddings"], atol=1e-6)
        body = {"query": "минимум", "documents": TEXTS, "top_n": None, "return_documents": False}
        rankings = [
            client.post(path, json=body).raise_for_status().json()["results"]
            for path in ("/native/rerank", "/rerank", "/v1/rerank", "/v2/rerank")
        ]
        assert [result["index"] for result in rankings[0]] == [0, 1]
        assert rankings == [rankings[0]] * 4


def test_a_body_goes_to_the_route_whose_key_it_holds(url: str) -> None:
    cohere = httpx.post(f"{url}/rerank", json={"query": "q", "documents": ["a"]}).json()
    tei = httpx.post(f"{url}/rerank", json={"query": "q", "texts": ["a"]}).json()
    assert tei == [{"index": 0, "score": pytest.approx(cohere["results"][0]["relevance_score"])}]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/status/{job_id}", 404),
        ("GET", "/ping", 200),
        ("GET", "/docs", 200),
        ("GET", "/v1/models", 200),
        ("POST", "/nowhere", 404),
        ("GET", "/native/embed", 405),
        ("POST", "/ping", 405),
    ],
)
def test_paths_and_methods(method: str, path: str, status: int, url: str) -> None:
    assert httpx.request(method, url + path).status_code == status


@pytest.mark.parametrize("path", ["/native/embed", "/run"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON"),
        (b"sea", "the body is not JSON"),
        (b'{"texts": NaN}', "the body is not JSON"),
        (b'{"texts": "\\ud800"}', "the body is not JSON"),
        (b"[]", "must be an object. Given: a list"),
        (b"[" + b"[]," * 2_000_000 + b"[]]", "must hold at most 1048576 values"),
        (b"[" * 100_000, "at most 64 levels deep"),
    ],
    ids=["empty", "text", "NaN", "surrogate", "list", "values", "depth"],
)
def test_a_body_that_is_no_json_object_is_refused(
    path: str, body: bytes, message: str, url: str
) -> None:
    reply = httpx.post(url + path, content=body)
    assert reply.status_code == 422
    assert message in reply.json()["error"]


def test_slashes_are_ignored_and_an_unknown_path_is_told_the_nearest(url: str) -> None:
    assert httpx.post(f"{url}//v1//embeddings/", json={"input": "a"}).status_code == 200
    reply = httpx.post(f"{url}/v1/embedding", json={"input": "a"})
    assert reply.status_code == 404
    message = "NotServedError: no such route. The nearest is `/v1/embeddings`"
    body = reply.json()
    assert body["error"]["message"] == body["detail"] == body["message"] == message


def test_a_model_name_with_a_newline_is_refused_as_openai_refuses(url: str) -> None:
    response = httpx.get(f"{url}/v1/models/%0A")
    assert response.status_code == 404
    assert {"message", "type", "param", "code"} <= response.json()["error"].keys()
