"""What `Client` and `AsyncClient` share: arguments, chunks, model checks and merging. No I/O."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Generic, TypeVar

from .balanced import balanced_health, run_request
from .chunking import (
    RANKED_DOCUMENT_BYTES,
    Chunks,
    Cost,
    Limits,
    estimate_reply_bytes,
    estimate_tokens,
)
from .codec import (
    EmbedOptions,
    Reply,
    RerankOptions,
    embed_result,
    ranked_documents,
    reply_metadata,
)
from .deadline import Deadline
from .endpoint import base_url, endpoint_from, is_load_balancer, key_from
from .errors import (
    ConfigurationError,
    FingerprintError,
    JobError,
    ProtocolError,
    TooLargeError,
    WorkerError,
)
from .protocol import INFO, Exchange, JSONObject, job_health, run_job
from .redaction import read_secret
from .results import EmbedResult, RerankResult

HEALTH_TIMEOUT_SECONDS = 10.0
RERANK_LENGTH = 1024  # tokens of a query and a document, the contract's default
Result = TypeVar("Result")
# The exchange that gets the reply to a payload, from a deadline and the payload.
Infer = Callable[..., Exchange[JSONObject]]


class BaseClient:
    """The arguments of a client, and what it knows of the worker."""

    def __init__(
        self,
        endpoint: str | None,
        api_key: str | None,
        timeout: float,
        max_in_flight: int,
        max_retries: float | None,
        expect_fingerprint: str | None,
    ) -> None:
        if max_retries is not None and max_retries < 0:
            raise ConfigurationError(f"`max_retries` must be at least 0. Given: {max_retries}")
        if max_in_flight < 1:
            raise ConfigurationError(f"`max_in_flight` must be at least 1. Given: {max_in_flight}")
        address = endpoint_from(os.environ) if endpoint is None else endpoint
        if address is None:
            raise ConfigurationError(
                "pass an `endpoint`, or set `BGE_EMBEDDINGS_ENDPOINT` or `BGE_RERANKER_ENDPOINT`"
            )
        self._url = base_url(address)
        is_given = api_key is not None
        self._key = read_secret(api_key, "api_key") if is_given else key_from(os.environ, self._url)
        is_balanced = is_load_balancer(self._url)
        infer: Infer = run_request if is_balanced else run_job
        self._infer = partial(infer, max_retries=max_retries)
        self._request_health = balanced_health if is_balanced else job_health
        self._timeout = Deadline(timeout).seconds
        self._max_in_flight = max_in_flight
        self._expect_fingerprint = checked_fingerprint(expect_fingerprint)
        self._limits: Limits | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    def _deadline(
        self, timeout: float | None = None, cancelled: threading.Event | None = None
    ) -> Deadline:
        return Deadline(self._timeout if timeout is None else timeout, cancelled)

    def _split(
        self, call: Call[Result], texts: Iterable[str], deadline: Deadline
    ) -> Exchange[Chunks]:
        """Split texts by the worker's limits; by the default ones, if they fit one chunk.

        The default ones apply too if `info` fails.
        """
        chunks = Chunks(texts, call.cost)
        if self._limits is None and not chunks.is_single():
            try:
                self._limits = Limits.of((yield from self._infer(deadline, INFO)))
            except (WorkerError, JobError, ProtocolError) as error:
                if not error.retry:
                    self._limits = Limits()  # a worker without `info`
        chunks.limits = self._limits or chunks.limits
        return chunks


def checked_fingerprint(fingerprint: str | None) -> str | None:
    """Return the expected fingerprint. Raises ConfigurationError if it is empty."""
    if fingerprint == "":
        raise ConfigurationError("`expect_fingerprint` must not be empty. Pass None to expect none")
    return fingerprint


# ----------------------------------------------------------------------------------- calls


# The exchange that sends one chunk, and its deadline: what the `run` of a transport takes.
Task = tuple[Exchange[list[Result]], Deadline]


class Call(ABC, Generic[Result]):
    """A call with any number of texts: how a chunk of them is sent, decoded and measured.

    All its replies come from one model, and from the expected one if a fingerprint is given.
    """

    def __init__(
        self,
        options: EmbedOptions | RerankOptions,
        infer: Infer,
        expect_fingerprint: str | None = None,
    ) -> None:
        self._payload = options.payload
        self._infer = infer
        self._fingerprint = expect_fingerprint
        self._dimensions: int | None = None
        self._lock = threading.Lock()

    @abstractmethod
    def decode(self, reply: Reply, texts: Sequence[str]) -> Result: ...

    @abstractmethod
    def cost(self, text: str) -> Cost: ...

    def tasks(
        self, chunks: Iterable[list[str]], new_deadline: Callable[[], Deadline]
    ) -> Iterator[Task[Result]]:
        """Yield the task of each chunk. If reading the texts fails, the last task raises the error.

        Thus the results of the texts before come first.
        """
        offset = 0
        try:
            for texts in chunks:
                deadline = new_deadline()
                yield self.send(deadline, texts, offset), deadline
                offset += len(texts)
        except Exception as error:
            yield _raise(error), new_deadline()

    def send(self, deadline: Deadline, texts: list[str], offset: int) -> Exchange[list[Result]]:
        """Send a chunk, or its halves if it is too large. Errors count texts from the call's first.

        Raises:
            BGEError: the last error.
        """
        try:
            reply = yield from self._infer(deadline, self._payload(texts))
            return [self.decode(reply, texts)]
        except WorkerError as error:
            if not isinstance(error, TooLargeError) or len(texts) == 1:
                error.add_offset(offset)
                raise
        middle = len(texts) // 2
        return [
            *(yield from self.send(deadline, texts[:middle], offset)),
            *(yield from self.send(deadline, texts[middle:], offset + middle)),
        ]

    def _check_model(self, fingerprint: str, dimensions: int | None) -> None:
        """Raises FingerprintError or ProtocolError for another model or vector size."""
        with self._lock:
            expected = self._fingerprint = self._fingerprint or fingerprint
            expected_size = self._dimensions = self._dimensions or dimensions
        if fingerprint != expected:
            raise FingerprintError(
                f"vectors of model {expected} were expected. Given: those of {fingerprint}"
            )
        if dimensions != expected_size:
            raise ProtocolError(
                f"expected vectors of {expected_size} dimensions. Given: {dimensions}"
            )


def _raise(error: Exception) -> Exchange[list[Result]]:
    raise error
    yield  # makes this a generator


class EmbedCall(Call[EmbedResult]):
    def __init__(self, options: EmbedOptions, infer: Infer, expect_fingerprint: str | None) -> None:
        super().__init__(options, infer, expect_fingerprint)
        self._options = options

    def decode(self, reply: Reply, texts: Sequence[str]) -> EmbedResult:
        result = embed_result(reply, self._options, len(texts))
        dimensions = None if result.dense is None else result.dense.shape[1]
        self._check_model(result.fingerprint, dimensions)
        return result

    def cost(self, text: str) -> Cost:
        tokens = estimate_tokens(text, self._options.max_length)
        return Cost(estimate_reply_bytes(text, self._options), tokens)


class RerankCall(Call[RerankResult]):
    def __init__(self, options: RerankOptions, infer: Infer) -> None:
        super().__init__(options, infer)
        self._max_length = options.max_length or RERANK_LENGTH
        self._query_tokens = estimate_tokens(options.query, self._max_length)

    def decode(self, reply: Reply, texts: Sequence[str]) -> RerankResult:
        metadata = reply_metadata(reply, len(texts))
        self._check_model(metadata["fingerprint"], None)
        return RerankResult(ranked_documents(reply, texts, len(texts)), **metadata)

    def cost(self, text: str) -> Cost:
        tokens = self._query_tokens + estimate_tokens(text, self._max_length)
        return Cost(RANKED_DOCUMENT_BYTES, min(self._max_length, tokens))
