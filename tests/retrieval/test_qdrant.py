"""What Qdrant itself must do: on the server at `QDRANT_URL`, or else on the stand-in."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from qdrant_client import models

from bge_client import Client
from bge_retrieval import (
    AsyncHybridSearch,
    AsyncStore,
    HybridSearch,
    Migration,
    Plan,
    Schema,
    SearchResult,
    Store,
    add_in_place,
    drop_old,
    index,
)
from bge_retrieval.search_run import SearchTarget
from fakes.async_models import ThreadedClient
from points import payloads

RUSSIAN = models.Filter(
    must=[models.FieldCondition(key="metadata.lang", match=models.MatchValue(value="ru"))]
)
QUERIES = ["TCP congestion control", "индекс B-дерево", "список"]


def test_server_and_local_mode_give_the_same_results(
    qdrant: Store, store: Store, worker: Client, passages: list[Any]
) -> None:
    """Index, search with every stage, and migrate."""
    schema = Schema(colbert=True, on_disk=True, quantization="scalar")
    plans = [Plan(colbert=True, rerank=5), Plan(fusion="dbsf"), Plan(dense=False)]
    for target in (qdrant, store):
        index(target, worker, "c", passages[:20], schema=schema)
        if target is qdrant:  # local mode has no payload indexes
            target.create_payload_index("c", "metadata.lang", models.PayloadSchemaType.KEYWORD)
        target.point_alias("live", "c")
        Migration(target, worker, "live", "d").run()
    assert payloads(qdrant, "d") == payloads(store, "d")
    assert "metadata.lang" in qdrant.info("d").payload_schema
    for plan in plans:
        results = [
            HybridSearch(target, worker, "c", plan).search("список", filter=RUSSIAN, explain=True)
            for target in (qdrant, store)
        ]
        # Documents with equal scores may swap; the server stores ColBERT vectors as float16.
        scores = [[hit.score for hit in result] for result in results]
        assert scores[0] == pytest.approx(scores[1], abs=1e-2)
        assert [hit.stages.keys() for hit in results[0]] == [{*hit.stages} for hit in results[0]]


def test_vectors_are_added_in_place(qdrant: Store, worker: Client, passages: list[Any]) -> None:
    params = models.VectorParams(size=512, distance=models.Distance.COSINE)
    qdrant.create_collection("mine", vectors_config={"old": params})
    dense = worker.embed([passage["text"] for passage in passages[:20]]).dense
    assert dense is not None
    points = [
        models.PointStruct(id=n, vector={"old": vector.tolist()}, payload=passages[n])
        for n, vector in enumerate(dense)
    ]
    qdrant.upsert("mine", points)
    assert add_in_place(qdrant, worker, "mine", colbert=True).written == 20
    result = HybridSearch(qdrant, worker, "mine", Plan(colbert=True)).search(passages[3]["text"], 1)
    assert result[0].id == 3


def test_points_are_written_read_changed_and_deleted(qdrant: Store) -> None:
    params = models.VectorParams(size=2, distance=models.Distance.COSINE)
    qdrant.create_collection("c", vectors_config=params)
    points = [models.PointStruct(id=n, vector=[1.0, n], payload={"n": n}) for n in range(5)]
    qdrant.upsert("c", points)
    qdrant.set_payload("c", [1], {"changed": True})
    qdrant.delete("c", [4])
    assert qdrant.count("c") == 4
    assert payloads(qdrant, "c") == {
        0: {"n": 0},
        1: {"n": 1, "changed": True},
        2: {"n": 2},
        3: {"n": 3},
    }
    assert [len(page) for page in qdrant.scroll("c", page=3)] == [3, 1]
    assert {point.id for point in qdrant.sample("c", 9)} == {0, 1, 2, 3}
    request = models.QueryRequest(query=[1.0, 3.0], limit=1, with_payload=True)
    assert qdrant.query_points("c", request)[0].payload == {"n": 3}
    vectors = [models.PointVectors(id=n, vector=[n, 1.0]) for n in (3, 4)]  # 4 does not exist
    qdrant.add_vectors("c", vectors)
    request = models.QueryRequest(query=[3.0, 1.0], limit=1)
    assert qdrant.query_points("c", request)[0].id == 3
    assert qdrant.count("c") == 4


def test_threads_and_tasks_search_alike(
    qdrant: Store, qdrant_url: str, worker: Client, passages: list[Any]
) -> None:
    index(qdrant, worker, "c", passages[:16], schema=Schema(colbert=True))
    plan = Plan(colbert=True, rerank=5)
    engine = HybridSearch(qdrant, worker, "c", plan)

    async def search_all() -> tuple[list[SearchResult], SearchTarget]:
        async with AsyncStore.open(url=qdrant_url) as store:
            engine = AsyncHybridSearch(store, ThreadedClient(worker), "c", plan)
            searches = [engine.search(q, 5, filter=RUSSIAN, explain=True) for q in QUERIES]
            return await asyncio.gather(*searches), await engine.resolve()

    with ThreadPoolExecutor(3) as threads:
        expected = [
            *threads.map(lambda q: engine.search(q, 5, filter=RUSSIAN, explain=True), QUERIES)
        ]
    results, target = asyncio.run(search_all())
    for result, same in zip(results, expected, strict=True):
        assert (result.hits, result.tokens) == (same.hits, same.tokens)
        assert result.seconds.keys() == same.seconds.keys() == {"embed", "qdrant", "rerank"}
    assert (target.collection, target.metadata) == (engine.collection, engine.metadata)


def test_searches_go_on_while_a_migration_moves_the_alias_and_drops_the_source(
    qdrant: Store, worker: Client, passages: list[Any]
) -> None:
    index(qdrant, worker, "first", passages[:20])
    qdrant.point_alias("live", "first")
    engine = HybridSearch(qdrant, worker, "live")
    ids = {passage["_id"] for passage in passages[:20]}

    def search_until_moved(_: int) -> int:
        searches = 0
        while engine.collection == "first":
            assert {hit.document_id for hit in engine.search("список", 20)} == ids
            searches += 1
        return searches

    with ThreadPoolExecutor(4) as threads:
        searches = threads.map(search_until_moved, range(4))
        Migration(qdrant, worker, "live", "second").run()
        drop_old(qdrant, "live")
        assert sum(searches) > 0
    assert {hit.document_id for hit in engine.search("список", 20)} == ids
