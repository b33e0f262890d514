"""The layout of a collection of BGE vectors, and an embedding as a point's vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from qdrant_client import models

from bge_client import ConfigurationError, Embedding, HTTPStatusError, ProtocolError

from .metadata import DENSE, CollectionMetadata
from .store import Store

SPARSE, COLBERT = "sparse", "colbert"
# A payload key. If true, the point holds only the first ColBERT vectors of its text.
COLBERT_CUT = "_colbert_cut"
MULTIVECTOR_FLOATS = 1_048_576  # one multivector in Qdrant must have fewer
MAX_SIM = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
Quantization = Literal["none", "scalar", "binary"]
Vector = TypeVar("Vector")


@dataclass(frozen=True)
class Schema:
    """The vectors of a collection: `dense`, `sparse` and optionally `colbert`.

    `on_disk` keeps dense vectors, payloads and the index on disk. `quantization` keeps compressed
    copies of the dense vectors in memory (scalar: 1/4 of the size, binary: 1/32). ColBERT vectors
    are always on disk and have no index, because they only rescore candidates;
    `colbert_quantization` keeps compressed copies of them in memory, so that only those of the best
    candidates are read from the disk (`Plan.oversampling`).

    Raises:
        ConfigurationError: `colbert_quantization` without `colbert`.
    """

    colbert: bool = False
    on_disk: bool = False
    quantization: Quantization = "none"
    colbert_quantization: Quantization = "none"

    def __post_init__(self) -> None:
        if self.colbert_quantization != "none" and not self.colbert:
            raise ConfigurationError("`colbert_quantization` needs `colbert`")

    def ensure(
        self,
        store: Store,
        collection: str,
        metadata: CollectionMetadata,
        template: models.CollectionConfig | None = None,
    ) -> CollectionMetadata:
        """Create the collection unless it exists. Return the metadata that is stored in it.

        A new collection copies the shards, replicas, limits and `on_disk_payload` of `template`.

        Raises:
            FingerprintError: the collection holds vectors of another model.
            ConfigurationError: the server is too old, or `template` has custom sharding.
        """
        if not store.exists(collection):
            store.check_version()
            settings = {} if template is None else collection_settings(template)
            try:
                self._create(store, collection, metadata, settings)
            except HTTPStatusError:  # created by another process, or the response was lost
                if not store.exists(collection):
                    raise
        stored = CollectionMetadata.load(store, collection)
        stored.check_fingerprint(metadata.fingerprint, collection)
        return stored

    def _create(
        self, store: Store, collection: str, metadata: CollectionMetadata, settings: dict[str, Any]
    ) -> None:
        # No IDF modifier: bge-m3's sparse weights are learned.
        sparse = models.SparseVectorParams(
            index=models.SparseIndexParams(on_disk=self.on_disk or None)
        )
        if self.on_disk:
            settings["on_disk_payload"] = True
        store.create_collection(
            collection,
            vectors_config=self._vectors(metadata.dimensions),
            sparse_vectors_config={SPARSE: sparse},
            metadata=metadata.as_metadata(),
            **settings,
        )

    def _vectors(self, dimensions: int) -> dict[str, models.VectorParams]:
        cosine, on_disk = models.Distance.COSINE, self.on_disk or None
        vectors = {
            DENSE: models.VectorParams(
                size=dimensions,
                distance=cosine,
                on_disk=on_disk,
                hnsw_config=models.HnswConfigDiff(on_disk=on_disk),
                quantization_config=_QUANTIZATION[self.quantization],
            )
        }
        if self.colbert:
            vectors[COLBERT] = models.VectorParams(
                size=dimensions,
                distance=cosine,
                multivector_config=MAX_SIM,
                hnsw_config=models.HnswConfigDiff(m=0),
                datatype=models.Datatype.FLOAT16,
                on_disk=True,
                quantization_config=_QUANTIZATION[self.colbert_quantization],
            )
        return vectors


def collection_settings(config: models.CollectionConfig) -> dict[str, Any]:
    """Return the arguments of `create_collection` that copy shards, replicas and limits."""
    params = config.params
    if params.sharding_method == models.ShardingMethod.CUSTOM:
        raise ConfigurationError("the source has custom sharding, which cannot be copied")
    names = {"shard_number", "replication_factor", "write_consistency_factor", "on_disk_payload"}
    settings = params.model_dump(include=names, exclude_none=True)
    if config.strict_mode_config is not None:
        limits = config.strict_mode_config.model_dump(exclude_none=True)
        settings["strict_mode_config"] = models.StrictModeConfig(**limits)
    return settings


_QUANTIZATION: dict[Quantization, Any] = {
    "none": None,
    "scalar": models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
    ),
    "binary": models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
}


def max_colbert_vectors(dimensions: int) -> int:
    """Return how many ColBERT vectors one point can hold: 1,023 of 1,024 dimensions."""
    return (MULTIVECTOR_FLOATS - 1) // dimensions


def point_vectors(embedding: Embedding, metadata: CollectionMetadata) -> dict[str, Any]:
    """Return all vectors of a point, by name. Drops the ColBERT vectors that exceed the limit.

    Raises:
        ProtocolError: a vector is not finite. Qdrant would store it.
    """
    vectors = {metadata.dense: _rounded(embedding.dense), SPARSE: sparse_vector(embedding)}
    if metadata.colbert:
        limit = max_colbert_vectors(metadata.dimensions)
        vectors[COLBERT] = _rounded(embedding.colbert, limit)
    return vectors


def sparse_vector(embedding: Embedding) -> models.SparseVector:
    indices, values = present(embedding.sparse)
    return models.SparseVector(indices=indices.tolist(), values=_rounded(values))


def is_colbert_cut(embedding: Embedding, metadata: CollectionMetadata) -> bool:
    limit = max_colbert_vectors(metadata.dimensions)
    return metadata.colbert and embedding.colbert is not None and len(embedding.colbert) > limit


def present(vector: Vector | None) -> Vector:
    """Return a vector of an embedding that was requested with it."""
    if vector is None:
        raise AssertionError("the embedding lacks a vector. This is a bug.")
    return vector


def _rounded(array: np.ndarray[Any, Any] | None, limit: int | None = None) -> Any:
    """Return lists of floats with 7 decimals, which halves the size of a request."""
    array = present(array)
    if not np.isfinite(array).all():
        raise ProtocolError("a vector is not finite")
    return np.round(array[:limit].astype(np.float64), 7).tolist()
