"""Sparse and ColBERT vectors are added; nothing is replaced."""

from __future__ import annotations

from typing import Any

import pytest
from qdrant_client import models

from bge_client import Client, FingerprintError
from bge_retrieval import (
    CollectionMetadata,
    HybridSearch,
    Migration,
    Plan,
    Store,
    add_in_place,
    roll_back,
    sync,
)
from fakes.killed_client import Killed, KilledClient
from points import contents, other_model_vector


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
