"""The layout of a collection of BGE vectors, and an embedding as a point's vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from qdrant_client import models

from ..errors import ConfigurationError, HTTPStatusError, ProtocolError
from ..results import Embedding
from .metadata import DENSE, CollectionMetadata
from .store import Store

SPARSE, COLBERT = "sparse", "colbert"
COLBERT_CUT = "_colbert_cut"  # in a payload, true: only the first of its ColBERT vectors are kept
MULTIVECTOR_FLOATS = 1_048_576  # Qdrant's limit for one multivector, itself excluded
MAX_SIM = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
Quantization = Literal["none", "scalar", "binary"]


@dataclass(frozen=True)
class Schema:
    """How a collection keeps its vectors: `dense`, `sparse` and, if wanted, `colbert`.

    `on_disk` keeps dense vectors, payloads and the index on disk; `quantization` keeps small
    copies of the dense vectors in memory (scalar: a quarter of the size, binary: a 32nd). ColBERT
    vectors are always on disk and without an index: they only rescore what others have found.
    """

    colbert: bool = False
    on_disk: bool = False
    quantization: Quantization = "none"

    def ensure(
        self,
        store: Store,
        collection: str,
        metadata: CollectionMetadata,
        template: models.CollectionConfig | None = None,
    ) -> CollectionMetadata:
        """Make the collection if there is none; what it, made now or before, is bound to.

        `like` is another's configuration, whose shards, replicas, limits and place of payloads
        it takes over.

        Raises:
            FingerprintError: its vectors are another model's.
            ConfigurationError: the server is too old, or `like` has shards of its own naming.
        """
        if not store.exists(collection):
            store.check_version()
            settings = {} if template is None else collection_settings(template)
            try:
                self._create(store, collection, metadata, settings)
            except HTTPStatusError:  # made meanwhile, or made and the answer was lost
                if not store.exists(collection):
                    raise
        stored = CollectionMetadata.load(store, collection)
        stored.check_fingerprint(metadata.fingerprint, collection)
        return stored

    def _create(
        self, store: Store, collection: str, metadata: CollectionMetadata, settings: dict[str, Any]
    ) -> None:
        # bge-m3 has learnt its sparse weights: no IDF on top of them
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
            )
        return vectors


def collection_settings(config: models.CollectionConfig) -> dict[str, Any]:
    """What `create_collection` takes to make one with the same shards, replicas and limits."""
    params = config.params
    if params.sharding_method == models.ShardingMethod.CUSTOM:
        raise ConfigurationError("the source has shards of its own naming: these are not copied")
    settings: dict[str, Any] = {
        "shard_number": params.shard_number,
        "replication_factor": params.replication_factor,
        "write_consistency_factor": params.write_consistency_factor,
        "on_disk_payload": params.on_disk_payload,
    }
    if config.strict_mode_config is not None:
        limits = config.strict_mode_config.model_dump(exclude_none=True)
        settings["strict_mode_config"] = models.StrictModeConfig(**limits)
    return {name: value for name, value in settings.items() if value is not None}


_QUANTIZATION: dict[Quantization, Any] = {
    "none": None,
    "scalar": models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
    ),
    "binary": models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
}


def max_colbert_vectors(dimensions: int) -> int:
    """Of one point: 1,023 of 1,024 dimensions."""
    return (MULTIVECTOR_FLOATS - 1) // dimensions


def point_vectors(embedding: Embedding, metadata: CollectionMetadata) -> dict[str, Any]:
    """A text's vectors as Qdrant takes them.

    Raises:
        ProtocolError: one is not finite: Qdrant would store it.
    """
    return {metadata.dense: _rounded(embedding.dense), **extra_vectors(embedding, metadata)}


def extra_vectors(embedding: Embedding, metadata: CollectionMetadata) -> dict[str, Any]:
    """All but the dense one; of ColBERT's, from the front, as many as one point may have."""
    vectors: dict[str, Any] = {SPARSE: sparse_vector(embedding)}
    if metadata.colbert:
        limit = max_colbert_vectors(metadata.dimensions)
        vectors[COLBERT] = _rounded(embedding.colbert, limit)
    return vectors


def sparse_vector(embedding: Embedding) -> models.SparseVector:
    if embedding.sparse is None:
        raise AssertionError("sparse vectors were asked for. This is a bug.")
    indices, values = embedding.sparse
    return models.SparseVector(indices=indices.tolist(), values=_rounded(values))


def is_colbert_cut(embedding: Embedding, metadata: CollectionMetadata) -> bool:
    limit = max_colbert_vectors(metadata.dimensions)
    return metadata.colbert and embedding.colbert is not None and len(embedding.colbert) > limit


def _rounded(array: np.ndarray[Any, Any] | None, limit: int | None = None) -> Any:
    """As lists, rounded as the contract's floats are: half the bytes in a request."""
    if array is None:
        raise AssertionError("these vectors were asked for. This is a bug.")
    if not np.isfinite(array).all():
        raise ProtocolError("a vector is not finite")
    return np.round(array[:limit].astype(np.float64), 7).tolist()
