"""This project's own bodies and replies."""

from __future__ import annotations

from typing import TypedDict

from ...errors import WorkerError
from ...serving import payload
from .route import Dialect, Route


class NativeError(TypedDict):
    """`error` is "Type: message"."""

    error: str


def error_body(error: WorkerError) -> NativeError:
    return {"error": str(error)}


NATIVE = Dialect(error_body, NativeError)
ROUTES = (
    Route(
        ("/native/embed",), "texts", NATIVE, "embed",
        payload.NativeEmbedBody, dict, payload.NativeEmbedReply,
    ),
    Route(
        ("/native/rerank",), "query", NATIVE, "rerank",
        payload.NativeRerankBody, dict, payload.NativeRerankReply,
    ),
)  # fmt: skip
