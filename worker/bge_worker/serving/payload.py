"""The native request bodies and replies. The `input` of a RunPod job holds one of the bodies.

{"texts": …}                    embed
{"query": …, "documents": …}    rerank
{"info": true}                  what is loaded, and the limits
{"openai_route": …}             what RunPod's OpenAI proxy sends
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from ..engine.config import ModelInfo
from ..engine.outputs import Outputs
from ..errors import ValidationError
from ..settings import Settings
from . import openai, requests, validation
from .openai import Usage
from .requests import EmbedRequest, Reply, RerankRequest
from .validation import Body, validate

if TYPE_CHECKING:  # imports torch
    from .service import Service

TextLength = Annotated[
    int, Meta(ge=requests.MIN_TEXT_LENGTH, le=requests.MAX_LENGTH, description="Tokens per text")
]
PairLength = Annotated[
    int, Meta(ge=requests.MIN_PAIR_LENGTH, le=requests.MAX_LENGTH, description="Tokens per pair")
]
MAX_CHUNKS = 1000
MaxChunks = Annotated[int, Meta(ge=1, le=MAX_CHUNKS, description="Windows of a long document")]
Overlap = Annotated[int, Meta(ge=0, le=requests.MAX_LENGTH, description="Tokens of two windows")]
TopN = Annotated[int, Meta(ge=1, description="All documents, unless given")]


class NativeEmbedBody(Body):
    texts: validation.Texts
    return_dense: bool = True
    return_sparse: bool = False
    return_colbert: bool = False
    max_length: TextLength = requests.MAX_LENGTH
    truncate: bool = True
    encoding_format: requests.EncodingFormat = "float"
    dtype: requests.Dtype = "float32"
    return_tokens: bool = False

    def to_request(self, model: ModelInfo, settings: Settings) -> EmbedRequest:
        """Raises ValidationError: no output is wanted, or a limit of the settings is exceeded."""
        outputs = Outputs.DENSE if self.return_dense else Outputs(0)
        if self.return_sparse:
            outputs |= Outputs.SPARSE
        if self.return_colbert:
            outputs |= Outputs.COLBERT
        if not outputs:
            raise ValidationError(
                "one of `return_dense`, `return_sparse`, `return_colbert` must be true. "
                "Given: all false"
            )
        return EmbedRequest(
            texts=validation.as_texts(self.texts, "texts", settings.max_texts),
            outputs=outputs,
            max_length=self.max_length,
            truncate=self.truncate,
            encoding_format=self.encoding_format,
            dtype=self.dtype,
            return_tokens=self.return_tokens,
        )


class NativeRerankBody(Body):
    query: validation.Query
    documents: validation.Documents
    top_n: TopN | None = None
    raw_scores: bool = False
    return_documents: bool = False
    max_length: PairLength = requests.DEFAULT_PAIR_LENGTH
    truncate: bool = True
    max_chunks_per_doc: MaxChunks = 1
    overlap_tokens: Overlap = requests.DEFAULT_OVERLAP

    def to_request(self, model: ModelInfo, settings: Settings) -> RerankRequest:
        """Raises ValidationError: a limit of the settings is exceeded."""
        return RerankRequest(
            query=self.query,
            texts=validation.as_documents(
                self.query, self.documents, "documents", settings.max_texts
            ),
            top_n=self.top_n,
            raw_scores=self.raw_scores,
            return_documents=self.return_documents,
            max_length=self.max_length,
            truncate=self.truncate,
            max_chunks_per_doc=self.max_chunks_per_doc,
            overlap_tokens=self.overlap_tokens,
        )


class InfoBody(Body):
    info: bool


class OpenAIPayload(Body):
    openai_route: str
    openai_input: Any = None


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
    tokens: NotRequired[list[list[str]]]


class ReplyDocument(TypedDict):
    text: str


class RankedDocument(TypedDict):
    index: int
    relevance_score: float
    document: NotRequired[ReplyDocument]


class NativeRerankReply(NativeReply):
    results: list[RankedDocument]


PayloadBody = NativeEmbedBody | NativeRerankBody | InfoBody | OpenAIPayload
BODIES: dict[str, type[PayloadBody]] = {
    "texts": NativeEmbedBody,
    "query": NativeRerankBody,
    "info": InfoBody,
    "openai_route": OpenAIPayload,
}


def read_payload(payload: object) -> PayloadBody:
    """Read the `input` of a job.

    Raises ValidationError: it holds none or several of the four bodies, or one that is not valid.
    """
    if not isinstance(payload, Mapping):
        raise ValidationError(f"`input` must be an object. Given: {validation.kind_of(payload)}")
    present = [field for field in BODIES if payload.get(field) is not None]
    if len(present) != 1:
        raise ValidationError(
            "`input` must hold one of `texts` (to embed), `query` with `documents` (to rerank) or "
            f"`info`. Given: {validation.names(validation.without_nulls(payload)) or 'no field'}"
        )
    return validate(payload, BODIES[present[0]], "input")


async def answer_payload(service: Service, payload: object) -> Reply:
    """Return the reply to the `input` of a job. Cancel the call to leave the queue.

    Raises WorkerError: the payload is not valid, or was not computed.
    """
    body = read_payload(payload)
    match body:
        case NativeEmbedBody():
            request = body.to_request(service.model("embed"), service.settings)
            return await service.answer(request)
        case NativeRerankBody():
            rerank_request = body.to_request(service.model("rerank"), service.settings)
            return await service.answer(rerank_request)
        case OpenAIPayload(openai_route=openai.EMBEDDINGS):
            model = service.model("embed")
            openai_body = validate(body.openai_input, openai.OpenAIEmbedBody, "openai_input")
            reply = await service.answer(openai_body.to_request(model, service.settings))
            return reply._replace(body=openai_body.to_reply(reply.body))
        case OpenAIPayload(openai_route=openai.MODELS):
            return Reply(openai.models_reply(service.models, service.settings))
        case OpenAIPayload():
            raise ValidationError(
                f"`openai_route` must be {openai.EMBEDDINGS} or {openai.MODELS}. "
                f"Given: {validation.shortened(body.openai_route)}"
            )
        case InfoBody(info=False):
            raise ValidationError("`info` must be true. Given: false")
        case InfoBody():
            return service.info()
