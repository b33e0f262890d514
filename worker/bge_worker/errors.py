"""Errors a caller may see, and the one that stops a start.

    payload ─ validation ── ValidationError, NotServedError
            ─ batcher ───── OverloadedError, TooLargeError
            ─ engine ────── OutOfMemoryError, InferenceError
    HTTP    ─ connections ─ MalformedError, HeadTooLargeError, OverloadedError
            ─ middleware ── UnauthorizedError, ForbiddenError, SlowBodyError, TooLargeError,
                            OverloadedError, StoppingError

A message goes to the caller unchanged: it names the field in backticks, the limit and what was
given, and never holds a text, a path or a traceback.
"""

from __future__ import annotations

import logging
import traceback
import uuid
from pathlib import Path

log = logging.getLogger(__name__)


class WorkerError(Exception):
    """An error for the caller; `str()` gives "Type: message".

    `status` and `headers` are those of its HTTP response; `retry` says whether the same request may
    succeed later. `details` go beside the message, so that nobody has to parse it: the `field`,
    the `index` of a text in it, and the `limit` that it exceeds, those that are known. (A failed
    job's error is its message alone: RunPod takes a string.)
    """

    status = 500
    retry = False
    headers: tuple[tuple[str, str], ...] = ()

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        index: int | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(message)
        self.field = field
        details = {"field": field, "index": index, "limit": limit}
        self.details = {name: value for name, value in details.items() if value is not None}

    def __str__(self) -> str:
        return f"{type(self).__name__}: {super().__str__()}"


class ValidationError(WorkerError):
    """The request is not valid; repeating it cannot help."""

    status = 422


class TooLargeError(WorkerError):
    """The request's tokens or bytes, or the reply's bytes, exceed a limit; a part would fit."""

    status = 413


class NotServedError(WorkerError):
    """This worker does not serve the requested model or route."""

    status = 404


class OverloadedError(WorkerError):
    """The queue is full, or the worker is stopping."""

    status = 429
    retry = True
    headers = (("retry-after", "1"),)


class StoppingError(OverloadedError):
    """This server stops; another may answer. A load balancer takes 503 for that."""

    status = 503


class OutOfMemoryError(WorkerError):
    """A single text does not fit the device."""

    status = 503
    retry = True
    headers = (("retry-after", "1"),)


class DeviceError(Exception):
    """The device has failed, and nothing will run on it any more: the worker must be replaced."""


class InferenceError(WorkerError):
    """Any other error; the message holds an id under which the log has the cause."""

    status = 500
    retry = True


class UnauthorizedError(WorkerError):
    """The API key is missing or wrong."""

    status = 401
    headers = (("www-authenticate", "Bearer"),)


class ForbiddenError(WorkerError):
    """A browser's cross-site request, or a `Host` that is not this server."""

    status = 403


class HeadTooLargeError(WorkerError):
    """The head of an HTTP request exceeds a limit."""

    status = 431


class MalformedError(WorkerError):
    """The bytes are not HTTP/1.1."""

    status = 400


class SlowBodyError(WorkerError):
    """The body of an HTTP request did not arrive in time."""

    status = 408
    retry = True


class StartError(Exception):
    """The worker cannot start: a setting or a checkpoint is wrong. Shown without a traceback."""


def logged_inference_error(error: BaseException) -> InferenceError:
    """Log an unexpected error under a new id and return an error that holds only the id.

    The log gets the error's type and where it was raised, and the message of those types whose
    messages describe shapes and devices, as PyTorch's do. Other messages may quote a text.
    """
    error_id = uuid.uuid4().hex[:12]
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
    is_quotable = isinstance(error, RuntimeError | FloatingPointError | MemoryError)
    cause = f"{type(error).__name__}: {error}" if is_quotable else type(error).__name__
    log.error("inference error %s: %s at %s", error_id, cause, where)
    return InferenceError(f"the request could not be computed; the log has the cause: {error_id}")
