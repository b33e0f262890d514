"""Route requests to the BGE endpoint and to other providers, configured by the environment.

The first provider of a route that is healthy and does not fail answers. Vectors of two models must
never be mixed in one index: every result has its provider and fingerprint, every switch is logged
as a warning, and `expect_fingerprint` makes vectors of any other model an error. A host of the same
model answers for the endpoint's fingerprint only after its vectors have matched a probe.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from .calls import checked_fingerprint
from .codec import Dtype, EmbedOptions, RerankOptions, checked_documents, checked_texts
from .providers import InputType, check_input_type
from .providers.chain import Chain, EmbedRequest, OnAttempt, RerankRequest, Route
from .providers.circuit import Budget
from .providers.environment import probe_from, route_from
from .providers.probe import Probe
from .results import EmbedResult, RerankResult

log = logging.getLogger("bge_client")

# Called with query, documents, result and the seconds it took.
OnRerank = Callable[[str, Sequence[str], RerankResult, float], object]


class Router:
    """Embeddings and reranking, each by a route. Threads may share it.

    Vectors without the `expect_fingerprint` are an error. Fallbacks use at most
    `max_fallback_tokens` in a day (UTC) of this router. `on_attempt(attempt)` is called after each
    request to a provider, `on_rerank(query, documents, result, seconds)` after each `rerank`,
    before its result is returned. Their errors are logged by type and do not affect the result.

    Raises:
        ConfigurationError: an argument is invalid.
    """

    def __init__(
        self,
        embeddings: Route,
        reranker: Route,
        *,
        expect_fingerprint: str | None = None,
        max_fallback_tokens: int | None = None,
        on_rerank: OnRerank | None = None,
        on_attempt: OnAttempt | None = None,
    ) -> None:
        budget = Budget(max_fallback_tokens)
        self._embeddings: Chain[EmbedResult] = Chain(embeddings, budget, on_attempt)
        self._reranker: Chain[RerankResult] = Chain(reranker, budget, on_attempt)
        self._expect_fingerprint = checked_fingerprint(expect_fingerprint)
        self._on_rerank = on_rerank

    @classmethod
    def from_env(
        cls,
        env: Mapping[str, str] | None = None,
        *,
        timeout: float = 300.0,
        probe: Probe | None = None,
        expect_fingerprint: str | None = None,
        max_fallback_tokens: int | None = None,
        on_rerank: OnRerank | None = None,
        on_attempt: OnAttempt | None = None,
    ) -> Router:
        """Read the variables of `providers/environment.py`. One endpoint serves both routes unless
        two are set. The default `probe` is that of the file `BGE_PROBE`.

        Raises:
            ConfigurationError: a variable is missing or invalid. The message names it.
        """
        env = os.environ if env is None else env
        return cls(
            route_from(env, "EMBEDDINGS", timeout, probe or probe_from(env)),
            route_from(env, "RERANKER", timeout),
            expect_fingerprint=expect_fingerprint,
            max_fallback_tokens=max_fallback_tokens,
            on_rerank=on_rerank,
            on_attempt=on_attempt,
        )

    def __enter__(self) -> Router:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._embeddings.close()
        self._reranker.close()

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        input_type: InputType = "document",
        dense: bool = True,
        sparse: bool = False,
        colbert: bool = False,
        dtype: Dtype | None = None,
    ) -> EmbedResult:
        """Return dense vectors; from the BGE endpoint also sparse and ColBERT vectors.

        Only Jina uses `input_type`, and only the endpoint `dtype`. Requests with `sparse` or
        `colbert` go to the endpoint alone.

        Raises:
            ValidationError, ConfigurationError: an argument is invalid.
            FingerprintError: the vectors do not have the `expect_fingerprint`.
            BGEError: see `errors.py`.
        """
        text_list = checked_texts(texts, "texts")
        check_input_type(input_type)
        options = EmbedOptions(dense, sparse, colbert, dtype=dtype)
        request = EmbedRequest(text_list, input_type, options, self._expect_fingerprint)
        return self._embeddings.answer(request)

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
        RerankOptions(query, top_n)  # raises before a provider is asked
        start = time.perf_counter()
        result = self._reranker.answer(RerankRequest(query, texts, top_n))
        if self._on_rerank is not None:
            try:
                self._on_rerank(query, texts, result, time.perf_counter() - start)
            except Exception as error:  # its message may quote a document
                log.warning("on_rerank failed: %s", type(error).__name__)
        return result
