"""JSON in and out of the HTTP server, without holding the interpreter's lock for long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import orjson

from ..errors import ValidationError

LARGE_BYTES = 1 << 18  # of a body; orjson takes up to 15 ms for it
# orjson holds the interpreter's lock while it parses, so the number of values bounds how long
# /ping waits: 20 to 150 ms for so many (10 million lists in 30 MB took 1.7 s), and 100 MB as
# objects. A million token ids, the most that a request has by default, fit.
MAX_VALUES = 1 << 20
MAX_DEPTH = 64
SLICE_BYTES = 1 << 16
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class JsonParser:
    """Parses large bodies on another thread and one at a time: as objects they take more memory
    than `memory.py` counts."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def parse(self, body: bytes) -> Any:
        """Raises what `parse_json` raises."""
        if len(body) <= LARGE_BYTES:
            return parse_json(body)
        async with self._turn:
            parsing = asyncio.ensure_future(asyncio.to_thread(parse_json, body))
            try:
                return await asyncio.shield(parsing)
            except asyncio.CancelledError:
                # The thread goes on, and holds the body: it stays in the account until then.
                await asyncio.wait({parsing})
                raise


def parse_json(body: bytes) -> Any:
    """Parse a body.

    Raises:
        ValidationError: not JSON (NaN and lone surrogates are not), nested too deep, or of too
            many values.
    """
    _check_structure(body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ValidationError(
            f"the body is not JSON: {error.msg} at character {error.pos}"
        ) from None


def _check_structure(body: bytes) -> None:
    """Before any object is built. Brackets, commas and colons stand for values and keys."""
    opened = body.count(b"[") + body.count(b"{")
    if opened <= MAX_DEPTH and opened + body.count(b",") + body.count(b":") <= MAX_VALUES:
        return
    # There may be too many, or they are in texts: CSV has a comma every few characters.
    values, nesting = 0, []
    for outside in _outside_strings(body):
        nesting.append(outside.translate(_TO_SQUARE, _NOT_BRACKETS))
        values += nesting[-1].count(b"[") + outside.count(b",") + outside.count(b":")
        if values > MAX_VALUES:
            raise ValidationError(f"the body must hold at most {MAX_VALUES} values. Given: more")
    brackets = b"".join(nesting)
    too_deep = b"[" * (MAX_DEPTH + 1)
    for _ in range(MAX_DEPTH):
        if too_deep in brackets:
            break
        brackets = brackets.replace(b"[]", b"")  # the innermost
    # What was never closed is left as well, and for orjson to tell.
    if b"[]" in brackets or brackets.count(b"[") > MAX_DEPTH:
        raise ValidationError(f"the body must be at most {MAX_DEPTH} levels deep. Given: more")


def _outside_strings(body: bytes) -> Iterator[bytes]:
    """The body without its strings, slice by slice: other threads run in between."""
    rest, in_string = b"", False
    for start in range(0, len(body), SLICE_BYTES):
        piece = rest + body[start : start + SLICE_BYTES]
        # A backslash at the end escapes the first character of the next slice.
        split = len(piece) - (len(piece) - len(piece.rstrip(b"\\"))) % 2
        piece, rest = piece[:split], piece[split:]
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        yield b"".join(parts[in_string::2])
        in_string ^= len(parts) % 2 == 0


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
