"""The protocol of a RunPod load-balancing endpoint, without I/O.

    run_request ─▶ POST /native/… ─▶ 2xx ───────────────────────────────────────▶ reply
                                  ─▶ "no workers available" ─▶ wait ─▶ POST again
                                  ─▶ 502, a transient error ─▶ POST again

It has no queue and no jobs: each request goes to one worker, which replies to it. The exchanges are
those of `protocol.py`. A driver that gives up closes the connection, and the worker then drops the
request.
"""

from __future__ import annotations

import json
import logging

from .deadline import Deadline
from .errors import (
    DeadlineError,
    HTTPStatusError,
    MixedUpReplyError,
    NoWorkerError,
    TransportError,
    WorkerError,
)
from .protocol import (
    Exchange,
    JSONObject,
    Pause,
    Request,
    Response,
    checked_reply,
    error_message,
    parse_reply,
)
from .retry import Retries
from .state import NO_WORKERS, EndpointState

log = logging.getLogger("bge_client")

# The platform's limits: two minutes without a worker, and five and a half in a worker.
READ_TIMEOUT_SECONDS = 120.0 + 330.0
NO_WORKER_PAUSE = 2.0  # seconds between two requests without a worker


def run_request(
    deadline: Deadline, payload: JSONObject, max_retries: float | None = None
) -> Exchange[JSONObject]:
    """Send `payload` to a worker, and return its reply. Retries transient errors.

    Raises:
        NoWorkerError: there was none until the deadline.
        BGEError: the last error.
    """
    retries = Retries(deadline, max_retries)
    while True:
        try:
            reply = parse_reply((yield from _worker_response(deadline, _request(payload))))
            return (yield from checked_reply(payload, reply))
        except (TransportError, HTTPStatusError, WorkerError, MixedUpReplyError) as error:
            yield Pause(retries.pause(error))


def balanced_health(deadline: Deadline) -> Exchange[JSONObject]:
    """Return the `/health` of a worker, or what the platform replies if there is none.

    The platform may hold the request for two minutes before that, so the deadline means the same.
    """
    try:
        response = yield Request("GET", "/health", None, READ_TIMEOUT_SECONDS)
    except DeadlineError:
        return {"error": NO_WORKERS}
    return {"error": NO_WORKERS} if _lacks_worker(response) else parse_reply(response)


def _worker_response(deadline: Deadline, request: Request) -> Exchange[Response]:
    """Send a request until there is a worker for it."""
    is_cold = False
    try:
        while _lacks_worker(response := (yield request)):
            if not is_cold:
                log.info("no worker yet, a cold start; %.0f s left", deadline.remaining)
                is_cold = True
            yield Pause(NO_WORKER_PAUSE)
    except DeadlineError:
        if is_cold:
            waited = f"no worker took the request within {deadline.seconds:g} seconds"
            state = EndpointState.NO_WORKER.value
            raise NoWorkerError(f"{waited}: the endpoint is {state}") from None
        raise
    return response


def _request(payload: JSONObject) -> Request:
    if "info" in payload:
        return Request("GET", "/native/info", None, READ_TIMEOUT_SECONDS)
    path = "/native/embed" if "texts" in payload else "/native/rerank"
    body = json.dumps(payload, ensure_ascii=False).encode()
    return Request("POST", path, body, READ_TIMEOUT_SECONDS)


def _lacks_worker(response: Response) -> bool:
    """Return whether the platform replied that there is no worker, with whatever HTTP status."""
    return len(response.body) < 200 and NO_WORKERS in error_message(response)[0]
