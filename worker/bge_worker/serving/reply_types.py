"""The native replies, as OpenAPI shows them. `responses.py` builds them."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Usage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class TimingsMs(TypedDict):
    queue: float
    tokenize: float
    inference: float


class SparseEmbedding(TypedDict):
    indices: list[int]
    values: list[float]


class Base64Array(TypedDict):
    """`data` is base64 of the little-endian numbers of an array of this shape."""

    shape: list[int]
    data: str


class NativeReply(TypedDict):
    model: str
    fingerprint: str
    usage: Usage
    truncated: list[int]
    input_digest: str
    timings_ms: TimingsMs


class NativeEmbedReply(NativeReply):
    embeddings: NotRequired[list[list[float] | str]]
    dimensions: NotRequired[int]
    sparse_embeddings: NotRequired[list[SparseEmbedding]]
    colbert_embeddings: NotRequired[list[list[list[float]] | Base64Array]]


class ReplyDocument(TypedDict):
    text: str


class RankedDocument(TypedDict):
    index: int
    relevance_score: float
    document: NotRequired[ReplyDocument]


class NativeRerankReply(NativeReply):
    results: list[RankedDocument]
