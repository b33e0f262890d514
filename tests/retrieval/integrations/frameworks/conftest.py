"""Fixtures of the frameworks' tests, which run in environments without the worker.

`test_frameworks.py` starts the worker and Qdrant's stand-in, and sets `BGE_EMBEDDINGS_ENDPOINT` and
`QDRANT_URL`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from bge_client import AsyncClient, Client
from bge_retrieval import AsyncHybridSearch, AsyncStore, HybridSearch, Store, evaluation, index
from bge_retrieval.evaluation.systems import Ranking

COURSE = Path(__file__).resolve().parents[4] / "retrieval" / "examples" / "course"
QDRANT_URL = os.environ["QDRANT_URL"]
KIND = "hybrid+rerank"  # of a system of `bge evaluate`
PLAN = evaluation.PLANS[KIND]
QUERIES = 20


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    with Client() as client:
        yield client


@pytest.fixture
async def async_client() -> AsyncIterator[AsyncClient]:
    async with AsyncClient() as client:
        yield client


@pytest.fixture(scope="session")
def passages() -> list[dict[str, str]]:
    lines = (COURSE / "corpus.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def search(client: Client, passages: list[dict[str, str]]) -> Iterator[HybridSearch]:
    """Search in the course, as `bge evaluate` does."""
    with Store.open(url=QDRANT_URL) as store:
        index(store, client, "course", passages, text_fields=["title", "text"])
        yield HybridSearch(store, client, "course", PLAN)


@pytest.fixture
async def async_search(
    search: HybridSearch, async_client: AsyncClient
) -> AsyncIterator[AsyncHybridSearch]:
    async with AsyncStore.open(url=QDRANT_URL) as store:
        yield AsyncHybridSearch(store, async_client, "course", PLAN)


@pytest.fixture(scope="session")
def evaluated_ndcg(search: HybridSearch) -> float:
    """The nDCG@10 that `bge evaluate` prints for the plan."""
    options = ["--collection", "course", "--systems", KIND, "--queries", f"{QUERIES}", "--json"]
    command = [sys.executable, "-m", "bge_client", "evaluate", str(COURSE), *options]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (system,) = json.loads(output)["systems"]
    return float(system["means"]["nDCG@10"])


@pytest.fixture(scope="session")
def ndcg() -> Callable[[dict[str, Ranking]], float]:
    """nDCG@10 of rankings by the text of the query."""

    def compute(rankings: dict[str, Ranking]) -> float:
        def answer(query: str) -> evaluation.Answer:
            return evaluation.Answer(rankings[query], 0.0)

        judged = evaluation.read_beir(COURSE)
        drawn = judged.draw(QUERIES)
        qrels = {query_id: judged.qrels[query_id] for query_id in drawn}
        system = evaluation.System("framework", answer, evaluation.Price())
        runs = evaluation.run_all([system], drawn, warmup=0)
        return evaluation.compare(runs, qrels, system.name).systems[0].means["nDCG@10"]

    return compute


@pytest.fixture(scope="session")
def queries() -> list[str]:
    return [*evaluation.read_beir(COURSE).draw(QUERIES).values()]
