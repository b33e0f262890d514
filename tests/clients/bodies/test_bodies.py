"""Bodies that applications send are answered with the native numbers, or refused with the reason.

A file has the requests of one application. Each names the source that builds its body: repository,
commit and path. `url` is where the application sends the body, after the address that its user
typed. In a body, `$texts`, `$query`, `$0` … and `$dimensions` stand for those of the tests.

    vectors, scores   the path of the list in the reply, and the field of an item that is read
    reads             other fields that the application reads
    refused           the status, and the reason; `at` is where the application looks for it
    key               false: the application sends no key, and the server must want none
    ignored           the fields that `x-ignored-fields` names
    aliases           model names that the application fixes: `BGE_EMBED_ALIASES` and so on
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bge_worker.engine.engine import Engine
from bge_worker.settings import Settings
from fakes.native import QUERY, TEXTS, TOLERANCE, Native, native_replies
from fakes.serving import KEY, serving

APPLICATIONS = [
    json.loads(path.read_text("utf-8")) for path in sorted(Path(__file__).parent.glob("*.json"))
]
REQUESTS = [
    pytest.param(request, id=f"{application['application']}: {request['name']}")
    for application in APPLICATIONS
    for request in application["requests"]
]


@pytest.fixture(scope="module")
def servers(packed: Engine) -> Iterator[dict[bool, Native]]:
    """A server with a key and one without, by whether the application sends a key."""
    aliases = {
        f"{role}_aliases": tuple(
            dict.fromkeys(
                alias
                for application in APPLICATIONS
                for alias in application.get("aliases", {}).get(role, ())
            )
        )
        for role in ("embed", "rerank")
    }
    with (
        serving(packed, Settings(api_key=KEY, **aliases)) as locked,
        serving(packed, Settings(**aliases)) as unlocked,
    ):
        yield {True: native_replies(locked, KEY), False: native_replies(unlocked, None)}


@pytest.mark.parametrize("request_", REQUESTS)
def test_body(request_: dict[str, Any], servers: dict[bool, Native]) -> None:
    server = servers[request_.get("key", True)]
    values = {"$texts": TEXTS, "$query": QUERY, "$dimensions": server.vectors.shape[1]}
    values |= {f"${index}": text for index, text in enumerate(TEXTS)}
    reply = httpx.post(
        server.url + request_["url"],
        json=filled(request_["body"], values),
        headers={"Authorization": f"Bearer {server.key}"} if server.key else {},
    )
    content = reply.json()
    for path in request_.get("reads", ()):
        assert at(content, path) is not None
    if "refused" in request_:
        refused = request_["refused"]
        assert reply.status_code == refused["status"], reply.text
        reason = at(content, refused["at"]) if "at" in refused else json.dumps(content)
        assert refused["reason"] in reason
        return
    assert reply.status_code == 200, reply.text
    assert reply.headers.get("x-ignored-fields") == request_.get("ignored")
    if "vectors" in request_:
        path, field = request_["vectors"]
        vectors = [as_vector(at(item, field)) for item in at(content, path)]
        expected = server.vectors[[TEXTS.index(text) for text in embedded(request_["body"])]]
        np.testing.assert_allclose(vectors, expected, atol=TOLERANCE)
    if "scores" in request_:
        path, field = request_["scores"]
        ranking = [(item["index"], item[field]) for item in at(content, path)]
        top_n = request_["body"].get("top_n") or len(TEXTS)
        assert ranking == server.ranking[:top_n]


def filled(body: Any, values: dict[str, Any]) -> Any:
    """Return a body with the values of its placeholders."""
    if isinstance(body, dict):
        return {field: filled(value, values) for field, value in body.items()}
    if isinstance(body, list):
        return [filled(item, values) for item in body]
    return values.get(body, body) if isinstance(body, str) else body


def embedded(body: dict[str, Any]) -> list[str]:
    """Return the texts whose vectors the reply has."""
    return TEXTS[:1] if "$0" in body.values() else TEXTS


def at(content: Any, path: str) -> Any:
    """Return what is at a path of fields and indices, such as `results.0.document`."""
    for part in path.split(".") if path else ():
        content = content[int(part) if isinstance(content, list) else part]
    return content


def as_vector(value: list[float] | str) -> np.ndarray:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value), dtype="<f4")
    return np.array(value)
