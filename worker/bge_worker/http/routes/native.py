"""This project's own bodies and replies."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from ...errors import WorkerError
from ...serving import payload
from .route import Dialect, Route


class NativeError(TypedDict):
    """`error` is "Type: message"; the rest is `WorkerError.details`."""

    error: str
    field: NotRequired[str]
    index: NotRequired[int]
    limit: NotRequired[int]


def error_body(error: WorkerError) -> dict[str, Any]:
    return {"error": str(error), **error.details}


NATIVE = Dialect(error_body, NativeError)
ROUTES = (
    Route(
        ("/native/embed",), "texts", NATIVE, "embed",
        payload.NativeEmbedBody, payload.NativeEmbedReply,
    ),
    Route(
        ("/native/rerank",), "query", NATIVE, "rerank",
        payload.NativeRerankBody, payload.NativeRerankReply,
    ),
)  # fmt: skip
