"""Route requests to a BGE endpoint or to Jina, configured by environment variables.

    bge    the BGE endpoint; with fallback, Jina if it fails
    jina   Jina
    auto   the BGE endpoint if it answers or starts when needed; Jina if all its workers are down,
           or requests have waited for two minutes and it has no worker

Vectors of two models must never be mixed in one index: every result has its provider and
fingerprint, every switch to Jina is logged as a warning, and `expect_fingerprint` makes vectors
of any other model an error.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from .calls import checked_fingerprint
from .client import Client
from .codec import checked_documents, checked_texts
from .endpoint import endpoint_from, key_from
from .errors import (
    BGEError,
    ConfigurationError,
    FingerprintError,
    TooLargeError,
    ValidationError,
)
from .jina import InputType, JinaClient, task_of
from .redaction import read_secret
from .results import EmbedResult, RerankResult
from .state import EndpointState, endpoint_state

log = logging.getLogger("bge_client")

Provider = Literal["bge", "jina", "auto"]
PROVIDERS = ("bge", "jina", "auto")
JINA_PREFIX = "jina/"  # prefix of its fingerprints
HEALTH_TTL_SECONDS = 60.0
HEALTH_TIMEOUT_SECONDS = 5.0
NO_WORKER_SECONDS = 120.0  # that requests wait without a worker before Jina answers them
MAX_GAP_SECONDS = 3 * HEALTH_TTL_SECONDS  # between two looks at the same wait
# Jina would refuse the request too, or its vectors must not be used.
NO_FALLBACK_ERRORS = (ValidationError, TooLargeError, ConfigurationError, FingerprintError)
Result = TypeVar("Result", EmbedResult, RerankResult)
AnyClient = TypeVar("AnyClient", bound=Client | JinaClient)
# Called with query, documents, result and the seconds it took.
OnRerank = Callable[[str, Sequence[str], RerankResult, float], object]


@dataclass(frozen=True)
class Route:
    """The provider of one kind of request. `bge` may be None only for provider `jina`."""

    name: str
    bge: Client | None
    provider: Provider = "bge"
    fallback: bool = False


class Router:
    """Embeddings and reranking from the providers that two routes choose."""

    def __init__(
        self,
        embeddings: Route,
        reranker: Route,
        jina: JinaClient | None = None,
        *,
        expect_fingerprint: str | None = None,
        on_rerank: OnRerank | None = None,
    ) -> None:
        """`expect_fingerprint` applies to `embed`.

        `on_rerank(query, documents, result, seconds)` is called after each `rerank`, before its
        result is returned. Its errors are logged by type and do not affect the result.

        Raises:
            ConfigurationError: a route needs a client that is None.
        """
        for route in (embeddings, reranker):
            if route.provider != "jina" and route.bge is None:
                raise ConfigurationError(f"no endpoint for the {route.name}")
            if jina is None and (route.provider != "bge" or route.fallback):
                raise ConfigurationError(f"the {route.name} need Jina: set `JINA_API_KEY`")
        bge_only = expect_fingerprint is not None and not expect_fingerprint.startswith(JINA_PREFIX)
        if bge_only and embeddings.provider == "jina":
            raise ConfigurationError("Jina's vectors cannot have the `expect_fingerprint` given")
        self._embeddings, self._reranker, self._jina = embeddings, reranker, jina
        self._expect_fingerprint = checked_fingerprint(expect_fingerprint)
        self._bge_only = bge_only
        self._on_rerank = on_rerank
        self._health: dict[str, tuple[float, bool]] = {}
        self._no_worker_since: dict[str, tuple[float, float]] = {}  # the first and the last sight

    @classmethod
    def from_env(
        cls,
        env: Mapping[str, str] | None = None,
        *,
        timeout: float = 300.0,
        expect_fingerprint: str | None = None,
        on_rerank: OnRerank | None = None,
    ) -> Router:
        """Read the contract's variables. One endpoint serves both routes unless two are set.

        Raises:
            ConfigurationError: a variable is missing or invalid. The message names it.
        """
        env = os.environ if env is None else env

        def route(kind: str, name: str) -> Route:
            url = endpoint_from(env, kind)
            provider = _choice(env, f"{kind}_PROVIDER", PROVIDERS)
            if provider != "jina" and url is None:
                raise ConfigurationError(f"`BGE_{kind}_ENDPOINT` is not set")
            fallback = _choice(env, f"{kind}_FALLBACK_TO_JINA", ("false", "true")) == "true"
            client = None
            if url is not None and provider != "jina":
                key = key_from(env, url) or ""  # "": the client reads no other environment
                client = Client(url, key, timeout=timeout)
            return Route(name, client, provider, fallback)  # type: ignore[arg-type]

        jina_key = read_secret(env.get("JINA_API_KEY"), "JINA_API_KEY")
        return cls(
            route("EMBEDDINGS", "embeddings"),
            route("RERANKER", "scores"),
            JinaClient(jina_key, timeout=timeout) if jina_key else None,
            expect_fingerprint=expect_fingerprint,
            on_rerank=on_rerank,
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
        """Return dense vectors; from the BGE endpoint also sparse and ColBERT vectors.

        Only Jina uses `input_type`. There is no fallback to Jina for `sparse` or `colbert`, or if
        `expect_fingerprint` is that of a BGE model.

        Raises:
            ValidationError, ConfigurationError: an argument is invalid.
            FingerprintError: the vectors do not have the `expect_fingerprint`.
            BGEError: see `errors.py`.
        """
        text_list = checked_texts(texts, "texts")
        task_of(input_type)
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
        self,
        query: str,
        documents: Iterable[str | Mapping[str, object]],
        *,
        top_n: int | None = None,
    ) -> RerankResult:
        """Return the documents, best first. Scores of two providers are not comparable.

        A document is a string, or an object with a `text`.

        Raises:
            BGEError: see `errors.py`.
        """
        texts = checked_documents(documents)
        start = time.perf_counter()
        result = self._answer(
            self._reranker,
            lambda client: client.rerank(query, texts, top_n=top_n),
            lambda client: client.rerank(query, texts, top_n=top_n),
        )
        if self._on_rerank is not None:
            try:
                self._on_rerank(query, texts, result, time.perf_counter() - start)
            except Exception as error:  # its message may quote a document
                log.warning("on_rerank failed: %s", type(error).__name__)
        return result

    def _answer(
        self,
        route: Route,
        bge: Callable[[Client], Result],
        jina: Callable[[JinaClient], Result] | None,
    ) -> Result:
        """Call the provider of the route. `jina` is None if only the BGE endpoint may answer."""
        if jina is None or self._jina is None:
            return bge(_required(route.bge))
        if route.provider == "jina" or route.bge is None:
            return jina(self._jina)
        if route.provider == "auto" and not self._is_healthy(route.bge):
            log.warning("%s come from Jina: the endpoint is not healthy", route.name)
            return jina(self._jina)
        try:
            result = bge(route.bge)
            self._no_worker_since.pop(repr(route.bge), None)
            return result
        except BGEError as error:
            if not route.fallback or isinstance(error, NO_FALLBACK_ERRORS):
                raise
            log.warning("%s come from Jina: %s", route.name, error)
            try:
                return jina(self._jina)
            except BGEError as jina_error:
                raise jina_error from error

    def _is_healthy(self, client: Client) -> bool:
        """Return whether `/health` shows an endpoint worth waiting for, cached for a minute."""
        key = repr(client)
        checked_at, is_healthy = self._health.get(key, (-HEALTH_TTL_SECONDS, False))
        if time.monotonic() - checked_at >= HEALTH_TTL_SECONDS:
            try:
                state = endpoint_state(client.health(timeout=HEALTH_TIMEOUT_SECONDS))
                is_healthy = not self._is_hopeless(key, state)
            except BGEError as error:
                log.warning("/health of %r failed: %s", client, error)
                is_healthy = False
            self._health[key] = time.monotonic(), is_healthy
        return is_healthy

    def _is_hopeless(self, key: str, state: EndpointState) -> bool:
        """Return whether the endpoint is broken, or has been without a worker for too long."""
        if state is not EndpointState.NO_WORKER:
            self._no_worker_since.pop(key, None)
            return state is EndpointState.BROKEN
        now = time.monotonic()
        since, last = self._no_worker_since.get(key, (now, now))
        if now - last > MAX_GAP_SECONDS:
            since = now
        self._no_worker_since[key] = since, now
        return now - since >= NO_WORKER_SECONDS


def _required(client: AnyClient | None) -> AnyClient:
    if client is None:
        raise AssertionError("checked in `__init__`. This is a bug.")
    return client


def _choice(env: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """Read a variable; the first choice is the default. Raises ConfigurationError if invalid."""
    value = env.get(name) or choices[0]
    if value not in choices:
        raise ConfigurationError(f"`{name}` must be one of {', '.join(choices)}. Given: {value!r}")
    return value
