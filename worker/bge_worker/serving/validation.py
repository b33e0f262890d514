"""A JSON value → a body of the API, or one sentence that says what is wrong with it.

msgspec decides whether a value fits its type; `_fault` translates its message. A message names the
field, the limit and what was given: a number, a keyword or the type of the value, never a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

from ..engine.texts import MAX_CHARACTERS, check_text
from ..errors import ValidationError

T = TypeVar("T")

EXAMPLE_TEXTS = ["Градиентный спуск ищет минимум функции.", "A transaction is all or nothing."]
KINDS = {  # of JSON values, by msgspec's names
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
EXAMPLES = Meta(examples=[EXAMPLE_TEXTS])

# The schema's own limits are for OpenAPI: `check_text` checks them. With a `pattern` of its own,
# msgspec 0.22.0 releases the compiled pattern once too often at each `convert` and crashes.
Text = Annotated[
    str, Meta(max_length=MAX_CHARACTERS, extra_json_schema={"minLength": 1, "pattern": r"\S"})
]
Query = Annotated[Text, Meta(examples=["как найти минимум функции"])]
TextList = Annotated[list[Text], Meta(min_length=1)]
Texts = Annotated[Text | TextList, EXAMPLES]


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A request body. Of the outer object, null is an absent field; unknown fields are errors."""

    def to_reply(self, reply: dict[str, Any]) -> object:
        """Return the dialect's reply for a native one."""
        return reply


class ForeignBody(msgspec.Struct, kw_only=True):
    """A request body of another API. A null is an absent field.

    Its clients send fields that this server does not know: they are ignored, and named in the
    response header `x-ignored-fields`. A field that would change the result is declared, and
    honoured or refused by name: `FIXED` has the only value of a field, and the reason. A declared
    field of type Any changes nothing here.
    """

    FIXED: ClassVar[Mapping[str, tuple[object, str]]] = {}


class TextDocument(Body):
    text: Text


Documents = Annotated[list[Text | TextDocument], Meta(min_length=1), EXAMPLES]


def validate(value: object, expected: type[T], name: str) -> T:
    """Return `value`, a parsed JSON value, as an `expected`.

    `name` is the field that holds the value. An object's own fields are named without it.

    Raises ValidationError: the value does not fit.
    """
    is_body = isinstance(expected, type) and issubclass(expected, msgspec.Struct)
    if is_body:
        if not isinstance(value, Mapping):
            raise ValidationError(f"`{name}` must be an object. Given: {kind_of(value)}")
        if issubclass(expected, Body | ForeignBody):
            value = without_nulls(value)
        _check_fields(value, expected)
    try:
        converted = msgspec.convert(value, expected)
    except UnicodeEncodeError:
        given = "a lone surrogate in a field's name or a keyword"
        raise ValidationError(f"`{name}` must be valid Unicode. Given: {given}") from None
    except (msgspec.ValidationError, OverflowError) as error:
        raise _fault(str(error), value, expected, "" if is_body else name) from None
    if isinstance(converted, ForeignBody):
        _check_fixed(converted)
    return converted


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
            check_text(document.text, field, index, ".text")
            texts.append(document.text)
    return texts


def check_count(texts: Sequence[object], field: str, max_texts: int) -> None:
    """Raises ValidationError: a request has more texts than `BGE_MAX_TEXTS`."""
    if len(texts) > max_texts:
        raise ValidationError(
            f"`{field}` must hold 1 to {max_texts} texts (`BGE_MAX_TEXTS`). Given: {len(texts)}",
            field=field,
            limit=max_texts,
        )


def unknown_fields(body: object, expected: type[Any]) -> list[object]:
    """Return the fields of a body that its type does not declare."""
    known = {field.encode_name for field in msgspec.structs.fields(expected)}
    return [field for field in body if field not in known] if isinstance(body, Mapping) else []


def _check_fields(body: Mapping[Any, Any], expected: Any) -> None:
    """Raises ValidationError if a field is unknown or missing: msgspec does not list the known."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(expected)}
    unknown = unknown_fields(body, expected)
    if unknown and issubclass(expected, Body):
        raise ValidationError(f"unknown field {names(unknown)}. Known here: {names(fields)}")
    for name, field in fields.items():
        if field.required and name not in body:
            raise ValidationError(f"`{name}` is required", field=name)


def _check_fixed(body: ForeignBody) -> None:
    """Raises ValidationError for a field that would change the result and cannot be honoured."""
    for field, (value, reason) in body.FIXED.items():
        given = getattr(body, field)
        if given is not None and (given != value or type(given) is not type(value)):
            shown = kind_of(given) if isinstance(given, str | list | dict) else shortened(given)
            raise ValidationError(
                f"`{field}` must be {json.dumps(value)}: {reason}. Given: {shown}", field=field
            )


def _fault(message: str, value: Any, expected: Any, name: str) -> ValidationError:
    """Translate msgspec's message on `value`, whose name is `name`, empty for a body."""
    reason, _, path = message.partition(" - at `$")
    position = None
    for field, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        value = value[field] if field else value[int(index)]
        name = f"{name}[{index}]" if index else f"{name}.{field}".lstrip(".")
        position = int(index) if index and position is None else position
    fault, limit = _describe(reason, value, expected, name), re.search(r"[<>]= (\d+)$", reason)
    return ValidationError(
        fault,
        field=name.partition("[")[0] or None,
        index=position,
        limit=int(limit[1]) if limit else None,
    )


def _describe(reason: str, value: Any, expected: Any, name: str) -> str:
    given = shortened(value) if type(value) is int else kind_of(value)
    if reason.startswith("Invalid enum"):
        fields = msgspec.structs.fields(expected)
        (kind,) = (f.type for f in fields if f.encode_name == name.partition("[")[0])
        choices = _keywords(kind)
        return f"`{name}` must be one of {json.dumps(choices)[1:-1]}. Given: {shortened(value)}"
    if not reason.startswith("Expected"):  # a nested object with a missing or an unknown field
        return f"`{name}`: {reason[0].lower()}{reason[1:100]}"
    types, _, limit = reason.removeprefix("Expected `").partition(", got ")[0].partition("`")
    kinds = " or ".join(KINDS[kind] for kind in types.split(" | ") if kind != "null")
    return f"`{name}` must be {kinds}{limit}. Given: {given}"


def _keywords(kind: Any) -> list[str]:
    """Return the values of the Literals in a type."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [keyword for argument in get_args(kind) for keyword in _keywords(argument)]


def kind_of(value: object) -> str:
    """Return the JSON name of a value's type, and the size of a string or a list."""
    if isinstance(value, str):
        return f"a string of {len(value)} characters"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    kinds: dict[type, str] = {
        type(None): "null",
        bool: "a boolean",
        int: "an integer",
        float: "a number with a fraction, or too large for an integer",
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
