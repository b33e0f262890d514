"""JSON in and out of the HTTP server, without holding the interpreter's lock for long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from .errors import ValidationError


def parse_json(body: bytes) -> Any:
    """Raises ValidationError: not JSON (NaN and lone surrogates are not)."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ValidationError(
            f"the body is not JSON: {error.msg} at character {error.pos}"
        ) from None


def to_json(reply: Any) -> bytes:
    """A reply as strict JSON; call it on another thread where it may be large.

    Encoding holds the interpreter's lock: one vector at a time, so that the event loop and the
    inference thread get it in between.
    """
    return b"".join(_pieces(reply))


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        yield b"{"
        for place, (key, item) in enumerate(value.items()):
            yield (b"," if place else b"") + orjson.dumps(key) + b":"
            yield from _pieces(item)
        yield b"}"
    elif isinstance(value, list) and value and isinstance(value[0], list | dict):
        yield b"["
        for place, item in enumerate(value):
            if place:
                yield b","
            yield from _pieces(item)
        yield b"]"
    else:
        yield orjson.dumps(value)
