"""The exceptions of this package.

    BGEError
    ├── ConfigurationError        an invalid endpoint, setting or argument (also a ValueError)
    ├── TransportError            no response: refused, reset, incomplete, unknown host     retried
    ├── DeadlineError             the deadline has passed (also a TimeoutError)
    │   └── NoWorkerError         and the endpoint had no worker for the request
    ├── HTTPStatusError           an unsuccessful HTTP status; 408, 429 and 5xx are         retried
    │   ├── AuthenticationError   401, 403
    │   └── RateLimitError        429                                                       retried
    ├── ProtocolError             the response breaks the contract
    │   └── MixedUpReplyError     the response belongs to another request                   retried
    ├── FingerprintError          vectors of another model than expected
    │   └── ProbeError            vectors of another host, not shown to be those of the endpoint
    ├── BudgetError               fallbacks have used their tokens of the day
    ├── JobError                  the job failed with an error outside the contract
    │   ├── JobCancelledError     it was cancelled
    │   ├── JobTimedOutError      the platform ended it
    │   └── ResultExpiredError    the platform deleted the result before it was fetched     retried
    └── WorkerError               an error the worker reported, by the contract's types
        ├── ValidationError       the request breaks the contract
        ├── TooLargeError         request or reply over a limit                             halved
        ├── NotServedError        the worker does not serve the requested model
        ├── OverloadedError       the worker's queue is full                                retried
        ├── OutOfMemoryError      a single text does not fit the device                     retried
        └── InferenceError        anything else; its message has an id of the worker's log  retried

No message contains an API key, or a text sent to the worker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from . import strict_json
from .redaction import redact


class BGEError(Exception):
    """Base class.

    `field` is the argument at fault, `index` the position of the text in it, `limit` the limit
    that was exceeded, and `retry_after` the server's `Retry-After` in seconds; each is None if it
    is unknown. `retry` is true if the same request may succeed later. `patient` errors, such as a
    rate limit, are retried until the deadline.
    """

    retry = False
    patient = False
    retry_after: float | None = None

    def __init__(
        self,
        message: str = "",
        *,
        field: str | None = None,
        index: int | None = None,
        limit: float | None = None,
    ) -> None:
        """Redacts known keys in the message."""
        super().__init__(redact(message))
        self.field, self.index, self.limit = field, index, limit

    def __reduce__(self) -> tuple[Any, ...]:  # for process pools
        return _restored, (type(self), str(self), vars(self))

    def add_offset(self, offset: int) -> None:
        """Count `index`, and each index in the message, from an earlier text."""
        if self.index is not None and offset:
            self.index += offset
            self.args = (_INDEX.sub(lambda m: f"`{m[1]}[{int(m[2]) + offset}]", str(self)),)


_INDEX = re.compile(r"`(\w+)\[(\d{1,9})\]")


def _restored(kind: type[BGEError], message: str, attributes: dict[str, Any]) -> BGEError:
    error = kind.__new__(kind)
    error.args = (message,)
    vars(error).update(attributes)
    return error


class ConfigurationError(BGEError, ValueError):
    """An endpoint, a setting or an argument is invalid."""


class TransportError(BGEError):
    """No response, or an incomplete one."""

    retry = True


class DeadlineError(BGEError, TimeoutError):
    """The deadline of the call has passed."""


class NoWorkerError(DeadlineError):
    """The deadline has passed, and the endpoint had no worker for the request."""


class HTTPStatusError(BGEError):
    """An unsuccessful HTTP status, in `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        self.retry = status >= 500 or status in (408, 429)


class AuthenticationError(HTTPStatusError):
    """The API key is missing or not accepted."""


class RateLimitError(HTTPStatusError):
    """Too many requests."""

    patient = True


class ProtocolError(BGEError):
    """The response breaks the contract."""


class MixedUpReplyError(ProtocolError):
    """The response belongs to another request, by fault of a proxy or a shared connection."""

    retry = True


class FingerprintError(BGEError):
    """Vectors of another model than expected. Mixed into one index, they corrupt it."""


class ProbeError(FingerprintError):
    """Vectors of another host that were not shown to be those of the endpoint."""


class BudgetError(BGEError):
    """Fallbacks have used their tokens of the day."""


class JobError(BGEError):
    """The job failed with an error outside the contract."""


class JobCancelledError(JobError):
    """The job was cancelled."""


class JobTimedOutError(JobError):
    """The platform ended the job at its execution timeout or time to live."""


class ResultExpiredError(JobError):
    """The platform deleted the result before it was fetched."""

    retry = True


class WorkerError(BGEError):
    """An error that the worker reported."""


class ValidationError(WorkerError):
    """The request breaks the contract."""


class TooLargeError(WorkerError):
    """The request or its reply is over a limit."""


class NotServedError(WorkerError):
    """The worker does not serve the requested model."""


class OverloadedError(WorkerError):
    """The worker's queue is full."""

    retry = patient = True


class OutOfMemoryError(WorkerError):
    """A single text does not fit the worker's device."""

    retry = True


class InferenceError(WorkerError):
    """Any other failure in the worker. The message has an id to find in the worker's log."""

    retry = True


WORKER_ERRORS = {kind.__name__: kind for kind in WorkerError.__subclasses__()}


def worker_error(text: str, details: Mapping[str, Any]) -> WorkerError | None:
    """Return the error that a worker reported as `"Type: message"`, or None for another text.

    `field`, `index` and `limit` may stand in `details`. RunPod drops them from a failed job: the
    message then names the field, and the text as in `` `texts[3]` ``.
    """
    kind, _, message = text.partition(": ")
    if kind not in WORKER_ERRORS:
        return None
    field, index, limit = (details.get(name) for name in ("field", "index", "limit"))
    named = _INDEX.search(message) or re.match(r"`(\w+)()`", message)
    if named and not isinstance(field, str):
        field = named[1]
    if named and named[2] and type(index) is not int:
        index = int(named[2])
    return WORKER_ERRORS[kind](
        message,
        field=field if isinstance(field, str) else None,
        index=index if type(index) is int else None,
        limit=limit if type(limit) in (int, float) else None,
    )


def job_error(error: object, details: Mapping[str, Any]) -> BGEError:
    """Return the error of a failed job from `"Type: message"`, or from the JSON of RunPod's SDK.

    Of the SDK's JSON only the exception type is kept: its message and traceback may quote a text.
    """
    if not isinstance(error, str):
        return JobError("the job failed without saying why")
    if reported := worker_error(error, details):
        return reported
    try:
        raised = strict_json.loads(error)["error_type"]
    except (ValueError, KeyError, TypeError):
        reason = redact(error.splitlines()[0])[:200] if error else "no reason"
        return JobError(f"the job failed: {reason}")
    return JobError(f"the worker's handler raised {redact(str(raised))[:100]}")
