"""text-embeddings-inference's `/rerank` and `/predict`.

https://huggingface.github.io/text-embeddings-inference
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from ...engine.config import ModelInfo
from ...engine.texts import check_text
from ...errors import ValidationError
from ...serving.requests import MAX_LENGTH, RerankRequest
from ...serving.validation import (
    Documents,
    ForeignBody,
    Query,
    Text,
    as_documents,
    check_count,
)
from ...settings import Settings
from .route import PROVIDER, Route
from .tei import Direction, check_direction

LABEL = "LABEL_0"  # what transformers calls the only one
Pair = Annotated[list[Text], Meta(min_length=2, max_length=2)]


class TeiRerankBody(ForeignBody):
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

    def to_reply(self, reply: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            {
                "index": result["index"],
                "score": result["relevance_score"],
                **result.get("document", {}),
            }
            for result in reply["results"]
        ]


class TeiPredictBody(ForeignBody):
    """Scores of pairs of texts, each with a query of its own."""

    inputs: Annotated[
        list[Text | Pair],
        Meta(
            min_length=1,
            description="One pair, or a list of pairs",
            examples=[[["как найти минимум", "о минимуме"], ["море", "о море"]]],
        ),
    ]
    raw_scores: bool = False
    truncate: bool = False
    truncation_direction: Direction = "Right"

    def to_request(self, model: ModelInfo, settings: Settings) -> RerankRequest:
        """Raises ValidationError: an option cannot be honoured, or a limit is exceeded."""
        check_direction(self.truncation_direction)
        check_count(self.inputs, "inputs", settings.max_texts)
        queries, documents = [], []
        for index, (query, document) in enumerate(self._pairs()):
            is_alone = isinstance(self.inputs[0], str)
            for position, text in enumerate((query, document)):
                if is_alone:
                    check_text(text, "inputs", position)
                else:
                    check_text(text, "inputs", index, f"[{position}]")
            queries.append(query)
            documents.append(document)
        return RerankRequest(
            query=queries,
            texts=documents,
            raw_scores=self.raw_scores,
            max_length=MAX_LENGTH,
            truncate=self.truncate,
            field="inputs",
        )

    def _pairs(self) -> list[list[str]]:
        texts = [item for item in self.inputs if isinstance(item, str)]
        pairs = [item for item in self.inputs if not isinstance(item, str)]
        if not texts:
            return pairs
        if len(texts) == 2 and not pairs:
            return [texts]
        raise ValidationError(
            "`inputs` must be a pair of texts or a list of pairs: the model scores a query with a "
            "document",
            field="inputs",
        )

    def to_reply(self, reply: Mapping[str, Any]) -> list[Any]:
        """Return the prediction of the pair, or a list for each pair."""
        results = sorted(reply["results"], key=lambda result: int(result["index"]))
        predictions = [[{"score": r["relevance_score"], "label": LABEL}] for r in results]
        return predictions[0] if isinstance(self.inputs[0], str) else predictions


class TeiRankedText(TypedDict):
    index: int
    score: float
    text: NotRequired[str]


class TeiPrediction(TypedDict):
    score: float
    label: str


ROUTES = (
    Route(
        ("/rerank", "/reranker/rerank"), "texts", PROVIDER, "rerank",
        TeiRerankBody, list[TeiRankedText],
    ),
    Route(
        ("/predict", "/reranker/predict"), "inputs", PROVIDER, "rerank",
        TeiPredictBody, list[TeiPrediction | list[TeiPrediction]],
    ),
)  # fmt: skip
