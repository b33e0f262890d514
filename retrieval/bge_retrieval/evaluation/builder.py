"""Build search systems on the collections of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bge_client import BGEError, Client

from ..documents import value_at
from ..metadata import load_probe
from ..plan import Plan
from ..results import Hit
from ..search import HybridSearch
from ..search_run import Reranker
from ..store import Store
from .kinds import BGE_RERANKER, PLANS, Kind
from .provider_search import PROBE, ProviderSearch
from .providers import RERANKING_MODELS, Provider, open_embedder, open_reranker
from .systems import Answer, Price, System
from .unique_documents import UniqueDocuments

RERANKED = 50  # hits
UNKNOWN_PRICE = Price()


class SystemBuilder:
    """Builds systems on one store and one endpoint. Close it after the run.

    `vector` and `text_fields` are those of a collection of a provider's vectors.
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
        self._providers: list[Provider] = []

    def __enter__(self) -> SystemBuilder:
        return self

    def __exit__(self, *_: object) -> None:
        for provider in self._providers:
            provider.close()

    def system(self, name: str, kind: str | Kind, collection: str) -> System:
        """Build a system.

        Raises:
            ConfigurationError: there is no such kind or collection, or a provider's key is missing.
            FingerprintError: the collection holds vectors of another model.
            BGEError: a reranker or a provider refused a request.
        """
        kind = Kind.parse(kind) if isinstance(kind, str) else kind
        reranker = self._reranker_of(name, kind)
        if kind.is_hosted:
            return self._hosted(name, kind, collection, reranker)
        rerank = RERANKED if kind.reranker else 0
        plan = replace(PLANS[kind.retrieval], colbert=kind.colbert, rerank=rerank)
        system = self._planned(name, plan, collection, reranker)
        if kind.reranker in (None, BGE_RERANKER):
            return system
        about = {**system.about, "reranker": _reranking_model(kind)}
        return replace(system, about=about, price=UNKNOWN_PRICE)

    def planned(self, name: str, plan: Plan, collection: str) -> System:
        """Build a system that searches BGE vectors by any plan. Raises as `system` does."""
        kind = Kind("hybrid", reranker=BGE_RERANKER if plan.rerank else None)
        return self._planned(name, plan, collection, self._reranker_of(name, kind))

    def _planned(self, name: str, plan: Plan, collection: str, reranker: Reranker | None) -> System:
        engine = HybridSearch(self._store, self._client, collection, plan, reranker=reranker)
        about: dict[str, str | int | float] = {
            "collection": engine.collection,
            "fingerprint": engine.metadata.fingerprint,
            "plan": _describe_plan(plan),
        }
        return System(name, self._documents(engine), self._bge_price, about)

    def _hosted(self, name: str, kind: Kind, collection: str, reranker: Reranker | None) -> System:
        """Return a system on the dense vectors of a provider's model."""
        engine = ProviderSearch(
            self._store,
            self._opened(open_embedder(kind.retrieval, load_probe(self._store, collection))),
            collection,
            vector=self._vector,
            reranker=reranker,
            rerank=RERANKED if reranker else 0,
            text_fields=self._text_fields,
        )
        about = dict(engine.about)
        if kind.reranker:
            about["reranker"] = f"{_reranking_model(kind)}, the best {RERANKED}"
        price = self._jina_price if kind.is_of_jina else UNKNOWN_PRICE
        return System(name, self._documents(engine), price, about)

    def _reranker_of(self, name: str, kind: Kind) -> Reranker | None:
        """Return the reranker of a kind, which has answered a request."""
        if kind.reranker is None:
            return None
        is_own = kind.reranker == BGE_RERANKER
        reranker = self._reranker if is_own else self._opened(open_reranker(kind.reranker))
        try:
            reranker.rerank(PROBE, [PROBE])
        except BGEError as error:
            error.args = (f"`{name}` needs a reranker: {error}",)  # keeps the other attributes
            raise
        return reranker

    def _opened(self, provider: Provider) -> Provider:
        self._providers.append(provider)
        return provider

    def _documents(self, engine: HybridSearch | ProviderSearch) -> UniqueDocuments:
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


def _reranking_model(kind: Kind) -> str:
    name = kind.reranker or ""
    return RERANKING_MODELS.get(name, name)


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
