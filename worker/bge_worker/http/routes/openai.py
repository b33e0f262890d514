"""OpenAI's routes. Bodies and replies are `serving/openai.py`: RunPod's proxy sends them too."""

from __future__ import annotations

from typing import Literal, TypedDict

from ...errors import WorkerError
from ...serving.openai import EMBEDDINGS, OpenAIEmbedBody, OpenAIEmbedReply
from .route import Dialect, Route


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
    Route(
        (EMBEDDINGS, "/embeddings"), "input", OPENAI, "embed",
        OpenAIEmbedBody, OpenAIEmbedReply,
    ),
)  # fmt: skip
