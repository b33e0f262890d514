"""text-embeddings-inference's routes. https://huggingface.github.io/text-embeddings-inference

As in TEI, a text that is too long is an error unless `truncate` is true.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypedDict

from msgspec import Meta

from ...engine.config import ModelInfo
from ...engine.outputs import Outputs
from ...errors import ValidationError
from ...serving.openai import Dimensions, TextsOrIds, check_dimensions, texts_or_ids
from ...serving.requests import MAX_LENGTH, EmbedRequest, RerankRequest
from ...serving.validation import Body, Documents, Query, as_documents
from ...settings import Settings
from .cohere import COHERE
from .route import Route

Direction = Literal["Right", "right", "Left", "left"]
AlwaysTrue = Annotated[bool, Meta(extra_json_schema={"const": True})]


class TeiEmbedBody(Body):
    inputs: TextsOrIds
    truncate: bool = False
    truncation_direction: Direction = "Right"
    normalize: AlwaysTrue = True
    dimensions: Dimensions | None = None

    outputs: ClassVar[Outputs] = Outputs.DENSE

    def to_request(self, model: ModelInfo, settings: Settings) -> EmbedRequest:
        """Raises ValidationError: an option cannot be honoured, or a limit is exceeded."""
        check_direction(self.truncation_direction)
        check_dimensions(self.dimensions, model)
        if not self.normalize:
            raise ValidationError(
                "`normalize` must be true: vectors are of length one. Given: false"
            )
        return EmbedRequest(
            texts=texts_or_ids(self.inputs, "inputs", model, settings),
            outputs=self.outputs,
            truncate=self.truncate,
            field="inputs",
        )


class TeiSparseBody(TeiEmbedBody):
    outputs: ClassVar[Outputs] = Outputs.SPARSE


class TeiRerankBody(Body):
    query: Query
    texts: Documents
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = False
    truncation_direction: Direction = "Right"

    def to_request(self, model: ModelInfo, settings: Settings) -> RerankRequest:
        """Raises ValidationError: an option cannot be honoured, or a limit is exceeded."""
        check_direction(self.truncation_direction)
        return RerankRequest(
            query=self.query,
            texts=as_documents(self.query, self.texts, "texts", settings.max_texts),
            raw_scores=self.raw_scores,
            return_documents=self.return_text,
            max_length=MAX_LENGTH,
            truncate=self.truncate,
            field="texts",
        )


def check_direction(direction: Direction) -> None:
    """Raises ValidationError: only the end of a text is truncated."""
    if direction.lower() == "left":
        raise ValidationError("`truncation_direction` must be right. Given: left")


class TeiSparseValue(TypedDict):
    index: int
    value: float


class TeiRankedText(TypedDict):
    index: int
    score: float
    text: NotRequired[str]


def embed_reply(reply: Mapping[str, Any]) -> list[list[float]]:
    vectors: list[list[float]] = reply["embeddings"]
    return vectors


def sparse_reply(reply: Mapping[str, Any]) -> list[list[TeiSparseValue]]:
    return [
        [{"index": i, "value": v} for i, v in zip(vector["indices"], vector["values"], strict=True)]
        for vector in reply["sparse_embeddings"]
    ]


def rerank_reply(reply: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"index": result["index"], "score": result["relevance_score"], **result.get("document", {})}
        for result in reply["results"]
    ]


ROUTES = (
    Route(
        ("/rerank",), "texts", COHERE, "rerank", TeiRerankBody, rerank_reply, list[TeiRankedText]
    ),
    Route(("/embed",), "inputs", COHERE, "embed", TeiEmbedBody, embed_reply, list[list[float]]),
    Route(
        ("/embed_sparse",), "inputs", COHERE, "embed",
        TeiSparseBody, sparse_reply, list[list[TeiSparseValue]],
    ),
)  # fmt: skip
