"""The client of one endpoint: any number of texts in, numpy arrays out."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from typing import Any

import requests

from .bulk import Send, next_or_error, send_all, send_each, send_with_halving
from .codec import (
    Dtype,
    EmbedOptions,
    RerankOptions,
    checked_text,
    checked_texts,
    embed_result,
    ranked_documents,
    reply_metadata,
)
from .deadline import Deadline, new_session
from .errors import (
    ConfigurationError,
    FingerprintError,
    JobError,
    ProtocolError,
    WorkerError,
)
from .results import Embedding, EmbedResult, RankedDocument, RerankResult, Usage, merge
from .split import RANKED_DOCUMENT_BYTES, Limits, estimate_reply_bytes, estimate_tokens, split_texts
from .transport import Endpoint

HEALTH_TIMEOUT_SECONDS = 10.0


class Client:
    """A client of one endpoint: on RunPod, or of your own `worker/server.py`.

    `endpoint` is the base address or ends with `/runsync`. `api_key` is RunPod's, or the server's
    `BGE_API_KEY`. `timeout` limits a call in seconds, including cold start, retries and splitting;
    each call can override it. A call has at most `max_in_flight` requests open at once. With
    `expect_fingerprint`, vectors of any other model raise `FingerprintError`.

    Threads may share a client, and so may processes after a fork. Name resolution and connecting
    may exceed `timeout` by seconds. Pass a `session` for proxies and certificates; a deadline does
    not close its connections, so a call may exceed it by one read timeout.

    Raises:
        ConfigurationError: an argument is invalid.
    """

    def __init__(
        self,
        endpoint: str,
        api_key: str | None = None,
        *,
        timeout: float = 300.0,
        max_in_flight: int = 8,
        session: requests.Session | None = None,
        expect_fingerprint: str | None = None,
    ) -> None:
        if max_in_flight < 1:
            raise ConfigurationError(f"`max_in_flight` must be at least 1. Given: {max_in_flight}")
        self._owns_session = session is None
        self._session = session or new_session()
        self._endpoint = Endpoint(endpoint, api_key, self._session)
        self._timeout = _checked_timeout(timeout)
        self._max_in_flight = max_in_flight
        self._expect_fingerprint = expect_fingerprint
        self._limits: Limits | None = None

    def __repr__(self) -> str:
        return f"Client({self._endpoint.url!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, except those of a `session` that you passed."""
        if self._owns_session:
            self._session.close()

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        dense: bool = True,
        sparse: bool = False,
        colbert: bool = False,
        max_length: int | None = None,
        truncate: bool = True,
        dtype: Dtype | None = None,
        timeout: float | None = None,
    ) -> EmbedResult:
        """Return the vectors of `texts` in order.

        `dtype` is the type on the wire. The default is float16 if `colbert` is true, which halves
        a large reply, else float32. `dense` is always float32; `colbert` keeps the wire type.

        Raises:
            ValidationError: a text is empty, blank or no string, or too long if not `truncate`.
            BGEError: see `errors.py`. The call returns all vectors or none.
        """
        options = _embed_options(dense, sparse, colbert, max_length, truncate, dtype)
        text_list = checked_texts(texts, "texts")
        send = self._sender(options)
        with self._deadline(timeout) as deadline:
            chunks = self._text_chunks(lambda: self._worker_limits(deadline), text_list, options)
            return merge(send_all(deadline, chunks, send, self._max_in_flight))

    def embed_iter(
        self,
        texts: Iterable[str],
        *,
        dense: bool = True,
        sparse: bool = False,
        colbert: bool = False,
        max_length: int | None = None,
        truncate: bool = True,
        dtype: Dtype | None = None,
        timeout: float | None = None,
    ) -> Generator[Embedding, None, None]:
        """Yield the vectors of each text in order, reading `texts` lazily.

        Memory is bounded: at most twice `max_in_flight` requests are queued or in flight. `timeout`
        applies to each request. Closing the iterator cancels the requests in flight.

        Raises:
            BGEError: as `embed`. The vectors of the texts before an invalid one are yielded first.
        """
        options = _embed_options(dense, sparse, colbert, max_length, truncate, dtype)
        send = self._sender(options)
        seconds = self._timeout if timeout is None else _checked_timeout(timeout)
        checked = (checked_text(text, f"texts[{index}]") for index, text in enumerate(texts))

        def limits() -> Limits:
            with Deadline(seconds) as deadline:
                return self._worker_limits(deadline)

        def timed_chunks() -> Iterator[tuple[Deadline, list[str]]]:
            for chunk in self._text_chunks(limits, checked, options):
                yield Deadline(seconds), chunk

        def send_with_deadline(deadline: Deadline, chunk: list[str], offset: int) -> EmbedResult:
            with deadline:
                return send(deadline, chunk, offset)

        with closing(send_each(timed_chunks(), send_with_deadline, self._max_in_flight)) as results:
            process_id = os.getpid()
            for vectors in chain.from_iterable(results):
                yield vectors
                if os.getpid() != process_id:
                    raise ConfigurationError(
                        "this iterator belongs to the parent process. Call `embed_iter` again "
                        "after the fork"
                    )

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        raw_scores: bool = False,
        max_length: int | None = None,
        truncate: bool = True,
        timeout: float | None = None,
    ) -> RerankResult:
        """Return the documents by descending relevance to `query`. Ties keep their input order.

        Raises:
            ConfigurationError: `top_n` is below 1.
            ValidationError: `query` or a document is empty, blank or no string.
            BGEError: see `errors.py`.
        """
        if top_n is not None and top_n < 1:
            raise ConfigurationError(f"`top_n` must be at least 1. Given: {top_n}")
        options = RerankOptions(checked_text(query, "query"), raw_scores, max_length, truncate)
        document_list = checked_texts(documents, "documents")
        model_check = _ModelCheck()  # `expect_fingerprint` is the embedder's

        def send(deadline: Deadline, chunk: list[str]) -> RerankResult:
            reply = self._endpoint.run(deadline, options.payload(chunk))
            metadata = reply_metadata(reply, len(chunk))
            model_check.check(metadata["fingerprint"], None)
            return RerankResult(ranked_documents(reply, chunk, len(chunk)), **metadata)

        def send_or_halve(deadline: Deadline, chunk: list[str], offset: int) -> RerankResult:
            return _merge_rankings(send_with_halving(send, deadline, chunk, offset, "documents"))

        with self._deadline(timeout) as deadline:
            chunks = self._document_chunks(deadline, document_list, options)
            rankings = send_all(deadline, chunks, send_or_halve, self._max_in_flight)
            return _merge_rankings(rankings, top_n)

    def info(self, timeout: float | None = None) -> dict[str, Any]:
        """Return the worker's models, device and limits: the contract's `info`."""
        with self._deadline(timeout) as deadline:
            return self._endpoint.run(deadline, {"info": True})

    def health(self, timeout: float = HEALTH_TIMEOUT_SECONDS) -> dict[str, Any]:
        """Return RunPod's `/health`: counts of `jobs` and `workers`. Starts no worker."""
        with Deadline(timeout) as deadline:
            return self._endpoint.health(deadline)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._timeout if timeout is None else _checked_timeout(timeout))

    def _sender(self, options: EmbedOptions) -> Send[EmbedResult]:
        model_check = _ModelCheck(self._expect_fingerprint)

        def send(deadline: Deadline, chunk: list[str]) -> EmbedResult:
            reply = self._endpoint.run(deadline, options.payload(chunk))
            result = embed_result(reply, options, len(chunk))
            size = None if result.dense is None else result.dense.shape[1]
            model_check.check(result.fingerprint, size)
            return result

        def send_or_halve(deadline: Deadline, chunk: list[str], offset: int) -> EmbedResult:
            return merge(send_with_halving(send, deadline, chunk, offset, "texts"))

        return send_or_halve

    def _text_chunks(
        self, limits: Callable[[], Limits], texts: Iterable[str], options: EmbedOptions
    ) -> Iterator[list[str]]:
        return self._split(
            limits,
            texts,
            lambda text: estimate_reply_bytes(text, options),
            lambda text: estimate_tokens(text, options.max_length),
        )

    def _document_chunks(
        self, deadline: Deadline, documents: list[str], options: RerankOptions
    ) -> Iterator[list[str]]:
        limit = options.max_length or 1024
        query_tokens = estimate_tokens(options.query, limit)
        return self._split(
            lambda: self._worker_limits(deadline),
            documents,
            lambda _: RANKED_DOCUMENT_BYTES,
            lambda document: min(limit, query_tokens + estimate_tokens(document, limit)),
        )

    def _split(
        self,
        limits: Callable[[], Limits],
        texts: Iterable[str],
        reply_bytes: Callable[[str], int],
        tokens: Callable[[str], int],
    ) -> Iterator[list[str]]:
        """Split texts by the default limits; by the worker's, once there are two chunks."""
        chunks = split_texts(texts, Limits(), reply_bytes, tokens)
        first = next(chunks, None)
        if first is None:
            return
        second = next_or_error(chunks)
        if isinstance(second, list):
            rest = chain(first, second, chain.from_iterable(chunks))
            yield from split_texts(rest, limits(), reply_bytes, tokens)
            return
        yield first
        if second is not None:
            raise second

    def _worker_limits(self, deadline: Deadline) -> Limits:
        """Return the worker's limits, or the contract's defaults if `info` fails."""
        if self._limits is None:
            try:
                self._limits = Limits.of(self._endpoint.run(deadline, {"info": True}))
            except (WorkerError, JobError, ProtocolError) as error:
                if error.retry:
                    return Limits()
                self._limits = Limits()  # a worker without `info`
        return self._limits


def _checked_timeout(timeout: float) -> float:
    """Raises ConfigurationError if `timeout` is not a usable number of seconds."""
    if not 0 < timeout < threading.TIMEOUT_MAX:
        raise ConfigurationError(f"`timeout` must be above 0 seconds. Given: {timeout}")
    return timeout


class _ModelCheck:
    """Check that all replies of a call come from one model, and from the expected one if set."""

    def __init__(self, fingerprint: str | None = None) -> None:
        self._fingerprint = fingerprint
        self._size: int | None = None
        self._lock = threading.Lock()

    def check(self, fingerprint: str, size: int | None) -> None:
        """Raises FingerprintError or ProtocolError for another model or vector size."""
        with self._lock:
            expected = self._fingerprint = self._fingerprint or fingerprint
            expected_size = self._size = self._size or size
        if fingerprint != expected:
            raise FingerprintError(
                f"vectors of model {expected} were expected. Given: those of {fingerprint}"
            )
        if size != expected_size:
            raise ProtocolError(f"expected vectors of {expected_size} dimensions. Given: {size}")


def _embed_options(
    dense: bool,
    sparse: bool,
    colbert: bool,
    max_length: int | None,
    truncate: bool,
    dtype: Dtype | None,
) -> EmbedOptions:
    if not (dense or sparse or colbert):
        raise ConfigurationError("at least one of `dense`, `sparse` and `colbert` must be true")
    if dtype not in (None, "float32", "float16"):
        raise ConfigurationError("`dtype` must be float32 or float16")
    wire_dtype: Dtype = dtype or ("float16" if colbert else "float32")
    return EmbedOptions(dense, sparse, colbert, max_length, truncate, wire_dtype)


def _merge_rankings(rankings: list[RerankResult], top_n: int | None = None) -> RerankResult:
    """Merge the rankings of consecutive slices of the documents."""
    usage, truncated, offset = Usage(), [], 0
    documents: list[RankedDocument] = []
    for ranking in rankings:
        documents += [replace(document, index=document.index + offset) for document in ranking]
        truncated += [offset + index for index in ranking.truncated]
        usage = usage.plus(ranking.usage)
        offset += len(ranking)
    documents.sort(key=lambda document: (-document.relevance_score, document.index))
    first = rankings[0]
    return RerankResult(
        documents[:top_n],
        usage=usage,
        truncated=truncated,
        model=first.model,
        fingerprint=first.fingerprint,
    )
