"""Write, read and compare the contents of collections."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from qdrant_client import models

from bge_retrieval import Store
from bge_retrieval.store import Payload

DIMENSIONS = 1024  # of the other model
Contents = dict[Any, tuple[Any, Any]]


def contents(store: Store, collection: str) -> Contents:
    """Return all points: id → payload and vectors."""
    return {
        record.id: (record.payload, record.vector)
        for page in store.scroll(collection, with_payload=True, with_vectors=True)
        for record in page
    }


def assert_equal(left: Contents, right: Contents) -> None:
    """Assert equal points, with the tolerance of vectors computed in different batches."""
    assert left.keys() == right.keys()
    for id, (payload, vectors) in left.items():
        assert payload == right[id][0]
        assert vectors.keys() == right[id][1].keys()
        for name, vector in vectors.items():
            expected = right[id][1][name]
            if isinstance(vector, models.SparseVector):
                assert vector.indices == expected.indices
                vector, expected = vector.values, expected.values
            np.testing.assert_allclose(vector, expected, atol=1e-5)


def other_model_vector(payload: Payload) -> list[float]:
    """Return a vector that stands for another model's."""
    seed = zlib.crc32(repr(payload).encode())
    return np.random.default_rng(seed).normal(size=DIMENSIONS).tolist()


def put(store: Store, *points: tuple[Any, dict[str, Any]]) -> None:
    """Write points to the collection `old`."""
    structs = [
        models.PointStruct(id=id, vector={"": other_model_vector(p)}, payload=p) for id, p in points
    ]
    store.upsert("old", structs)


def make_old(store: Store, passages: list[dict[str, Any]]) -> Store:
    """Create the collection `old` with the alias `live`."""
    params = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
    store.create_collection("old", vectors_config=params)
    put(store, *enumerate(passages))
    store.point_alias("live", "old")
    return store


def payloads(store: Store, collection: str) -> dict[Any, Any]:
    return {id: payload for id, (payload, _) in contents(store, collection).items()}
