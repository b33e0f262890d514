"""Infinity's own shapes, under `/infinity`: infinity-client, litellm's `infinity/`.

https://michaelfeil.eu/infinity. Its rerank has documents as plain strings where Cohere's and Jina's
have objects, so one path cannot serve both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

from ...serving.openai import (
    OpenAIEmbedBody,
    OpenAIEmbedReply,
    OpenAIModelsReply,
    Usage,
    models_reply,
)
from .cohere import CohereRerankBody
from .openai import OPENAI
from .route import PROVIDER, InfoRoute, Route

if TYPE_CHECKING:  # imports torch
    from ...serving.service import Service


class InfinityRerankBody(CohereRerankBody):
    def to_reply(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        results = [
            {name: value["text"] if name == "document" else value for name, value in result.items()}
            for result in reply["results"]
        ]
        fields = {name: reply[name] for name in ("model", "usage")}
        return {"object": "rerank", "results": results, "id": "rerank", "created": 0, **fields}


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


def list_models(service: Service, _: Mapping[str, str]) -> dict[str, Any]:
    return models_reply(service.models, service.settings)


ROUTES = (
    Route(
        ("/infinity/rerank",), "documents", PROVIDER, "rerank",
        InfinityRerankBody, InfinityRerankReply,
    ),
    Route(
        ("/infinity/embeddings",), "input", OPENAI, "embed", OpenAIEmbedBody, OpenAIEmbedReply
    ),
)  # fmt: skip
INFO_ROUTES = (InfoRoute(("/models", "/infinity/models"), OPENAI, list_models, OpenAIModelsReply),)
