"""What can go wrong with a request, as the caller is told of it.

    payload ─ schema ───── ValidationError, NotServedError
            ─ batcher ──── OverloadedError, TooLargeError
            ─ engine ───── OutOfMemoryError, InferenceError
    HTTP    ─ connections  MalformedError, HeadTooLargeError, OverloadedError
            ─ gate ─────── UnauthorizedError, ForbiddenError, SlowBodyError, TooLargeError,
                           OverloadedError

A message names the field in backticks, the limit and what was given; it never holds a text, a
path or a traceback, since it travels to the caller as it is.
"""


class WorkerError(Exception):
    """An error a caller is meant to read; `str()` of it is what travels.

    `status` is the HTTP status of the same error, `retry` whether the same request may succeed
    later.
    """

    status = 500
    retry = False

    def __str__(self) -> str:
        return f"{type(self).__name__}: {super().__str__()}"


class ValidationError(WorkerError):
    """The payload breaks the contract; sending it again cannot help."""

    status = 422


class TooLargeError(WorkerError):
    """The request's tokens or the reply's bytes exceed a limit; a part of it would fit."""

    status = 413


class NotServedError(WorkerError):
    """This worker does not load the model asked for."""

    status = 404


class OverloadedError(WorkerError):
    """The queue is full, or the worker is stopping."""

    status = 429
    retry = True


class OutOfMemoryError(WorkerError):
    """One text alone does not fit the device."""

    status = 503
    retry = True


class InferenceError(WorkerError):
    """Anything else; the message carries an id that the log repeats with the cause."""

    status = 500
    retry = True


class UnauthorizedError(WorkerError):
    """No key, or another one."""

    status = 401


class ForbiddenError(WorkerError):
    """A browser's request from another site, or under a name that is not this server's."""

    status = 403


class HeadTooLargeError(WorkerError):
    """The head of an HTTP request exceeds a limit."""

    status = 431


class MalformedError(WorkerError):
    """What came is not HTTP/1.1."""

    status = 400


class SlowBodyError(WorkerError):
    """The body of an HTTP request did not arrive in time."""

    status = 408
    retry = True


class StartError(Exception):
    """The worker cannot start: a setting or a checkpoint is wrong. One sentence, no traceback."""
