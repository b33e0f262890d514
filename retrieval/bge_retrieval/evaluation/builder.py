"""Build search systems on the collections of a store."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from bge_client import Client, ConfigurationError, FingerprintError, JinaClient

from ..documents import value_at
from ..metadata import METADATA
from ..plan import Plan
from ..search import HybridSearch
from ..store import Store
from .systems import Answer, Price, System
from .unique_documents import UniqueDocuments

PLANS = {  # by kind of system; there is also `jina`
    "dense": Plan(sparse=False),
    "sparse": Plan(dense=False),
    "hybrid": Plan(),
    "hybrid+rerank": Plan(rerank=50),
    "hybrid+colbert": Plan(colbert=True),
}
UNKNOWN_PRICE = Price()


class SystemBuilder:
    """Builds systems on one store and one endpoint. Close it after the run."""

    def __init__(
        self,
        store: Store,
        client: Client,
        reranker: Client,
        *,
        id_field: str | None = None,
        vector: str = "",
        bge_price: Price = UNKNOWN_PRICE,
        jina_price: Price = UNKNOWN_PRICE,
    ) -> None:
        self._store, self._client, self._reranker = store, client, reranker
        self._id_field, self._vector = id_field, vector
        self._bge_price, self._jina_price = bge_price, jina_price
        self._jina_clients: list[JinaClient] = []

    def __enter__(self) -> SystemBuilder:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._jina_clients:
            client.close()

    def system(self, name: str, kind: str, collection: str) -> System:
        """Build a system: `kind` is `jina` or a key of `PLANS`.

        Raises:
            ConfigurationError: the collection or the key of Jina is missing.
            FingerprintError: the collection holds vectors of another model.
        """
        if kind == "jina":
            return self._jina(name, collection)
        return self._bge(name, PLANS[kind], collection)

    def _bge(self, name: str, plan: Plan, collection: str) -> System:
        engine = HybridSearch(self._store, self._client, collection, plan, reranker=self._reranker)

        def search(query: str, limit: int) -> Answer:
            result = engine.search(query, limit=limit)
            model_seconds = result.seconds["embed"] + result.seconds.get("rerank", 0.0)
            ranking = [(self._document_id(hit.payload, hit.id), hit.score) for hit in result]
            return Answer(ranking, model_seconds, result.tokens)

        about: dict[str, str | int | float] = {
            "collection": engine.collection,
            "fingerprint": engine.metadata.fingerprint,
            "plan": _describe_plan(plan),
        }
        return System(name, UniqueDocuments(search), self._bge_price, about)

    def _jina(self, name: str, collection: str) -> System:
        """Build a dense search in a collection of Jina's vectors."""
        jina = JinaClient(os.environ.get("JINA_API_KEY", ""))
        self._jina_clients.append(jina)
        collection = self._store.resolve(collection)
        size = self._vector_size(collection)
        probe = jina.embed("width", input_type="query")
        dimensions = probe[0].dense.shape[0]  # type: ignore[union-attr]
        if dimensions != size:
            raise FingerprintError(
                f"collection `{collection}` holds vectors of {size} dimensions. "
                f"Given: {dimensions}, of {probe.fingerprint}"
            )

        def search(query: str, limit: int) -> Answer:
            start = time.perf_counter()
            result = jina.embed(query, input_type="query")
            model_seconds = time.perf_counter() - start
            points = self._store.query(
                collection,
                query=result[0].dense.tolist(),  # type: ignore[union-attr]
                using=self._vector or None,
                limit=limit,
            )
            ranking = [(self._document_id(p.payload or {}, p.id), p.score) for p in points]
            return Answer(ranking, model_seconds, result.usage.total_tokens)

        about: dict[str, str | int | float] = {"collection": collection, "model": probe.model}
        if self._vector:
            about["vector"] = self._vector
        return System(name, UniqueDocuments(search), self._jina_price, about)

    def _vector_size(self, collection: str) -> int:
        """Return the dimensions of Jina's vector.

        Raises:
            FingerprintError: the collection holds BGE vectors.
            ConfigurationError: `--vector` names no vector of the collection.
        """
        config = self._store.info(collection).config
        if METADATA in (config.metadata or {}):
            raise FingerprintError(
                f"collection `{collection}` holds BGE vectors, so Jina cannot search it: pass "
                f"jina@OLD with the collection of Jina's vectors, or dense@{collection}"
            )
        vectors = config.params.vectors
        by_name = vectors if isinstance(vectors, Mapping) else {"": vectors}
        params = by_name.get(self._vector)
        if params is None:
            names = ", ".join(f"`{name}`" for name in by_name if name) or "an unnamed vector"
            raise ConfigurationError(
                f"`--vector` must name the vector of collection `{collection}` that is Jina's: "
                f"{names}. Given: {self._vector!r}"
            )
        return params.size

    def _document_id(self, payload: Mapping[str, Any], point_id: object) -> str:
        """Return the document id of a point. A point without `--id-field` matches no judgement."""
        if self._id_field is None:
            return str(payload.get("_id", payload.get("id", point_id)))
        document_id = _id_at(payload, self._id_field)
        return f"point {point_id}" if document_id is None else document_id


def _id_at(payload: Mapping[str, Any], path: str) -> str | None:
    """Return the string or number at `page.id` or `chunks.0.id` as a string, or None."""
    value = value_at(payload, path)
    fits = isinstance(value, str | int | float) and not isinstance(value, bool)
    return str(value) if fits else None


def _describe_plan(plan: Plan) -> str:
    """Return `dense + sparse by rrf (k 61, weights 1 and 1), 100 candidates of each`."""
    legs = " + ".join(name for name in ("dense", "sparse") if getattr(plan, name))
    if plan.is_fused and plan.fusion == "rrf":
        legs += " by rrf (k {}, weights {:g} and {:g})".format(plan.rrf_k, *plan.weights)
    elif plan.is_fused:
        legs += f" by {plan.fusion}"
    stages = [legs, f"{plan.candidates} candidates of each"]
    stages += ["colbert"] if plan.colbert else []
    stages += [f"the best {plan.rerank} reranked"] if plan.rerank else []
    return ", ".join(stages)
