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

from .bulk import Send, next_or_error, send_all, send_each, send_halving
from .codec import (
    Dtype,
    EmbedOptions,
    RerankOptions,
    checked_text,
    checked_texts,
    embed_result,
    ranked,
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
from .split import Limits, embedding_bytes, pieces, tokens_of
from .transport import Endpoint

HEALTH_SECONDS = 10.0


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
        self._own_session = session is None
        self._session = session or new_session()
        self._endpoint = Endpoint(endpoint, api_key, self._session)
        self._timeout = _seconds(timeout)
        self._max_in_flight = max_in_flight
        self._expected = expect_fingerprint
        self._limits: Limits | None = None

    def __repr__(self) -> str:
        return f"Client({self._endpoint.url!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; not those of a session you brought."""
        if self._own_session:
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
        options = _options(dense, sparse, colbert, max_length, truncate, dtype)
        listed = checked_texts(texts, "texts")
        send = self._sender(options)
        with self._deadline(timeout) as deadline:
            cut = self._pieces(lambda: self._known_limits(deadline), listed, options)
            return merge(send_all(deadline, cut, send, self._max_in_flight))

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
        options = _options(dense, sparse, colbert, max_length, truncate, dtype)
        send = self._sender(options)
        seconds = self._timeout if timeout is None else _seconds(timeout)
        checked = (checked_text(text, f"texts[{place}]") for place, text in enumerate(texts))

        def limits() -> Limits:
            with Deadline(seconds) as deadline:
                return self._known_limits(deadline)

        def timed() -> Iterator[tuple[Deadline, list[str]]]:
            for piece in self._pieces(limits, checked, options):
                yield Deadline(seconds), piece

        def in_time(deadline: Deadline, piece: list[str], before: int) -> EmbedResult:
            with deadline:
                return send(deadline, piece, before)

        with closing(send_each(timed(), in_time, self._max_in_flight)) as parts:
            process = os.getpid()
            for vectors in chain.from_iterable(parts):
                yield vectors
                if os.getpid() != process:
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
        listed = checked_texts(documents, "documents")
        model = _OneModel()  # not the embedder's

        def send(deadline: Deadline, piece: list[str]) -> RerankResult:
            reply = self._endpoint.run(deadline, options.payload(piece))
            told = reply_metadata(reply, len(piece))
            model.check(told["fingerprint"], None)
            return RerankResult(ranked(reply, piece, len(piece)), **told)

        def halved(deadline: Deadline, piece: list[str], before: int) -> RerankResult:
            return _ranking(send_halving(send, deadline, piece, before, "documents"))

        with self._deadline(timeout) as deadline:
            cut = self._pair_pieces(deadline, listed, options)
            return _ranking(send_all(deadline, cut, halved, self._max_in_flight), top_n)

    def info(self, timeout: float | None = None) -> dict[str, Any]:
        """What the worker has loaded, on what, and its limits; the contract's `info`."""
        with self._deadline(timeout) as deadline:
            return self._endpoint.run(deadline, {"info": True})

    def health(self, timeout: float = HEALTH_SECONDS) -> dict[str, Any]:
        """RunPod's `/health`: `jobs` and `workers` by state. Does not wake a worker."""
        with Deadline(timeout) as deadline:
            return self._endpoint.health(deadline)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._timeout if timeout is None else _seconds(timeout))

    # ----------------------------------------------------------------------- pieces

    def _sender(self, options: EmbedOptions) -> Send[EmbedResult]:
        model = _OneModel(self._expected)

        def send(deadline: Deadline, piece: list[str]) -> EmbedResult:
            reply = self._endpoint.run(deadline, options.payload(piece))
            result = embed_result(reply, options, len(piece))
            width = None if result.dense is None else result.dense.shape[1]
            model.check(result.fingerprint, width)
            return result

        def halved(deadline: Deadline, piece: list[str], before: int) -> EmbedResult:
            return merge(send_halving(send, deadline, piece, before, "texts"))

        return halved

    def _pieces(
        self, limits: Callable[[], Limits], texts: Iterable[str], options: EmbedOptions
    ) -> Iterator[list[str]]:
        def tokens(text: str) -> int:
            return tokens_of(text, options.max_length)

        return self._cut(limits, texts, embedding_bytes(options), tokens)

    def _pair_pieces(
        self, deadline: Deadline, documents: list[str], options: RerankOptions
    ) -> Iterator[list[str]]:
        length = options.max_length or 1024

        def tokens(document: str) -> int:
            return min(length, tokens_of(options.query, length) + tokens_of(document, length))

        return self._cut(lambda: self._known_limits(deadline), documents, lambda _: 80, tokens)

    def _cut(
        self,
        limits: Callable[[], Limits],
        texts: Iterable[str],
        reply_bytes: Callable[[str], int],
        tokens: Callable[[str], int],
    ) -> Iterator[list[str]]:
        """Texts in pieces; the worker is asked for its limits if there is more than one."""
        cut = pieces(texts, Limits(), reply_bytes, tokens)
        first = next(cut, None)
        if first is None:
            return
        second = next_or_error(cut)
        if isinstance(second, list):
            rest = chain(first, second, chain.from_iterable(cut))
            yield from pieces(rest, limits(), reply_bytes, tokens)
            return
        yield first
        if second is not None:
            raise second

    def _known_limits(self, deadline: Deadline) -> Limits:
        """The worker's own; the contract's, if it does not tell. Two threads may ask at once."""
        if self._limits is None:
            try:
                self._limits = Limits.of(self._endpoint.run(deadline, {"info": True}))
            except (WorkerError, JobError, ProtocolError) as error:
                if error.retry:
                    return Limits()
                self._limits = Limits()  # no worker of ours, or an older one
        return self._limits


def _seconds(timeout: float) -> float:
    """Raises ConfigurationError: no time at all."""
    if not 0 < timeout < threading.TIMEOUT_MAX:
        raise ConfigurationError(f"`timeout` must be above 0 seconds. Given: {timeout}")
    return timeout


class _OneModel:
    """All vectors of a call come from one model, and from the one expected, if any is."""

    def __init__(self, fingerprint: str | None = None) -> None:
        self._fingerprint = fingerprint
        self._width: int | None = None
        self._lock = threading.Lock()

    def check(self, fingerprint: str, width: int | None) -> None:
        """Raises FingerprintError, ProtocolError: another model, or another width."""
        with self._lock:
            expected = self._fingerprint = self._fingerprint or fingerprint
            wide = self._width = self._width or width
        if fingerprint != expected:
            raise FingerprintError(
                f"vectors of model {expected} were expected. Given: those of {fingerprint}"
            )
        if width != wide:
            raise ProtocolError(f"vectors of {wide} dimensions were expected. Given: {width}")


def _options(
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
    used: Dtype = dtype or ("float16" if colbert else "float32")
    return EmbedOptions(dense, sparse, colbert, max_length, truncate, used)


def _ranking(parts: list[RerankResult], top_n: int | None = None) -> RerankResult:
    """Rankings of consecutive slices of the documents as one."""
    usage, truncated, before = Usage(), [], 0
    found: list[RankedDocument] = []
    for part in parts:
        found += [replace(one, index=one.index + before) for one in part]
        truncated += [before + place for place in part.truncated]
        usage = usage.plus(part.usage)
        before += len(part)
    found.sort(key=lambda one: (-one.relevance_score, one.index))
    first = parts[0]
    return RerankResult(
        found[:top_n],
        usage=usage,
        truncated=truncated,
        model=first.model,
        fingerprint=first.fingerprint,
    )
