"""Search: stages, fusion, filters, aliases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from bge_client import BGEError, Client, ConfigurationError
from bge_retrieval import HybridSearch, Plan, Schema, Store, index, search_run

FILTER = models.Filter(
    must=[models.FieldCondition(key="metadata.lang", match=models.MatchValue(value="ru"))]
)


QUERY = "разделение выборки на обучающую и тестовую"


@pytest.fixture(scope="module")
def course(worker: Client, passages: list[dict[str, Any]]) -> Any:
    """The course material with dense, sparse and ColBERT vectors."""
    with Store(QdrantClient(":memory:")) as store:
        index(store, worker, "course", passages, schema=Schema(colbert=True))
        yield store


def ids(hits: Any) -> list[str]:
    return [hit.document_id for hit in hits]


@pytest.mark.parametrize(
    "plan",
    [
        Plan(sparse=False),
        Plan(dense=False),
        Plan(),
        Plan(fusion="dbsf"),
        Plan(colbert=True),
        Plan(rerank=20),
        Plan(sparse=False, colbert=True, rerank=5),
    ],
    ids=lambda plan: "+".join(k for k, v in vars(plan).items() if v is True) + plan.fusion,
)
def test_explain_returns_the_rank_and_score_of_every_stage(
    course: Store, worker: Client, plan: Plan
) -> None:
    result = HybridSearch(course, worker, "course", plan).search(QUERY, 5, explain=True)
    assert len(result) == 5
    stages = ("rerank", "colbert", "fused", "dense", "sparse")
    final = next(name for name in stages if name in result[0].stages)
    assert [hit.stages[final].rank for hit in result] == [1, 2, 3, 4, 5]
    assert [hit.stages[final].score for hit in result] == pytest.approx(
        [hit.score for hit in result]
    )
    plain = HybridSearch(course, worker, "course", plan).search(QUERY, 5)
    assert ids(plain) == ids(result)
    assert plain[0].stages == {}


def test_every_plan_finds_the_relevant_passage(course: Store, worker: Client) -> None:
    for plan in (Plan(dense=False), Plan(), Plan(colbert=True), Plan(rerank=20)):
        engine = HybridSearch(course, worker, "course", plan)
        assert "net-07" in ids(engine.search("TCP congestion control", 5)), plan


def test_rrf_is_the_sum_of_weighted_reciprocal_ranks(course: Store, worker: Client) -> None:
    plan = Plan(rrf_k=7, weights=(1.0, 3.0), candidates=50)
    result = HybridSearch(course, worker, "course", plan).search(QUERY, 20, explain=True)
    for hit in result:
        legs = [(hit.stages.get("dense"), 1.0), (hit.stages.get("sparse"), 3.0)]
        expected = sum(1 / (leg.rank / weight + 7 - 1) for leg, weight in legs if leg)
        assert hit.score == pytest.approx(expected)


def test_the_filter_applies_to_every_stage(course: Store, worker: Client) -> None:
    engine = HybridSearch(course, worker, "course", Plan(candidates=5, colbert=True, rerank=3))
    result = engine.search("TCP congestion control", 5, filter=FILTER)
    assert len(result) == 5  # the unfiltered best five are English
    assert {hit.payload["metadata"]["lang"] for hit in result} == {"ru"}


def test_an_alias_is_followed_when_it_moves(
    store: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        index(store, worker, name, [{"_id": name, "text": "море"}])
    store.point_alias("live", "one")
    engine = HybridSearch(store, worker, "live")
    assert ids(engine.search("море")) == ["one"]
    store.point_alias("live", "two")
    monkeypatch.setattr(search_run, "ALIAS_TTL_SECONDS", 0.0)
    assert ids(engine.search("море")) == ["two"]


def test_a_search_resolves_the_alias_again_when_its_collection_was_dropped(
    store: Store, worker: Client
) -> None:
    index(store, worker, "one", [{"_id": "old", "text": "море"}])
    store.point_alias("live", "one")
    engine = HybridSearch(store, worker, "live", Plan(rerank=1))
    index(store, worker, "two", [{"_id": "new", "text": "море"}])
    store.point_alias("live", "two")
    store.delete_collection("one")
    assert ids(engine.search("море", explain=True)) == ["new"]
    store.delete_collection("two")
    with pytest.raises(BGEError):
        engine.search("море")


class CountingStore(Store):
    """Counts the resolutions of a name. They wait until `proceed` is set."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.client)
        self.resolutions = 0
        self.resolving, self.proceed = threading.Event(), threading.Event()
        self.proceed.set()

    def resolve(self, name: str) -> str:
        self.resolutions += 1
        self.resolving.set()
        assert self.proceed.wait(20)
        return super().resolve(name)


@pytest.fixture
def moving(store: Store, worker: Client) -> CountingStore:
    """Collections `one` and `two`, the first one behind the alias `live`."""
    for name in ("one", "two"):
        index(store, worker, name, [{"_id": name, "text": "море"}])
    store.point_alias("live", "one")
    return CountingStore(store)


def test_one_thread_resolves_a_stale_alias_while_others_search(
    moving: CountingStore, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = HybridSearch(moving, worker, "live")
    moving.point_alias("live", "two")
    monkeypatch.setattr(search_run, "ALIAS_TTL_SECONDS", 0.0)
    moving.resolving.clear()
    moving.proceed.clear()
    with ThreadPoolExecutor(1) as thread:
        resolving = thread.submit(engine.search, "море")
        assert moving.resolving.wait(20)
        assert ids(engine.search("море")) == ["one"]
        assert moving.resolutions == 2
        moving.proceed.set()
        assert ids(resolving.result()) == ["two"]


def test_one_thread_resolves_the_alias_of_a_dropped_collection(
    moving: CountingStore, worker: Client
) -> None:
    engine = HybridSearch(moving, worker, "live")
    moving.point_alias("live", "two")
    moving.delete_collection("one")
    with ThreadPoolExecutor(8) as threads:
        results = [*threads.map(engine.search, ["море"] * 8)]
    assert [ids(result) for result in results] == [["two"]] * 8
    assert moving.resolutions == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense": False, "sparse": False}, "at least one of `dense` and `sparse`"),
        ({"fusion": "sum"}, "`fusion` must be rrf or dbsf. Given: sum"),
        ({"rrf_k": 0}, "`rrf_k` must be at least 1. Given: 0"),
        ({"weights": (0.0, 0.0)}, "`weights` must be numbers of at least 0, not both 0"),
        ({"weights": (1.0,)}, "`weights` must be two numbers. Given: 1"),
        ({"candidates": 0}, "`candidates` must be at least 1"),
    ],
)
def test_an_invalid_plan_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Plan(**options)
