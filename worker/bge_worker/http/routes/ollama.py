"""Ollama's embeddings. https://github.com/ollama/ollama/blob/main/docs/api.md

Open WebUI, Continue and the ollama packages send them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from msgspec import Meta

from ... import __version__
from ...engine.config import ModelInfo
from ...errors import WorkerError
from ...serving.model_names import check_model
from ...serving.openai import NEUTRAL, Dimensions, all_names, check_dimensions
from ...serving.requests import EmbedRequest
from ...serving.validation import ForeignBody, Query, Texts, as_texts
from ...settings import Settings
from .rerank import RerankBody, RerankReply
from .route import Dialect, InfoRoute, Route

if TYPE_CHECKING:  # imports torch
    from ...serving.service import Service

ModelName = Annotated[str, Meta(description="With or without the tag `:latest`")]


class OllamaError(TypedDict):
    error: str


def error_body(error: WorkerError) -> OllamaError:
    return {"error": str(error)}


class OllamaEmbedBody(ForeignBody):
    """`truncate` is true by default, as in Ollama."""

    input: Texts
    model: ModelName | None = None
    truncate: bool = True
    dimensions: Dimensions | None = None
    options: NEUTRAL = None
    keep_alive: NEUTRAL = None

    def to_request(self, model: ModelInfo, settings: Settings) -> EmbedRequest:
        """Raises ValidationError for a limit of the settings, NotServedError for another model."""
        check_model(without_tag(self.model), model, settings.embed_aliases)
        check_dimensions(self.dimensions, model)
        texts = as_texts(self.input, "input", settings.max_texts)
        return EmbedRequest(texts=texts, truncate=self.truncate, field="input")

    def to_reply(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        timings = reply["timings_ms"]
        return {
            "model": self.model or reply["model"],
            "embeddings": reply["embeddings"],
            "total_duration": round(sum(timings.values()) * 1e6),
            "load_duration": 0,
            "prompt_eval_count": reply["usage"]["prompt_tokens"],
        }


class OllamaPromptBody(ForeignBody):
    """The body of the older `/api/embeddings`: one text, `prompt`."""

    prompt: Query
    model: ModelName | None = None
    options: NEUTRAL = None
    keep_alive: NEUTRAL = None

    def to_request(self, model: ModelInfo, settings: Settings) -> EmbedRequest:
        """Raises ValidationError for a limit of the settings, NotServedError for another model."""
        check_model(without_tag(self.model), model, settings.embed_aliases)
        texts = as_texts(self.prompt, "prompt", settings.max_texts)
        return EmbedRequest(texts=texts, field="prompt")

    def to_reply(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        return {"embedding": reply["embeddings"][0]}


def without_tag(name: str | None) -> str | None:
    return None if name is None else name.removesuffix(":latest")


class OllamaEmbedReply(TypedDict):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaPromptReply(TypedDict):
    embedding: list[float]


class OllamaModel(TypedDict):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: dict[str, str]


class OllamaTags(TypedDict):
    models: list[OllamaModel]


class OllamaVersion(TypedDict):
    version: str


def list_tags(service: Service, _: Mapping[str, str]) -> OllamaTags:
    """Sizes are not known here; Ollama's clients show the names."""
    names = all_names({"embed": service.model("embed")}, service.settings)
    digest = service.model("embed").fingerprint
    return {
        "models": [
            {
                "name": f"{name}:latest",
                "model": f"{name}:latest",
                "modified_at": "1970-01-01T00:00:00Z",
                "size": 0,
                "digest": digest,
                "details": {"format": "safetensors", "family": "xlm-roberta"},
            }
            for name in names
        ]
    }


def get_version(service: Service, _: Mapping[str, str]) -> OllamaVersion:
    return {"version": __version__}


OLLAMA = Dialect(error_body, OllamaError, invalid_status=400)
ROUTES = (
    Route(("/api/embed",), "input", OLLAMA, "embed", OllamaEmbedBody, OllamaEmbedReply),
    # not Ollama's own: Dify sends it
    Route(("/api/rerank",), "documents", OLLAMA, "rerank", RerankBody, RerankReply),
    Route(("/api/embeddings",), "prompt", OLLAMA, "embed", OllamaPromptBody, OllamaPromptReply),
)
INFO_ROUTES = (
    InfoRoute(("/api/tags",), OLLAMA, list_tags, OllamaTags),
    InfoRoute(("/api/version",), OLLAMA, get_version, OllamaVersion),
)
