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
from clients.cases import NODE_CASES, Case
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


def call_case(case: Case, url: str, *values: Any) -> Any:
    module = Path(case.script).stem
    result = call(module, case.function or case.task, url, *values)
    assert "error" not in result, result
    return result["value"]


def of_task(task: str) -> list[Any]:
    return [pytest.param(case, id=case.id) for case in NODE_CASES if case.task == task]


@pytest.mark.parametrize("case", of_task("embed"))
def test_embed(case: Case, server: Native) -> None:
    vectors = call_case(case, server.url, TEXTS)
    np.testing.assert_allclose(vectors, server.vectors, atol=TOLERANCE)


@pytest.mark.parametrize("case", of_task("rerank"))
def test_rerank(case: Case, server: Native) -> None:
    ranking = call_case(case, server.url, QUERY, TEXTS)
    assert [tuple(item) for item in ranking] == server.ranking


def test_similarity(server: Native) -> None:
    result = call("huggingface", "similarity", server.url, TEXTS[0], TEXTS[1:])
    cosines = server.vectors[1:] @ server.vectors[0]
    np.testing.assert_allclose(result["value"], cosines, atol=TOLERANCE)


@pytest.mark.parametrize("client", sorted({Path(case.script).stem for case in NODE_CASES}))
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
