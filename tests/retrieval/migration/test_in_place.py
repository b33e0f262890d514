"""Vectors are added, beside another model's or to bge-m3's; nothing is replaced."""

from __future__ import annotations

from collections.abc import Iterator
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
    Store,
    add_in_place,
    roll_back,
    schema,
    sync,
)
from bge_retrieval.metadata import METADATA
from bge_retrieval.migration import in_place
from bge_retrieval.schema import COLBERT_CUT
from bge_retrieval.similarity import dense_vector
from fakes.killed_client import Killed, KilledClient
from points import (
    DIMENSIONS,
    Contents,
    assert_equal,
    contents,
    make_old,
    other_model_vector,
    payloads,
    put,
)


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


def test_dense_vectors_are_added_beside_those_of_another_model(old: Store, worker: Client) -> None:
    put(old, (101, {"n": 1}))
    before = contents(old, "old")
    report = add_in_place(old, worker, "live", add_dense="bge-m3", colbert=True)
    assert (report.written, report.compared, report.late) == (30, 30, 0)
    assert [*report.without_text.first] == ["101"]
    assert report.added == ("bge-m3", "sparse", "colbert")
    after = contents(old, "old")
    assert payloads(old, "old") == {id: payload for id, (payload, _) in before.items()}
    assert all(dense_vector(after[id][1], "") == vector for id, (_, vector) in before.items())
    expected = worker.embed(before[3][0]["text"], dtype="float32").dense[0]
    assert after[3][1]["bge-m3"] == pytest.approx(expected, abs=1e-3)
    hits = HybridSearch(old, worker, "live", Plan(sparse=False)).search(before[3][0]["text"], 1)
    assert hits[0].id == 3
    assert add_in_place(old, worker, "live", add_dense="bge-m3").written == 0


def test_added_dense_vectors_are_complete_after_a_kill_at_any_call(
    worker: Client, passages: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries change only when all vectors are there."""
    monkeypatch.setattr(sync, "PAGE", 2)
    uninterrupted = make_old(Store(QdrantClient(":memory:")), passages[:3])
    counting = KilledClient(uninterrupted.client, 0)
    add_in_place(Store(counting), worker, "old", add_dense="bge-m3")  # type: ignore[arg-type]
    expected = contents(uninterrupted, "old")
    for kill_at in range(1, counting.calls + 1):
        store = make_old(Store(QdrantClient(":memory:")), passages[:3])
        killed = Store(KilledClient(store.client, kill_at))  # type: ignore[arg-type]
        with pytest.raises(Killed):
            add_in_place(killed, worker, "old", add_dense="bge-m3")
        if METADATA in (store.info("old").config.metadata or {}):
            assert_equal(contents(store, "old"), expected)
        add_in_place(store, worker, "old", add_dense="bge-m3")
        assert_equal(contents(store, "old"), expected)


def added_afresh(worker: Client, store: Store) -> Contents:
    """Return the contents that a run without changes adds vectors to."""
    clean = Store(QdrantClient(":memory:"))
    params = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
    clean.create_collection("old", vectors_config=params)
    put(clean, *payloads(store, "old").items())
    add_in_place(clean, worker, "old", add_dense="bge-m3")
    return contents(clean, "old")


def test_points_that_are_replaced_meanwhile_get_vectors_of_their_new_text(
    old: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also between the embedding of the old text and the writes of its vectors."""
    monkeypatch.setattr(sync, "PAGE", 4)
    add_vectors, numbers = old.add_vectors, iter(range(1000))

    def replacing(collection: str, points: Any) -> None:
        number = next(numbers)
        if number < 12:
            is_first = "bge-m3" in points[0].vector  # the first of two writes of a point
            replaced = points[0 if is_first else len(points) // 2]
            put(old, (replaced.id, {"text": f"изменён {number}"}))
            put(old, (1000 + number, {"text": f"новый {number}"}))
        add_vectors(collection, points)

    monkeypatch.setattr(old, "add_vectors", replacing)
    add_in_place(old, worker, "old", add_dense="bge-m3")
    assert_equal(contents(old, "old"), added_afresh(worker, old))


def test_only_points_that_are_still_current_are_flagged_as_cut(
    old: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MULTIVECTOR_FLOATS", 6 * 512)  # five vectors
    embed_documents = in_place.embed_documents

    def changed_meanwhile(*arguments: Any) -> Iterator[Any]:
        embedded = list(embed_documents(*arguments))
        if embedded and embedded[0][0].id == 0:
            old.delete("old", [0])
            put(old, (1, {"text": "море"}))
        yield from embedded

    monkeypatch.setattr(in_place, "embed_documents", changed_meanwhile)
    add_in_place(old, worker, "old", add_dense="bge-m3", colbert=True)
    stored = payloads(old, "old")
    assert stored.pop(1) == {"text": "море"}
    assert {id for id, payload in stored.items() if payload.get(COLBERT_CUT)} == {*range(2, 30)}


def test_points_written_at_the_switch_are_late(
    old: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    update_metadata = old.update_metadata

    def late(collection: str, metadata: dict[str, Any]) -> None:
        if METADATA in metadata:
            put(old, (777, {"text": "опоздавший"}))
        update_metadata(collection, metadata)

    monkeypatch.setattr(old, "update_metadata", late)
    assert add_in_place(old, worker, "old", add_dense="bge-m3").late == 1
    assert_equal(contents(old, "old"), added_afresh(worker, old))


def test_added_vectors_that_do_not_fit_their_texts_prevent_the_switch(
    old: Store, worker: Client
) -> None:
    def change(_: int) -> None:
        old.set_payload("old", [3], {"text": "изменён без вектора"})

    with pytest.raises(MigrationError, match=r"of 30 vectors `bge-m3` .* 1 differ: 3: their texts"):
        add_in_place(old, worker, "old", add_dense="bge-m3", progress=change)
    assert METADATA not in old.info("old").config.metadata
    put(old, (3, {"text": "записан снова"}))
    assert add_in_place(old, worker, "old", add_dense="bge-m3").written == 1


def test_a_vector_of_another_model_is_not_filled(old: Store, worker: Client) -> None:
    params = models.VectorParams(size=512, distance=models.Distance.COSINE)
    sparse = {"sparse": models.SparseVectorParams()}
    old.create_collection("jina", vectors_config={"jina": params})
    old.create_collection("splade", vectors_config=params, sparse_vectors_config=sparse)
    refused = [
        ("jina", "jina", "has a vector `jina` already"),
        ("splade", "bge-m3", "has a vector `sparse` already"),
        ("jina", "sparse", "must be a name other than `sparse`"),
    ]
    for collection, name, message in refused:
        with pytest.raises(ConfigurationError, match=message):
            add_in_place(old, worker, collection, add_dense=name)
        assert not old.info(collection).config.metadata


def test_in_place_resumes_after_a_kill(
    store: Store, worker: Client, passages: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "PAGE", 4)
    make_dense_only(store, worker, passages[:9], "")
    kills = 0
    for kill_at in range(1, 40):
        try:
            add_in_place(Store(KilledClient(store.client, kill_at)), worker, "mine")  # type: ignore[arg-type]
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
