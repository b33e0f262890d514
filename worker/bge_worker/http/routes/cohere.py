"""Cohere's embeddings. https://docs.cohere.com/reference/embed"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypedDict

import msgspec
from msgspec import Meta

from ...engine.config import ModelInfo
from ...errors import ValidationError
from ...serving import requests
from ...serving.model_names import check_model
from ...serving.openai import NEUTRAL, Dimensions, check_dimensions
from ...serving.requests import EmbedRequest
from ...serving.validation import EXAMPLES, ForeignBody, TextList, as_texts
from ...settings import Settings
from .rerank import COHERE, CohereMeta, meta
from .route import PROVIDER, Route

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]


class Content(msgspec.Struct):
    """A part of one of Cohere's `inputs`. Images are refused: they have no `text`."""

    text: str


class CohereInput(msgspec.Struct):
    content: list[Content]


class CohereEmbedBody(ForeignBody):
    """`input_type` changes nothing: bge-m3 embeds queries and documents alike."""

    texts: Annotated[TextList | None, EXAMPLES] = None
    inputs: list[CohereInput] | None = None
    model: str | None = None
    embedding_types: list[EmbeddingType] | None = None
    output_dimension: Dimensions | None = None
    max_tokens: Annotated[int, Meta(ge=1)] = requests.MAX_LENGTH
    truncate: Literal["NONE", "START", "END"] = "END"
    input_type: NEUTRAL = None
    priority: NEUTRAL = None
    images: Any = None

    FIXED: ClassVar[Mapping[str, tuple[object, str]]] = {
        "images": ([], "the model reads text alone")
    }

    def to_request(self, model: ModelInfo, settings: Settings) -> EmbedRequest:
        """Raises ValidationError: a limit is exceeded, or there is no text."""
        check_model(self.model, model, settings.embed_aliases)
        check_dimensions(self.output_dimension, model, "output_dimension")
        if self.truncate == "START":
            raise ValidationError(
                "`truncate` must be END or NONE: only the end of a text is truncated. Given: START"
            )
        texts = self._texts()
        if not texts:
            raise ValidationError("`texts` is required")
        return EmbedRequest(
            texts=as_texts(texts, "texts" if self.inputs is None else "inputs", settings.max_texts),
            max_length=min(requests.MAX_LENGTH, max(requests.MIN_TEXT_LENGTH, self.max_tokens)),
            truncate=self.truncate == "END",
            encoding_format="base64",  # exact, for the types of `to_reply`
        )

    def _texts(self) -> list[str]:
        if self.inputs is None:
            return self.texts or []
        return ["\n".join(part.text for part in item.content) for item in self.inputs]

    def to_reply(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        """Return a `CohereEmbedReply`. Cohere's v1 without `embedding_types` has plain lists."""
        from ...serving.vectors import from_base64, to_numbers  # imports numpy

        vectors = from_base64(reply["embeddings"])
        embeddings: dict[str, Any] = {}
        for kind in self.embedding_types or ["float"]:
            encoding: Literal["float", "base64"] = "base64" if kind == "base64" else "float"
            dtype: requests.Dtype = "float32" if kind == "float" or kind == "base64" else kind
            embeddings[kind] = [to_numbers(vector, encoding, dtype) for vector in vectors]
        return {
            "id": str(uuid.uuid4()),
            "response_type": "embeddings_by_type",
            "embeddings": embeddings,
            "texts": self._texts(),
            "meta": meta(reply),
        }


class CohereV1EmbedBody(CohereEmbedBody):
    def to_reply(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        converted = super().to_reply(reply)
        if self.embedding_types is None:
            converted["response_type"] = "embeddings_floats"
            converted["embeddings"] = converted["embeddings"]["float"]
        return converted


class CohereEmbedReply(TypedDict):
    id: str
    response_type: Literal["embeddings_by_type", "embeddings_floats"]
    embeddings: Any
    texts: list[str]
    meta: CohereMeta


ROUTES = (
    Route(("/v2/embed",), "texts", COHERE, "embed", CohereEmbedBody, CohereEmbedReply),
    Route(("/embed",), "texts", PROVIDER, "embed", CohereV1EmbedBody, CohereEmbedReply),
    Route(("/v1/embed",), "texts", COHERE, "embed", CohereV1EmbedBody, CohereEmbedReply),
)
