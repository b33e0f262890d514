"""A JSON value → a body of the API, or one sentence that says what is wrong with it.

msgspec decides whether a value fits its type, and says where it does not; `_fault` says what the
type expects there. A message names the field, the limit and what was given: a number, a keyword or
the type of the value, never a text.
"""

from __future__ import annotations

import json
import re
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
    """A request body. Of the outer object, null is an absent field; unknown fields are errors."""


class TextDocument(Body):
    text: Text


Documents = Annotated[list[Text | TextDocument], Meta(min_length=1), EXAMPLES]


def validate(value: object, expected: type[T], name: str) -> T:
    """Return `value`, a parsed JSON value, as an `expected`.

    `name` is the field that holds the value. An object's own fields are named without it.

    Raises ValidationError: the value does not fit.
    """
    is_body = isinstance(expected, type) and issubclass(expected, msgspec.Struct)
    if is_body and not isinstance(value, Mapping):
        raise ValidationError(f"`{name}` must be an object. Given: {kind_of(value)}")
    if is_body and issubclass(expected, Body) and isinstance(value, Mapping):
        value = without_nulls(value)
    try:
        return msgspec.convert(value, expected)
    except UnicodeEncodeError:
        given = "a lone surrogate in a field's name or a keyword"
        raise ValidationError(f"`{name}` must be valid Unicode. Given: {given}") from None
    except (msgspec.ValidationError, OverflowError) as error:
        kind = inspect.type_info(expected)
        raise ValidationError(_fault(value, kind, str(error), "" if is_body else name)) from None


def without_nulls(body: Mapping[Any, Any]) -> dict[Any, Any]:
    return {field: value for field, value in body.items() if value is not None}


def as_texts(texts: str | list[str], field: str, max_texts: int) -> list[str]:
    """Return one text or several as a list.

    Raises ValidationError: there are more than `max_texts`, or one is blank or not valid Unicode.
    """
    if isinstance(texts, str):
        check_text(texts, field)
        return [texts]
    check_count(texts, field, max_texts)
    for index, text in enumerate(texts):
        check_text(text, field, index)
    return texts


def as_documents(
    query: str, documents: list[str | TextDocument], field: str, max_texts: int
) -> list[str]:
    """Check the query and return the texts of documents. Raises as `as_texts`."""
    check_text(query, "query")
    check_count(documents, field, max_texts)
    texts = []
    for index, document in enumerate(documents):
        if isinstance(document, str):
            check_text(document, field, index)
            texts.append(document)
        else:
            check_text(document.text, f"{field}[{index}].text")
            texts.append(document.text)
    return texts


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
    if text.isascii() and not text.isspace():
        return
    name = field if index is None else f"{field}[{index}]"
    if text.isspace():
        raise ValidationError(
            f"`{name}` must not be empty or blank. Given: a string of white space"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(
            f"`{name}` must be valid Unicode. Given: a lone surrogate at character {error.start}"
        ) from None


def _fault(value: Any, kind: inspect.Type, message: str, name: str) -> str:
    """Say what is wrong with `value`, at the path that msgspec's message ends with.

    `name` is the name of `value`, empty for a body: its fields are named without it.
    """
    path = message.rpartition(" - at `$")[2] if " - at `$" in message else ""
    for field, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        kind = _member(kind, value)
        if isinstance(kind, inspect.StructType):
            if fault := _object_fault(value, kind, name):
                return fault
            kind = next(member.type for member in kind.fields if member.encode_name == field)
            value, name = value[field], f"{name}.{field}" if name else field
        elif isinstance(kind, inspect.ListType):
            kind, value, name = kind.item_type, value[int(index)], f"{name}[{index}]"
    kind = _member(kind, value)
    if isinstance(kind, inspect.StructType) and isinstance(value, Mapping):
        return _object_fault(value, kind, name) or f"`{name}` is not valid"
    if value == "" and isinstance(kind, inspect.StrType):
        return f"`{name}` must not be empty or blank. Given: an empty string"
    if isinstance(value, str) and isinstance(kind, inspect.StrType):
        return f"`{name}` must have at most {kind.max_length} characters. Given: {len(value)}"
    if value == [] and isinstance(kind, inspect.ListType):
        return f"`{name}` must not be empty. Given: an empty list"
    is_number = type(value) is int and isinstance(kind, inspect.IntType)
    is_keyword = isinstance(value, str) and isinstance(kind, inspect.LiteralType)
    given = shortened(value) if is_number or is_keyword else kind_of(value)
    return f"`{name}` must be {_describe(kind)}. Given: {given}"


def _member(kind: inspect.Type, value: object) -> inspect.Type:
    """Return the type that `value` has to fit: of a union, the member of its JSON type."""
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        types: dict[type, type[inspect.Type]] = {
            int: inspect.IntType,
            str: inspect.StrType,
            list: inspect.ListType,
            dict: inspect.StructType,
        }
        expected = types.get(type(value), inspect.UnionType)
        members = [_member(member, value) for member in kind.types]
        return next((member for member in members if isinstance(member, expected)), kind)
    return kind


def _object_fault(value: Mapping[Any, Any], kind: inspect.StructType, name: str) -> str | None:
    """Say which field is unknown or missing, None if there is none."""
    prefix = f"{name}." if name else ""
    fields = {field.encode_name: field for field in kind.fields}
    unknown = [field for field in value if field not in fields]
    if unknown and kind.forbid_unknown_fields:
        known = ", ".join(f"`{prefix}{field}`" for field in fields)
        return f"unknown field {names(unknown, prefix)}. Known here: {known}"
    for field in fields.values():
        if field.required and field.encode_name not in value:
            return f"`{prefix}{field.encode_name}` is required: {_describe(field.type)}"
    return None


def _describe(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata(type=inspect.AnyType(), extra_json_schema={"description": text}):
            return str(text)
        case inspect.Metadata():
            return _describe(kind.type)
        case inspect.UnionType():
            members = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
            return " or ".join(_describe(member) for member in members)
        case inspect.ListType():
            items = _describe(kind.item_type).replace("a string", "strings")
            return f"a list of {items.replace('an object', 'objects')}"
        case inspect.StrType():
            return "a string"
        case inspect.IntType():
            limits = f"from {kind.ge} to {kind.le}" if kind.le else f"at least {kind.ge}"
            return f"an integer, {limits}"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType():
            return f"one of {json.dumps(kind.values)[1:-1]}"
        case inspect.StructType():
            return "an object with " + names([field.encode_name for field in kind.fields])
    return "a JSON value"


def kind_of(value: object) -> str:
    """Return the JSON name of a value's type."""
    kinds: dict[type, str] = {
        type(None): "null",
        bool: "a boolean",
        int: "an integer",
        float: "a number with a fraction",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), "not JSON")


def shortened(value: object) -> str:
    """Return a number or keyword as JSON, in ASCII, of at most 40 characters."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return "an integer of more than 40 digits"  # Python refuses to print very long ones
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "…"


def names(fields: Collection[object], prefix: str = "") -> str:
    """Return field names in backticks, of more than eight the first eight."""
    quoted = [f"`{prefix}{shortened(field).strip(chr(34))}`" for field in list(fields)[:8]]
    return ", ".join(quoted) + (", …" if len(fields) > 8 else "")
