"""Errors of Qdrant's client as this package's own.

UnexpectedResponse         HTTPStatusError, AuthenticationError, RateLimitError, TooLargeError
ResourceExhaustedResponse  RateLimitError
ResponseHandlingException  TransportError, or ProtocolError if the response is invalid
sqlite3.Error              HTTPStatusError 500, or 507 if the disk is full
KeyError, ValueError, …    HTTPStatusError 404 or 400 in local mode, else ProtocolError
"""

from __future__ import annotations

import sqlite3

from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from bge_client import (
    AuthenticationError,
    BGEError,
    ConfigurationError,
    HTTPStatusError,
    ProtocolError,
    RateLimitError,
    TooLargeError,
    TransportError,
    strict_json,
)
from bge_client.redaction import redact

MAX_ERROR_CHARACTERS = 300
CLOSED = "client has been closed"  # in the message of httpx
LOCAL_CLOSED = "instance is closed"  # in that of local mode
QDRANT_ERRORS = (
    UnexpectedResponse,
    ResponseHandlingException,
    ResourceExhaustedResponse,
    sqlite3.Error,
    KeyError,
    ValueError,
    AssertionError,
    RuntimeError,
)


def bge_error(error: Exception, request: str, *, is_local: bool) -> BGEError:
    """Convert one of `QDRANT_ERRORS`, raised by the client in the method `request`."""
    match error:
        case UnexpectedResponse():
            return _status_error(error, request)
        case ResourceExhaustedResponse():
            busy = RateLimitError(f"Qdrant limits the request rate: {error}", 429)
            busy.retry_after = float(error.retry_after_s)
            return busy
        case ResponseHandlingException(source=ValueError()):  # pydantic's quotes the response
            return ProtocolError(f"Qdrant's response to {request} is invalid")
        case ResponseHandlingException(source=RuntimeError() as cause) if CLOSED in str(cause):
            return ConfigurationError(f"Qdrant's client was closed before {request}")
        case ResponseHandlingException():
            return TransportError(f"no response from Qdrant to {request}: {_cause(error)}")
        case RuntimeError() if LOCAL_CLOSED in str(error):
            return ConfigurationError(f"Qdrant's client was closed before {request}")
        case sqlite3.Error():
            return _disk_error(error)
    if not is_local:  # a body that could not be encoded or decoded
        return ProtocolError(f"Qdrant's client failed in {request}: {type(error).__name__}")
    status = 404 if isinstance(error, KeyError) or "not found" in str(error) else 400
    return HTTPStatusError(f"Qdrant's local mode failed in {request}: {error}", status)


def unknown_collection(collection: str, existing: list[str]) -> ConfigurationError:
    names = ", ".join(existing) or "none"
    return ConfigurationError(f"there is no collection `{collection}`. Existing: {names}")


def _status_error(error: UnexpectedResponse, request: str) -> BGEError:
    status, detail = error.status_code or 0, _error_text(error)
    message = f"Qdrant answered {request} with HTTP {status}: {detail}"
    if status == 401:
        return AuthenticationError("Qdrant rejects the API key: HTTP 401", status)
    if status == 403:
        return AuthenticationError(f"the key does not allow {request}: HTTP 403, {detail}", status)
    if status == 413 or "larger than allowed" in detail:  # by a proxy, by Qdrant (400)
        return TooLargeError(message)
    if status == 507 or "No space left" in detail or "disk space" in detail:
        return _disk_full(message, status)
    if status == 429:
        return RateLimitError(message, status)
    return HTTPStatusError(message, status)


def _disk_error(error: sqlite3.Error) -> HTTPStatusError:
    if "full" in str(error):
        return _disk_full(f"Qdrant's local mode: {error}", 507)
    return _without_retry(HTTPStatusError(f"Qdrant's local mode: {error}", 500))


def _disk_full(message: str, status: int) -> HTTPStatusError:
    advice = "The disk is full. Nothing is lost: free some space and run the command again"
    return _without_retry(HTTPStatusError(f"{message}. {advice}", status))


def _without_retry(error: HTTPStatusError) -> HTTPStatusError:
    error.retry = False
    return error


def _cause(error: ResponseHandlingException) -> str:
    cause = f"{type(error.source).__name__} {redact(str(error.source))}"
    return cause.strip()[:MAX_ERROR_CHARACTERS]


def _error_text(error: UnexpectedResponse) -> str:
    try:
        text = strict_json.loads(error.content)["status"]["error"]
    except (ValueError, KeyError, TypeError):
        text = error.content.decode("utf-8", "replace")
    return " ".join(redact(str(text)).split())[:MAX_ERROR_CHARACTERS]
