"""The bodies of requests and replies, as OpenAPI tells of them.

For documentation alone: requests are read by `schema.py` and `dialects.py`, whose errors say more,
and a test holds these models to what they accept. A limit that a setting moves is not repeated.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from ..serving.requests import MAX_LENGTH, MIN_PAIR_LENGTH, RERANK_LENGTH

Text = Annotated[str, Field(pattern=r"\S", description="Not empty, not blank")]
Texts = Annotated[list[Text], Field(min_length=1)]

RU, EN = "Градиентный спуск ищет минимум функции.", "A transaction is all or nothing."
QUERY = "как найти минимум функции"


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextDocument(Request):
    text: Text


Documents = Annotated[list[Text | TextDocument], Field(min_length=1)]


class NativeEmbedRequest(Request):
    texts: Text | Texts = Field(examples=[[RU, EN]])
    return_dense: bool | None = True
    return_sparse: bool | None = False
    return_colbert: bool | None = False
    max_length: int | None = Field(MAX_LENGTH, ge=3, le=MAX_LENGTH, description="Tokens per text")
    truncate: bool | None = True
    encoding_format: Literal["float", "base64"] | None = "float"
    dtype: Literal["float32", "float16"] | None = "float32"


class NativeRerankRequest(Request):
    query: Text = Field(examples=[QUERY])
    documents: Documents = Field(examples=[[RU, EN]])
    top_n: int | None = Field(None, ge=1, description="All, unless given")
    raw_scores: bool | None = False
    return_documents: bool | None = False
    max_length: int | None = Field(RERANK_LENGTH, ge=MIN_PAIR_LENGTH, le=MAX_LENGTH)
    truncate: bool | None = True


class OpenAIRequest(Request):
    input: Text | Texts = Field(examples=[[RU, EN]])
    model: str | None = Field(None, examples=["BAAI/bge-m3"])
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = Field(None, description="The model's own or none")
    user: Any = None


class RerankRequest(Request):
    """Cohere's, Jina's and Infinity's."""

    query: Text = Field(examples=[QUERY])
    documents: Documents = Field(examples=[[RU, EN]])
    model: str | None = Field(None, examples=["BAAI/bge-reranker-v2-m3"])
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = False
    raw_scores: bool | None = False
    max_length: int | None = Field(RERANK_LENGTH, ge=MIN_PAIR_LENGTH, le=MAX_LENGTH)
    truncation: bool | None = True


class TeiSparseRequest(Request):
    """text-embeddings-inference's."""

    inputs: Text | Texts = Field(examples=[[RU, EN]])
    truncate: bool | None = False
    truncation_direction: Literal["Right", "right"] | None = "Right"
    normalize: Literal[True] | None = True
    dimensions: int | None = Field(None, description="The model's own or none")


class TeiEmbedRequest(TeiSparseRequest):
    pass


class TeiRerankRequest(Request):
    """text-embeddings-inference's."""

    query: Text = Field(examples=[QUERY])
    texts: Documents = Field(examples=[[RU, EN]])
    raw_scores: bool | None = False
    return_text: bool | None = False
    truncate: bool | None = False
    truncation_direction: Literal["Right", "right"] | None = "Right"


class Policy(BaseModel):
    executionTimeout: int | None = Field(600_000, ge=1, le=604_800_000, description="Milliseconds")
    ttl: int | None = Field(86_400_000, ge=1, le=604_800_000, description="Milliseconds")


class JobRequest(BaseModel):
    input: Any = Field(examples=[{"texts": [RU, EN]}])
    policy: Policy | None = None


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Timings(BaseModel):
    queue: float
    tokenize: float
    inference: float


class Sparse(BaseModel):
    indices: list[int]
    values: list[float]


class Array(BaseModel):
    shape: list[int]
    data: str = Field(description="base64, little-endian")


class NativeReply(BaseModel):
    model: str
    fingerprint: str
    usage: Usage
    truncated: list[int]
    input_digest: str
    timings_ms: Timings


class NativeEmbedReply(NativeReply):
    embeddings: list[list[float] | str] | None = None
    dimensions: int | None = None
    sparse_embeddings: list[Sparse] | None = None
    colbert_embeddings: list[list[list[float]] | Array] | None = None


class Ranked(BaseModel):
    index: int
    relevance_score: float
    document: TextDocument | None = None


class NativeRerankReply(NativeReply):
    results: list[Ranked]


class OpenAIEmbedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class OpenAIReply(BaseModel):
    object: Literal["list"]
    data: list[OpenAIEmbedding]
    model: str
    usage: Usage


class OpenAIModel(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAIModels(BaseModel):
    object: Literal["list"]
    data: list[OpenAIModel]


class RerankReply(BaseModel):
    object: Literal["rerank"]
    model: str
    results: list[Ranked]
    usage: Usage
    truncated: list[int]


class TeiEmbedReply(RootModel[list[list[float]]]):
    pass


class TeiSparseValue(BaseModel):
    index: int
    value: float


class TeiSparseReply(RootModel[list[list[TeiSparseValue]]]):
    pass


class TeiRanked(BaseModel):
    index: int
    score: float
    text: str | None = None


class TeiRerankReply(RootModel[list[TeiRanked]]):
    pass


class JobReply(BaseModel):
    """`output` once COMPLETED; `error` once FAILED or TIMED_OUT; times in milliseconds."""

    id: str
    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
    output: Any = None
    error: str | None = None
    delayTime: int | None = None
    executionTime: int | None = None
    workerId: str | None = None


class Health(BaseModel):
    jobs: dict[str, int]
    workers: dict[str, int]


class NativeError(BaseModel):
    error: str = Field(examples=["ValidationError: `texts` must hold 1 to 2048 texts. Given: 0"])


class ForeignError(NativeError):
    """With what Cohere's (`message`), Jina's (`detail`) and TEI's (`error_type`) clients read."""

    error_type: Literal["Validation", "Overloaded", "Backend"]
    message: str
    detail: str


class OpenAIErrorDetail(BaseModel):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: None
    code: str


class OpenAIError(BaseModel):
    error: OpenAIErrorDetail
