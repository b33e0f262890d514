"""A JSON value → a body of the API, or one sentence that says what is wrong with it.

msgspec decides whether a value fits its type. Only if it does not, `_fault` looks for the first
value that does not fit, by the same type. A message names the field, the limit and what was given:
a number, a keyword or the type of the value, never a text.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, inspect

from ..errors import ValidationError

T = TypeVar("T")
# Of a text: 100 times the model's input. A text is tokenised in one piece before it is truncated,
# which takes about half a second for so many.
MAX_CHARACTERS = 1_000_000

EXAMPLE_TEXTS = ["Градиентный спуск ищет минимум функции.", "A transaction is all or nothing."]
EXAMPLES = Meta(examples=[EXAMPLE_TEXTS])

# The pattern is for OpenAPI alone: `check_text` checks it. With a `pattern` of its own, msgspec
# 0.22.0 releases the compiled pattern once too often at each `convert` and crashes.
Text = Annotated[
    str,
    Meta(min_length=1, max_length=MAX_CHARACTERS, extra_json_schema={"pattern": r"\S"}),
]
Query = Annotated[Text, Meta(examples=["как найти минимум функции"])]
TextList = Annotated[list[Text], Meta(min_length=1)]
Texts = Annotated[Text | TextList, EXAMPLES]


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A request body. Null is an absent field, an unknown field is an error."""


class TextDocument(Body):
    text: Text


Documents = Annotated[list[Text | TextDocument], Meta(min_length=1), EXAMPLES]


def validate(value: object, expected: type[T], name: str) -> T:
    """Return `value`, a parsed JSON value, as an `expected`.

    `name` is the field that holds the value. An object's own fields are named without it.

    Raises:
        ValidationError: the value does not fit.
    """
    is_body = isinstance(expected, type) and issubclass(expected, Body)
    if is_body and isinstance(value, Mapping):
        value = without_nulls(value)
    try:
        return msgspec.convert(value, expected)
    except (msgspec.ValidationError, OverflowError, UnicodeEncodeError):
        kind = inspect.type_info(expected)
        if isinstance(kind, inspect.StructType) and isinstance(value, Mapping):
            fault = _object_fault(value, kind, "")
        else:
            fault = _fault(value, kind, name)
        raise ValidationError(fault or f"`{name}` is not valid") from None


def without_nulls(body: Mapping[Any, Any]) -> dict[Any, Any]:
    return {field: value for field, value in body.items() if value is not None}


def as_texts(texts: str | list[str], field: str, max_texts: int) -> list[str]:
    """Return one text or several as a list.

    Raises:
        ValidationError: there are more than `max_texts`, or one is blank or not valid Unicode.
    """
    if isinstance(texts, str):
        check_text(texts, field)
        return [texts]
    check_count(texts, field, max_texts)
    for index, text in enumerate(texts):
        check_text(text, field, index)
    return texts


def as_documents(documents: list[str | TextDocument], field: str, max_texts: int) -> list[str]:
    """Return the texts of documents. Raises as `as_texts`."""
    texts = [document if isinstance(document, str) else document.text for document in documents]
    return as_texts(texts, field, max_texts)


def check_count(texts: Sequence[object], field: str, max_texts: int) -> None:
    """Raises ValidationError: a request has more texts than `BGE_MAX_TEXTS`."""
    if len(texts) > max_texts:
        raise ValidationError(
            f"`{field}` must hold 1 to {max_texts} texts (`BGE_MAX_TEXTS`). Given: {len(texts)}"
        )


def check_text(text: str, field: str, index: int | None = None) -> None:
    """Check what the type `Text` does not.

    Raises:
        ValidationError: the text is blank, or holds a lone surrogate, which can be neither
            tokenised nor sent back.
    """
    name = field if index is None else f"{field}[{index}]"
    if text.isspace():
        raise ValidationError(
            f"`{name}` must not be empty or blank. Given: a string of white space"
        )
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(
            f"`{name}` must be valid Unicode. Given: a lone surrogate at character {error.start}"
        ) from None


def _fault(value: Any, kind: inspect.Type, name: str) -> str | None:
    """Return what is wrong with the value of the field `name`, None if it fits `kind`."""
    kind = _unwrap(kind)
    if isinstance(kind, inspect.UnionType):
        kind = next((_unwrap(member) for member in kind.types if _is_of(value, member)), kind)
    if not _is_of(value, kind):
        return f"`{name}` must be {_describe(kind)}. Given: {kind_of(value)}"
    match kind:
        case inspect.StructType():
            return _object_fault(value, kind, f"{name}.")
        case inspect.ListType():
            return _list_fault(value, kind, name)
        case inspect.StrType():
            return _text_fault(value, kind, name)
        case inspect.IntType() if not _is_in_range(value, kind):
            return f"`{name}` must be {_range(kind)}. Given: {shortened(value)}"
        case inspect.LiteralType() if value not in kind.values:
            return f"`{name}` must be {_describe(kind)}. Given: {shortened(value)}"
    return None


def _unwrap(kind: inspect.Type) -> inspect.Type:
    """Return the type without what it adds to its JSON schema."""
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def _is_of(value: object, kind: inspect.Type) -> bool:
    """Whether the JSON type of `value` is that of `kind`."""
    kind = _unwrap(kind)
    match kind:
        case inspect.StructType():
            return isinstance(value, Mapping)
        case inspect.ListType():
            return isinstance(value, list)
        case inspect.StrType() | inspect.LiteralType():
            return isinstance(value, str)
        case inspect.IntType():
            return type(value) is int
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.NoneType():
            return value is None
    return isinstance(kind, inspect.AnyType)


def _object_fault(value: Mapping[Any, Any], kind: inspect.StructType, prefix: str) -> str | None:
    fields = {field.encode_name: field for field in kind.fields}
    unknown = [field for field in value if field not in fields]
    if unknown and kind.forbid_unknown_fields:
        known = ", ".join(f"`{prefix}{field}`" for field in fields)
        return f"unknown field {names(unknown, prefix)}. Known here: {known}"
    for field in fields.values():
        if field.encode_name in value:
            fault = _fault(value[field.encode_name], field.type, prefix + field.encode_name)
            if fault is not None:
                return fault
        elif field.required:
            return f"`{prefix}{field.encode_name}` is required: {_describe(field.type)}"
    return None


def _list_fault(value: list[Any], kind: inspect.ListType, name: str) -> str | None:
    if len(value) < (kind.min_length or 0):
        return f"`{name}` must not be empty. Given: an empty list"
    faults = (_fault(item, kind.item_type, f"{name}[{i}]") for i, item in enumerate(value))
    return next((fault for fault in faults if fault is not None), None)


def _text_fault(value: str, kind: inspect.StrType, name: str) -> str | None:
    if kind.min_length is not None and not value:
        return f"`{name}` must not be empty or blank. Given: an empty string"
    if kind.max_length is not None and len(value) > kind.max_length:
        return f"`{name}` must have at most {kind.max_length} characters. Given: {len(value)}"
    return None


def _is_in_range(value: int, kind: inspect.IntType) -> bool:
    return (kind.ge is None or value >= kind.ge) and (kind.le is None or value <= kind.le)


def _range(kind: inspect.IntType) -> str:
    if kind.le is None:
        return f"at least {kind.ge}"
    return f"from {kind.ge} to {kind.le}"


def _describe(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.Metadata) and isinstance(kind.type, inspect.AnyType):
        return str((kind.extra_json_schema or {}).get("description", "a JSON value"))
    kind = _unwrap(kind)
    match kind:
        case inspect.UnionType():
            members = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
            return " or ".join(_describe(member) for member in members)
        case inspect.ListType():
            item = _unwrap(kind.item_type)
            items = item.types if isinstance(item, inspect.UnionType) else (item,)
            return "a list of " + " or ".join(PLURALS[type(_unwrap(member))] for member in items)
        case inspect.IntType() if kind.ge is not None:
            return f"an integer, {_range(kind)}"
        case inspect.LiteralType():
            return f"one of {json.dumps(kind.values)[1:-1]}"
    return NAMES.get(type(kind), "a JSON value")


NAMES: dict[type[inspect.Type], str] = {
    inspect.StrType: "a string",
    inspect.IntType: "an integer",
    inspect.BoolType: "true or false",
    inspect.StructType: "an object",
}
PLURALS: dict[type[inspect.Type], str] = {
    inspect.StrType: "strings",
    inspect.IntType: "integers",
    inspect.StructType: "objects with `text`",
}


def kind_of(value: object) -> str:
    """Return the JSON name of a value's type."""
    if value is None:
        return "null"
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "a boolean"),
        (int, "an integer"),
        (float, "a number with a fraction"),
        (str, "a string"),
        ((list, tuple), "a list"),
        (Mapping, "an object"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "not JSON")


def shortened(value: object) -> str:
    """Return a number or keyword as JSON, in ASCII, of at most 40 characters."""
    # A larger integer has more digits than Python converts.
    text = str(value) if isinstance(value, int) and abs(value) < 10**30 else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "…"


def names(fields: Collection[object], prefix: str = "") -> str:
    """Return field names in backticks, of more than eight the first eight."""
    quoted = [f"`{prefix}{shortened(field).strip(chr(34))}`" for field in list(fields)[:8]]
    return ", ".join(quoted) + (", …" if len(fields) > 8 else "")
