"""OpenAI's embeddings, over HTTP and through RunPod's OpenAI proxy.

https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta

from ..engine.config import ModelInfo
from ..errors import NotServedError, ValidationError
from ..settings import Settings
from . import validation
from .requests import MAX_LENGTH, EmbedRequest, EncodingFormat
from .validation import shortened

EMBEDDINGS, MODELS = "/v1/embeddings", "/v1/models"
TextsOrIds = Annotated[
    Any,
    Meta(
        description="a string or a list of strings; token ids if the server accepts them",
        extra_json_schema={"type": ["string", "array"]},
        examples=[validation.EXAMPLE_TEXTS],
    ),
]
Dimensions = Annotated[int, Meta(ge=1, description="The model's own number, or none")]


class OpenAIEmbedBody(validation.Body):
    input: TextsOrIds
    model: str | None = None
    encoding_format: EncodingFormat = "float"
    dimensions: Dimensions | None = None
    user: Any = None

    def to_request(self, model: ModelInfo, settings: Settings) -> EmbedRequest:
        """A text over the model's length is an error, as with OpenAI: its reply has no field to
        report the truncation.

        Raises:
            ValidationError: a limit is exceeded, or `dimensions` is not the model's.
            NotServedError: the body names another model.
        """
        check_model(self.model, model)
        check_dimensions(self.dimensions, model)
        return EmbedRequest(
            texts=texts_or_ids(self.input, "input", model, settings),
            encoding_format=self.encoding_format,
            truncate=False,
            field="input",
        )


class Usage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class OpenAIEmbedding(TypedDict):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class OpenAIEmbedReply(TypedDict):
    object: Literal["list"]
    data: list[OpenAIEmbedding]
    model: str
    usage: Usage


class OpenAIModel(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAIModelsReply(TypedDict):
    object: Literal["list"]
    data: list[OpenAIModel]


def embed_reply(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Return a native reply as an `OpenAIEmbedReply`."""
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": embedding}
            for index, embedding in enumerate(reply["embeddings"])
        ],
        "model": reply["model"],
        "usage": reply["usage"],
    }


def models_reply(models: Iterable[ModelInfo]) -> dict[str, Any]:
    """Return an `OpenAIModelsReply`."""
    return {
        "object": "list",
        "data": [
            {"id": model.model, "object": "model", "created": 0, "owned_by": "bge-serverless"}
            for model in models
        ],
    }


def check_model(name: str | None, model: ModelInfo) -> None:
    """Raises NotServedError if a body names another model."""
    if name is not None and name != model.model:
        raise NotServedError(
            f"`model` must be `{model.model}`. Given: {validation.names([name])}", field="model"
        )


def check_dimensions(dimensions: int | None, model: ModelInfo) -> None:
    """Raises ValidationError: bge-m3 was not trained for shortened vectors."""
    if dimensions is not None and dimensions != model.width:
        raise ValidationError(
            f"`dimensions` must be {model.width}: the model is not trained for others. "
            f"Given: {shortened(dimensions)}",
            field="dimensions",
            limit=model.width,
        )


def texts_or_ids(
    value: object, field: str, model: ModelInfo, settings: Settings
) -> Sequence[str | Sequence[int]]:
    """Return texts, or with `BGE_ACCEPT_TOKEN_IDS` the model's own token ids.

    Raises ValidationError: the value is neither, or exceeds a limit.
    """
    items = value if isinstance(value, list) else []
    first_item = items[0] if items else None
    if isinstance(first_item, list) or type(first_item) is int:
        if not settings.accept_token_ids:
            _refuse_token_ids(field, items)
        elif type(first_item) is int:
            return [_token_ids(items, field, model)]
        else:
            validation.check_count(items, field, settings.max_texts)
            return [_token_ids(ids, f"{field}[{i}]", model) for i, ids in enumerate(items)]
    texts: str | list[str] = validation.validate(value, validation.Texts, field)  # type: ignore[arg-type]
    return validation.as_texts(texts, field, settings.max_texts)


def _refuse_token_ids(field: str, items: Sequence[Any]) -> None:
    """Ids of another vocabulary are valid here too, and would be embedded as other words."""
    first_id = items[0][0] if isinstance(items[0], list) and items[0] else items[0]
    if type(first_id) is int:
        raise ValidationError(
            f"`{field}` must hold strings. Given: token ids, probably of another model's "
            "tokenizer. With LangChain pass `check_embedding_ctx_length=False`. To accept this "
            "model's own ids set `BGE_ACCEPT_TOKEN_IDS=1` on the server"
        )


def _token_ids(value: object, field: str, model: ModelInfo) -> list[int]:
    if not isinstance(value, list) or any(type(token) is not int for token in value):
        raise ValidationError(
            f"`{field}` must hold strings alone or token ids alone. "
            f"Given: {'mixed types' if isinstance(value, list) else validation.kind_of(value)}"
        )
    if not 1 <= len(value) <= MAX_LENGTH:
        raise ValidationError(
            f"`{field}` must hold 1 to {MAX_LENGTH} token ids. Given: {len(value)}"
        )
    for token in (min(value), max(value)):
        if not 0 <= token < model.vocab_size:
            raise ValidationError(
                f"`{field}` must hold token ids from 0 to {model.vocab_size - 1}. "
                f"Given: {shortened(token)}"
            )
    return value
