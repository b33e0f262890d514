"""Infinity's own shapes, under `/infinity`: infinity-client, litellm's `infinity/`.

https://michaelfeil.eu/infinity. Its rerank has documents as plain strings where Cohere's and Jina's
have objects, so one path cannot serve both.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from ...engine.config import ModelInfo
from ...errors import WorkerError
from ...serving.openai import (
    Dimensions,
    OpenAIEmbedBody,
    OpenAIEmbedReply,
    Usage,
    all_names,
    check_dimensions,
)
from ...serving.requests import EmbedRequest, RerankRequest
from ...settings import Settings
from . import openai
from .rerank import RerankBody
from .route import Dialect, InfoRoute, Route

if TYPE_CHECKING:  # imports torch
    from ...serving.service import Service

UNNAMED_MODEL = "default/not-specified"  # what infinity-client sends without a model


class InfinityErrorDetail(TypedDict):
    """What infinity-client reads, where the status is 422."""

    loc: list[str]
    msg: str
    type: str


class InfinityError(TypedDict):
    error: openai.OpenAIErrorDetail
    detail: list[InfinityErrorDetail]


def error_body(error: WorkerError) -> InfinityError:
    location = ["body", error.field] if error.field else ["body"]
    detail: InfinityErrorDetail = {
        "loc": location, "msg": str(error), "type": type(error).__name__,
    }  # fmt: skip
    return {"error": openai.error_detail(error), "detail": [detail]}


class InfinityEmbedBody(OpenAIEmbedBody):
    """`dimensions` of 0 are the model's own. `output_dimension` is litellm's name of it."""

    dimensions: Annotated[int, Meta(ge=0, description="The model's own number, or 0")] | None = None
    output_dimension: Dimensions | None = None

    def to_request(self, model: ModelInfo, settings: Settings) -> EmbedRequest:
        """Raises as `OpenAIEmbedBody.to_request`."""
        check_dimensions(self.output_dimension, model, "output_dimension")
        self.model = named_model(self.model)
        self.dimensions = self.dimensions or None
        return super().to_request(model, settings)


class InfinityRerankBody(RerankBody):
    def to_request(self, model: ModelInfo, settings: Settings) -> RerankRequest:
        """Raises as `RerankBody.to_request`."""
        self.model = named_model(self.model)
        return super().to_request(model, settings)

    def to_reply(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        results = [
            {name: value["text"] if name == "document" else value for name, value in result.items()}
            for result in reply["results"]
        ]
        fields = {name: reply[name] for name in ("model", "usage")}
        return {"object": "rerank", "results": results, "id": "rerank", "created": 0, **fields}


def named_model(name: str | None) -> str | None:
    return None if name == UNNAMED_MODEL else name


class InfinityRankedDocument(TypedDict):
    index: int
    relevance_score: float
    document: NotRequired[str]


class InfinityRerankReply(TypedDict):
    object: Literal["rerank"]
    results: list[InfinityRankedDocument]
    model: str
    usage: Usage
    id: str
    created: int


class InfinityStats(TypedDict):
    """`queue_fraction` is that of `BGE_MAX_QUEUE`; `batch_size` the texts of a request."""

    queue_fraction: float
    queue_absolute: int
    results_pending: int
    batch_size: int


class InfinityModel(TypedDict):
    """infinity-client accepts no other `owned_by`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["infinity"]
    stats: InfinityStats
    backend: Literal["torch"]
    capabilities: list[Literal["embed", "rerank"]]


class InfinityModelsReply(TypedDict):
    object: Literal["list"]
    data: list[InfinityModel]


class InfinityHealth(TypedDict):
    unix: float


def list_models(service: Service, _: Mapping[str, str]) -> InfinityModelsReply:
    settings, depth = service.settings, service.batcher.depth
    stats: InfinityStats = {
        "queue_fraction": depth / settings.max_queue,
        "queue_absolute": depth,
        "results_pending": depth,
        "batch_size": settings.max_texts,
    }
    models: list[InfinityModel] = [
        {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "infinity",
            "stats": stats,
            "backend": "torch",
            "capabilities": [role],
        }
        for role, model in service.models.items()
        for name in all_names({role: model}, settings)
    ]
    return {"object": "list", "data": models}


def get_health(service: Service, _: Mapping[str, str]) -> InfinityHealth:
    return {"unix": time.time()}


INFINITY = Dialect(error_body, InfinityError)
ROUTES = (
    Route(
        ("/infinity/rerank",), "documents", INFINITY, "rerank",
        InfinityRerankBody, InfinityRerankReply,
    ),
    Route(
        ("/infinity/embeddings",), "input", INFINITY, "embed", InfinityEmbedBody, OpenAIEmbedReply
    ),
)  # fmt: skip
INFO_ROUTES = (
    InfoRoute(("/infinity/models",), INFINITY, list_models, InfinityModelsReply),
    InfoRoute(("/infinity/health",), INFINITY, get_health, InfinityHealth),
)
