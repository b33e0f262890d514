"""Bodies are checked before they are parsed, large ones one at a time; replies are plain JSON."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bge_worker.errors import ValidationError
from bge_worker.http import json_codec
from bge_worker.http.json_codec import (
    LARGE_BODY_BYTES,
    MAX_DEPTH,
    MAX_VALUES,
    JsonParser,
    parse_json,
    to_json,
)
from fakes.engine import SOON

TEXTS = st.lists(st.text(alphabet='\\"[]{},:aя'), max_size=5)
LARGE = orjson.dumps(["a" * LARGE_BODY_BYTES])


def test_commas_and_brackets_in_strings_are_not_counted() -> None:
    body = {"documents": ["1,2,[3],{4:5}," * 70_000] * 5}
    assert parse_json(orjson.dumps(body)) == body


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=TEXTS, slice_bytes=st.integers(1, 30))
def test_escaped_quotes_do_not_end_a_string(
    texts: list[str], slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_codec, "SLICE_BYTES", slice_bytes)
    body = [*texts, "[" * MAX_DEPTH, {"a": texts}]
    assert parse_json(orjson.dumps(body)) == body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[" + b"[]," * MAX_VALUES + b"[]]", f"at most {MAX_VALUES} values"),
        (b"[" + b"1," * MAX_VALUES + b"1]", f"at most {MAX_VALUES} values"),
        (b"{" + b'"a":1,' * MAX_VALUES + b'"a":1}', f"at most {MAX_VALUES} values"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), f"at most {MAX_DEPTH} levels deep"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "levels deep"),
        (b"[" * 100_000, "levels deep"),
        (b"[" * MAX_DEPTH + b"," * 9, "the body is not JSON"),
        (b"[" * MAX_DEPTH + b"]" * (MAX_DEPTH + 9), "the body is not JSON"),
    ],
    ids=["lists", "numbers", "keys", "deep lists", "deep objects", "unclosed", "bad", "overclosed"],
)
def test_too_many_values_or_levels_are_refused(body: bytes, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse_json(body)


def test_a_body_at_the_limits_is_parsed() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert parse_json(orjson.dumps(deep)) == deep
    assert len(parse_json(orjson.dumps([7] * MAX_VALUES))) == MAX_VALUES


def test_a_small_body_does_not_wait_for_a_large_one() -> None:
    async def scenario() -> None:
        parser = JsonParser()
        large = asyncio.create_task(parser.parse(LARGE))
        assert await parser.parse(b"[1]") == [1]  # without another turn of the loop
        assert not large.done()
        assert await large == ["a" * LARGE_BODY_BYTES]

    asyncio.run(scenario())


def test_cancelled_large_bodies_do_not_accumulate(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is parsed at a time; a cancelled call returns only after its thread has ended."""
    events: list[str] = []
    release = threading.Event()

    def parse(body: bytes) -> None:
        events.append("begin")
        assert release.wait(SOON)
        events.append("end")

    async def scenario() -> None:
        parser = JsonParser()
        running, waiting = (asyncio.create_task(parser.parse(LARGE)) for _ in range(2))
        while not events:
            await asyncio.sleep(0)
        waiting.cancel()
        running.cancel()
        await asyncio.sleep(0)
        assert not running.done()
        release.set()
        results = await asyncio.gather(running, waiting, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2
        assert events == ["begin", "end"]

    monkeypatch.setattr(json_codec, "parse_json", parse)
    asyncio.run(scenario())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda items: st.lists(items) | st.dictionaries(st.text(), items),
    )
)  # fmt: skip
def test_to_json_is_read_back_unchanged(value: Any) -> None:
    # The encoder decides by the first item, so a list never mixes objects and scalars.
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        value = [item for item in value if isinstance(item, list | dict)]
    assert json.loads(to_json(value)) == value
