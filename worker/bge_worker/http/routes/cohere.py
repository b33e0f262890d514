"""Cohere's API, and reranking as Jina's, Infinity's, vLLM's and Xinference's clients send it.

Cohere          https://docs.cohere.com/reference/embed, https://docs.cohere.com/reference/rerank
Jina            https://api.jina.ai/redoc#tag/rerank
Infinity        https://michaelfeil.eu/infinity
Xinference      https://inference.readthedocs.io/en/latest/models/model_abilities/rerank.html
"""

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
from ...serving.openai import NEUTRAL, Dimensions, Usage, check_dimensions
from ...serving.payload import MAX_CHUNKS, Overlap, RankedDocument
from ...serving.requests import EmbedRequest, RerankRequest
from ...serving.validation import (
    EXAMPLES,
    Documents,
    ForeignBody,
    Query,
    TextList,
    as_documents,
    as_texts,
)
from ...settings import Settings
from .route import PROVIDER, Route

TokensPerDocument = Annotated[int, Meta(ge=1, description="Tokens of query and document together")]
Flag = bool | Literal["true", "false"]  # RAGFlow sends strings
EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]


class CohereRerankBody(ForeignBody):
    """`max_tokens_per_doc` is Cohere's name of `max_length`; the smallest is 17."""

    query: Query
    documents: Documents
    model: str | None = None
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: Flag = False
    max_tokens_per_doc: TokensPerDocument | None = None
    max_chunks_per_doc: Annotated[int, Meta(ge=1)] = 1
    overlap_tokens: Overlap = requests.DEFAULT_OVERLAP
    rank_fields: Any = None
    priority: NEUTRAL = None
    # this server's own, Infinity's, Jina's, vLLM's
    raw_scores: bool = False
    max_length: TokensPerDocument | None = None
    truncation: bool = True
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    return_embeddings: Any = None
    # Xinference's, RAGFlow's
    return_len: NEUTRAL = None
    drop_params: NEUTRAL = None

    FIXED: ClassVar[Mapping[str, tuple[object, str]]] = {
        "rank_fields": (["text"], "a document has a text and no other fields"),
        "return_embeddings": (False, "a reranker has no vectors"),
    }

    def to_request(self, model: ModelInfo, settings: Settings) -> RerankRequest:
        """Raises ValidationError for a limit of the settings, NotServedError for another model."""
        check_model(self.model, model, settings.rerank_aliases)
        max_length = self.max_tokens_per_doc or self.max_length or self.truncate_prompt_tokens
        if max_length == -1:  # vLLM's: the model's own
            max_length = requests.MAX_LENGTH
        max_length = max_length or requests.DEFAULT_PAIR_LENGTH
        return RerankRequest(
            query=self.query,
            texts=as_documents(self.query, self.documents, "documents", settings.max_texts),
            top_n=self.top_n,
            raw_scores=self.raw_scores,
            return_documents=self.return_documents in (True, "true"),
            max_length=min(requests.MAX_LENGTH, max(requests.MIN_PAIR_LENGTH, max_length)),
            truncate=self.truncation,
            max_chunks_per_doc=min(self.max_chunks_per_doc, MAX_CHUNKS),
            overlap_tokens=self.overlap_tokens,
        )

    def to_reply(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        """Return a `CohereRerankReply`. `truncated` is our addition."""
        fields = {name: reply[name] for name in ("model", "results", "usage", "truncated")}
        return {"id": str(uuid.uuid4()), "object": "rerank", **fields, "meta": meta(reply)}


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
        check_dimensions(self.output_dimension, model)
        if self.truncate == "START":
            raise ValidationError(
                "`truncate` must be END or NONE: only the end of a text is truncated. Given: START"
            )
        texts = self._texts()
        if not texts:
            raise ValidationError("`texts` is required")
        return EmbedRequest(
            texts=as_texts(texts, "texts", settings.max_texts),
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


class CohereMeta(TypedDict):
    api_version: dict[str, str]
    billed_units: dict[str, int]
    tokens: dict[str, int]


class CohereRerankReply(TypedDict):
    id: str
    object: Literal["rerank"]
    model: str
    results: list[RankedDocument]
    usage: Usage
    truncated: list[int]
    meta: CohereMeta


class CohereEmbedReply(TypedDict):
    id: str
    response_type: Literal["embeddings_by_type", "embeddings_floats"]
    embeddings: Any
    texts: list[str]
    meta: CohereMeta


def meta(reply: Mapping[str, Any]) -> CohereMeta:
    tokens = reply["usage"]["prompt_tokens"]
    return {
        "api_version": {"version": "2"},
        "billed_units": {"input_tokens": tokens, "search_units": int("results" in reply)},
        "tokens": {"input_tokens": tokens},
    }


COHERE = PROVIDER._replace(invalid_status=400)  # as Cohere's API
ROUTES = (
    Route(
        ("/v1/rerank", "/v2/rerank"), "documents", COHERE, "rerank",
        CohereRerankBody, CohereRerankReply,
    ),
    Route(("/rerank",), "documents", PROVIDER, "rerank", CohereRerankBody, CohereRerankReply),
    Route(("/v2/embed",), "texts", COHERE, "embed", CohereEmbedBody, CohereEmbedReply),
    Route(("/embed",), "texts", PROVIDER, "embed", CohereV1EmbedBody, CohereEmbedReply),
    Route(("/v1/embed",), "texts", COHERE, "embed", CohereV1EmbedBody, CohereEmbedReply),
)  # fmt: skip
