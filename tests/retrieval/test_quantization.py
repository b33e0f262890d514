"""Quantized vectors in Qdrant's own engine, as one shard in this process.

Local mode keeps the configuration and does not quantize.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as edge
from qdrant_client import QdrantClient, models

from bge_client import Client, ConfigurationError
from bge_retrieval import CollectionMetadata, HybridSearch, Plan, Schema, Store, index
from bge_retrieval.plan import stage_requests
from fakes.qdrant_server import QdrantServer
from points import contents

LIMIT = 10
QUERY = "разделение выборки на обучающую и тестовую"
Scores = dict[str, float]
Shard = Callable[[str], Any]


@pytest.fixture(scope="module")
def shard(
    worker: Client, passages: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shard]:
    """Return a shard with the configuration of a schema, dense and ColBERT quantized alike."""
    shards: list[Any] = []

    def build(quantization: Any) -> Any:
        schema = Schema(colbert=True, quantization=quantization, colbert_quantization=quantization)
        with Store(QdrantClient(":memory:")) as store:
            index(store, worker, "c", passages[::4], schema=schema)
            shards.append(edge_shard(store, tmp_path_factory.mktemp(quantization)))
        return shards[-1]

    yield build
    for shard in shards:
        shard.close()


def edge_shard(store: Store, path: Path) -> Any:
    vectors: Any = store.info("c").config.params.vectors
    config = edge.EdgeConfig(
        vectors={name: edge_params(params) for name, params in vectors.items()},
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1),  # KB: quantize even a few
    )
    shard = edge.EdgeShard.create(str(path), config)
    points = [
        edge.Point(id, {name: point[name] for name in ("dense", "colbert")}, {})
        for id, (_, point) in contents(store, "c").items()
    ]
    shard.update(edge.UpdateOperation.upsert_points(points))
    assert shard.optimize()
    return shard


def edge_params(params: models.VectorParams) -> Any:
    max_sim = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
    return edge.EdgeVectorParams(
        params.size,
        edge.Distance.Cosine,
        on_disk=params.on_disk,
        multivector_config=max_sim if params.multivector_config else None,
        hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=8, full_scan_threshold=10),
        quantization_config=edge_quantization(params.quantization_config),
    )


def edge_quantization(config: Any) -> Any:
    if isinstance(config, models.ScalarQuantization):
        return edge.ScalarQuantizationConfig(
            edge.ScalarType.Int8, always_ram=config.scalar.always_ram
        )
    assert isinstance(config, models.BinaryQuantization)
    return edge.BinaryQuantizationConfig(always_ram=config.binary.always_ram)


def scores(shard: Any, stage: models.Prefetch, *, exact: bool = False) -> Scores:
    assert stage.params is not None
    assert stage.params.quantization is not None
    params = stage.params.quantization
    quantization = edge.QuantizationSearchParams(
        ignore=exact, rescore=params.rescore, oversampling=params.oversampling
    )
    request = edge.QueryRequest(
        limit=LIMIT,
        query=edge.Query.Nearest(stage.query, using=stage.using),
        params=edge.SearchParams(quantization=quantization),
    )
    return {str(point.id): point.score for point in shard.query(request)}


@pytest.mark.parametrize("quantization", ["scalar", "binary"])
def test_the_engine_ranks_by_the_original_vectors_again(
    shard: Shard, worker: Client, quantization: str
) -> None:
    engine = shard(quantization)
    embedding = worker.embed(QUERY, sparse=True, colbert=True, dtype="float32")[0]
    dense = embedding.dense
    assert dense is not None
    metadata = CollectionMetadata("f", "m", len(dense), colbert=True)

    def stages(**options: Any) -> dict[str, models.Prefetch]:
        return stage_requests(Plan(colbert=True, **options), embedding, metadata, LIMIT)

    for name in ("dense", "colbert"):
        exact = scores(engine, stages()[name], exact=True)
        rescored = scores(engine, stages(oversampling=20.0)[name])
        assert rescored == pytest.approx(exact, abs=1e-5)
        quantized = scores(engine, stages(rescore=False)[name])
        assert [*quantized.values()] != pytest.approx([*exact.values()], abs=1e-5)


def test_the_server_gets_both_configurations_and_the_search_parameters(worker: Client) -> None:
    schema = Schema(colbert=True, quantization="scalar", colbert_quantization="binary")
    with QdrantServer() as server, Store.open(url=server.url) as store:
        index(store, worker, "c", [{"id": 1, "text": "море"}], schema=schema)
        HybridSearch(store, worker, "c", Plan(colbert=True, oversampling=3.0)).search("море")
        HybridSearch(store, worker, "c", Plan(sparse=False, rescore=False)).search("море")
        creation = next(call.body for call in server.calls if call.method == "PUT")
        queries = [call.body for call in server.calls if call.path.endswith("/query")]
        assert server.conformance_errors() == []
    assert creation["vectors"]["dense"]["quantization_config"]["scalar"]["type"] == "int8"
    assert "binary" in creation["vectors"]["colbert"]["quantization_config"]
    rescored = {"quantization": {"rescore": True, "oversampling": 3.0}}
    assert without_defaults(queries[0]["params"]) == rescored
    dense, sparse = queries[0]["prefetch"][0]["prefetch"]
    assert without_defaults(dense["params"]) == rescored
    assert sparse.get("params") is None
    assert without_defaults(queries[1]["params"]) == {"quantization": {"rescore": False}}


def without_defaults(params: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in params["quantization"].items() if value is not None}
    return {"quantization": {name: value for name, value in given.items() if name != "ignore"}}


def test_what_cannot_be_quantized_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`colbert_quantization` needs `colbert`"):
        Schema(colbert_quantization="binary")
    for oversampling in (0.9, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="`oversampling` must be at least 1"):
            Plan(oversampling=oversampling)
