"""A collection holds vectors of one model."""

from __future__ import annotations

import pytest
from qdrant_client import models

from bge_client import Client, ConfigurationError, FingerprintError
from bge_retrieval import CollectionMetadata, HybridSearch, Schema, Store, index


@pytest.fixture
def jina(store: Store) -> Store:
    """A collection of unnamed vectors, as with Jina."""
    params = models.VectorParams(size=512, distance=models.Distance.COSINE)
    store.create_collection("jina", vectors_config=params)
    return store


def test_a_collection_without_metadata_is_neither_written_nor_searched(
    jina: Store, worker: Client
) -> None:
    message = "has no metadata that names the model .* `bge migrate jina NEW` .* --in-place"
    with pytest.raises(FingerprintError, match=message):
        index(jina, worker, "jina", [{"id": 1, "text": "море"}])
    with pytest.raises(FingerprintError, match=message):
        HybridSearch(jina, worker, "jina")
    assert jina.count("jina") == 0


def test_a_collection_of_another_model_is_neither_written_nor_searched(
    store: Store, worker: Client
) -> None:
    metadata = CollectionMetadata("jina/jina-embeddings-v3/1024", "jina-embeddings-v3", 512)
    Schema().ensure(store, "c", metadata)
    message = "holds vectors of jina-embeddings-v3, .* Given: e3f.* `bge migrate c NEW`"
    with pytest.raises(FingerprintError, match=message):
        index(store, worker, "c", [{"id": 1, "text": "море"}])
    with pytest.raises(FingerprintError, match=message):
        HybridSearch(store, worker, "c").search("море")
    assert store.count("c") == 0


def test_a_missing_collection_error_lists_the_existing_ones(jina: Store, worker: Client) -> None:
    with pytest.raises(ConfigurationError, match=r"no collection `c`\. Existing: jina"):
        HybridSearch(jina, worker, "c")
