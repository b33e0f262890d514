"""JSON in and out of the HTTP server, without holding the GIL for long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import orjson

from ..errors import ValidationError

LARGE_BODY_BYTES = 1 << 18  # orjson takes up to 15 ms to parse so many
# orjson holds the GIL while it parses, so the number of values bounds how long /ping waits: 20 to
# 150 ms for so many (10 million lists in 30 MB took 1.7 s), and 100 MB as objects. A million token
# ids, the most that a request has by default, fit.
MAX_VALUES = 1 << 20
MAX_DEPTH = 64
SLICE_BYTES = 1 << 16
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class JsonParser:
    """Parses large bodies on another thread, one at a time: parsed, they take more memory than
    `memory.py` counts."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def parse(self, body: bytes) -> Any:
        """Raises as `parse_json`."""
        if len(body) <= LARGE_BODY_BYTES:
            return parse_json(body)
        async with self._lock:
            parsing = asyncio.ensure_future(asyncio.to_thread(parse_json, body))
            try:
                return await asyncio.shield(parsing)
            except asyncio.CancelledError:
                # The thread continues and holds the body, which must stay counted until it ends.
                await asyncio.wait({parsing})
                raise


def parse_json(body: bytes) -> Any:
    """Parse a body.

    Raises:
        ValidationError: it is not JSON (NaN and lone surrogates are not), is nested too deeply or
            holds too many values.
    """
    _check_structure(body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ValidationError(
            f"the body is not JSON: {error.msg} at character {error.pos}"
        ) from None


def _check_structure(body: bytes) -> None:
    """Count values and depth before any object is created, by brackets, commas and colons."""
    opened = body.count(b"[") + body.count(b"{")
    if opened <= MAX_DEPTH and opened + body.count(b",") + body.count(b":") <= MAX_VALUES:
        return
    # Too many, unless they are in texts: CSV has a comma every few characters.
    values, brackets_of_slices = 0, []
    for outside in _outside_strings(body):
        brackets_of_slices.append(outside.translate(_TO_SQUARE, _NOT_BRACKETS))
        values += brackets_of_slices[-1].count(b"[") + outside.count(b",") + outside.count(b":")
        if values > MAX_VALUES:
            raise ValidationError(f"the body must hold at most {MAX_VALUES} values. Given: more")
    brackets = b"".join(brackets_of_slices)
    too_deep = b"[" * (MAX_DEPTH + 1)
    for _ in range(MAX_DEPTH):
        if too_deep in brackets:
            break
        brackets = brackets.replace(b"[]", b"")  # the innermost
    # Brackets that are never closed remain too: orjson reports those.
    if b"[]" in brackets or brackets.count(b"[") > MAX_DEPTH:
        raise ValidationError(f"the body must be at most {MAX_DEPTH} levels deep. Given: more")


def _outside_strings(body: bytes) -> Iterator[bytes]:
    """Yield the body without its strings, slice by slice, so that other threads run in between."""
    rest, in_string = b"", False
    for start in range(0, len(body), SLICE_BYTES):
        chunk = rest + body[start : start + SLICE_BYTES]
        # A backslash at the end escapes the first character of the next slice.
        split = len(chunk) - (len(chunk) - len(chunk.rstrip(b"\\"))) % 2
        chunk, rest = chunk[:split], chunk[split:]
        parts = chunk.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        yield b"".join(parts[in_string::2])
        in_string ^= len(parts) % 2 == 0


def to_json(reply: Any) -> bytes:
    """Encode a reply as strict JSON. Call it on another thread if the reply may be large.

    orjson holds the GIL, so vectors are encoded one at a time: the event loop and the inference
    thread run in between.
    """
    return b"".join(_chunks(reply))


def _chunks(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        yield b"{"
        for index, (key, item) in enumerate(value.items()):
            yield (b"," if index else b"") + orjson.dumps(key) + b":"
            yield from _chunks(item)
        yield b"}"
    elif isinstance(value, list) and value and isinstance(value[0], list | dict):
        yield b"["
        for index, item in enumerate(value):
            if index:
                yield b","
            yield from _chunks(item)
        yield b"]"
    else:
        yield orjson.dumps(value)
