"""Client of bge-serverless: bge-m3 embeddings and bge-reranker-v2-m3 scores.

from bge_client import Client

with Client("http://127.0.0.1:8000") as client:
    result = client.embed(["море", "суша"], sparse=True)
    print(result.dense.shape, result.sparse[0].indices)
"""

import logging as _logging
from typing import TYPE_CHECKING as _TYPE_CHECKING

from .client import Client
from .errors import (
    AuthenticationError,
    BGEError,
    ConfigurationError,
    DeadlineError,
    FingerprintError,
    HTTPStatusError,
    InferenceError,
    JobCancelledError,
    JobError,
    JobTimedOutError,
    MixedUpReplyError,
    NotServedError,
    NoWorkerError,
    OutOfMemoryError,
    OverloadedError,
    ProtocolError,
    RateLimitError,
    ResultExpiredError,
    TooLargeError,
    TransportError,
    ValidationError,
    WorkerError,
)
from .jina import JinaClient
from .redaction import RedactingFilter as _RedactingFilter
from .results import Embedding, EmbedResult, RankedDocument, RerankResult, SparseVector, Usage
from .router import Route, Router
from .state import EndpointState, endpoint_state

if _TYPE_CHECKING:
    from .async_client import AsyncClient

_logging.getLogger("bge_client").addFilter(_RedactingFilter())  # a server chooses its job ids

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "BGEError",
    "Client",
    "ConfigurationError",
    "DeadlineError",
    "EmbedResult",
    "Embedding",
    "EndpointState",
    "FingerprintError",
    "HTTPStatusError",
    "InferenceError",
    "JinaClient",
    "JobCancelledError",
    "JobError",
    "JobTimedOutError",
    "MixedUpReplyError",
    "NoWorkerError",
    "NotServedError",
    "OutOfMemoryError",
    "OverloadedError",
    "ProtocolError",
    "RankedDocument",
    "RateLimitError",
    "RerankResult",
    "ResultExpiredError",
    "Route",
    "Router",
    "SparseVector",
    "TooLargeError",
    "TransportError",
    "Usage",
    "ValidationError",
    "WorkerError",
    "endpoint_state",
]


def __getattr__(name: str) -> object:
    """Import `AsyncClient` when it is first used. It needs the extra `async`."""
    if name == "AsyncClient":
        from .async_client import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
