"""This project's own bodies and replies."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from ...errors import WorkerError
from ...serving.payload import (
    NativeEmbedBody,
    NativeEmbedReply,
    NativeRerankBody,
    NativeRerankReply,
)
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
        ("/native/embed",), "texts", NATIVE, "embed", NativeEmbedBody, dict, NativeEmbedReply
    ),
    Route(
        ("/native/rerank",), "query", NATIVE, "rerank", NativeRerankBody, dict, NativeRerankReply
    ),
)  # fmt: skip
