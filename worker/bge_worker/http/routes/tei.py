"""text-embeddings-inference's routes. https://huggingface.github.io/text-embeddings-inference

As in TEI, a text that is too long is an error unless `truncate` is true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypedDict

import msgspec
from msgspec import Meta

from ...engine.config import ModelInfo
from ...engine.outputs import Outputs
from ...engine.texts import check_text
from ...errors import ValidationError
from ...serving.openai import NEUTRAL, Dimensions, TextsOrIds, check_dimensions, texts_or_ids
from ...serving.requests import EmbedRequest
from ...serving.validation import ForeignBody, Query, TextList, as_texts
from ...settings import Settings
from .route import PROVIDER, Route

Direction = Literal["Right", "right", "Left", "left"]


class TeiEmbedBody(ForeignBody):
    inputs: TextsOrIds
    truncate: bool = False
    truncation_direction: Direction = "Right"
    normalize: bool = True
    dimensions: Dimensions | None = None
    prompt_name: Any = None
    options: NEUTRAL = None  # Weaviate's: to wait for the model, to cache

    FIXED: ClassVar[Mapping[str, tuple[object, str]]] = {
        "prompt_name": (None, "the models have no prompts")
    }
    OUTPUTS: ClassVar[Outputs] = Outputs.DENSE

    def to_request(self, model: ModelInfo, settings: Settings) -> EmbedRequest:
        """Raises ValidationError: an option cannot be honoured, or a limit is exceeded."""
        check_direction(self.truncation_direction)
        check_dimensions(self.dimensions, model)
        return EmbedRequest(
            texts=texts_or_ids(self.inputs, "inputs", model, settings),
            outputs=self.OUTPUTS if self.normalize else self.OUTPUTS | Outputs.RAW,
            truncate=self.truncate,
            field="inputs",
        )

    def to_reply(self, reply: Mapping[str, Any]) -> Sequence[object]:
        vectors: list[list[float]] = reply["embeddings"]
        return vectors


class TeiSparseBody(TeiEmbedBody):
    OUTPUTS: ClassVar[Outputs] = Outputs.SPARSE

    def to_reply(self, reply: Mapping[str, Any]) -> Sequence[object]:
        return [
            [
                {"index": i, "value": v}
                for i, v in zip(vector["indices"], vector["values"], strict=True)
            ]
            for vector in reply["sparse_embeddings"]
        ]


def check_direction(direction: Direction) -> None:
    """Raises ValidationError: only the end of a text is truncated."""
    if direction.lower() == "left":
        raise ValidationError("`truncation_direction` must be right. Given: left")


class TeiSparseValue(TypedDict):
    index: int
    value: float


class SimilarityInputs(msgspec.Struct):
    source_sentence: Query
    sentences: TextList


class SimilarityParameters(ForeignBody):
    truncate: bool = False
    truncation_direction: Direction = "Right"
    prompt_name: NEUTRAL = None


class TeiSimilarityBody(ForeignBody):
    """Cosines of a text with others, as Hugging Face's client asks for them."""

    inputs: Annotated[
        SimilarityInputs, Meta(examples=[{"source_sentence": "море", "sentences": ["о море"]}])
    ]
    parameters: SimilarityParameters | None = None

    def to_request(self, model: ModelInfo, settings: Settings) -> EmbedRequest:
        """Raises ValidationError: an option cannot be honoured, or a limit is exceeded."""
        parameters = self.parameters or SimilarityParameters()
        check_direction(parameters.truncation_direction)
        check_text(self.inputs.source_sentence, "inputs.source_sentence")
        sentences = as_texts(self.inputs.sentences, "inputs.sentences", settings.max_texts)
        return EmbedRequest(
            texts=[*sentences, self.inputs.source_sentence],
            truncate=parameters.truncate,
            encoding_format="base64",
            field="inputs.sentences",
        )

    def to_reply(self, reply: Mapping[str, Any]) -> list[float]:
        from ...serving.vectors import from_base64  # imports numpy

        *sentences, source = from_base64(reply["embeddings"])
        return [float(source @ sentence) for sentence in sentences]


ROUTES = (
    Route(
        ("/similarity", "/"), "inputs.source_sentence", PROVIDER, "embed",
        TeiSimilarityBody, list[float],
    ),
    Route(("/embed", "/"), "inputs", PROVIDER, "embed", TeiEmbedBody, list[list[float]]),
    Route(
        ("/embed_sparse",), "inputs", PROVIDER, "embed", TeiSparseBody, list[list[TeiSparseValue]]
    ),
)  # fmt: skip
