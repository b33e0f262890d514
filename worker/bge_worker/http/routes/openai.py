"""OpenAI's routes. Bodies and replies are `serving/openai.py`: RunPod's proxy sends them too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ...errors import WorkerError
from ...serving.openai import (
    EMBEDDINGS,
    MODELS,
    OpenAIEmbedBody,
    OpenAIEmbedReply,
    OpenAIModelsReply,
    models_reply,
)
from .route import Dialect, InfoRoute, Route

if TYPE_CHECKING:  # imports torch
    from ...serving.service import Service


class OpenAIErrorDetail(TypedDict):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str


class OpenAIError(TypedDict):
    error: OpenAIErrorDetail


def error_body(error: WorkerError) -> OpenAIError:
    return {
        "error": {
            "message": str(error),
            "type": "server_error" if error.status >= 500 else "invalid_request_error",
            "param": error.field,
            "code": type(error).__name__,
        }
    }


OPENAI = Dialect(error_body, OpenAIError, invalid_status=400)
ROUTES = (
    Route((EMBEDDINGS, "/embeddings"), "input", OPENAI, "embed", OpenAIEmbedBody, OpenAIEmbedReply),
)


def list_models(service: Service) -> dict[str, Any]:
    return models_reply(service.models, service.settings)


INFO_ROUTES = (InfoRoute((MODELS,), OPENAI, list_models, OpenAIModelsReply),)
