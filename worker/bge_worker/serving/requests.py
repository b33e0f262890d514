"""payload → request, validated once; after this nothing re-checks.

Written by hand because the messages are the product: each names the field in backticks, the
limit and what was given, and none repeats a text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any, Literal

from ..errors import ValidationError

MAX_LENGTH = 8192
RERANK_LENGTH = 1024
# Of one text: 100 times what the model can take in. It is tokenised before it is cut, in one piece
# that others wait for; this many take about half a second.
MAX_CHARACTERS = 1_000_000
# Below this, a query of three quarters and the four special tokens leave a document no token.
MIN_PAIR_LENGTH = 17


class Outputs(Flag):
    """What a text is asked for. Texts of one value may share a micro-batch."""

    DENSE = auto()
    SPARSE = auto()
    COLBERT = auto()
    RELEVANCE = auto()


@dataclass(frozen=True)
class EmbedRequest:
    """Texts to embed; a text may also come as the model's own token ids."""

    texts: Sequence[str | Sequence[int]]
    outputs: Outputs = Outputs.DENSE
    max_length: int = MAX_LENGTH
    truncate: bool = True
    encoding_format: Literal["float", "base64"] = "float"
    dtype: Literal["float32", "float16"] = "float32"
    field: str = "texts"  # what the caller called them, for messages


@dataclass(frozen=True)
class RerankRequest:
    """Documents to score against a query."""

    query: str
    texts: Sequence[str]
    top_n: int | None = None
    raw_scores: bool = False
    return_documents: bool = False
    max_length: int = RERANK_LENGTH
    truncate: bool = True
    field: str = "documents"
    outputs: Outputs = Outputs.RELEVANCE


@dataclass(frozen=True)
class InfoRequest:
    """What is loaded here, and within which limits?"""


@dataclass(frozen=True)
class OpenAIRequest:
    """What RunPod's OpenAI proxy sends: a route and its body, read by `dialects`."""

    route: str
    body: object


Request = EmbedRequest | RerankRequest | InfoRequest | OpenAIRequest
Work = EmbedRequest | RerankRequest  # what goes to the device


def parse(payload: object, max_texts: int) -> Request:
    """Read one payload of the contract.

    Raises:
        ValidationError: it breaks the contract; the message names the field.
    """
    if not isinstance(payload, Mapping):
        raise ValidationError(f"`input` must be an object. Given: {kind_of(payload)}")
    payload = without_nulls(payload)
    parsers: dict[str, Callable[[Fields], Request]] = {
        "texts": _parse_embed,
        "query": _parse_rerank,
        "info": _parse_info,
        "openai_route": _parse_openai,
    }
    present = [field for field in parsers if field in payload]
    if len(present) != 1:
        raise ValidationError(
            "`input` must hold one of `texts` (to embed), `query` with `documents` (to rerank) or "
            f"`info`. Given: {name_all(payload) or 'no field'}"
        )
    return parsers[present[0]](Fields(payload, max_texts))


def without_nulls(body: Mapping[Any, Any]) -> dict[Any, Any]:
    """The fields of a body; null is an absent field."""
    return {field: value for field, value in body.items() if value is not None}


def _parse_embed(fields: Fields) -> EmbedRequest:
    fields.refuse_unknown(
        "texts",
        "return_dense",
        "return_sparse",
        "return_colbert",
        "max_length",
        "truncate",
        "encoding_format",
        "dtype",
    )
    wanted = {
        Outputs.DENSE: fields.boolean("return_dense", True),
        Outputs.SPARSE: fields.boolean("return_sparse", False),
        Outputs.COLBERT: fields.boolean("return_colbert", False),
    }
    outputs = Outputs(0)
    for output, is_wanted in wanted.items():
        if is_wanted:
            outputs |= output
    if not outputs:
        raise ValidationError(
            "one of `return_dense`, `return_sparse`, `return_colbert` must be true. "
            "Given: all false"
        )
    return EmbedRequest(
        texts=fields.texts("texts"),
        outputs=outputs,
        max_length=fields.integer("max_length", MAX_LENGTH, 3, MAX_LENGTH),
        truncate=fields.boolean("truncate", True),
        encoding_format=fields.choice("encoding_format", ("float", "base64")),
        dtype=fields.choice("dtype", ("float32", "float16")),
    )


def _parse_rerank(fields: Fields) -> RerankRequest:
    fields.refuse_unknown(
        "query",
        "documents",
        "top_n",
        "raw_scores",
        "return_documents",
        "max_length",
        "truncate",
    )
    return RerankRequest(
        query=fields.text("query"),
        texts=fields.documents("documents"),
        top_n=fields.integer("top_n", 1, 1) if "top_n" in fields.values else None,
        raw_scores=fields.boolean("raw_scores", False),
        return_documents=fields.boolean("return_documents", False),
        max_length=fields.integer("max_length", RERANK_LENGTH, MIN_PAIR_LENGTH, MAX_LENGTH),
        truncate=fields.boolean("truncate", True),
    )


def _parse_info(fields: Fields) -> InfoRequest:
    fields.refuse_unknown("info")
    if not fields.boolean("info", True):
        raise ValidationError("`info` must be true. Given: false")
    return InfoRequest()


def _parse_openai(fields: Fields) -> OpenAIRequest:
    fields.refuse_unknown("openai_route", "openai_input")
    route = fields.values["openai_route"]
    if not isinstance(route, str):
        raise ValidationError(f"`openai_route` must be a string. Given: {kind_of(route)}")
    return OpenAIRequest(route, fields.values.get("openai_input"))


@dataclass(frozen=True)
class Fields:
    """The fields of one JSON object, read by name and type.

    Every method raises ValidationError where the value is not what it reads.
    """

    values: Mapping[Any, Any]
    max_texts: int

    def refuse_unknown(self, *known: str) -> None:
        unknown = [field for field in self.values if field not in known]
        if unknown:
            raise ValidationError(
                f"unknown field {name_all(unknown)}. Known here: {name_all(known)}"
            )

    def required(self, field: str, what: str) -> Any:
        if field not in self.values:
            raise ValidationError(f"`{field}` is required: {what}")
        return self.values[field]

    def boolean(self, field: str, default: bool) -> bool:
        value = self.values.get(field, default)
        if not isinstance(value, bool):
            raise ValidationError(f"`{field}` must be true or false. Given: {kind_of(value)}")
        return value

    def integer(self, field: str, default: int, least: int, most: int | None = None) -> int:
        value = self.values.get(field, default)
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValidationError(
                f"`{field}` must be an integer, {limits}. Given: {kind_of(value)}"
            )
        if value < least or (most is not None and value > most):
            raise ValidationError(f"`{field}` must be {limits}. Given: {shortened(value)}")
        return value

    def text(self, field: str) -> str:
        return _text(field, self.required(field, "a string"))

    def texts(self, field: str) -> list[str]:
        """A text, or a list of 1 to `max_texts` of them, as a list."""
        value = self.required(field, "a string or a list of strings")
        if isinstance(value, str):
            return [_text(field, value)]
        self.check_list(field, value, "a string or a list of strings")
        return [_text(f"{field}[{place}]", text) for place, text in enumerate(value)]

    def documents(self, field: str) -> list[str]:
        """A list of 1 to `max_texts` strings or {"text": string}, as strings."""
        what = "a list of strings or of {`text`: string}"
        value = self.required(field, what)
        self.check_list(field, value, what)
        return [_document(f"{field}[{place}]", document) for place, document in enumerate(value)]

    def check_list(self, field: str, value: object, what: str) -> None:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValidationError(f"`{field}` must be {what}. Given: {kind_of(value)}")
        if not 1 <= len(value) <= self.max_texts:
            raise ValidationError(
                f"`{field}` must hold 1 to {self.max_texts} texts. Given: {len(value)}"
            )

    def choice(self, field: str, choices: tuple[Any, ...]) -> Any:
        """The first choice is the default."""
        value = self.values.get(field, choices[0])
        if not isinstance(value, str) or value not in choices:
            raise ValidationError(
                f"`{field}` must be one of {json.dumps(choices)[1:-1]}. "
                f"Given: {shortened(value) if isinstance(value, str) else kind_of(value)}"
            )
        return value


def _document(field: str, value: object) -> str:
    if not isinstance(value, Mapping):
        return _text(field, value)
    if set(value) != {"text"}:
        raise ValidationError(
            f"`{field}` must hold `text` alone. Given: {name_all(value) or 'no field'}"
        )
    return _text(f"{field}.text", value["text"])


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValidationError(f"`{field}` must be a string. Given: {kind_of(value)}")
    if not value or value.isspace():
        given = "a string of white space" if value else "an empty string"
        raise ValidationError(f"`{field}` must not be empty or blank. Given: {given}")
    if len(value) > MAX_CHARACTERS:
        raise ValidationError(
            f"`{field}` must have at most {MAX_CHARACTERS} characters. Given: {len(value)}"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(
            f"`{field}` must be valid Unicode. Given: a lone surrogate at character {error.start}"
        ) from None
    return value


def kind_of(value: object) -> str:
    """The JSON name of a value's type: what may be said of it without repeating it."""
    if value is None:
        return "null"
    names: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "a boolean"),
        (int, "an integer"),
        (float, "a number with a fraction"),
        (str, "a string"),
        ((list, tuple), "a list"),
        (Mapping, "an object"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "not JSON")


def shortened(value: object) -> str:
    """A number or a keyword as JSON, in ASCII (so that it can always be sent) and cut short."""
    text = str(value) if isinstance(value, int) and abs(value) < 10**30 else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "…"


def name_all(fields: Collection[object]) -> str:
    """Field names in backticks; of many, the first eight."""
    names = [f"`{shortened(field).strip(chr(34))}`" for field in list(fields)[:8]]
    return ", ".join(names) + (", …" if len(fields) > 8 else "")
