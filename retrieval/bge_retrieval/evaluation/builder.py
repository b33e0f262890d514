"""Build search systems on the collections of a store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from bge_client import BGEError, Client, JinaClient

from ..documents import value_at
from ..plan import Plan
from ..results import Hit
from ..search import HybridSearch
from ..store import Store
from .jina_search import PROBE, JinaSearch
from .systems import Answer, Price, System
from .unique_documents import UniqueDocuments

RERANKED = 50  # hits
PLANS = {  # by kind of system
    "dense": Plan(sparse=False),
    "sparse": Plan(dense=False),
    "hybrid": Plan(),
    "dense+rerank": Plan(sparse=False, rerank=RERANKED),
    "hybrid+rerank": Plan(rerank=RERANKED),
    "hybrid+colbert": Plan(colbert=True),
}
JINA_RERANKS = {"jina": 0, "jina+rerank": RERANKED}  # hits reranked, by kind of system
UNKNOWN_PRICE = Price()


class SystemBuilder:
    """Builds systems on one store and one endpoint. Close it after the run.

    `vector` and `text_fields` are those of a collection of Jina's vectors.
    """

    def __init__(
        self,
        store: Store,
        client: Client,
        reranker: Client,
        *,
        id_field: str | None = None,
        vector: str = "",
        text_fields: Sequence[str] = ("text",),
        bge_price: Price = UNKNOWN_PRICE,
        jina_price: Price = UNKNOWN_PRICE,
    ) -> None:
        self._store, self._client, self._reranker = store, client, reranker
        self._id_field, self._vector, self._text_fields = id_field, vector, text_fields
        self._bge_price, self._jina_price = bge_price, jina_price
        self._jina_clients: list[JinaClient] = []

    def __enter__(self) -> SystemBuilder:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._jina_clients:
            client.close()

    def system(self, name: str, kind: str, collection: str) -> System:
        """Build a system: `kind` is a key of `PLANS` or `JINA_RERANKS`.

        Raises:
            ConfigurationError: the collection or the key of Jina is missing.
            FingerprintError: the collection holds vectors of another model.
            BGEError: the reranker or Jina refused a request.
        """
        if kind in JINA_RERANKS:
            return self._jina(name, JINA_RERANKS[kind], collection)
        return self._bge(name, PLANS[kind], collection)

    def _bge(self, name: str, plan: Plan, collection: str) -> System:
        engine = HybridSearch(self._store, self._client, collection, plan, reranker=self._reranker)
        if plan.rerank:
            self._check_reranker(name)
        about: dict[str, str | int | float] = {
            "collection": engine.collection,
            "fingerprint": engine.metadata.fingerprint,
            "plan": _describe_plan(plan),
        }
        return System(name, self._documents(engine), self._bge_price, about)

    def _check_reranker(self, name: str) -> None:
        try:
            self._reranker.rerank(PROBE, [PROBE])
        except BGEError as error:
            error.args = (f"`{name}` needs a reranker: {error}",)  # keeps the other attributes
            raise

    def _jina(self, name: str, rerank: int, collection: str) -> System:
        jina = JinaClient(os.environ.get("JINA_API_KEY", ""))
        self._jina_clients.append(jina)
        engine = JinaSearch(
            self._store,
            jina,
            collection,
            vector=self._vector,
            rerank=rerank,
            text_fields=self._text_fields,
        )
        return System(name, self._documents(engine), self._jina_price, engine.about)

    def _documents(self, engine: HybridSearch | JinaSearch) -> UniqueDocuments:
        def search(query: str, limit: int) -> Answer:
            result = engine.search(query, limit)
            model_seconds = result.seconds["embed"] + result.seconds.get("rerank", 0.0)
            ranking = [(self._document_id(hit), hit.score) for hit in result]
            return Answer(ranking, model_seconds, result.tokens, result.points)

        return UniqueDocuments(search)

    def _document_id(self, hit: Hit) -> str:
        """Return the document id of a point. A point without `--id-field` matches no judgement."""
        if self._id_field is None:
            return hit.document_id
        return _id_at(hit.payload, self._id_field) or f"point {hit.id}"


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
