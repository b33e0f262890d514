"""The way back from vectors added in place, and their removal."""

from __future__ import annotations

import pytest
from qdrant_client import models

from bge_client import Client, ConfigurationError, FingerprintError
from bge_retrieval import (
    CollectionMetadata,
    HybridSearch,
    Migration,
    Store,
    add_in_place,
    drop_vectors,
    roll_back_in_place,
)
from points import contents, put


def test_without_metadata_before_a_rollback_removes_it(old: Store, worker: Client) -> None:
    before = contents(old, "old")
    old.update_metadata("old", {"owner": "courses"})
    add_in_place(old, worker, "live", add_dense="bge-m3")
    with pytest.raises(ConfigurationError, match="queries use the vector `bge-m3` of `old`"):
        drop_vectors(old, "live", ["bge-m3"])
    assert roll_back_in_place(old, "live") is None
    with pytest.raises(FingerprintError, match="has no metadata"):
        HybridSearch(old, worker, "live")
    put(old, (101, {"text": "записан после отката"}))
    assert add_in_place(old, worker, "live", add_dense="bge-m3").written == 1
    old.delete("old", [101])
    roll_back_in_place(old, "live")
    drop_vectors(old, "live", ["sparse"])
    with pytest.raises(ConfigurationError, match="not a vector that was added to `old` in place"):
        drop_vectors(old, "live", ["sparse"])
    drop_vectors(old, "live", ["bge-m3"])
    assert contents(old, "old") == before
    assert old.info("old").config.metadata == {"owner": "courses"}


def test_a_rollback_restores_the_vectors_of_the_metadata_before(old: Store, worker: Client) -> None:
    Migration(old, worker, "live", "new").run()
    before = CollectionMetadata.load(old, "new")
    add_in_place(old, worker, "new", add_dense="second", colbert=True)
    assert CollectionMetadata.load(old, "new").dense == "second"
    assert roll_back_in_place(old, "new") == "dense"
    assert CollectionMetadata.load(old, "new") == before
    drop_vectors(old, "new", ["second", "colbert"])
    vectors = contents(old, "new")[3][1]
    assert vectors.keys() == {"dense", "sparse"}
    with pytest.raises(ConfigurationError, match="no vectors were added to `new` in place"):
        roll_back_in_place(old, "new")


def test_dropping_the_old_vector_ends_the_way_back(store: Store, worker: Client) -> None:
    params = models.VectorParams(size=4, distance=models.Distance.COSINE)
    store.create_collection("old", vectors_config={"jina": params})
    point = models.PointStruct(id=1, vector={"jina": [1.0, 0, 0, 0]}, payload={"text": "море"})
    store.upsert("old", [point])
    add_in_place(store, worker, "old", add_dense="bge-m3")
    roll_back_in_place(store, "old")
    with pytest.raises(ConfigurationError, match="`jina` is not a vector that was added"):
        drop_vectors(store, "old", ["jina"])
    add_in_place(store, worker, "old", add_dense="bge-m3")
    drop_vectors(store, "old", ["jina"])
    assert contents(store, "old")[1][1].keys() == {"bge-m3", "sparse"}
    with pytest.raises(ConfigurationError, match="no vectors were added"):
        roll_back_in_place(store, "old")
    store.upsert("old", [models.PointStruct(id=2, vector={}, payload={"text": "суша"})])
    assert add_in_place(store, worker, "old", add_dense="bge-m3").written == 1
