"""A migration loses, duplicates and mixes up no points, even if it is killed."""

from __future__ import annotations

import random
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
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
    add_in_place,
    drop_old,
    index,
    roll_back,
    sync,
)
from bge_retrieval.schema import COLBERT_CUT
from bge_retrieval.store import Payload
from points import assert_equal, contents

DIMENSIONS = 1024


def other_model_vector(payload: Payload) -> list[float]:
    """Return a vector that stands for another model's."""
    seed = zlib.crc32(repr(payload).encode())
    return np.random.default_rng(seed).normal(size=DIMENSIONS).tolist()


def put(store: Store, *points: tuple[Any, dict[str, Any]]) -> None:
    """Write points to the collection `old`."""
    structs = [
        models.PointStruct(id=id, vector=other_model_vector(p), payload=p) for id, p in points
    ]
    store.upsert("old", structs)


def make_old(store: Store, passages: list[dict[str, Any]]) -> Store:
    """Create the collection `old` with the alias `live`."""
    params = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
    store.create_collection("old", vectors_config=params)
    put(store, *enumerate(passages))
    store.point_alias("live", "old")
    return store


@pytest.fixture
def old(store: Store, passages: list[dict[str, Any]]) -> Store:
    return make_old(store, passages[:30])


def payloads(store: Store, collection: str) -> dict[Any, Any]:
    return {id: payload for id, (payload, _) in contents(store, collection).items()}


def test_the_copy_has_every_point_and_the_alias_points_to_it(old: Store, worker: Client) -> None:
    before = contents(old, "old")
    report = Migration(old, worker, "live", "new").run()
    assert payloads(old, "new") == payloads(old, "old")
    assert old.aliases() == {"live": "new"}
    assert payloads(old, "old") == {id: payload for id, (payload, _) in before.items()}
    assert (report.points, report.passes, report.written, report.compared) == (30, 3, 30, 30)
    hits = HybridSearch(old, worker, "live", Plan(sparse=False)).search("список")
    assert len(hits) == 10


def test_the_source_is_never_written_to(old: Store, worker: Client) -> None:
    reads = {"scroll", "retrieve", "count", "query_points", "get_collection", "collection_exists"}
    calls: list[tuple[str, Any]] = []
    call = old._call

    def spy(method: str, **arguments: Any) -> Any:
        calls.append((method, arguments.get("collection_name")))
        return call(method, **arguments)

    old._call = spy  # type: ignore[method-assign]
    Migration(old, worker, "live", "new").run()
    assert {method for method, name in calls if name == "old"} <= reads


class Killed(BaseException):
    """Not an Exception, so that no error handler catches it."""


class KilledClient:
    """A Qdrant client whose process is killed before or after the n-th call."""

    def __init__(self, client: QdrantClient, kill_at: int, kill_after_call: bool) -> None:
        self._client, self._kill_at, self._kill_after_call = client, kill_at, kill_after_call
        self.calls = 0

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._client, method)

        def counted(**arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self._kill_at and not self._kill_after_call:
                raise Killed
            result = call(**arguments)
            if self.calls == self._kill_at:
                raise Killed
            return result

        return counted


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_migration_killed_at_any_call_ends_the_same_when_run_again(
    worker: Client,
    passages: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
) -> None:
    monkeypatch.setattr(sync, "PAGE", 2)
    documents = [*passages[:3], {"_id": "bare"}]

    def fresh() -> Store:
        return make_old(Store(QdrantClient(":memory:")), documents)

    uninterrupted = fresh()
    counting = KilledClient(uninterrupted.client, 0, after)
    Migration(Store(counting), worker, "live", "new").run()  # type: ignore[arg-type]
    expected = contents(uninterrupted, "new")
    for kill_at in range(1, counting.calls + 1):
        store = fresh()
        with pytest.raises(Killed):
            Migration(
                Store(KilledClient(store.client, kill_at, after)), worker, "live", "new"
            ).run()  # type: ignore[arg-type]
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


def before_cutover(
    store: Store, monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]
) -> None:
    """Call `change` just before the alias is moved."""
    point_alias = store.point_alias

    def point_alias_late(alias: str, collection: str) -> None:
        if collection == "new":
            change()
        point_alias(alias, collection)

    monkeypatch.setattr(store, "point_alias", point_alias_late)


def test_changes_at_the_cutover_are_copied_or_reported(
    old: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change() -> None:
        put(old, (777, {"text": "опоздавший"}), (3, {"text": "изменён"}))
        old.delete("old", [5])

    before_cutover(old, monkeypatch, change)
    report = Migration(old, worker, "live", "new").run()
    assert payloads(old, "new")[777] == {"text": "опоздавший"}
    assert (report.late, report.only_in_target) == ([3], [5])
    with pytest.raises(MigrationError, match=r"1 points of .* cutover: 3\. Copy them"):
        drop_old(old, "live")
    index(old, worker, "live", [{"id": 3, "text": "изменён"}])
    old.delete("old", [3])
    assert drop_old(old, "live") == "old"


def test_after_a_kill_at_the_cutover_the_next_run_reports_late_changes(
    old: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(alias: str, collection: str) -> None:
        put(old, (777, {"text": "опоздавший"}))
        point_alias(alias, collection)
        raise Killed

    point_alias = old.point_alias
    monkeypatch.setattr(old, "point_alias", killed)
    with pytest.raises(Killed):
        Migration(old, worker, "live", "new").run()
    monkeypatch.undo()
    with pytest.raises(MigrationError, match="interrupted at the cutover: run it again"):
        drop_old(old, "live")
    assert Migration(old, worker, "live", "new").run().late == [777]
    with pytest.raises(MigrationError, match="changed at the cutover: 777"):
        drop_old(old, "live")


def test_a_run_stops_once_another_run_has_cut_over(
    old: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes to the target after the cutover are neither overwritten nor deleted."""
    monkeypatch.setattr(sync, "PAGE", 4)
    is_cut_over = False

    def other_run(_: int) -> None:
        nonlocal is_cut_over
        if not is_cut_over:
            is_cut_over = True
            Migration(old, worker, "live", "new").run()
            index(old, worker, "live", [{"id": 1, "text": "изменён"}, {"id": 777, "text": "нов"}])

    with pytest.raises(MigrationError, match="another run has pointed alias `live` to `new`"):
        Migration(old, worker, "live", "new", progress=other_run).run()
    assert payloads(old, "new")[1] == {"id": 1, "text": "изменён"}
    assert payloads(old, "new")[777] == {"id": 777, "text": "нов"}


def test_a_reader_never_sees_a_missing_or_a_mixed_collection(old: Store, worker: Client) -> None:
    """The reader knows both schemas; each response must belong to one of them."""
    old_ids, seen, stop = set(payloads(old, "old")), [], threading.Event()
    query = other_model_vector({})

    def read() -> None:
        while not stop.is_set():
            try:
                vectors = old.client.get_collection("live").config.params.vectors
                seen.append("new" if isinstance(vectors, dict) else "old")
                page, _ = old.client.scroll("live", limit=100)
                assert {record.id for record in page} == old_ids
                if seen[-1] == "old" and old.aliases()["live"] == "old":
                    assert len(old.client.query_points("live", query=query, limit=5).points) == 5
            except Exception as error:
                seen.append(repr(error))

    reader = threading.Thread(target=read)
    reader.start()
    Migration(old, worker, "live", "new").run()
    while seen[-1] == "old":
        pass
    stop.set()
    reader.join()
    assert set(seen) == {"old", "new"}
    assert seen == sorted(seen, reverse=True)


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


# ------------------------------------------------------------------- before and after it


def test_a_dry_run_estimates_and_writes_nothing(old: Store, worker: Client) -> None:
    put(old, (101, {"n": 1}))
    estimate = Migration(old, worker, "live", "new").estimate(dollars_per_second=2.0)
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
        migration.estimate(dollars_per_second=2.0)


def test_roll_back_migrate_again_and_drop_the_source(old: Store, worker: Client) -> None:
    Migration(old, worker, "live", "new").run()
    assert roll_back(old, "live") == "old"
    assert old.aliases() == {"live": "old"}
    with pytest.raises(ConfigurationError, match="points to `old`, which is not the target"):
        drop_old(old, "live")
    put(old, (600, {"text": "в старую, пока она снова в ходу"}))
    Migration(old, worker, "live", "new").run()
    assert 600 in payloads(old, "new")
    old.point_alias("other", "old")
    with pytest.raises(ConfigurationError, match="`old` is still in use by alias `other`"):
        drop_old(old, "live")
    old.point_alias("other", "new")
    assert drop_old(old, "live") == "old"
    assert not old.exists("old")
    with pytest.raises(ConfigurationError, match="`old`, the source of `new`, does not exist"):
        roll_back(old, "live")
    with pytest.raises(ConfigurationError, match="already points to `new`, and the source `old`"):
        Migration(old, worker, "live", "new")


@pytest.mark.parametrize("names", [("live", "new"), ("old", "new")])
def test_after_the_cutover_the_target_is_not_overwritten(
    old: Store, worker: Client, names: tuple[str, str]
) -> None:
    Migration(old, worker, "live", "new").run()
    index(
        old, worker, "live", [{"id": 5000, "text": "написан после"}, {"id": 3, "text": "изменён"}]
    )
    put(old, (5001, {"text": "не туда"}))
    report = Migration(old, worker, *names).run()
    assert (report.written, report.deleted) == (0, 0)
    assert payloads(old, "new")[5000] == {"id": 5000, "text": "написан после"}
    assert payloads(old, "new")[3] == {"id": 3, "text": "изменён"}


def test_after_a_rollback_writes_to_the_target_are_not_lost(old: Store, worker: Client) -> None:
    Migration(old, worker, "live", "new").run()
    index(old, worker, "live", [{"id": 5000, "text": "написан после"}])
    roll_back(old, "live")
    message = "`new` is or was in use, and 1 of its points differ from `old`: 5000"
    with pytest.raises(MigrationError, match=message):
        Migration(old, worker, "live", "new").run()
    assert 5000 in payloads(old, "new")


def test_a_target_behind_another_alias_can_be_cut_over(old: Store, worker: Client) -> None:
    Migration(old, worker, "old", "new").run()
    old.point_alias("preview", "new")
    put(old, (600, {"text": "ещё одна"}))
    Migration(old, worker, "live", "new").run()
    assert old.aliases() == {"live": "new", "preview": "new"}
    assert 600 in payloads(old, "new")


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


# ------------------------------------------------------------------------------ in place


def make_dense_only(
    store: Store, worker: Client, passages: list[dict[str, Any]], name: str
) -> Store:
    """Create a collection of bge-m3's dense vectors, as with FlagEmbedding."""
    params = models.VectorParams(size=512, distance=models.Distance.COSINE)
    config = {name: params} if name else params
    store.create_collection("mine", vectors_config=config)
    dense = worker.embed([passage["text"] for passage in passages]).dense
    assert dense is not None
    points = [
        models.PointStruct(
            id=n, vector={name: vector.tolist()} if name else vector.tolist(), payload=passage
        )
        for n, (passage, vector) in enumerate(zip(passages, dense, strict=True))
    ]
    store.upsert("mine", points)
    return store


@pytest.mark.parametrize("name", ["", "bge"])
def test_sparse_and_colbert_vectors_are_added_in_place(
    store: Store, worker: Client, passages: list[dict[str, Any]], name: str
) -> None:
    make_dense_only(store, worker, passages[:20], name)
    before = contents(store, "mine")
    report = add_in_place(store, worker, "mine", colbert=True)
    assert (report.dense, report.written, report.without_text.count) == (name, 20, 0)
    after = contents(store, "mine")
    for id, (payload, vectors) in after.items():
        assert payload == before[id][0]
        assert vectors.keys() == {name, "sparse", "colbert"}
        assert vectors[name] == (before[id][1][name] if name else before[id][1])
    plan = Plan(colbert=True)
    assert len(HybridSearch(store, worker, "mine", plan).search("список", explain=True)) == 10
    assert add_in_place(store, worker, "mine", colbert=True).written == 0


def test_in_place_resumes_after_a_kill(
    store: Store, worker: Client, passages: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "PAGE", 4)
    make_dense_only(store, worker, passages[:9], "")
    kills = 0
    for kill_at in range(1, 40):
        try:
            add_in_place(Store(KilledClient(store.client, kill_at, True)), worker, "mine")  # type: ignore[arg-type]
            break
        except Killed:
            kills += 1
    assert 5 < kills < 39
    assert all("sparse" in vectors for _, vectors in contents(store, "mine").values())


def test_dense_vectors_of_another_model_are_left_alone(
    store: Store, worker: Client, passages: list[dict[str, Any]]
) -> None:
    params = models.VectorParams(size=512, distance=models.Distance.COSINE)
    store.create_collection("mine", vectors_config=params)
    points = [
        models.PointStruct(id=n, vector=other_model_vector(p)[:512], payload=p)
        for n, p in enumerate(passages[:20])
    ]
    store.upsert("mine", points)
    before = contents(store, "mine")
    message = "of 20 dense vectors of `mine`, 20 differ from those of miniature/bge-m3"
    with pytest.raises(FingerprintError, match=message):
        add_in_place(store, worker, "mine")
    assert contents(store, "mine") == before
    assert store.info("mine").config.params.sparse_vectors is None


def test_in_place_keeps_the_metadata_of_a_bge_collection(old: Store, worker: Client) -> None:
    Migration(old, worker, "live", "new").run()
    before = CollectionMetadata.load(old, "new")
    report = add_in_place(old, worker, "new", colbert=True)
    assert (report.dense, report.written) == ("dense", 30)
    after = CollectionMetadata.load(old, "new")
    assert (after.colbert, after.migrated_from, after.in_use) == (True, "old", True)
    assert before.fingerprint == after.fingerprint
    assert add_in_place(old, worker, "new").written == 0
    assert CollectionMetadata.load(old, "new") == after
    assert roll_back(old, "live") == "old"


def test_a_collection_with_some_vectors_of_another_model_is_left_alone(
    store: Store, worker: Client, passages: list[dict[str, Any]]
) -> None:
    """As after a fallback to another provider: only the first vectors match."""
    make_dense_only(store, worker, passages[:100], "")
    points = [
        models.PointStruct(id=n, vector=other_model_vector(passages[n])[:512], payload=passages[n])
        for n in range(100, 140)
    ]
    store.upsert("mine", points)
    with pytest.raises(FingerprintError, match="of 140 dense vectors of `mine`, 40 differ"):
        add_in_place(store, worker, "mine")
