"""OpenAI's routes. Bodies and replies are `serving/openai.py`: RunPod's proxy sends them too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ...errors import NotServedError, WorkerError
from ...serving.openai import (
    EMBEDDINGS,
    MODELS,
    OpenAIEmbedBody,
    OpenAIEmbedReply,
    OpenAIModel,
    OpenAIModelsReply,
    all_names,
    model_object,
    models_reply,
)
from ...serving.validation import names as quoted
from .route import Dialect, InfoRoute, Route

if TYPE_CHECKING:  # imports torch
    from ...serving.service import Service


class OpenAIErrorDetail(TypedDict):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str


class OpenAIError(TypedDict):
    """OpenAI's clients read `error`, Jina's on the same path `detail`."""

    error: OpenAIErrorDetail
    detail: str


def error_detail(error: WorkerError) -> OpenAIErrorDetail:
    return {
        "message": str(error),
        "type": "server_error" if error.status >= 500 else "invalid_request_error",
        "param": error.field,
        "code": type(error).__name__,
    }


def error_body(error: WorkerError) -> OpenAIError:
    return {"error": error_detail(error), "detail": str(error)}


OPENAI = Dialect(error_body, OpenAIError, invalid_status=400)
RUNPOD = "/v2/{endpoint}/openai"  # RunPod's path of a worker's OpenAI routes
ROUTES = (
    Route(
        (EMBEDDINGS, RUNPOD + EMBEDDINGS, "/embeddings"), "input", OPENAI, "embed",
        OpenAIEmbedBody, OpenAIEmbedReply,
    ),
)  # fmt: skip


def list_models(service: Service, _: Mapping[str, str]) -> dict[str, Any]:
    return models_reply(service.models, service.settings)


def get_model(service: Service, parameters: Mapping[str, str]) -> OpenAIModel:
    """Raises NotServedError: no model has this name."""
    names = all_names(service.models, service.settings)
    if parameters["model"] not in names:
        raise NotServedError(f"no such model. Known: {quoted(names)}", field="model")
    return model_object(parameters["model"])


INFO_ROUTES = (
    InfoRoute((MODELS, RUNPOD + MODELS, "/models"), OPENAI, list_models, OpenAIModelsReply),
    InfoRoute(
        (MODELS + "/{model:path}", RUNPOD + MODELS + "/{model:path}"),
        OPENAI,
        get_model,
        OpenAIModel,
    ),
)
