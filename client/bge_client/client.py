"""The client of one endpoint: any number of texts in, numpy arrays out."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from typing import Any, TypeVar

import requests

from .bulk import run_all, run_each
from .calls import HEALTH_TIMEOUT_SECONDS, BaseClient, Call, EmbedCall, RerankCall
from .codec import (
    Dtype,
    EmbedOptions,
    RerankOptions,
    checked_documents,
    checked_texts,
    iter_checked,
)
from .errors import ConfigurationError
from .protocol import INFO, JSONObject, post_value
from .results import Embedding, EmbedResult, RerankResult, merge, merge_rankings
from .retry import RETRIES
from .transport import Transport

Result = TypeVar("Result")


class Client(BaseClient):
    """A client of one endpoint: on RunPod, or of your own `worker/server.py`.

    `endpoint` is the base address, with or without `/runsync` or `/v1`; one at
    `<id>.api.runpod.ai` is a load-balancing endpoint. The default is that of
    `BGE_EMBEDDINGS_ENDPOINT` or `BGE_RERANKER_ENDPOINT` (`RUNPOD_…` takes precedence). `api_key`
    is RunPod's, or the server's `BGE_API_KEY`; the default is that of `RUNPOD_API_KEY` or
    `BGE_API_KEY`. `timeout` limits a call in seconds, including cold start, retries and splitting;
    each call can override it. A call has at most `max_in_flight` requests open at once. With
    `expect_fingerprint`, vectors of any other model raise `FingerprintError`.

    Threads may share a client, and so may processes after a fork. Name resolution, connecting and
    the wait for bytes of a response may exceed `timeout` by seconds. Pass a `session` for proxies
    and certificates.

    Raises:
        ConfigurationError: an argument is invalid.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 300.0,
        max_in_flight: int = 8,
        session: requests.Session | None = None,
        expect_fingerprint: str | None = None,
    ) -> None:
        super().__init__(endpoint, api_key, timeout, max_in_flight, expect_fingerprint)
        self._transport = Transport(self._url, self._key, session)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, except those of a `session` that you passed."""
        self._transport.close()

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
        options = EmbedOptions(dense, sparse, colbert, max_length, truncate, dtype)
        call = EmbedCall(options, self._infer, self._expect_fingerprint)
        return merge(self._run_call(call, checked_texts(texts, "texts"), timeout))

    def embed_iter(
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
    ) -> Generator[Embedding, None, None]:
        """Yield the vectors of each text in order, reading `texts` lazily.

        Memory is bounded: at most twice `max_in_flight` requests are queued or in flight. `timeout`
        applies to each request. Closing the iterator cancels the requests in flight.

        Raises:
            BGEError: as `embed`. The vectors of the texts before an invalid one are yielded first.
        """
        options = EmbedOptions(dense, sparse, colbert, max_length, truncate, dtype)
        call = EmbedCall(options, self._infer, self._expect_fingerprint)
        deadline = self._deadline(timeout)
        exchange = self._split(call, iter_checked(texts, "texts"), deadline)
        chunks = self._transport.run(exchange, deadline)
        cancelled = threading.Event()
        tasks = call.tasks(chunks, lambda: self._deadline(timeout, cancelled))
        results = run_each(self._transport, tasks, self._max_in_flight, cancelled)
        process_id = os.getpid()
        with closing(results):
            for result in results:
                for embedding in result:
                    yield embedding
                    if os.getpid() != process_id:
                        raise ConfigurationError(
                            "this iterator belongs to the parent process. Call `embed_iter` again "
                            "after the fork"
                        )

    def rerank(
        self,
        query: str,
        documents: Iterable[str | Mapping[str, object]],
        *,
        top_n: int | None = None,
        raw_scores: bool = False,
        max_length: int | None = None,
        truncate: bool = True,
        timeout: float | None = None,
    ) -> RerankResult:
        """Return the documents by descending relevance to `query`. Ties keep their input order.

        A document is a string, or an object with a `text`.

        Raises:
            ConfigurationError: `top_n` is below 1.
            ValidationError: `query` or a document is empty, blank or no string.
            BGEError: see `errors.py`.
        """
        options = RerankOptions(query, top_n, raw_scores, max_length, truncate)
        call = RerankCall(options, self._infer)
        rankings = self._run_call(call, checked_documents(documents), timeout)
        return merge_rankings(rankings, top_n)

    def info(self, timeout: float | None = None) -> dict[str, object]:
        """Return the worker's models, device and limits: the contract's `info`."""
        deadline = self._deadline(timeout)
        return self._transport.run(self._infer(deadline, INFO, RETRIES), deadline)

    def warm_up(self, timeout: float | None = None) -> dict[str, object]:
        """Wait until a worker answers, however often that fails, and return its `info`.

        Raises:
            BGEError: no worker answers before the deadline, or the error is permanent.
        """
        deadline = self._deadline(timeout)
        return self._transport.run(self._infer(deadline, INFO, math.inf), deadline)

    def health(self, timeout: float = HEALTH_TIMEOUT_SECONDS) -> dict[str, object]:
        """Return counts of `jobs` and `workers`. `endpoint_state` says what they mean.

        Starts no worker, except on a load-balancing endpoint: there a worker answers, and if there
        is none until the timeout, the result is the platform's `error`.
        """
        deadline = self._deadline(timeout)
        return self._transport.run(self._request_health(deadline), deadline)

    def post(self, path: str, body: JSONObject, *, timeout: float | None = None) -> Any:
        """Return the JSON of another route of the server, such as `/tokenize`.

        Raises:
            HTTPStatusError: the endpoint has no such route, as one with a queue on RunPod.
            BGEError: see `errors.py`.
        """
        deadline = self._deadline(timeout)
        return self._transport.run(post_value(deadline, path, body), deadline)

    def _run_call(
        self, call: Call[Result], texts: list[str], timeout: float | None
    ) -> list[Result]:
        """Send all texts, and return the results of their chunks in order."""
        deadline = self._deadline(timeout)
        chunks = self._transport.run(self._split(call, texts, deadline), deadline)
        tasks = list(call.tasks(chunks, lambda: deadline))
        return run_all(self._transport, tasks, self._max_in_flight)
