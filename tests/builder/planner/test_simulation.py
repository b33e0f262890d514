"""The simulated endpoint: properties of any traffic, and days that can be computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_builder.planner.arrivals import DAY, Arrivals
from bge_builder.planner.cards import Speed
from bge_builder.planner.scenario import Endpoint
from bge_builder.planner.simulation import Outcome, simulate

SPEED = Speed(tokens_per_second=100, batch_seconds=0.1, request_seconds=0.01)
BARE = {"stop_seconds": 0, "request_overhead": 0}  # for days computed by hand
times = st.lists(st.floats(0, 2000), max_size=60)


def constant_start(seconds: float, **fields: Any) -> Endpoint:
    return Endpoint(cold_start=seconds, cold_start_p95=seconds, **fields)


@st.composite
def traffic(draw: st.DrawFn) -> Arrivals:
    moments = np.array(sorted(draw(times)), dtype=float)
    size = st.lists(st.floats(1, 500), min_size=len(moments), max_size=len(moments))
    return arrivals(moments, draw(size))


endpoints = st.builds(
    Endpoint,
    min_workers=st.integers(0, 2),
    max_workers=st.integers(2, 5),
    idle_timeout=st.floats(0, 300),
    scaler=st.sampled_from(["QUEUE_DELAY", "REQUEST_COUNT"]),
    scaler_value=st.floats(0.5, 20),
    concurrency=st.integers(1, 8),
    max_batch_tokens=st.integers(50, 1000),
    cold_start=st.floats(0.1, 20),
    cold_start_p95=st.floats(20, 60),
    stop_seconds=st.floats(0, 5),
)


def arrivals(moments: Any, tokens: Any) -> Arrivals:
    moments = np.asarray(moments, float)
    return Arrivals(
        moments,
        np.broadcast_to(np.asarray(tokens, float), moments.shape),
        np.zeros(len(moments), bool),
    )


def run(requests: Arrivals, endpoint: Endpoint, seconds: float = 0) -> Outcome:
    return simulate(requests, endpoint, SPEED, seconds=seconds)


@settings(deadline=None, max_examples=150)
@given(traffic(), endpoints)
def test_no_request_is_lost_and_every_second_of_work_is_paid(
    requests: Arrivals, endpoint: Endpoint
) -> None:
    outcome = run(requests, endpoint)
    alone = SPEED.batch_seconds + SPEED.request_seconds + requests.tokens / 100
    assert np.all(outcome.waits >= 0)
    assert np.all(outcome.latencies >= alone + endpoint.request_overhead - 1e-6)
    for life in outcome.lives:
        assert life.paid >= life.stopped - life.started
        assert life.idle >= -1e-6
        assert life.paid == pytest.approx(life.start + life.work + life.idle)
    work = sum(life.work for life in outcome.lives)
    assert work >= requests.tokens.sum() / 100 - 1e-6


@settings(deadline=None, max_examples=100)
@given(traffic(), st.integers(1, 4))
def test_more_warm_workers_never_wait_longer(requests: Arrivals, workers: int) -> None:
    """One request at a time and worker: with several, a micro-batch may hold others up."""
    fewer, more = (
        run(requests, Endpoint(min_workers=count, max_workers=count, concurrency=1))
        for count in (workers, workers + 1)
    )
    assert np.all(more.waits <= fewer.waits + 1e-6)


@given(st.sampled_from(["QUEUE_DELAY", "REQUEST_COUNT"]), st.integers(1, 30))
def test_no_traffic_costs_nothing(scaler: Any, days: int) -> None:
    outcome = run(arrivals([], 1), Endpoint(scaler=scaler), seconds=days * DAY)
    assert outcome.lives == []


@settings(deadline=None, max_examples=30)
@given(traffic(), endpoints)
def test_equal_seeds_give_equal_outcomes(requests: Arrivals, endpoint: Endpoint) -> None:
    first, second = run(requests, endpoint), run(requests, endpoint)
    assert first.lives == second.lives
    assert np.array_equal(first.latencies, second.latencies)


def test_a_lone_request_pays_for_a_start_its_work_and_the_idle_timeout() -> None:
    outcome = run(arrivals([50.0], 89), constant_start(10, idle_timeout=5, **BARE))
    assert outcome.latencies == pytest.approx([10 + 0.1 + 0.01 + 0.89])
    assert outcome.met_cold_start.tolist() == [True]
    (life,) = outcome.lives
    assert (life.start, life.paid) == (10, 16)
    assert (life.work, life.idle) == (pytest.approx(1.0), pytest.approx(5.0))


def test_a_request_within_the_idle_timeout_meets_no_cold_start() -> None:
    outcome = run(arrivals([0, 15, 40], 89), constant_start(10, idle_timeout=5, **BARE))
    assert outcome.met_cold_start.tolist() == [True, False, True]
    assert len(outcome.lives) == 2


def test_requests_share_a_micro_batch() -> None:
    endpoint = Endpoint(min_workers=1, max_batch_tokens=1000, **BARE)
    outcome = run(arrivals([0, 0.5, 0.6], 100), endpoint)
    first, rest = 0.1 + 0.01 + 1.0, 0.1 + 0.02 + 2.0
    assert outcome.latencies == pytest.approx([first, first + rest - 0.5, first + rest - 0.6])


def test_a_short_request_has_the_micro_batch_after_a_long_one_s() -> None:
    endpoint = Endpoint(min_workers=1, max_batch_tokens=100, **BARE)
    outcome = run(arrivals([0, 0.5], [1000, 10]), endpoint)
    assert outcome.latencies[1] == pytest.approx(0.1 + 0.01 + 1.0 + 0.1 + 0.01 + 0.1 - 0.5)


def test_queue_delay_starts_a_worker_whenever_the_oldest_request_waited_that_long() -> None:
    endpoint = constant_start(9, scaler_value=4, max_workers=5)
    assert len(run(arrivals([0.0], 100), endpoint).lives) == 1  # no more than requests
    outcome = run(arrivals(np.zeros(9), 100), endpoint)
    assert sorted(life.started for life in outcome.lives) == [0, 4, 8]


def test_request_count_starts_a_worker_for_every_so_many_requests() -> None:
    endpoint = constant_start(9, scaler="REQUEST_COUNT", scaler_value=2, max_workers=3)
    for count, workers in ((2, 1), (3, 2), (9, 3)):
        outcome = run(arrivals(np.zeros(count), 100), endpoint)
        assert [life.started for life in outcome.lives] == [0] * workers


def test_min_workers_are_paid_for_the_whole_time() -> None:
    outcome = run(arrivals([5.0], 100), Endpoint(min_workers=2), seconds=1000)
    assert [life.paid for life in outcome.lives] == [1000, 1000]


def test_a_worker_that_is_starting_does_not_count_as_a_min_worker() -> None:
    endpoint = constant_start(60, min_workers=1, scaler_value=2, concurrency=1, **BARE)
    outcome = run(arrivals([0, 0, 20], 400), endpoint)
    assert outcome.met_cold_start.tolist() == [False, False, False]


def test_after_three_quiet_days_there_are_two_workers_at_most() -> None:
    moments = np.concatenate([[0.0], np.full(50, 4 * DAY)])
    endpoint = constant_start(1, scaler="REQUEST_COUNT", scaler_value=1, max_workers=5)
    outcome = run(arrivals(moments, 100), endpoint)
    assert sum(life.started >= 4 * DAY for life in outcome.lives) == 2
