"""The BGE endpoint as a provider."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping

from ..client import Client
from ..codec import EmbedOptions
from ..errors import BGEError
from ..results import EmbedResult, RerankResult
from ..state import EndpointState, endpoint_state
from . import DENSE, InputType, check_input_type

log = logging.getLogger("bge_client")

HEALTH_TTL_SECONDS = 60.0
HEALTH_TIMEOUT_SECONDS = 5.0
NO_WORKER_SECONDS = 120.0  # that requests wait without a worker before it counts as unhealthy
MAX_GAP_SECONDS = 3 * HEALTH_TTL_SECONDS  # between two looks at the same wait


class Endpoint:
    """The endpoint of a client. With `check_health` it is healthy if it answers or starts.

    It is not if all its workers are down, or requests have waited for two minutes and it has no
    worker. `/health` is read once a minute.
    """

    name = "bge"
    dense_only = False

    def __init__(self, client: Client, *, check_health: bool = False) -> None:
        self._client = client
        self._check_health = check_health
        self._health = (-HEALTH_TTL_SECONDS, True)  # when it was read, and whether it was good
        self._no_worker: tuple[float, float] | None = None  # the first and the last sight

    def close(self) -> None:
        self._client.close()

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        input_type: InputType = "document",
        options: EmbedOptions = DENSE,
    ) -> EmbedResult:
        """Return the vectors of `Client.embed`. bge-m3 embeds queries and documents alike."""
        check_input_type(input_type)
        result = self._client.embed(texts, **vars(options))
        self._no_worker = None
        return result

    def rerank(
        self,
        query: str,
        documents: Iterable[str | Mapping[str, object]],
        *,
        top_n: int | None = None,
    ) -> RerankResult:
        result = self._client.rerank(query, documents, top_n=top_n)
        self._no_worker = None
        return result

    def check_fingerprint(self, expected: str) -> None:
        """Its replies name the fingerprint of their vectors, which the router compares."""

    def is_healthy(self) -> bool:
        if not self._check_health:
            return True
        checked_at, is_healthy = self._health
        if time.monotonic() - checked_at >= HEALTH_TTL_SECONDS:
            is_healthy = self._read_health()
            self._health = time.monotonic(), is_healthy
        return is_healthy

    def _read_health(self) -> bool:
        try:
            state = endpoint_state(self._client.health(timeout=HEALTH_TIMEOUT_SECONDS))
        except BGEError as error:
            log.warning("/health of %r failed: %s", self._client, error)
            return False
        if state is EndpointState.NO_WORKER:
            return self._seconds_without_worker() < NO_WORKER_SECONDS
        self._no_worker = None
        return state is not EndpointState.BROKEN

    def _seconds_without_worker(self) -> float:
        now = time.monotonic()
        first, last = self._no_worker or (now, now)
        if now - last > MAX_GAP_SECONDS:
            first = now
        self._no_worker = first, now
        return now - first
