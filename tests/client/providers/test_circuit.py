"""A provider that fails gets no request until one has shown that it is back."""

from __future__ import annotations

import threading

import pytest

from bge_client import errors
from bge_client.providers import circuit as module
from bge_client.providers.circuit import Budget, Circuit

REFUSED = errors.TransportError("no response from http://host: Connection refused")
JOB_FAILED = errors.JobError("the job failed")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets: monotonic and since the epoch."""
    now = [1e6]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("error", "failures"),
    [
        (REFUSED, 1),
        (errors.HTTPStatusError("HTTP 502", 502), 1),
        (errors.AuthenticationError("HTTP 401", 401), 1),
        (errors.NoWorkerError("no worker"), 1),
        (JOB_FAILED, 3),
        (errors.DeadlineError("not done"), 3),
        (errors.InferenceError("id 5"), 3),
        (errors.HTTPStatusError("HTTP 400", 400), None),
        (errors.ValidationError("blank"), None),
        (errors.ProbeError("no match"), None),
        (errors.BudgetError("spent"), None),
        (KeyboardInterrupt(), None),
    ],
    ids=str,
)
def test_failures_in_a_row_that_open_it(
    error: BaseException, failures: int | None, clock: list[float]
) -> None:
    """At once if the error says that no request would have been answered."""
    circuit = Circuit()
    for _ in range(failures or 10):
        assert circuit.admit() == "closed"
        circuit.record(error, is_trial=False)
    assert circuit.admit() == ("closed" if failures is None else "open")


def test_a_success_ends_the_row(clock: list[float]) -> None:
    circuit = Circuit()
    for error in (JOB_FAILED, JOB_FAILED, None, JOB_FAILED, JOB_FAILED):
        circuit.record(error, is_trial=False)
    assert circuit.admit() == "closed"


def test_after_30_seconds_one_request_is_the_trial(clock: list[float]) -> None:
    circuit = Circuit()
    circuit.record(REFUSED, is_trial=False)
    clock[0] += 29
    assert circuit.admit() == "open"
    clock[0] += 1
    assert circuit.admit() == "trial"
    circuit.record(REFUSED, is_trial=False)  # of a request from before: no other trial
    clock[0] += 31
    assert circuit.admit() == "open"
    circuit.record(REFUSED, is_trial=True)
    assert circuit.admit() == "open"
    clock[0] += 31
    assert circuit.admit() == "trial"
    circuit.record(None, is_trial=True)
    assert circuit.admit() == "closed"


def test_a_trial_without_an_outcome_is_followed_by_another(clock: list[float]) -> None:
    circuit = Circuit()
    circuit.record(REFUSED, is_trial=False)
    clock[0] += 31
    for error in (KeyboardInterrupt(), errors.ValidationError("blank")):
        assert circuit.admit() == "trial"
        circuit.record(error, is_trial=True)


def test_threads_share_one_trial(clock: list[float]) -> None:
    circuit = Circuit()
    circuit.record(REFUSED, is_trial=False)
    clock[0] += 31
    states: list[str] = []
    threads = [threading.Thread(target=lambda: states.append(circuit.admit())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(states) == ["open"] * 15 + ["trial"]


def test_a_budget_lasts_until_the_next_day(clock: list[float]) -> None:
    clock[0] = 86_400 * 20_000 + 10
    budget = Budget(100)
    budget.reserve(60)
    message = r"may use 100 tokens a day \(`max_fallback_tokens`\), and have used 60. Given: about"
    with pytest.raises(errors.BudgetError, match=message):
        budget.reserve(50)
    budget.settle(60, 45)  # the provider counted fewer
    budget.reserve(50)
    budget.settle(50, 0)  # and did not answer
    budget.reserve(55)
    clock[0] += 86_400
    budget.reserve(100)
    Budget(None).reserve(10**12)
    with pytest.raises(errors.ConfigurationError, match="`max_fallback_tokens` must be >= 0"):
        Budget(-1)
