"""Systems run interleaved, and their answers are checked."""

from __future__ import annotations

import math
import re
import time

import pytest

from bge_client.errors import (
    BGEError,
    ConfigurationError,
    DeadlineError,
    HTTPStatusError,
    ProtocolError,
)
from bge_retrieval.evaluation import Answer, Price, System, run_all
from runs import UNKNOWN


def test_each_query_goes_to_all_systems_in_a_random_order() -> None:
    calls: list[str] = []

    def system(name: str) -> System:
        def search(text: str) -> Answer:
            calls.append(name + text)
            time.sleep(0.002)
            return Answer([("d", 0.5)], 0.001, 3)

        return System(name, search, UNKNOWN)

    ticks: list[None] = []
    systems = [system("a"), system("b")]
    queries = {str(number): str(number) for number in range(40)}
    runs = run_all(systems, queries, warmup=1, progress=lambda: ticks.append(None))
    assert calls[:2] == ["a0", "b0"]
    turns = [calls[start : start + 2] for start in range(2, len(calls), 2)]
    assert [sorted(turn) for turn in turns] == [[f"a{run}", f"b{run}"] for run in queries]
    assert 10 <= sum(turn[0].startswith("a") for turn in turns) <= 30
    assert len(ticks) == 80
    assert [run.name for run in runs] == ["a", "b"]
    assert runs[1].answers["2"].answer == Answer([("d", 0.5)], 0.001, 3)
    assert all(0.002 <= timed.seconds < 2 for run in runs for timed in run.answers.values())
    first_calls = list(calls)
    calls.clear()
    run_all(systems, queries, warmup=1)
    assert calls == first_calls


@pytest.mark.parametrize(
    "error",
    [HTTPStatusError("the text", 503), DeadlineError("the text"), ProtocolError("the text")],
)
def test_a_failed_query_is_named_and_its_error_keeps_its_type(error: BGEError) -> None:
    def search(text: str) -> Answer:
        raise error

    with pytest.raises(type(error)) as caught:
        run_all([System("a", search, UNKNOWN)], {"q": "text"}, warmup=0)
    assert str(caught.value) == "`a`, query 'q': the text"
    assert caught.value is error
    assert error.retry == (type(error) is HTTPStatusError)


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ([("d", 1.0), ("d", 0.5)], "`a`, query 'q': document 'd' is ranked twice"),
        ([("d", math.nan)], "document 'd' has the score nan"),
        ([(f"{n}", 1.0) for n in range(101)], "more than 100 documents. Given: 101"),
    ],
)
def test_an_invalid_ranking_is_refused(ranking: list[tuple[str, float]], message: str) -> None:
    system = System("a", lambda _: Answer(ranking, 0.0), UNKNOWN)
    with pytest.raises(ProtocolError, match=re.escape(message)):
        run_all([system], {"q": "text"}, warmup=0)


def test_cost_is_by_seconds_or_tokens_or_unknown() -> None:
    assert Price(per_second=0.0002).per_thousand_queries(0.05, 12) == pytest.approx(0.01)
    assert Price(per_million_tokens=0.02).per_thousand_queries(0.05, 12) == pytest.approx(0.00024)
    assert UNKNOWN.per_thousand_queries(0.05, 12) is None
    with pytest.raises(ConfigurationError, match="`per_second` must be 0 or more dollars"):
        Price(per_second=-1)
