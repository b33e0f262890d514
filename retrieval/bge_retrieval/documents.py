"""Parse documents: deterministic point ids, and texts at any path of the payload."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

from bge_client import ValidationError, strict_json
from bge_client.codec import checked_text

from .store import PointId

NAMESPACE = uuid.UUID("8f2f2b9e-5c0e-5d52-9d0d-6f1a6d1c3b11")  # for UUIDs derived from other ids
HEX = "[0-9a-fA-F]"  # `int` also takes underscores, spaces and other digits
UUID = re.compile(rf"(urn:uuid:)?\{{?{HEX}{{8}}(-?{HEX}{{4}}){{3}}-?{HEX}{{12}}\}}?")
MAX_CHARACTERS = 1_000_000  # the worker's limit for one text
MAX_ID = 2**64 - 1
MAX_INDEX_DIGITS = 20  # `int` raises above 4,300 digits
CHUNK = "_chunk"  # a key of the payload of a chunk; see `chunks.py`
CHUNK_KEYS = {"document", "number", "start", "end", "text"}


class Document(NamedTuple):
    """A document to be written as a point. `uuid` is its `_id` as written, if that is a UUID."""

    id: PointId
    text: str
    payload: dict[str, Any]
    uuid: str | None = None


def parse_documents(
    items: Iterable[Mapping[str, object] | str], fields: Sequence[str]
) -> Iterator[Document]:
    """Yield a document for each mapping and for each line of JSON. Skips blank lines.

    Raises:
        ValidationError: an item is invalid. The message has its number, from 1.
    """
    for number, value in enumerate(items, 1):
        if not isinstance(value, str):
            yield parse_document(value, fields, f"document {number}")
        elif value.strip():
            yield parse_document(_parse_line(value, number), fields, f"line {number}")


def _parse_line(line: str, number: int) -> object:
    try:
        return strict_json.loads(line)
    except ValueError as error:
        raise ValidationError(f"line {number} is not JSON: {error}") from None


def parse_document(value: object, fields: Sequence[str], label: str) -> Document:
    """Validate a document. Its point id is derived from `_id`, `id` or the whole payload."""
    if not isinstance(value, Mapping):
        raise ValidationError(f"{label} is not a JSON object")
    payload = _normalized(value, label)
    text, problem = usable_text(payload, fields)
    if text is None:
        raise ValidationError(f"{label}: {problem}")
    document_id = id_in(payload)
    id = point_id(payload if document_id is None else document_id, label)
    return Document(id, text, payload, payload_uuid(payload))


def id_in(payload: Mapping[str, object]) -> object:
    """Return the `_id` of a payload, else its `id`. Null is no id."""
    document_id = payload.get("_id")
    return payload.get("id") if document_id is None else document_id


def payload_uuid(payload: Mapping[str, object]) -> str | None:
    """Return the `_id` or `id` of a payload as written, if it is a UUID."""
    document_id = id_in(payload)
    return document_id if isinstance(document_id, str) and _canonical_uuid(document_id) else None


def check_uuid_notation(document: Document, other_uuid: str | None) -> None:
    """Raises ValidationError if both are the same UUID, and so one point, in two notations."""
    if document.uuid is None or other_uuid is None or document.uuid == other_uuid:
        return
    if _canonical_uuid(document.uuid) == _canonical_uuid(other_uuid):
        raise ValidationError(
            f"document `{document.uuid}`: its UUID is `{other_uuid}` in another notation. Use one "
            "notation for each document, or delete the other point first"
        )


def _normalized(value: Mapping[str, object], label: str) -> dict[str, Any]:
    """Return the payload as Qdrant stores it. Refuses what Qdrant would silently change."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        return dict(strict_json.loads(text))
    except UnicodeEncodeError:
        raise ValidationError(f"{label} must be valid Unicode. Given: a lone surrogate") from None
    except (TypeError, ValueError) as error:
        raise ValidationError(f"{label} is not JSON: {error}") from None
    except RecursionError:
        raise ValidationError(f"{label} is not JSON: {strict_json.TOO_DEEP}") from None


def point_id(document_id: object, label: str = "the id") -> PointId:
    """Return integers and UUIDs unchanged, and a UUID derived from any other value.

    Raises:
        ValidationError: an integer is out of Qdrant's range.
    """
    if isinstance(document_id, int) and not isinstance(document_id, bool):
        if not 0 <= document_id <= MAX_ID:
            raise ValidationError(
                f"{label}: an id must be from 0 to 2^64 - 1. Given: {document_id}"
            )
        return document_id
    if not isinstance(document_id, str):
        canonical = json.dumps(document_id, sort_keys=True, ensure_ascii=False)
        return str(uuid.uuid5(NAMESPACE, hashlib.sha256(canonical.encode()).hexdigest()))
    return _canonical_uuid(document_id) or str(uuid.uuid5(NAMESPACE, document_id))


def _canonical_uuid(text: str) -> str | None:
    """Return a UUID in Qdrant's notation, or None if `text` is not a UUID."""
    return str(uuid.UUID(text)) if UUID.fullmatch(text) else None


def text_at(payload: Mapping[str, object], paths: Sequence[str]) -> str | None:
    """Return the texts at these paths (`page.content`, `chunks.0.text`), joined by line breaks.

    Return None if no path leads to a string that is not blank.
    """
    texts = [value for path in paths if isinstance(value := value_at(payload, path), str)]
    text = "\n".join(value for value in texts if value and not value.isspace())
    return text or None


def without_texts(payload: Mapping[str, object], paths: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a payload without what `text_at` reads."""
    rest = deepcopy(dict(payload))
    for path in paths:
        if path in rest:  # a key may contain a dot
            del rest[path]
            continue
        parent_path, _, key = path.rpartition(".")
        parent = value_at(rest, parent_path)
        if isinstance(parent, dict):
            parent.pop(key, None)
        elif isinstance(parent, list) and value_at(rest, path) is not None:
            parent[int(key)] = None  # keeps the numbers of the others
    return rest


def chunk_id(document_id: PointId, number: int) -> str:
    """Return the point id of a document's chunk."""
    return str(uuid.uuid5(NAMESPACE, f"{document_id}#{number}"))


def chunk_in(payload: Mapping[str, object]) -> dict[str, Any] | None:
    """Return what a payload has under `CHUNK`, or None if its point is no chunk."""
    chunk = payload.get(CHUNK)
    if isinstance(chunk, dict) and chunk.keys() >= CHUNK_KEYS:  # a document may have the key too
        return chunk
    return None


def usable_text(payload: Mapping[str, object], paths: Sequence[str]) -> tuple[str | None, str]:
    """Return the text at these paths, or None and the reason why the worker would refuse it."""
    text = text_at(payload, paths)
    if text is None:
        return None, f"no text at `{'`, `'.join(paths)}`"
    if len(text) > MAX_CHARACTERS:
        return None, f"the text must have at most {MAX_CHARACTERS} characters. Given: {len(text)}"
    try:
        return checked_text(text, "text"), ""
    except ValidationError as error:
        return None, str(error)


def value_at(payload: Mapping[str, object], path: str) -> Any:
    """Return the value at `page.content` or `chunks.0.text`, or None."""
    if path in payload:  # a key may contain a dot
        return payload[path]
    value: Any = payload
    for key in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal() and len(key) < MAX_INDEX_DIGITS:
            index = int(key)
            value = value[index] if index < len(value) else None
        else:
            return None
    return value
