"""A collection holds vectors of one model."""

from __future__ import annotations

import pytest
from qdrant_client import models

from bge_client import Client, ConfigurationError, FingerprintError, Router
from bge_retrieval import (
    CollectionMetadata,
    HybridSearch,
    Plan,
    Schema,
    Store,
    index,
    load_probe,
)
from fakes.host_vectors import dense_of
from fakes.hosts import Host


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


# ----------------------------------------------------------------------------------- probe


def test_a_new_collection_keeps_the_probe_of_its_endpoint(store: Store, worker: Client) -> None:
    index(store, worker, "c", [{"id": 1, "text": "море"}])
    probe = load_probe(store, "c")
    assert probe is not None
    assert probe.fingerprint == CollectionMetadata.load(store, "c").fingerprint
    rows = probe.compare(worker.embed(probe.texts, sparse=True))
    assert [row.reason for row in rows] == [None] * 5
    store.point_alias("alias", "c")
    assert load_probe(store, "alias") is not None
    store.update_metadata("c", {"bge_probe": None})  # as after a run that was killed
    index(store, worker, "c", [{"id": 1, "text": "море"}])
    assert load_probe(store, "c") is not None


def test_a_collection_without_a_probe_has_none(jina: Store) -> None:
    assert load_probe(jina, "jina") is None
    jina.update_metadata("jina", {"bge_probe": {"fingerprint": "f"}})
    with pytest.raises(ConfigurationError, match="the probe is malformed"):
        load_probe(jina, "jina")


@pytest.mark.parametrize("is_same", [True, False])
def test_a_host_searches_a_collection_only_with_vectors_that_match_its_probe(
    is_same: bool, store: Store, worker: Client
) -> None:
    index(store, worker, "c", [{"id": 1, "text": "море"}, {"id": 2, "text": "суша"}])
    plan = Plan(sparse=False)
    sign = 1 if is_same else -1
    with (
        Host("deepinfra", lambda texts: sign * dense_of(worker, texts)) as host,
        Router.from_env(
            host.env
            | {"EMBEDDINGS_PROVIDER": "deepinfra", "BGE_RERANKER_ENDPOINT": "http://127.0.0.1:9"},
            probe=load_probe(store, "c"),
        ) as router,
    ):
        search = HybridSearch(store, router, "c", plan)
        if is_same:
            hits, expected = (
                s.search("море").hits for s in (search, HybridSearch(store, worker, "c", plan))
            )
            assert [(hit.id, hit.score) for hit in hits] == [
                (hit.id, pytest.approx(hit.score)) for hit in expected
            ]
        else:
            with pytest.raises(FingerprintError, match="Given: deepinfra/BAAI/bge-m3"):
                search.search("море")
