"""JavaScript clients, unchanged and with their defaults, reply what the native routes do.

`make test-clients-node` installs them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_worker.engine.engine import Engine
from bge_worker.settings import Settings
from fakes.native import QUERY, TEXTS, TOLERANCE, Native, native_replies
from fakes.serving import KEY, serving

FOLDER = Path(__file__).parent
NAMES = ["miniature/bge-m3", "bge-m3"]
RERANKER_NAMES = ["miniature/bge-reranker-v2-m3", "bge-reranker-v2-m3"]

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(
        not (FOLDER / "node_modules").is_dir(), reason="`make test-clients-node` installs these"
    ),
]


@pytest.fixture(scope="module")
def server(packed: Engine) -> Iterator[Native]:
    with serving(packed, Settings(api_key=KEY)) as url:
        yield native_replies(url, KEY)


def call(client: str, function: str, url: str, *values: Any, key: str = KEY) -> dict[str, Any]:
    """Return the `value` of a client's function, or its `error`."""
    process = subprocess.run(
        ["node", "run.mjs", client, function],
        input=json.dumps({"server": {"url": url, "key": key}, "values": values}),
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    return dict(json.loads(process.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("client", "function"),
    [
        ("openai", "embed"),
        ("langchain-openai", "embed"),
        ("cohere-ai", "embed"),
        ("cohere-ai", "embedV1"),
        ("langchain-cohere", "embed"),
        ("huggingface", "embed"),
        ("huggingface", "embedPath"),
        ("ollama", "embed"),
        ("ollama", "embedPrompts"),
        ("runpod-sdk", "embed"),
        ("runpod-sdk", "embedQueued"),
    ],
)
def test_embed(client: str, function: str, server: Native) -> None:
    result = call(client, function, server.url, TEXTS)
    assert "error" not in result, result
    np.testing.assert_allclose(result["value"], server.vectors, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("client", "function"),
    [
        ("cohere-ai", "rerank"),
        ("cohere-ai", "rerankV1"),
        ("langchain-cohere", "rerank"),
        ("runpod-sdk", "rerank"),
    ],
)
def test_rerank(client: str, function: str, server: Native) -> None:
    result = call(client, function, server.url, QUERY, TEXTS)
    assert "error" not in result, result
    assert [tuple(item) for item in result["value"]] == server.ranking


def test_similarity(server: Native) -> None:
    result = call("huggingface", "similarity", server.url, TEXTS[0], TEXTS[1:])
    cosines = server.vectors[1:] @ server.vectors[0]
    np.testing.assert_allclose(result["value"], cosines, atol=TOLERANCE)


@pytest.mark.parametrize(
    "client",
    ["openai", "langchain-openai", "cohere-ai", "huggingface", "ollama", "runpod-sdk"],
)
def test_clients_show_the_reason_of_a_refusal(client: str, server: Native) -> None:
    result = call(client, "embed", server.url, ["a", " "])
    assert "must not be empty or blank" in result["error"]


def test_models(server: Native) -> None:
    assert call("openai", "models", server.url)["value"] == [*NAMES, *RERANKER_NAMES]
    tagged = [f"{name}:latest" for name in NAMES]
    assert call("ollama", "models", server.url)["value"] == tagged


def test_runpod_health(server: Native) -> None:
    health = call("runpod-sdk", "health", server.url)["value"]
    assert health["workers"]["idle"] + health["workers"]["running"] >= 1
