"""Everything that can go wrong, as one tree.

    BGEError
    ├── ConfigurationError        an endpoint, a setting or an argument is wrong (a ValueError too)
    ├── TransportError            no answer: refused, reset, cut off, no such host          retried
    ├── DeadlineError             the call's time is over; its jobs are cancelled (a TimeoutError)
    ├── HTTPStatusError           an HTTP status that says no; from 500 on it is           retried
    │   ├── AuthenticationError   401, 403
    │   └── RateLimitError        429                                                       retried
    ├── ProtocolError             what came back is not what the contract says
    │   └── MixedUpReplyError     it is the reply to another request                        retried
    ├── FingerprintError          vectors of another model than the one expected
    ├── MigrationError            a copy of a collection is not what its source is
    ├── JobError                  the job failed, and not with an error of the contract
    │   ├── JobCancelledError     somebody cancelled it
    │   ├── JobTimedOutError      the platform ended it
    │   └── ResultExpiredError    the platform forgot it before it was fetched              retried
    └── WorkerError               the worker's own answer, by the contract's types
        ├── ValidationError       the request breaks the contract
        ├── TooLargeError         request or reply over a limit: halved, and tried again
        ├── NotServedError        the worker does not load the model asked for
        ├── OverloadedError       its queue is full                                         retried
        ├── OutOfMemoryError      one text alone does not fit the device                    retried
        └── InferenceError        anything else; the id in it is in the worker's log        retried

No message holds the key, or a text that this package or the worker was given.
"""

from __future__ import annotations

from typing import Any

from . import strict_json
from .redaction import redact


class BGEError(Exception):
    """Base of all.

    `retry` says whether the same request may succeed later, `patient` that it surely will, and
    `retry_after` after how many seconds, if the server said so.
    """

    retry = False
    patient = False
    retry_after: float | None = None

    def __init__(self, *args: object) -> None:
        """Whatever a message quotes, no key that was read is in it."""
        super().__init__(*(redact(arg) if isinstance(arg, str) else arg for arg in args))


class ConfigurationError(BGEError, ValueError):
    """An endpoint, a setting or an argument is wrong."""


class TransportError(BGEError):
    """No answer, or half of one."""

    retry = True


class DeadlineError(BGEError, TimeoutError):
    """The time given to the call is over."""


class HTTPStatusError(BGEError):
    """An HTTP status that says no; `status` holds it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        self.retry = status >= 500 or status in (408, 429)

    def __reduce__(self) -> tuple[Any, ...]:  # for process pools
        return type(self), (str(self), self.status)


class AuthenticationError(HTTPStatusError):
    """No key, or one that is not accepted."""


class RateLimitError(HTTPStatusError):
    """Too many requests."""

    patient = True


class ProtocolError(BGEError):
    """What came back is not what the contract says."""


class MixedUpReplyError(ProtocolError):
    """What came back is the reply to another request: a proxy or a shared connection did that."""

    retry = True


class FingerprintError(BGEError):
    """Vectors of another model than the one expected: mixed into one index they would ruin it."""


class MigrationError(BGEError):
    """A copy of a collection is not what its source is, or its source does not hold still."""


class JobError(BGEError):
    """The job failed, and not with an error of the contract."""


class JobCancelledError(JobError):
    """Somebody cancelled the job."""


class JobTimedOutError(JobError):
    """The platform ended the job: its execution timeout or time to live was over."""


class ResultExpiredError(JobError):
    """The platform forgot the job before its result was fetched."""

    retry = True


class WorkerError(BGEError):
    """The worker's own answer to the request."""


class ValidationError(WorkerError):
    """The request breaks the contract; sending it again cannot help."""


class TooLargeError(WorkerError):
    """One text's request or reply alone is over a limit."""


class NotServedError(WorkerError):
    """The worker does not load the model asked for."""


class OverloadedError(WorkerError):
    """The worker's queue is full."""

    retry = patient = True


class OutOfMemoryError(WorkerError):
    """One text alone does not fit the worker's device."""

    retry = True


class InferenceError(WorkerError):
    """Anything else that went wrong in the worker; the id in it is in the worker's log."""

    retry = True


WORKER_ERRORS = {kind.__name__: kind for kind in WorkerError.__subclasses__()}


def job_error(error: object) -> BGEError:
    """The error of a failed job: `"Type: message"`, or what RunPod's SDK makes of an exception.

    Of the SDK's (a JSON string with type, message and traceback) only the type is kept: the rest
    may quote the text that was sent.
    """
    if not isinstance(error, str):
        return JobError("the job failed without saying why")
    kind, _, message = error.partition(": ")
    if kind in WORKER_ERRORS:
        return WORKER_ERRORS[kind](message)
    try:
        raised = strict_json.loads(error)["error_type"]
    except (ValueError, KeyError, TypeError):
        reason = redact(error.splitlines()[0])[:200] if error else "no reason"
        return JobError(f"the job failed: {reason}")
    return JobError(f"the worker's handler raised {redact(str(raised))[:100]}")
