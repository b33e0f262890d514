"""Foreign request shapes → native requests, native replies → foreign ones, errors too.

Each shape as its own documentation and its own Python client have it:

    OpenAI          https://platform.openai.com/docs/api-reference/embeddings
    Cohere          https://docs.cohere.com/reference/rerank
    Jina            https://api.jina.ai/redoc#tag/rerank
    Infinity        https://michaelfeil.eu/infinity
    TEI             https://huggingface.github.io/text-embeddings-inference

Cohere's, Jina's and Infinity's reranking are one shape. A field of theirs that cannot be honoured
is refused by name, not ignored; null is an absent field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import NotServedError, OverloadedError, ValidationError, WorkerError
from ..settings import Settings
from .requests import (
    MAX_LENGTH,
    MIN_PAIR_LENGTH,
    RERANK_LENGTH,
    EmbedRequest,
    Fields,
    Outputs,
    RerankRequest,
    kind_of,
    name_all,
    shortened,
    without_nulls,
)

if TYPE_CHECKING:  # the engine brings torch, and the server answers /ping before that is loaded
    from ..engine.engine import ModelInfo

OPENAI_EMBEDDINGS, OPENAI_MODELS = "/v1/embeddings", "/v1/models"


def openai_embed_request(body: object, model: ModelInfo, settings: Settings) -> EmbedRequest:
    """Read the body of `POST /v1/embeddings`.

    `input` is a string or strings; with `BGE_ACCEPT_TOKEN_IDS` also this model's own token ids or
    lists of them. A text too long is an error, as OpenAI's users expect: their reply has no place
    to say it was cut.

    Raises:
        ValidationError: the body breaks the contract.
        NotServedError: another model is asked for.
    """
    fields = _fields("openai_input", body, settings)
    fields.refuse_unknown("input", "model", "encoding_format", "dimensions", "user")
    _check_model(fields.values.get("model", model.model), model)
    dimensions = fields.integer("dimensions", model.width, 1)
    if dimensions != model.width:
        raise ValidationError(
            f"`dimensions` must be {model.width}: the model is not trained for others. "
            f"Given: {shortened(dimensions)}"
        )
    return EmbedRequest(
        texts=_texts_or_ids(fields, "input", model, settings),
        encoding_format=fields.choice("encoding_format", ("float", "base64")),
        truncate=False,
        field="input",
    )


def _fields(what: str, body: object, settings: Settings) -> Fields:
    if not isinstance(body, Mapping):
        raise ValidationError(f"`{what}` must be an object. Given: {kind_of(body)}")
    return Fields(without_nulls(body), settings.max_texts)


def _check_model(name: object, model: ModelInfo) -> None:
    if not isinstance(name, str):
        raise ValidationError(f"`model` must be a string. Given: {kind_of(name)}")
    if name != model.model:
        raise NotServedError(f"`model` must be `{model.model}` here. Given: {name_all([name])}")


def _texts_or_ids(
    fields: Fields, field: str, model: ModelInfo, settings: Settings
) -> Sequence[str | Sequence[int]]:
    what = "a string or a list of strings"
    value = fields.required(field, what)
    if not settings.accept_token_ids:
        _refuse_token_ids(field, value)
        return fields.texts(field)
    what = "a string, strings, token ids or lists of them"
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], str)):
        return fields.texts(field)
    if isinstance(value, list) and value and not isinstance(value[0], list):
        return [_token_ids(field, value, model)]
    fields.check_list(field, value, what)
    return [_token_ids(f"{field}[{place}]", ids, model) for place, ids in enumerate(value)]


def _refuse_token_ids(field: str, value: object) -> None:
    """Ids of another vocabulary fit into this one, and would be embedded as other words."""
    first = value[0] if isinstance(value, list) and value else None
    if type(first[0] if isinstance(first, list) and first else first) is int:
        raise ValidationError(
            f"`{field}` must hold strings. Given: token ids, probably of another model's "
            "tokenizer. With LangChain pass `check_embedding_ctx_length=False`. To accept this "
            "model's own ids set `BGE_ACCEPT_TOKEN_IDS=1` on the server"
        )


def _token_ids(field: str, value: object, model: ModelInfo) -> list[int]:
    if isinstance(value, list) and len(value) > MAX_LENGTH:
        raise ValidationError(
            f"`{field}` must hold at most {MAX_LENGTH} token ids. Given: {len(value)}"
        )
    if not isinstance(value, list) or any(type(token) is not int for token in value):
        raise ValidationError(
            f"`{field}` must hold strings alone or token ids alone. "
            f"Given: {'mixed types' if isinstance(value, list) else kind_of(value)}"
        )
    if not value:
        raise ValidationError(f"`{field}` must not be empty. Given: an empty list")
    worst = max(value, key=lambda token: max(-token, token - model.vocab_size))
    if not 0 <= worst < model.vocab_size:
        raise ValidationError(
            f"`{field}` must hold token ids from 0 to {model.vocab_size - 1}. "
            f"Given: {shortened(worst)}"
        )
    return value


def openai_embed_reply(reply: Mapping[str, Any]) -> dict[str, Any]:
    """A native reply as OpenAI's object."""
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": embedding}
            for index, embedding in enumerate(reply["embeddings"])
        ],
        "model": reply["model"],
        "usage": reply["usage"],
    }


def openai_models(models: Iterable[ModelInfo]) -> dict[str, Any]:
    """The reply to `GET /v1/models`."""
    return {
        "object": "list",
        "data": [
            {"id": model.model, "object": "model", "created": 0, "owned_by": "bge-serverless"}
            for model in models
        ],
    }


def rerank_request(body: object, model: ModelInfo, settings: Settings) -> RerankRequest:
    """Read the body of Cohere's, Jina's or Infinity's `POST /rerank`.

    Raises:
        ValidationError: the body breaks the contract.
        NotServedError: another model is asked for.
    """
    fields = _fields("body", body, settings)
    fields.refuse_unknown(
        *("model", "query", "documents", "top_n", "return_documents", "raw_scores"),
        *("max_length", "truncation"),
    )
    _check_model(fields.values.get("model", model.model), model)
    return RerankRequest(
        query=fields.text("query"),
        texts=fields.documents("documents"),
        top_n=fields.integer("top_n", 1, 1) if "top_n" in fields.values else None,
        raw_scores=fields.boolean("raw_scores", False),
        return_documents=fields.boolean("return_documents", False),
        max_length=fields.integer("max_length", RERANK_LENGTH, MIN_PAIR_LENGTH, MAX_LENGTH),
        truncate=fields.boolean("truncation", True),
    )


def rerank_reply(reply: Mapping[str, Any]) -> dict[str, Any]:
    """A native reply as Cohere's, Jina's and Infinity's object; `truncated` is our own."""
    return {
        "object": "rerank",
        "model": reply["model"],
        "results": reply["results"],
        "usage": reply["usage"],
        "truncated": reply["truncated"],
    }


def tei_embed_request(
    body: object, model: ModelInfo, settings: Settings, outputs: Outputs = Outputs.DENSE
) -> EmbedRequest:
    """Read the body of text-embeddings-inference's `POST /embed` or `/embed_sparse`.

    As there, a text too long is an error unless `truncate` is true.

    Raises:
        ValidationError: the body breaks the contract.
    """
    fields = _fields("body", body, settings)
    fields.refuse_unknown("inputs", "truncate", "truncation_direction", "normalize", "dimensions")
    _check_tei(fields)
    if fields.integer("dimensions", model.width, 1) != model.width:
        raise ValidationError(
            f"`dimensions` must be {model.width}: the model is not trained for others. "
            f"Given: {shortened(fields.values['dimensions'])}"
        )
    if not fields.boolean("normalize", True):
        raise ValidationError("`normalize` must be true: vectors are of length one. Given: false")
    return EmbedRequest(
        texts=_texts_or_ids(fields, "inputs", model, settings),
        outputs=outputs,
        truncate=fields.boolean("truncate", False),
        field="inputs",
    )


def tei_embed_reply(reply: Mapping[str, Any]) -> list[Any]:
    vectors: list[Any] = reply["embeddings"]
    return vectors


def tei_sparse_request(body: object, model: ModelInfo, settings: Settings) -> EmbedRequest:
    """Read the body of `POST /embed_sparse`; see `tei_embed_request`."""
    return tei_embed_request(body, model, settings, Outputs.SPARSE)


def tei_sparse_reply(reply: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    return [
        [
            {"index": index, "value": value}
            for index, value in zip(vector["indices"], vector["values"], strict=True)
        ]
        for vector in reply["sparse_embeddings"]
    ]


def tei_rerank_request(body: object, model: ModelInfo, settings: Settings) -> RerankRequest:
    """Read the body of text-embeddings-inference's `POST /rerank`.

    Raises:
        ValidationError: the body breaks the contract.
    """
    fields = _fields("body", body, settings)
    fields.refuse_unknown(
        *("query", "texts", "raw_scores", "return_text", "truncate", "truncation_direction")
    )
    _check_tei(fields)
    return RerankRequest(
        query=fields.text("query"),
        texts=fields.documents("texts"),
        raw_scores=fields.boolean("raw_scores", False),
        return_documents=fields.boolean("return_text", False),
        max_length=MAX_LENGTH,
        truncate=fields.boolean("truncate", False),
        field="texts",
    )


def tei_rerank_reply(reply: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"index": result["index"], "score": result["relevance_score"]}
        | ({"text": result["document"]["text"]} if "document" in result else {})
        for result in reply["results"]
    ]


def _check_tei(fields: Fields) -> None:
    direction = fields.choice("truncation_direction", ("Right", "right", "Left", "left"))
    if direction.lower() == "left":
        raise ValidationError("`truncation_direction` must be right: ends are cut. Given: left")


def error_in(dialect: str, error: WorkerError) -> dict[str, Any]:
    """The body of an error: {"error": "Type: message"}, with what a dialect's clients look for."""
    native = {"error": str(error)}
    if dialect == "openai":
        return {
            "error": {
                "message": str(error),
                "type": "server_error" if error.status >= 500 else "invalid_request_error",
                "param": None,
                "code": type(error).__name__,
            }
        }
    if dialect in ("rerank", "tei"):  # Cohere reads `message`, Jina `detail`, TEI `error_type`
        overloaded = "Overloaded" if isinstance(error, OverloadedError) else "Validation"
        kind = "Backend" if error.status >= 500 else overloaded
        return native | {"error_type": kind, "message": str(error), "detail": str(error)}
    return native
