"""The user's TypeScript, `plan/`, against the server, and the blocks of docs/typescript.md."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from bge_worker.engine.engine import Engine
from bge_worker.settings import Settings
from conftest import ROOT
from fakes.native import QUERY, TEXTS, TOLERANCE, Native, native_replies
from fakes.qdrant_server import QdrantServer
from fakes.serving import KEY, serving

FOLDER = Path(__file__).parent
EMBEDDINGS = "src/shared/embeddings/bge-client.ts"
EMBEDDINGS_ROUTER = "src/shared/embeddings/embeddings-router.ts"
RERANKER = "src/shared/reranker/bge-reranker-client.ts"
RERANKER_ROUTER = "src/shared/reranker/reranker-router.ts"
RUNPOD = "src/shared/runpod/runpod-client.ts"
SPARSE = "src/shared/embeddings/sparse.ts"
MIGRATION = "scripts/migrate-to-bge-embeddings.ts"
SEARCH = "src/shared/search/hybrid-search.ts"
PLAN = {  # a path in the user's project → the file in `plan/`
    EMBEDDINGS: "task-1.1.ts",
    EMBEDDINGS_ROUTER: "task-1.2.ts",
    MIGRATION: "task-1.3.ts",
    RERANKER: "task-2.1.ts",
    RERANKER_ROUTER: "task-2.2.ts",
    RUNPOD: "task-3.3.ts",
    "src/shared/logger.ts": "missing/logger.ts",
    "src/shared/embeddings/jina-client.ts": "missing/jina-client.ts",
    "src/shared/jina/reranker-client.ts": "missing/jina-reranker-client.ts",
}
PAGE = (ROOT / "docs" / "typescript.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"^```typescript\n// (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
JINA_VECTORS, JINA_RANKING = [[0]] * len(TEXTS), [{"index": 0, "relevance_score": 0}]
CLOSED_PORT = "http://127.0.0.1:9"

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(
        not (FOLDER / "node_modules").is_dir(), reason="`make test-clients-node` installs esbuild"
    ),
]


class Project(NamedTuple):
    """A folder with TypeScript files, and the environment that its programs run in."""

    folder: Path
    env: dict[str, str]

    def run(self, file: str, function: str, *values: Any, **env: str) -> Any:
        """Return what a function of a file returns, or the text of its error."""
        process = self._node([file, function], json.dumps(values), env)
        assert process.returncode == 0, process.stderr
        result = json.loads(process.stdout.splitlines()[-1])
        return result.get("value", result.get("error"))

    def run_script(self, file: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self._node([file], "", env)

    def _node(
        self, arguments: list[str], stdin: str, env: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["node", "typescript.mjs", str(self.folder / arguments[0]), *arguments[1:]],
            input=stdin,
            env={"PATH": os.environ["PATH"], **self.env, **env},
            cwd=FOLDER,
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture(scope="module")
def server(packed: Engine) -> Iterator[Native]:
    with serving(packed, Settings()) as url:
        yield native_replies(url, None)


@pytest.fixture
def plan(server: Native, tmp_path: Path) -> Project:
    """The plan's files where the plan has them."""
    for path, source in PLAN.items():
        write(tmp_path / path, (FOLDER / "plan" / source).read_text("utf-8"))
    runpod = f"{server.url}/v2/an-endpoint/runsync"
    env = {
        "BGE_EMBEDDINGS_ENDPOINT": server.url,
        "BGE_RERANKER_ENDPOINT": server.url,
        "RUNPOD_EMBEDDINGS_ENDPOINT": runpod,
        "RUNPOD_RERANKER_ENDPOINT": runpod,
        "RUNPOD_API_KEY": KEY,
        "BGE_DIMENSIONS": str(server.vectors.shape[1]),
    }
    return Project(tmp_path, env)


@pytest.fixture
def corrected(plan: Project) -> Project:
    """The plan's files, replaced by those of docs/typescript.md."""
    for path, code in BLOCKS.items():
        write(plan.folder / path, code)
    return plan


@pytest.fixture
def qdrant_url() -> Iterator[str]:
    with QdrantServer() as server:
        yield server.url


@pytest.fixture
def qdrant(qdrant_url: str) -> Iterator[QdrantClient]:
    """A client of the server, which has a collection of the texts and two points without text."""
    with closing(QdrantClient(url=qdrant_url, check_compatibility=False)) as client:
        size = models.VectorParams(size=1024, distance=models.Distance.COSINE)
        client.create_collection("courses", vectors_config=size)
        payloads = [*({"content": text} for text in TEXTS), {"content": " "}, {"title": "no text"}]
        points = [
            models.PointStruct(id=id, vector=[1.0] * 1024, payload=payload)
            for id, payload in enumerate(payloads)
        ]
        client.upsert("courses", points)
        yield client


def write(path: Path, code: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, "utf-8")


def ranked(results: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(result["index"], result["relevance_score"]) for result in results]


def test_embeddings_run_unchanged(plan: Project, server: Native) -> None:
    vectors = plan.run(EMBEDDINGS, "generateEmbeddings", TEXTS)
    np.testing.assert_allclose(vectors, server.vectors, atol=TOLERANCE)
    assert plan.run(EMBEDDINGS, "healthCheck") is True
    refusal = plan.run(EMBEDDINGS, "generateEmbeddings", ["a", ""])
    assert "BGE embeddings returned 400" in refusal
    assert "`input[1]` must not be empty or blank" in refusal


@pytest.mark.parametrize("provider", ["bge", "auto"])
def test_the_embeddings_router_runs_unchanged(provider: str, plan: Project, server: Native) -> None:
    vectors = plan.run(EMBEDDINGS_ROUTER, "generateEmbeddings", TEXTS, EMBEDDINGS_PROVIDER=provider)
    np.testing.assert_allclose(vectors, server.vectors, atol=TOLERANCE)


def test_the_embeddings_router_falls_back_to_jina(plan: Project) -> None:
    env = {"EMBEDDINGS_FALLBACK_TO_JINA": "true", "BGE_EMBEDDINGS_ENDPOINT": CLOSED_PORT}
    assert plan.run(EMBEDDINGS_ROUTER, "generateEmbeddings", TEXTS, **env) == JINA_VECTORS


def test_runpod_runs_unchanged(plan: Project, server: Native) -> None:
    vectors = plan.run(RUNPOD, "generateEmbeddingsRunPod", TEXTS)
    np.testing.assert_allclose(vectors, server.vectors, atol=TOLERANCE)
    assert ranked(plan.run(RUNPOD, "rerankDocumentsRunPod", QUERY, TEXTS)) == server.ranking
    top = plan.run(RUNPOD, "rerankDocumentsRunPod", QUERY, TEXTS, 1)
    assert ranked(top) == server.ranking[:1]
    refusal = plan.run(RUNPOD, "generateEmbeddingsRunPod", ["a", ""])
    assert "RunPod error: ValidationError: `texts[1]` must not be empty or blank" in refusal


def test_the_plans_reranker_reads_another_reply(plan: Project) -> None:
    assert "map is not a function" in plan.run(RERANKER, "rerankDocuments", QUERY, TEXTS)
    env = {"RERANKER_FALLBACK_TO_JINA": "true"}
    assert plan.run(RERANKER_ROUTER, "rerankDocuments", QUERY, TEXTS, **env) == JINA_RANKING


def test_the_plans_runpod_client_does_not_poll(plan: Project, server: Native) -> None:
    """`/run` answers before the end of a job, as `/runsync` does after 90 seconds."""
    env = {"RUNPOD_EMBEDDINGS_ENDPOINT": f"{server.url}/v2/an-endpoint/run"}
    error = plan.run(RUNPOD, "generateEmbeddingsRunPod", TEXTS, **env)
    assert "Cannot read properties of undefined" in error


def test_the_plans_sparse_request_has_another_field(plan: Project, server: Native) -> None:
    code = (FOLDER / "plan" / "task-4.1.ts").read_text("utf-8")
    opening = "export async function sparse(endpoint: string, texts: string[]) {\n"
    write(plan.folder / SPARSE, f"{opening}{code}return response.json();\n}}\n")
    refusal = plan.run(SPARSE, "sparse", server.url, TEXTS)
    assert refusal["error"] == "ValidationError: `inputs` is required"


def test_the_plans_migration_stops_at_a_point_without_text(
    plan: Project, qdrant: QdrantClient, qdrant_url: str
) -> None:
    script = plan.run_script(MIGRATION, QDRANT_URL=qdrant_url)
    assert "BGE embeddings returned 400" in script.stderr
    assert "`input[4]` must be a string. Given: null" in script.stderr
    assert script.stdout == ""
    assert script.returncode == 0
    assert qdrant.count("courses_bge").count == 0


def test_the_corrected_reranker(corrected: Project, server: Native) -> None:
    for file in (RERANKER, RERANKER_ROUTER):
        results = corrected.run(file, "rerankDocuments", QUERY, TEXTS, RERANKER_PROVIDER="auto")
        assert ranked(results) == server.ranking
    top = corrected.run(RERANKER, "rerankDocuments", QUERY, TEXTS, 2)
    assert ranked(top) == server.ranking[:2]
    assert corrected.run(RERANKER, "healthCheck") is True
    assert corrected.run(RERANKER, "healthCheck", {"endpoint": CLOSED_PORT}) is False


@pytest.mark.parametrize("route", ["run", "runsync"])
def test_the_corrected_runpod_client(route: str, corrected: Project, server: Native) -> None:
    endpoint = f"{server.url}/v2/an-endpoint/{route}"
    env = {"RUNPOD_EMBEDDINGS_ENDPOINT": endpoint, "RUNPOD_RERANKER_ENDPOINT": endpoint}
    vectors = corrected.run(RUNPOD, "generateEmbeddingsRunPod", TEXTS, **env)
    np.testing.assert_allclose(vectors, server.vectors, atol=TOLERANCE)
    results = corrected.run(RUNPOD, "rerankDocumentsRunPod", QUERY, TEXTS, 2, **env)
    assert ranked(results) == server.ranking[:2]
    refusal = corrected.run(RUNPOD, "generateEmbeddingsRunPod", ["a", ""], **env)
    assert "FAILED: ValidationError: `texts[1]` must not be empty or blank" in refusal


def test_the_corrected_migration_and_search(
    corrected: Project, server: Native, qdrant: QdrantClient, qdrant_url: str
) -> None:
    script = corrected.run_script(MIGRATION, QDRANT_URL=qdrant_url)
    assert script.returncode == 0, script.stderr
    assert script.stdout == "Migrated 3 points. Without text: [3,4]\n"
    points, _ = qdrant.scroll("courses_bge", with_vectors=True)
    vectors = [point.vector["dense"] for point in points]
    np.testing.assert_allclose(vectors, server.vectors, atol=TOLERANCE)
    assert all(point.vector["sparse"].indices for point in points)
    hits = corrected.run(SEARCH, "search", "courses_bge", QUERY, QDRANT_URL=qdrant_url)
    assert hits[0]["payload"]["content"] == TEXTS[1]
    with pytest.raises(UnexpectedResponse):
        qdrant.query_points("courses_bge", query=vectors[0])  # without `using`
