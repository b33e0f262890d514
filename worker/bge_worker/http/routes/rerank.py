"""Reranking as Cohere's, Jina's, Infinity's, vLLM's and Xinference's clients send it.

Cohere          https://docs.cohere.com/reference/rerank
Jina            https://api.jina.ai/redoc#tag/rerank
Infinity        https://michaelfeil.eu/infinity
vLLM            https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
Xinference      https://inference.readthedocs.io/en/latest/models/model_abilities/rerank.html
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypedDict

from msgspec import Meta

from ...engine.config import ModelInfo
from ...serving import requests
from ...serving.model_names import check_model
from ...serving.openai import NEUTRAL, Usage
from ...serving.payload import MAX_CHUNKS, Overlap, RankedDocument
from ...serving.requests import RerankRequest
from ...serving.validation import Documents, ForeignBody, Query, as_documents
from ...settings import Settings
from .route import PROVIDER, Route

TokensPerDocument = Annotated[int, Meta(ge=1, description="Tokens of query and document together")]
Flag = bool | Literal["true", "false"]  # RAGFlow sends strings


class RerankBody(ForeignBody):
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
    use_activation: bool = True
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
            raw_scores=self.raw_scores or not self.use_activation,
            return_documents=self.return_documents in (True, "true"),
            max_length=min(requests.MAX_LENGTH, max(requests.MIN_PAIR_LENGTH, max_length)),
            truncate=self.truncation,
            max_chunks_per_doc=min(self.max_chunks_per_doc, MAX_CHUNKS),
            overlap_tokens=self.overlap_tokens,
        )

    def to_reply(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        """Return a `RerankReply`. `truncated` is our addition."""
        fields = {name: reply[name] for name in ("model", "results", "usage", "truncated")}
        return {"id": str(uuid.uuid4()), "object": "rerank", **fields, "meta": meta(reply)}


class CohereMeta(TypedDict):
    api_version: dict[str, str]
    billed_units: dict[str, int]
    tokens: dict[str, int]


class RerankReply(TypedDict):
    id: str
    object: Literal["rerank"]
    model: str
    results: list[RankedDocument]
    usage: Usage
    truncated: list[int]
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
    Route(("/v1/rerank", "/v2/rerank"), "documents", COHERE, "rerank", RerankBody, RerankReply),
    Route(("/rerank",), "documents", PROVIDER, "rerank", RerankBody, RerankReply),
)
