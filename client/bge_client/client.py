"""The client: any number of texts in, numpy arrays out, whatever the network does in between."""

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
from .split import Limits, estimate_reply_bytes, estimate_tokens, split_texts
from .transport import Endpoint

HEALTH_TIMEOUT_SECONDS = 10.0


class Client:
    """One endpoint: on RunPod, or `worker/server.py` on a machine of yours.

    `endpoint` is a base address or a full `…/runsync` one; `api_key` RunPod's, or the server's
    `BGE_API_KEY`. `timeout` seconds is all the time a call has, cold start, retries and splitting
    included; each call can say another. Of a bulk call at most `max_in_flight` requests are open
    at once. With `expect_fingerprint` no vector of another model is ever returned.

    May be shared by threads, and by processes that fork. Looking the host's name up and connecting
    may add seconds to `timeout`. A `session` of your own brings its proxies and certificates, but
    not what cuts its connections: then a call may end later than its deadline, by one silence of
    the server.

    Raises:
        ConfigurationError: an argument is wrong.
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
        """Close the connections; not those of a session you brought."""
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
        """The vectors of N texts, in their order.

        `dtype` is that of the numbers on the wire: float32, or with ColBERT vectors float16, half
        of a much larger reply. `dense` is float32 in any case, `colbert` as it came.

        Raises:
            ValidationError: a text is empty, blank or none; or, with `truncate` false, too long.
            BGEError: see `errors.py`; all of the call fails or none of it.
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
        """The vectors of each text, in their order, while `texts` are read.

        For any number of texts in bounded memory: at most twice `max_in_flight` requests' worth
        is on its way. `timeout` is the time of each request. Stop iterating, and what is on its
        way is given up.

        Raises:
            BGEError: as `embed`. What comes before a text at fault is yielded before it is raised.
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

        def send_in_time(deadline: Deadline, chunk: list[str], offset: int) -> EmbedResult:
            with deadline:
                return send(deadline, chunk, offset)

        with closing(send_each(timed_chunks(), send_in_time, self._max_in_flight)) as results:
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
        """The documents, the most relevant to `query` first; equal scores in the order given.

        Raises:
            ConfigurationError: `top_n` is below 1.
            ValidationError: query or a document is empty, blank or none.
            BGEError: see `errors.py`.
        """
        if top_n is not None and top_n < 1:
            raise ConfigurationError(f"`top_n` must be at least 1. Given: {top_n}")
        options = RerankOptions(checked_text(query, "query"), raw_scores, max_length, truncate)
        document_list = checked_texts(documents, "documents")
        model_check = _ModelCheck()  # not the embedder's

        def send(deadline: Deadline, chunk: list[str]) -> RerankResult:
            reply = self._endpoint.run(deadline, options.payload(chunk))
            metadata = reply_metadata(reply, len(chunk))
            model_check.check(metadata["fingerprint"], None)
            return RerankResult(ranked_documents(reply, chunk, len(chunk)), **metadata)

        def send_or_halve(deadline: Deadline, chunk: list[str], offset: int) -> RerankResult:
            return _merge_rankings(send_with_halving(send, deadline, chunk, offset, "documents"))

        with self._deadline(timeout) as deadline:
            chunks = self._document_chunks(deadline, document_list, options)
            return _merge_rankings(
                send_all(deadline, chunks, send_or_halve, self._max_in_flight), top_n
            )

    def info(self, timeout: float | None = None) -> dict[str, Any]:
        """What the worker has loaded, on what, and its limits; the contract's `info`."""
        with self._deadline(timeout) as deadline:
            return self._endpoint.run(deadline, {"info": True})

    def health(self, timeout: float = HEALTH_TIMEOUT_SECONDS) -> dict[str, Any]:
        """RunPod's `/health`: `jobs` and `workers` by state. Does not wake a worker."""
        with Deadline(timeout) as deadline:
            return self._endpoint.health(deadline)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._timeout if timeout is None else _checked_timeout(timeout))

    # ----------------------------------------------------------------------- pieces

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
        max_length = options.max_length or 1024

        def tokens(document: str) -> int:
            return min(
                max_length,
                estimate_tokens(options.query, max_length) + estimate_tokens(document, max_length),
            )

        return self._split(lambda: self._worker_limits(deadline), documents, lambda _: 80, tokens)

    def _split(
        self,
        limits: Callable[[], Limits],
        texts: Iterable[str],
        reply_bytes: Callable[[str], int],
        tokens: Callable[[str], int],
    ) -> Iterator[list[str]]:
        """Texts in pieces; the worker is asked for its limits if there is more than one."""
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
        """The worker's own; the contract's, if it does not tell. Two threads may ask at once."""
        if self._limits is None:
            try:
                self._limits = Limits.of(self._endpoint.run(deadline, {"info": True}))
            except (WorkerError, JobError, ProtocolError) as error:
                if error.retry:
                    return Limits()
                self._limits = Limits()  # no worker of ours, or an older one
        return self._limits


def _checked_timeout(timeout: float) -> float:
    """Raises ConfigurationError: no time at all."""
    if not 0 < timeout < threading.TIMEOUT_MAX:
        raise ConfigurationError(f"`timeout` must be above 0 seconds. Given: {timeout}")
    return timeout


class _ModelCheck:
    """All vectors of a call come from one model, and from the one expected, if any is."""

    def __init__(self, fingerprint: str | None = None) -> None:
        self._fingerprint = fingerprint
        self._size: int | None = None
        self._lock = threading.Lock()

    def check(self, fingerprint: str, size: int | None) -> None:
        """Raises FingerprintError, ProtocolError: another model, or another width."""
        with self._lock:
            expected = self._fingerprint = self._fingerprint or fingerprint
            expected_size = self._size = self._size or size
        if fingerprint != expected:
            raise FingerprintError(
                f"vectors of model {expected} were expected. Given: those of {fingerprint}"
            )
        if size != expected_size:
            raise ProtocolError(
                f"vectors of {expected_size} dimensions were expected. Given: {size}"
            )


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
    """Rankings of consecutive slices of the documents as one."""
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
