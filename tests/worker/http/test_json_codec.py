"""JSON from callers: what is refused before it is parsed, and what waits for whom."""

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


def test_text_of_commas_and_brackets_is_text() -> None:
    body = {"documents": ["1,2,[3],{4:5}," * 70_000] * 5}
    assert parse_json(orjson.dumps(body)) == body


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=TEXTS, slice_bytes=st.integers(1, 30))
def test_quotes_and_backslashes_end_no_text(
    texts: list[str], slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_codec, "SLICE_BYTES", slice_bytes)
    body = [*texts, "[" * MAX_DEPTH, {"a": texts}]
    assert parse_json(orjson.dumps(body)) == body


@pytest.mark.parametrize(
    ("body", "sentence"),
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
    ids=["lists", "numbers", "keys", "deep lists", "deep objects", "open", "bad", "closed twice"],
)
def test_what_would_take_long_to_parse_is_refused(body: bytes, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        parse_json(body)


def test_what_is_just_within_the_limits_is_parsed() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert parse_json(orjson.dumps(deep)) == deep
    assert len(parse_json(orjson.dumps([7] * MAX_VALUES))) == MAX_VALUES


def test_the_event_loop_goes_on_while_a_large_body_is_parsed() -> None:
    async def both() -> None:
        parser = JsonParser()
        large = asyncio.create_task(parser.parse(LARGE))
        assert await parser.parse(b"[1]") == [1]  # without a turn
        assert not large.done()
        assert await large == ["a" * LARGE_BODY_BYTES]

    asyncio.run(both())


def test_large_bodies_of_callers_who_hung_up_do_not_pile_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One is parsed at a time, and one that a thread has begun is held, and counted, to its end."""
    events: list[str] = []
    release = threading.Event()

    def parse(body: bytes) -> None:
        events.append("begin")
        assert release.wait(SOON)
        events.append("end")

    async def hang_up() -> None:
        parser = JsonParser()
        begun, behind = (asyncio.create_task(parser.parse(LARGE)) for _ in range(2))
        while not events:
            await asyncio.sleep(0)
        behind.cancel()
        begun.cancel()
        await asyncio.sleep(0)
        assert not begun.done()
        release.set()
        results = await asyncio.gather(begun, behind, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2
        assert events == ["begin", "end"]

    monkeypatch.setattr(json_codec, "parse_json", parse)
    asyncio.run(hang_up())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda items: st.lists(items) | st.dictionaries(st.text(), items),
    )
)  # fmt: skip
def test_a_reply_s_json_is_python_s_own(value: Any) -> None:
    # Whatever mixes lists and scalars: the encoder goes into a list by its first item.
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        value = [item for item in value if isinstance(item, list | dict)]
    assert json.loads(to_json(value)) == value
