"""JSON in and out of the HTTP server, without holding the interpreter's lock for long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import orjson

from .errors import ValidationError

LARGE_BYTES = 1 << 18  # of a body; about a millisecond to look through
# A value costs Python up to 70 bytes and the interpreter's lock 0.2 µs. Commas in texts count too:
# with so many, a body has more tokens than a request may have (1,000,000 by default).
MAX_VALUES = 2_000_000


async def read_json(body: bytes) -> Any:
    """`parse_json`, of a large body on another thread."""
    return (
        await asyncio.to_thread(parse_json, body) if len(body) > LARGE_BYTES else parse_json(body)
    )


def parse_json(body: bytes) -> Any:
    """Raises ValidationError: not JSON (NaN and lone surrogates are not), or more than is read.

    Values may be nested 1,024 deep: orjson's own limit.
    """
    if len(body) > LARGE_BYTES:
        values = sum(body.count(mark) for mark in (b",", b"[", b"{"))
        if values > MAX_VALUES:
            raise ValidationError(
                f"the body must hold at most {MAX_VALUES} values. Given: about {values}"
            )
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
