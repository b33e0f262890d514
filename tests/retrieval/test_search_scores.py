"""Local mode scores like Qdrant's own engine and like plain numpy.

qdrant-edge runs the server's engine as one shard in this process. It gets the same requests that
`HybridSearch` sends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import qdrant_edge as edge
from qdrant_client import QdrantClient, models

from bge_client import Client
from bge_client.results import Embedding
from bge_retrieval import CollectionMetadata, Plan, Schema, Store, index
from bge_retrieval.plan import query_request, stage_requests
from points import contents

QUERIES = [
    "TCP congestion control",
    "разделение выборки на обучающую и тестовую",
    "индекс B-дерево",
]


PLANS = [
    Plan(colbert=True),
    Plan(rrf_k=7, weights=(1.0, 3.0), candidates=30),
    Plan(fusion="dbsf", colbert=True),
    Plan(sparse=False, colbert=True, candidates=20),
    Plan(dense=False),
]


LIMIT = 15


@pytest.fixture(scope="module")
def course(worker: Client, passages: list[dict[str, Any]]) -> Iterator[Store]:
    """The course material, with noise so that no two scores are equal."""
    with Store(QdrantClient(":memory:")) as store:
        index(store, worker, "course", passages[::3], schema=Schema(colbert=True))
        rng = np.random.default_rng(5)
        for id, (_, vectors) in contents(store, "course").items():
            for values in (vectors["dense"], vectors["sparse"].values, *vectors["colbert"]):
                values[:] = (np.array(values) + rng.normal(0, 1e-3, len(values))).tolist()
            store.add_vectors("course", [models.PointVectors(id=id, vector=vectors)])
        yield store


@pytest.fixture(scope="module")
def shard(course: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The same points in Qdrant's engine."""
    cosine, size = edge.Distance.Cosine, CollectionMetadata.load(course, "course").dimensions
    max_sim = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
    config = edge.EdgeConfig(
        vectors={
            "dense": edge.EdgeVectorParams(size, cosine),
            "colbert": edge.EdgeVectorParams(size, cosine, multivector_config=max_sim),
        },
        sparse_vectors={"sparse": edge.EdgeSparseVectorParams()},
    )
    shard = edge.EdgeShard.create(str(tmp_path_factory.mktemp("shard")), config)
    points = [
        edge.Point(id, {name: _edge_vector(vector) for name, vector in vectors.items()}, payload)
        for id, (payload, vectors) in contents(course, "course").items()
    ]
    shard.update(edge.UpdateOperation.upsert_points(points))
    yield shard
    shard.close()


def _edge_vector(vector: Any) -> Any:
    if isinstance(vector, models.SparseVector):
        return edge.SparseVector(vector.indices, vector.values)
    return vector


def _edge_query(query: Any, using: str | None) -> Any:
    if isinstance(query, models.RrfQuery):
        return edge.Fusion.Rrf(k=query.rrf.k, weights=query.rrf.weights)
    if isinstance(query, models.FusionQuery):
        return edge.Fusion.Dbsf()
    return edge.Query.Nearest(_edge_vector(query), using=using)


def _edge_prefetch(prefetch: models.Prefetch) -> Any:
    nested = [_edge_prefetch(inner) for inner in prefetch.prefetch or []]  # type: ignore[union-attr]
    query = _edge_query(prefetch.query, prefetch.using)
    return edge.Prefetch(limit=prefetch.limit, query=query, prefetches=nested)


def query_edge(shard: Any, stage: models.Prefetch) -> dict[Any, float]:
    edge_stage = _edge_prefetch(stage)
    request = edge.QueryRequest(
        limit=stage.limit, query=edge_stage.query, prefetches=edge_stage.prefetches
    )
    return {str(point.id): point.score for point in shard.query(request)}


def query_local(course: Store, stage: models.Prefetch) -> dict[Any, float]:
    points = course.query_points("course", query_request(stage))
    return {str(point.id): point.score for point in points}


def embed(worker: Client, query: str) -> Embedding:
    return worker.embed(query, sparse=True, colbert=True, dtype="float32")[0]


def assert_same(scores: dict[Any, float], expected: dict[Any, float]) -> None:
    assert scores.keys() == expected.keys()
    np.testing.assert_allclose([expected[id] for id in scores], list(scores.values()), atol=1e-4)


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.fusion}{p.rrf_k}-{p.dense}-{p.sparse}")
@pytest.mark.parametrize("query", QUERIES)
def test_every_stage_scores_like_the_engine(
    course: Store, shard: Any, worker: Client, plan: Plan, query: str
) -> None:
    metadata = CollectionMetadata.load(course, "course")
    for stage in stage_requests(plan, embed(worker, query), metadata, LIMIT).values():
        assert_same(query_local(course, stage), query_edge(shard, stage))


@pytest.mark.parametrize("query", QUERIES)
def test_scores_are_cosine_dot_and_max_sim(course: Store, worker: Client, query: str) -> None:
    embedding, stored = embed(worker, query), contents(course, "course")
    assert embedding.dense is not None
    assert embedding.sparse is not None
    assert embedding.colbert is not None
    weights = dict(
        zip(embedding.sparse.indices.tolist(), embedding.sparse.values.tolist(), strict=True)
    )
    expected: dict[str, dict[Any, float]] = {"dense": {}, "sparse": {}, "colbert": {}}
    for id, (_, vectors) in stored.items():
        sparse = vectors["sparse"]
        pairs = zip(sparse.indices, sparse.values, strict=True)
        expected["dense"][id] = float(np.dot(vectors["dense"], embedding.dense))
        expected["sparse"][id] = sum(weights.get(token, 0) * value for token, value in pairs)
        similar = embedding.colbert @ np.array(vectors["colbert"]).T  # [query tokens, tokens]
        expected["colbert"][id] = float(similar.max(1).sum())
    queries = {"dense": embedding.dense.tolist(), "colbert": embedding.colbert.tolist()}
    queries["sparse"] = models.SparseVector(indices=[*weights], values=[*weights.values()])
    for name, query_vector in queries.items():
        stage = models.Prefetch(query=query_vector, using=name, limit=len(stored))
        for id, score in query_local(course, stage).items():
            assert score == pytest.approx(expected[name][id], abs=1e-4), name
