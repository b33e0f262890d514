"""Read and compare the contents of collections."""

from __future__ import annotations

from typing import Any

import numpy as np
from qdrant_client import models

from bge_retrieval import Store

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
