"""Dense search with a provider's vectors: the stack before a migration, or the same model's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from qdrant_client import models

from bge_client import ConfigurationError, FingerprintError, ProbeError

from .. import Hit, SearchResult, Store
from ..documents import text_at
from ..metadata import METADATA, CollectionMetadata
from ..search_run import Reranker
from .providers import Provider

PROBE = "width"  # a text to embed and rerank before the first query
SAMPLE = 64  # points, of which at least one must have a text


class ProviderSearch:
    """Searches a collection of a provider's vectors. The first `rerank` hits are reranked by texts.

    A collection of BGE vectors is searched only by vectors of its fingerprint. In others, `vector`
    names the vector if there are several. `about` describes the search in a report.

    Raises:
        ConfigurationError: there is no such collection or vector, or a `reranker` without texts.
        FingerprintError: the collection holds vectors of another model.
        BGEError: the provider refused a request.
    """

    def __init__(
        self,
        store: Store,
        embedder: Provider,
        collection: str,
        *,
        vector: str = "",
        reranker: Reranker | None = None,
        rerank: int = 0,
        text_fields: Sequence[str] = ("text",),
    ) -> None:
        self._store, self._embedder, self._reranker = store, embedder, reranker
        self._vector, self._rerank, self._text_fields = vector, rerank, text_fields
        self._collection = store.resolve(collection)
        info = store.info(self._collection)
        is_bge = METADATA in (info.config.metadata or {})
        model = self._check_fingerprint(info) if is_bge else self._check_dimensions(info)
        self.about: dict[str, str | int | float] = {
            "collection": self._collection,
            "model": model,
        }
        if vector:
            self.about["vector"] = vector
        if reranker is not None:
            self._check_texts()

    def search(self, query: str, limit: int) -> SearchResult:
        """Return the best `limit` points. `seconds` omits the time spent in Qdrant."""
        start = time.perf_counter()
        embedding = self._embedder.embed(query, input_type="query")
        seconds = {"embed": time.perf_counter() - start}
        request = models.QueryRequest(
            query=embedding[0].dense.tolist(),  # type: ignore[union-attr]
            using=self._vector or None,
            limit=limit,
            with_payload=True,
        )
        points = self._store.query_points(self._collection, request)
        result = SearchResult(
            [self._hit(point) for point in points],
            seconds,
            embedding.usage.total_tokens,
            len(points),
        )
        return result if self._reranker is None else self._reranked(query, result, self._reranker)

    def _hit(self, point: models.ScoredPoint) -> Hit:
        payload = point.payload or {}
        return Hit(point.id, point.score, text_at(payload, self._text_fields), payload)

    def _reranked(self, query: str, result: SearchResult, reranker: Reranker) -> SearchResult:
        """Put the reranked hits first. Hits without text follow, in their order."""
        candidates = [hit for hit in result.hits[: self._rerank] if hit.text]
        if not candidates:
            return result
        start = time.perf_counter()
        ranking = reranker.rerank(query, [hit.text or "" for hit in candidates])
        seconds = result.seconds | {"rerank": time.perf_counter() - start}
        hits = [replace(candidates[item.index], score=item.relevance_score) for item in ranking]
        ids = {hit.id for hit in candidates}
        hits += [hit for hit in result.hits if hit.id not in ids]
        tokens = result.tokens + ranking.usage.total_tokens
        return SearchResult(hits, seconds, tokens, result.points)

    def _check_fingerprint(self, info: models.CollectionInfo) -> str:
        """Return the provider's model if its vectors are those of a collection of BGE vectors."""
        metadata = CollectionMetadata.parse(info, self._collection)
        try:
            self._embedder.check_fingerprint(metadata.fingerprint)
        except ProbeError as error:
            error.args = (
                f"collection `{self._collection}` holds vectors of {metadata.model}, fingerprint "
                f"{metadata.fingerprint}: {error}",
            )
            raise
        probe = self._embedder.embed(PROBE, input_type="query")
        metadata.check_fingerprint(probe.fingerprint, self._collection)
        self._vector, self._text_fields = metadata.dense, metadata.text_fields
        return probe.model

    def _check_dimensions(self, info: models.CollectionInfo) -> str:
        """Return the provider's model if the collection has vectors of its size."""
        size = self._vector_size(info)
        probe = self._embedder.embed(PROBE, input_type="query")
        dimensions = probe[0].dense.shape[0]  # type: ignore[union-attr]
        if dimensions != size:
            raise FingerprintError(
                f"collection `{self._collection}` holds vectors of {size} dimensions. "
                f"Given: {dimensions}, of {probe.fingerprint}"
            )
        return probe.model

    def _vector_size(self, info: models.CollectionInfo) -> int:
        """Return the dimensions of the provider's vector."""
        vectors = info.config.params.vectors
        by_name = vectors if isinstance(vectors, Mapping) else {"": vectors}
        params = by_name.get(self._vector)
        if params is None:
            names = ", ".join(f"`{name}`" for name in by_name if name) or "an unnamed vector"
            raise ConfigurationError(
                f"`--vector` must name the vector of collection `{self._collection}` that is the "
                f"provider's: {names}. Given: {self._vector!r}"
            )
        return params.size

    def _check_texts(self) -> None:
        payloads = [point.payload or {} for point in self._store.sample(self._collection, SAMPLE)]
        if not any(text_at(payload, self._text_fields) for payload in payloads):
            raise ConfigurationError(
                f"a reranker reads texts, but no point of `{self._collection}` has one at "
                f"`{'`, `'.join(self._text_fields)}`: pass `--text-field`"
            )
