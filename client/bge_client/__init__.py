"""Client of bge-serverless: bge-m3 embeddings and bge-reranker-v2-m3 scores.

from bge_client import Client

with Client("http://127.0.0.1:8000") as client:
    result = client.embed(["море", "суша"], sparse=True)
    print(result.dense.shape, result.sparse[0].indices)
"""

import logging as _logging
from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

from .client import Client
from .errors import (
    AuthenticationError,
    BGEError,
    BudgetError,
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
    ProbeError,
    ProtocolError,
    RateLimitError,
    ResultExpiredError,
    TooLargeError,
    TransportError,
    ValidationError,
    WorkerError,
)
from .redaction import RedactingFilter as _RedactingFilter
from .results import Embedding, EmbedResult, RankedDocument, RerankResult, SparseVector, Usage
from .state import EndpointState, endpoint_state

if _TYPE_CHECKING:
    from .async_client import AsyncClient
    from .providers.chain import Attempt, Route
    from .providers.endpoint import Endpoint
    from .providers.jina import JinaClient
    from .providers.openai_compatible import OpenAICompatible
    from .providers.probe import Probe
    from .router import Router

_logging.getLogger("bge_client").addFilter(_RedactingFilter())  # a server chooses its job ids

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Attempt",
    "AuthenticationError",
    "BGEError",
    "BudgetError",
    "Client",
    "ConfigurationError",
    "DeadlineError",
    "EmbedResult",
    "Embedding",
    "Endpoint",
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
    "OpenAICompatible",
    "OutOfMemoryError",
    "OverloadedError",
    "Probe",
    "ProbeError",
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


# Imported when they are first used. `AsyncClient` needs the extra `async`.
_LAZY = {
    "AsyncClient": "async_client",
    "Attempt": "providers.chain",
    "Endpoint": "providers.endpoint",
    "JinaClient": "providers.jina",
    "OpenAICompatible": "providers.openai_compatible",
    "Probe": "providers.probe",
    "Route": "providers.chain",
    "Router": "router",
}


def __getattr__(name: str) -> object:
    """Import what is in `_LAZY`."""
    if name in _LAZY:
        return getattr(_import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
