"""Which provider answers: bge-m3 on our endpoint, or Jina, by the contract's environment variables.

    bge    our endpoint; with the fallback asked for, Jina when ours fails
    jina   Jina
    auto   our endpoint if its /health says that it can answer, else Jina

Vectors of two models live in two spaces and must never meet in one index: every result names its
provider and fingerprint, every change of provider is logged as a warning, and a router with
`expect_fingerprint` raises before it returns a vector of any other model.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from .client import Client
from .errors import (
    BGEError,
    ConfigurationError,
    FingerprintError,
    ProtocolError,
    TooLargeError,
    ValidationError,
)
from .jina import InputType, JinaClient
from .redaction import read_secret
from .results import EmbedResult, RerankResult
from .shadow import Shadow

log = logging.getLogger("bge_client")

Provider = Literal["bge", "jina", "auto"]
PROVIDERS = ("bge", "jina", "auto")
JINA_PREFIX = "jina/"  # how the fingerprints of its models begin
HEALTH_TTL_SECONDS = 60.0  # seconds
HEALTH_TIMEOUT_SECONDS = 5.0
# Another provider would refuse these too, or must not be asked.
NO_FALLBACK_ERRORS = (ValidationError, TooLargeError, ConfigurationError, FingerprintError)
Result = TypeVar("Result", EmbedResult, RerankResult)
AnyClient = TypeVar("AnyClient", bound=Client | JinaClient)


def is_available(health: Mapping[str, Any]) -> bool:
    """Whether an endpoint of that `/health` can answer: scaled to zero it can, all broken not.

    Raises:
        ProtocolError: it is no `/health`.
    """
    workers = health.get("workers")
    if not isinstance(workers, dict) or any(type(n) is not int for n in workers.values()):
        raise ProtocolError("the reply of /health has no `workers`")
    down = ("unhealthy", "throttled")
    states = {state for state, count in workers.items() if count > 0}
    return not states or bool(states - set(down))


@dataclass(frozen=True)
class Route:
    """How one kind of request is answered. `bge` may be None only for provider `jina`."""

    name: str
    bge: Client | None
    provider: Provider = "bge"
    fallback: bool = False


class Router:
    """Embeddings and reranking from whichever provider the routes name."""

    def __init__(
        self,
        embeddings: Route,
        reranker: Route,
        jina: JinaClient | None = None,
        *,
        expect_fingerprint: str | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        """`expect_fingerprint` binds the embeddings; `shadow` watches `rerank`, and is yours to
        close: before the router, whose connections what waits to be compared still needs.

        Raises:
            ConfigurationError: a route needs a client that is not there, or the shadow does.
        """
        for route in (embeddings, reranker):
            if route.provider != "jina" and route.bge is None:
                raise ConfigurationError(f"no endpoint for the {route.name}")
            if jina is None and (route.provider != "bge" or route.fallback):
                raise ConfigurationError(f"the {route.name} need Jina: set `JINA_API_KEY`")
        if shadow is not None and (reranker.bge is None or jina is None):
            raise ConfigurationError(
                f"a shadow of the {reranker.name} needs both providers: set "
                "`BGE_RERANKER_ENDPOINT` and `JINA_API_KEY`"
            )
        bge_only = expect_fingerprint is not None and not expect_fingerprint.startswith(JINA_PREFIX)
        if bge_only and embeddings.provider == "jina":
            raise ConfigurationError("Jina's vectors cannot have the `expect_fingerprint` given")
        self._embeddings, self._reranker, self._jina = embeddings, reranker, jina
        self._expect_fingerprint = expect_fingerprint
        self._bge_only = bge_only
        self._shadow = shadow
        self._health: dict[str, tuple[float, bool]] = {}

    @classmethod
    def from_env(
        cls,
        env: Mapping[str, str] | None = None,
        *,
        timeout: float = 300.0,
        expect_fingerprint: str | None = None,
        shadow: Shadow | None = None,
    ) -> Router:
        """As the contract's variables say; the reranker's endpoint is by default the other's.

        Raises:
            ConfigurationError: a variable is missing or wrong; names it.
        """
        env = os.environ if env is None else env
        urls = {kind: endpoint_of(env, kind) for kind in ("EMBEDDINGS", "RERANKER")}
        key = read_secret(env.get("RUNPOD_API_KEY"), "RUNPOD_API_KEY")

        def route(kind: str, name: str) -> Route:
            url = urls[kind] or urls["EMBEDDINGS"] or urls["RERANKER"]
            provider = _choice(env, f"{kind}_PROVIDER", PROVIDERS)
            if provider != "jina" and url is None:
                raise ConfigurationError(f"`BGE_{kind}_ENDPOINT` is not set")
            fallback = _choice(env, f"{kind}_FALLBACK_TO_JINA", ("false", "true")) == "true"
            is_needed = provider != "jina" or shadow is not None
            client = Client(url, key, timeout=timeout) if url and is_needed else None
            return Route(name, client, provider, fallback)  # type: ignore[arg-type]

        jina_key = read_secret(env.get("JINA_API_KEY"), "JINA_API_KEY")
        return cls(
            route("EMBEDDINGS", "embeddings"),
            route("RERANKER", "scores"),
            JinaClient(jina_key, timeout=timeout) if jina_key else None,
            expect_fingerprint=expect_fingerprint,
            shadow=shadow,
        )

    def __enter__(self) -> Router:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for client in (self._embeddings.bge, self._reranker.bge, self._jina):
            if client is not None:
                client.close()

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        input_type: InputType = "document",
        sparse: bool = False,
        colbert: bool = False,
    ) -> EmbedResult:
        """Dense vectors, and others if asked for: those only our own endpoint has.

        `input_type` is for Jina; bge-m3 embeds queries and documents alike. Where Jina could not
        give what is asked for, or not of the model expected, it is not asked.

        Raises:
            FingerprintError: the vectors are not of the model expected.
            BGEError: see `errors.py`.
        """
        text_list = [texts] if isinstance(texts, str) else list(texts)

        bge_only = self._bge_only or sparse or colbert
        if bge_only and self._embeddings.provider == "jina":
            raise ConfigurationError("Jina has neither `sparse` nor `colbert` vectors")
        result = self._answer(
            self._embeddings,
            lambda client: client.embed(text_list, sparse=sparse, colbert=colbert),
            None if bge_only else lambda client: client.embed(text_list, input_type=input_type),
        )
        if self._expect_fingerprint not in (None, result.fingerprint):
            raise FingerprintError(
                f"vectors of model {self._expect_fingerprint} were expected. "
                f"Given: those of {result.fingerprint}, from {result.provider}"
            )
        return result

    def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None
    ) -> RerankResult:
        """The documents, best first; scores of two providers are not comparable.

        Raises:
            BGEError: see `errors.py`.
        """
        start = time.perf_counter()
        result = self._answer(
            self._reranker,
            lambda client: client.rerank(query, documents, top_n=top_n),
            lambda client: client.rerank(query, documents, top_n=top_n),
        )
        if self._shadow is not None:
            seconds = time.perf_counter() - start
            self._offer_to_shadow(self._shadow, query, documents, top_n, result, seconds)
        return result

    def _offer_to_shadow(
        self,
        shadow: Shadow,
        query: str,
        documents: Sequence[str],
        top_n: int | None,
        result: RerankResult,
        seconds: float,
    ) -> None:
        """The order of the answer, to be compared with that of the provider not asked.

        A fallback's is not: the other provider has just failed, or is not healthy.
        """
        if (result.provider == "jina") != (self._reranker.provider == "jina"):
            return
        # A copy: by the time it is compared the caller may have changed it.
        document_list = [documents] if isinstance(documents, str) else list(documents)
        other_client = self._jina if result.provider == "bge" else self._reranker.bge

        def other_ranking() -> list[int]:
            return _indices(_required(other_client).rerank(query, document_list, top_n=top_n))

        shadow.offer(
            query,
            lambda: _indices(result),
            other_ranking,
            live_seconds=seconds,
            names=("bge", "jina") if result.provider == "bge" else ("jina", "bge"),
            pool=len(document_list),
        )

    def _answer(
        self,
        route: Route,
        bge: Callable[[Client], Result],
        jina: Callable[[JinaClient], Result] | None,
    ) -> Result:
        """Of the route's providers; `jina` is None where only our endpoint will do."""
        if jina is None or self._jina is None:
            return bge(_required(route.bge))
        if route.provider == "jina" or route.bge is None:
            return jina(self._jina)
        if route.provider == "auto" and not self._is_healthy(route.bge):
            log.warning("%s come from Jina: the endpoint is not healthy", route.name)
            return jina(self._jina)
        try:
            return bge(route.bge)
        except BGEError as error:
            if not route.fallback or isinstance(error, NO_FALLBACK_ERRORS):
                raise
            log.warning("%s come from Jina: %s", route.name, error)
            try:
                return jina(self._jina)
            except BGEError as jina_error:
                raise jina_error from error

    def _is_healthy(self, client: Client) -> bool:
        """By `/health`, asked once a minute; by two threads perhaps twice."""
        key = repr(client)
        checked_at, is_healthy = self._health.get(key, (-HEALTH_TTL_SECONDS, False))
        if time.monotonic() - checked_at >= HEALTH_TTL_SECONDS:
            try:
                is_healthy = is_available(client.health(timeout=HEALTH_TIMEOUT_SECONDS))
            except BGEError as error:
                log.warning("%r does not answer /health: %s", client, error)
                is_healthy = False
            self._health[key] = time.monotonic(), is_healthy
        return is_healthy


def _indices(ranked: RerankResult) -> list[int]:
    return [document.index for document in ranked]


def _required(client: AnyClient | None) -> AnyClient:
    if client is None:
        raise AssertionError("looked at when this router was made. This is a bug.")
    return client


def endpoint_of(env: Mapping[str, str], kind: str) -> str | None:
    """The address of the endpoint for `EMBEDDINGS` or `RERANKER`; RunPod's own variable wins."""
    return env.get(f"RUNPOD_{kind}_ENDPOINT") or env.get(f"BGE_{kind}_ENDPOINT") or None


def _choice(env: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """The first is the default. Raises ConfigurationError: another value."""
    value = env.get(name) or choices[0]
    if value not in choices:
        raise ConfigurationError(f"`{name}` must be one of {', '.join(choices)}. Given: {value!r}")
    return value
