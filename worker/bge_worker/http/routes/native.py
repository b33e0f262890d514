"""This project's own bodies and replies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from ...errors import WorkerError
from ...serving import payload
from .route import Dialect, InfoRoute, Route

if TYPE_CHECKING:  # imports torch
    from ...serving.service import Service


class NativeError(TypedDict):
    """`error` is "Type: message"; the rest is `WorkerError.details`."""

    error: str
    field: NotRequired[str]
    index: NotRequired[int]
    limit: NotRequired[int]


class NativeInfo(TypedDict):
    """The reply to `{"info": true}`; `models` by role."""

    models: dict[str, dict[str, Any]]
    engine: str
    device: str
    dtype: str
    attention: str
    attention_reason: str
    max_batch_tokens: int
    limits: dict[str, int]
    versions: dict[str, str]


def get_info(service: Service, _: Mapping[str, str]) -> Mapping[str, Any]:
    return service.info().body


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
INFO_ROUTES = (InfoRoute(("/native/info",), NATIVE, get_info, NativeInfo),)
