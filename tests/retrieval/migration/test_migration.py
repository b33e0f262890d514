"""A migration loses, duplicates and mixes up no points, even if it is killed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from bge_client import Client, ConfigurationError, FingerprintError
from bge_retrieval import (
    CollectionMetadata,
    HybridSearch,
    Migration,
    MigrationError,
    Plan,
    Schema,
    Store,
    index,
    load_probe,
    sync,
)
from bge_retrieval.schema import COLBERT_CUT
from fakes.killed_client import Killed, KilledClient
from fakes.qdrant_server import QdrantServer
from points import DIMENSIONS, assert_equal, contents, make_old, payloads, put


def test_the_copy_has_every_point_and_the_alias_points_to_it(old: Store, worker: Client) -> None:
    before = contents(old, "old")
    report = Migration(old, worker, "live", "new").run()
    assert payloads(old, "new") == payloads(old, "old")
    assert old.aliases() == {"live": "new"}
    assert load_probe(old, "live") is not None
    assert payloads(old, "old") == {id: payload for id, (payload, _) in before.items()}
    assert (report.points, report.passes, report.written, report.compared) == (30, 3, 30, 30)
    hits = HybridSearch(old, worker, "live", Plan(sparse=False)).search("список")
    assert len(hits) == 10


def test_the_source_is_never_written_to(worker: Client, passages: list[dict[str, Any]]) -> None:
    with QdrantServer() as server, Store.open(url=server.url) as store:
        make_old(store, passages[:30])
        before = len(server.routes())
        Migration(store, worker, "live", "new").run()
        routes = {route for route in server.routes()[before:] if "/collections/old" in route}
    reads = ("GET /", "POST /collections/old/points/query", "POST /collections/old/points/scroll")
    retrieve_or_count = {"POST /collections/old/points", "POST /collections/old/points/count"}
    assert {route for route in routes if not route.startswith(reads)} <= retrieve_or_count


def test_a_migration_killed_at_any_call_ends_the_same_when_run_again(
    worker: Client, passages: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "PAGE", 2)
    documents = [*passages[:3], {"_id": "bare"}]

    def fresh() -> Store:
        return make_old(Store(QdrantClient(":memory:")), documents)

    uninterrupted = fresh()
    counting = KilledClient(uninterrupted.client, 0)
    Migration(Store(counting), worker, "live", "new").run()  # type: ignore[arg-type]
    expected = contents(uninterrupted, "new")
    for kill_at in range(1, counting.calls + 1):
        store = fresh()
        killed = Store(KilledClient(store.client, kill_at))  # type: ignore[arg-type]
        with pytest.raises(Killed):
            Migration(killed, worker, "live", "new").run()
        Migration(store, worker, "live", "new").run()
        assert_equal(contents(store, "new"), expected)
        assert store.aliases() == {"live": "new"}


def test_changes_during_the_migration_are_copied(
    old: Store, worker: Client, passages: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points are added, changed and deleted before and after the position of the pass."""
    monkeypatch.setattr(sync, "PAGE", 4)
    rng, texts = random.Random(7), iter(passages[30:])

    def change(_: int) -> None:
        if (new := next(texts, None)) is not None:
            put(old, (1000 + rng.randrange(500), new))
            put(old, (rng.randrange(30), {"text": f"изменён {new['title']}"}))
            old.delete("old", [rng.randrange(30)])

    report = Migration(old, worker, "live", "new", progress=change).run()
    assert report.passes > 2
    assert payloads(old, "new") == payloads(old, "old")
    clean = Store(QdrantClient(":memory:"))
    params = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
    clean.create_collection("old", vectors_config=params)
    put(clean, *payloads(old, "old").items())
    Migration(clean, worker, "old", "new").run()
    assert_equal(contents(old, "new"), contents(clean, "new"))


def test_a_source_that_keeps_changing_is_not_cut_over(old: Store, worker: Client) -> None:
    count = iter(range(10**6))

    def change(_: int) -> None:
        put(old, (0, {"text": f"номер {next(count)}"}))

    with pytest.raises(MigrationError, match="still changes after 20 passes"):
        Migration(old, worker, "live", "new", progress=change).run()
    assert old.aliases() == {"live": "old"}


def test_points_without_a_usable_text_are_copied_and_reported(old: Store, worker: Client) -> None:
    put(
        old,
        (101, {"n": 1}),
        (102, {"text": ""}),
        (103, {"text": 5}),
        (104, {"text": "x" * 1_000_001}),
    )
    report = Migration(old, worker, "live", "new").run()
    assert report.without_text.first.keys() == {"101", "102", "103", "104"}
    assert report.without_text.first["101"] == "no text at `text`"
    assert report.without_text.first["104"].endswith("Given: 1000001")
    assert payloads(old, "new") == payloads(old, "old")
    assert contents(old, "new")[101] == ({"n": 1}, {})


def test_a_point_that_loses_its_text_loses_its_vectors(old: Store, worker: Client) -> None:
    Migration(old, worker, "old", "new").run()
    put(old, (3, {"note": "без текста"}))
    Migration(old, worker, "old", "new").run()
    assert contents(old, "new")[3] == ({"note": "без текста"}, {})


@pytest.mark.parametrize("damage", ["vector", "payload", "missing", "extra"])
def test_a_damaged_copy_is_repaired_or_refused(old: Store, worker: Client, damage: str) -> None:
    Migration(old, worker, "old", "new").run()
    expected = contents(old, "new")
    if damage == "vector":
        vectors = models.PointVectors(id=3, vector={"dense": [1.0] + [0.0] * 511})
        old.add_vectors("new", [vectors])
        with pytest.raises(MigrationError, match=r"of 30 points .* 1 differ: 3\. No alias"):
            Migration(old, worker, "live", "new").run()
        assert old.aliases() == {"live": "old"}
        return
    if damage == "payload":
        old.set_payload("new", [3], {"more": 1})
    elif damage == "missing":
        old.delete("new", [3])
    else:
        point = models.PointStruct(id=9999, vector={}, payload={})
        old.upsert("new", [point])
    Migration(old, worker, "live", "new").run()
    assert_equal(contents(old, "new"), expected)


def test_lost_writes_prevent_the_cutover(
    old: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    upsert = old.upsert

    def losing_upsert(collection: str, points: list[Any]) -> None:
        if remaining := [point for point in points if point.id != 5]:
            upsert(collection, remaining)

    monkeypatch.setattr(old, "upsert", losing_upsert)
    monkeypatch.setattr("bge_retrieval.migration.migration.MAX_PASSES", 3)
    with pytest.raises(MigrationError, match="still changes"):
        Migration(old, worker, "live", "new").run()
    assert old.aliases() == {"live": "old"}


def test_a_dry_run_estimates_and_writes_nothing(old: Store, worker: Client) -> None:
    put(old, (101, {"n": 1}))
    estimate = Migration(old, worker, "live", "new").estimate(price=2.0)
    texts = [payload["text"] for payload in payloads(old, "old").values() if "text" in payload]
    assert (estimate.points, estimate.sampled, estimate.without_text) == (31, 31, 1)
    assert estimate.tokens == worker.embed(texts).usage.total_tokens
    assert estimate.dollars == pytest.approx(2 * estimate.seconds)
    assert not old.exists("new")


def test_a_dry_run_with_a_wrong_text_field_lists_the_existing_ones(
    old: Store, worker: Client
) -> None:
    migration = Migration(old, worker, "live", "new", text_fields=["body"])
    with pytest.raises(ConfigurationError, match=r"no point of `old` has a text at `body`.*text"):
        migration.estimate(price=2.0)


def test_a_source_without_texts_is_refused_before_any_write(old: Store, worker: Client) -> None:
    message = "no point of `old` has a text at `body`. Their payloads have: _id, metadata, text, ti"
    with pytest.raises(ConfigurationError, match=message):
        Migration(old, worker, "live", "new", text_fields=["body"]).run()
    assert not old.exists("new")


def test_a_bge_collection_with_cut_colbert_vectors_can_be_migrated(
    store: Store, worker: Client
) -> None:
    documents = [{"id": 1, "text": "море", COLBERT_CUT: True}, {"id": 2, "text": "суша"}]
    index(store, worker, "ours", documents)
    store.set_payload("ours", [2], {COLBERT_CUT: True})
    assert Migration(store, worker, "ours", "new").run().passes == 3
    assert payloads(store, "new") == {1: {"id": 1, "text": "море"}, 2: {"id": 2, "text": "суша"}}


def test_invalid_collections_and_aliases_are_refused(old: Store, worker: Client) -> None:
    def migration(*names: str, **options: Any) -> Callable[[], object]:
        return lambda: Migration(old, worker, *names, **options).run()  # type: ignore[arg-type]

    index(old, worker, "made", [{"id": 1, "text": "море"}])
    Schema().ensure(old, "theirs", CollectionMetadata("jina/v3/1024", "jina-v3", 512))
    refused = [
        (migration("nope", "new"), ConfigurationError, "no collection `nope`"),
        (migration("old", "live"), ConfigurationError, "`live` is an alias"),
        (migration("made", "made"), ConfigurationError, "source and target are both `made`"),
        (migration("live", "new", alias="old"), ConfigurationError, "`old` is a collection, so"),
        (
            migration("live", "made"),
            ConfigurationError,
            "was created from documents, not from `old`",
        ),
        (migration("made", "new", alias="live"), ConfigurationError, "`old`, which is neither `m"),
        (migration("live", "theirs"), FingerprintError, "holds vectors of jina-v3"),
    ]
    for attempt, error, message in refused:
        with pytest.raises(error, match=message):
            attempt()
    assert old.aliases() == {"live": "old"}
    assert not old.exists("new")
