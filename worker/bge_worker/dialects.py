"""Foreign request shapes → native requests, native results → foreign replies.

OpenAI: https://platform.openai.com/docs/api-reference/embeddings, as its Python client sends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .engine import ModelInfo
from .errors import NotServedError, ValidationError
from .schema import EmbedRequest, Fields, kind_of, name_all, shortened

OPENAI_EMBEDDINGS, OPENAI_MODELS = "/v1/embeddings", "/v1/models"


def openai_embed_request(body: object, model: ModelInfo, max_texts: int) -> EmbedRequest:
    """Read the body of `POST /v1/embeddings`.

    `input` is a string, strings, token ids or lists of them; the ids are this model's own. A text
    too long is an error, as OpenAI's users expect: their reply has no place to say it was cut.

    Raises:
        ValidationError: the body breaks the contract.
        NotServedError: another model is asked for.
    """
    if not isinstance(body, Mapping):
        raise ValidationError(f"`openai_input` must be an object. Given: {kind_of(body)}")
    # OpenAI treats null as absent.
    given = {field: value for field, value in body.items() if value is not None}
    fields = Fields(given, max_texts)
    fields.refuse_unknown("input", "model", "encoding_format", "dimensions", "user")
    _check_model(fields.required("model", f"`{model.model}`"), model)
    dimensions = fields.integer("dimensions", model.width, 1)
    if dimensions != model.width:
        raise ValidationError(
            f"`dimensions` must be {model.width}: the model is not trained for others. "
            f"Given: {shortened(dimensions)}"
        )
    return EmbedRequest(
        texts=_openai_texts(fields, model),
        encoding_format=fields.choice("encoding_format", ("float", "base64")),
        truncate=False,
        field="input",
    )


def _check_model(name: object, model: ModelInfo) -> None:
    if not isinstance(name, str):
        raise ValidationError(f"`model` must be a string. Given: {kind_of(name)}")
    if name != model.model:
        raise NotServedError(f"`model` must be `{model.model}` here. Given: {name_all([name])}")


def _openai_texts(fields: Fields, model: ModelInfo) -> Sequence[str | Sequence[int]]:
    what = "a string, strings, token ids or lists of them"
    value = fields.required("input", what)
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], str)):
        return fields.texts("input")
    if isinstance(value, list) and value and not isinstance(value[0], list):
        return [_token_ids("input", value, model)]
    fields.check_list("input", value, what)
    return [_token_ids(f"input[{place}]", ids, model) for place, ids in enumerate(value)]


def _token_ids(field: str, value: object, model: ModelInfo) -> list[int]:
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
