"""Every client's vectors and scores are those of the native routes.

`make test-clients` runs the clients with environments of their own, `make test` the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bge_worker.engine.engine import Engine
from bge_worker.settings import Settings
from clients.cases import CASES, FOLDER, PAGE, PROJECT, Case, page
from conftest import ROOT
from fakes.serving import KEY, serving

QUERY = "как найти минимум функции"
DOCUMENTS = [
    "A transaction is all or nothing.",
    "Градиентный спуск ищет минимум функции.",
    "Море шумит у берега.",
]
BLANK = " "  # is refused
TOLERANCE = 1e-5  # of a text alone and in a batch


class Server:
    """A server, and what its native routes reply to the texts of the tests."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(base_url=f"{url}/native", headers=headers) as client:
            body = {"texts": DOCUMENTS, "return_sparse": True}
            embedded = client.post("/embed", json=body).raise_for_status().json()
            body = {"query": QUERY, "documents": DOCUMENTS}
            reranked = client.post("/rerank", json=body).raise_for_status().json()
        self.vectors = np.array(embedded["embeddings"])
        self.sparse = [(v["indices"], v["values"]) for v in embedded["sparse_embeddings"]]
        self.ranking = [(r["index"], r["relevance_score"]) for r in reranked["results"]]


@pytest.fixture(scope="module")
def servers(packed: Engine) -> Iterator[dict[bool, Server]]:
    """Servers with a key and without, by whether the client sends one."""
    with (
        serving(packed, Settings(api_key=KEY)) as locked,
        serving(packed, Settings()) as unlocked,
    ):
        yield {True: Server(locked, KEY), False: Server(unlocked, None)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_client(
    case: Case, servers: dict[bool, Server], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if case.group != PROJECT and not request.config.getoption("--clients"):
        pytest.skip("`make test-clients` installs this client")
    server = servers[case.sends_key]
    result, refusal = run(case, server.url, tmp_path)
    if case.error:
        assert case.error in result.get("error", "no error")
        return
    assert "error" not in result, result["error"]
    check(case, result["value"], server)
    shows_errors = "must not be empty or blank" in refusal.get("error", "")
    assert shows_errors == case.shows_errors, refusal


def run(case: Case, url: str, home: Path) -> list[dict[str, Any]]:
    """Call the client with the texts, then with a blank one, in an empty environment."""
    interpreter = ROOT / f".venv-clients-{case.group}" / "bin" / "python"
    python = sys.executable if case.group == PROJECT else str(interpreter)
    script = FOLDER / case.script
    command = [python, "-P", str(FOLDER / "run.py"), str(script), case.task]
    client = {"url": url + case.path, "key": KEY, "model": case.model}
    query, texts = ({"query": QUERY}, "documents") if case.task == "rerank" else ({}, "texts")
    arguments = [
        {**client, **query, texts: documents} for documents in (DOCUMENTS, [*DOCUMENTS, BLANK])
    ]
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        # Requests to other hosts, which the clients send beside those to the server.
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    process = subprocess.run(
        command, input=json.dumps(arguments), capture_output=True, text=True, env=env, timeout=120
    )
    assert process.returncode == 0, process.stderr
    return list(json.loads(process.stdout.splitlines()[-1]))


def check(case: Case, value: Any, server: Server) -> None:
    close = partial(np.testing.assert_allclose, rtol=0, atol=TOLERANCE)
    if case.task == "rerank":
        indices, scores = zip(*server.ranking[: len(value)], strict=True)
        assert [index for index, _ in value] == list(indices)
        close([score for _, score in value], scores)
        assert len(value) >= 2  # the default of some
    elif case.task == "similarity":
        close(value, server.vectors[1:] @ server.vectors[0])
    elif case.task == "sparse":
        for (indices, values), expected in zip(value, server.sparse, strict=True):
            assert indices == expected[0]
            close(values, expected[1])
    else:
        vectors = np.array(value)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        assert case.is_normalized == np.allclose(norms, 1, atol=1e-3)
        close(vectors / norms, server.vectors)


def test_the_page_is_written_from_the_cases() -> None:
    assert PAGE.read_text("utf-8") == page(), "run `python tests/clients/cases.py`"


def test_every_script_has_a_case() -> None:
    groups = {case.script.partition("/")[0] for case in CASES}
    files = [path for group in groups for path in (FOLDER / group).glob("*.py")]
    scripts = {str(path.relative_to(FOLDER)) for path in files}
    assert scripts == {case.script for case in CASES}
