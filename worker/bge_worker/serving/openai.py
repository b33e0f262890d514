"""OpenAI's embeddings, over HTTP and through RunPod's OpenAI proxy.

https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypedDict

import msgspec
from msgspec import Meta

from ..engine.config import ModelInfo, Role
from ..engine.outputs import Outputs
from ..errors import ValidationError
from ..settings import Settings
from . import validation
from .model_names import check_model, model_names
from .requests import MAX_LENGTH, MIN_TEXT_LENGTH, EmbedRequest, EncodingFormat
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


class TextItem(msgspec.Struct):
    """One of Jina's items. Images are refused: they have no `text`."""

    text: str


JinaType = Literal["float", "base64", "binary", "ubinary"]
# None of these changes a vector of bge-m3.
NEUTRAL = Annotated[Any, Meta(description="Accepted; changes nothing")]


class OpenAIEmbedBody(validation.ForeignBody):
    """OpenAI's body, with the fields of other servers' clients on the same path."""

    input: TextsOrIds
    model: str | None = None
    encoding_format: EncodingFormat = "float"
    dimensions: Dimensions | None = None
    user: NEUTRAL = None
    # this server's own
    return_sparse: bool = False
    return_colbert: bool = False
    normalize: bool = True
    # Jina's
    embedding_type: JinaType | None = None
    normalized: bool = True
    truncate: bool = False
    task: NEUTRAL = None
    late_chunking: Any = None
    return_multivector: Any = None
    # vLLM's
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    add_special_tokens: Any = None
    priority: NEUTRAL = None
    # Infinity's, RAGFlow's
    modality: Any = None
    drop_params: NEUTRAL = None

    FIXED: ClassVar[Mapping[str, tuple[object, str]]] = {
        "late_chunking": (False, "texts are embedded one by one"),
        "return_multivector": (False, "pass `return_colbert`"),
        "add_special_tokens": (True, "the model needs them"),
        "modality": ("text", "the model reads text alone"),
    }

    def to_request(self, model: ModelInfo, settings: Settings) -> EmbedRequest:
        """A text over the model's length is an error, as with OpenAI, unless the body asks to
        truncate it: the reply has no field to report the truncation.

        Raises:
            ValidationError: a limit is exceeded, or `dimensions` is not the model's.
            NotServedError: the body names another model.
        """
        check_model(self.model, model, settings.embed_aliases)
        check_dimensions(self.dimensions, model)
        outputs = Outputs.DENSE
        if self.return_sparse:
            outputs |= Outputs.SPARSE
        if self.return_colbert:
            outputs |= Outputs.COLBERT
        if not (self.normalize and self.normalized):
            outputs |= Outputs.RAW
        kind = self.embedding_type or self.encoding_format
        max_length = self.truncate_prompt_tokens or MAX_LENGTH
        if max_length < MIN_TEXT_LENGTH:
            max_length = MAX_LENGTH if max_length == -1 else MIN_TEXT_LENGTH
        return EmbedRequest(
            texts=texts_or_ids(plain_texts(self.input), "input", model, settings),
            outputs=outputs,
            max_length=max_length,
            truncate=self.truncate or self.truncate_prompt_tokens is not None,
            encoding_format="base64" if kind == "base64" else "float",
            dtype=kind if kind in ("binary", "ubinary") else "float32",
            field="input",
        )

    def to_reply(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        """Return an `OpenAIEmbedReply`."""
        data = [
            {"object": "embedding", "index": index, "embedding": embedding}
            for index, embedding in enumerate(reply["embeddings"])
        ]
        for field in ("sparse_embedding", "colbert_embedding"):
            for item, value in zip(data, reply.get(f"{field}s", ()), strict=False):
                item[field] = value
        return {"object": "list", "data": data, "model": reply["model"], "usage": reply["usage"]}


def plain_texts(value: object) -> object:
    """Return the texts of Jina's `[{"text": …}]`; any other value as it is."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        items: list[TextItem] = validation.validate(value, list[TextItem], "input")
        return [item.text for item in items]
    return value


class Usage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class OpenAIEmbedding(TypedDict):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    sparse_embedding: NotRequired[dict[str, Any]]
    colbert_embedding: NotRequired[Any]


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


def models_reply(models: Mapping[Role, ModelInfo], settings: Settings) -> dict[str, Any]:
    """Return an `OpenAIModelsReply`: every name of every model."""
    return {"object": "list", "data": [model_object(n) for n in all_names(models, settings)]}


def all_names(models: Mapping[Role, ModelInfo], settings: Settings) -> list[str]:
    aliases = {"embed": settings.embed_aliases, "rerank": settings.rerank_aliases}
    return [name for role in models for name in model_names(models[role], aliases[role])]


def model_object(name: str) -> OpenAIModel:
    return {"id": name, "object": "model", "created": 0, "owned_by": "bge-serverless"}


def check_dimensions(dimensions: int | None, model: ModelInfo, field: str = "dimensions") -> None:
    """Raises ValidationError: bge-m3 was not trained for shortened vectors."""
    if dimensions is not None and dimensions != model.width:
        raise ValidationError(
            f"`{field}` must be {model.width}: the model is not trained for others. "
            f"Given: {shortened(dimensions)}",
            field=field,
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
            return [check_token_ids(items, field, model)]
        else:
            validation.check_count(items, field, settings.max_texts)
            return [check_token_ids(ids, f"{field}[{i}]", model) for i, ids in enumerate(items)]
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


def check_token_ids(value: object, field: str, model: ModelInfo) -> list[int]:
    """Return token ids of the model. Raises ValidationError if they are not."""
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
