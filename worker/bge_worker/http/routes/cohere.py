"""Reranking as Cohere's, Jina's and Infinity's clients send it: one shape for the three.

Cohere          https://docs.cohere.com/reference/rerank
Jina            https://api.jina.ai/redoc#tag/rerank
Infinity        https://michaelfeil.eu/infinity
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from ...engine.config import ModelInfo
from ...errors import OverloadedError, WorkerError
from ...serving.model_names import check_model
from ...serving.openai import Usage
from ...serving.payload import RankedDocument, RerankBody
from ...serving.requests import RerankRequest
from ...settings import Settings
from .route import Dialect, Route


class CohereRerankBody(RerankBody):
    model: str | None = None
    truncation: bool = True

    def to_request(self, model: ModelInfo, settings: Settings) -> RerankRequest:
        """Raises ValidationError for a limit of the settings, NotServedError for another model."""
        check_model(self.model, model, settings.rerank_aliases)
        return self._request(settings, truncate=self.truncation)

    def to_reply(self, reply: Mapping[str, Any]) -> CohereRerankReply:
        """`truncated` is our addition."""
        return {
            "object": "rerank",
            "model": reply["model"],
            "results": reply["results"],
            "usage": reply["usage"],
            "truncated": reply["truncated"],
        }


class CohereRerankReply(TypedDict):
    object: Literal["rerank"]
    model: str
    results: list[RankedDocument]
    usage: Usage
    truncated: list[int]


class ProviderError(TypedDict):
    """Cohere's clients read `message`, Jina's `detail`, TEI's `error` and `error_type`."""

    error: str
    error_type: Literal["Validation", "Overloaded", "Backend"]
    message: str
    detail: str


def error_body(error: WorkerError) -> ProviderError:
    message = str(error)
    error_type: Literal["Validation", "Overloaded", "Backend"] = "Validation"
    if error.status >= 500:
        error_type = "Backend"
    elif isinstance(error, OverloadedError):
        error_type = "Overloaded"
    return {"error": message, "error_type": error_type, "message": message, "detail": message}


COHERE = Dialect(error_body, ProviderError)
ROUTES = (
    Route(
        ("/v1/rerank", "/v2/rerank", "/rerank"), "documents", COHERE, "rerank",
        CohereRerankBody, CohereRerankReply,
    ),
)  # fmt: skip
