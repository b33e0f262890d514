"""Which provider answers a request, and which error is raised if none does."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from bge_client import Attempt, EmbedResult, Route, errors
from bge_client.codec import EmbedOptions
from bge_client.providers import circuit
from bge_client.providers.chain import Chain, EmbedRequest, OnAttempt, RerankRequest
from bge_client.providers.circuit import Budget
from bge_client.results import Usage

REFUSED = errors.TransportError("no response from http://host: Connection refused")
DENSE = EmbedOptions()


class FakeProvider:
    """Raises `error`, or returns vectors with its name as the fingerprint."""

    def __init__(self, name: str, error: errors.BGEError | None = None) -> None:
        self.name, self.error = name, error
        self.dense_only = name != "bge"
        self.healthy, self.tokens, self.calls = True, 7, 0
        self.mismatch: errors.BGEError | None = None

    def embed(self, texts: Any, **_: Any) -> EmbedResult:
        self.calls += 1
        if self.error is not None:
            raise self.error
        vectors, usage = np.ones((len(texts), 2), np.float32), Usage(self.tokens, self.tokens)
        return EmbedResult(vectors, None, None, [], usage, "m", self.name, len(texts), self.name)

    def rerank(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def is_healthy(self) -> bool:
        return self.healthy

    def check_fingerprint(self, expected: str) -> None:
        if self.mismatch is not None:
            raise self.mismatch

    def close(self) -> None:
        pass


def request_of(expect: str | None = None, options: EmbedOptions = DENSE) -> EmbedRequest:
    return EmbedRequest(["море"], "document", options, expect)


def chain_of(
    *providers: FakeProvider,
    fallback: bool = True,
    max_tokens: int | None = None,
    on_attempt: OnAttempt | None = None,
) -> Chain[EmbedResult]:
    return Chain(Route("embeddings", providers, fallback), Budget(max_tokens), on_attempt)


def test_the_first_that_answers_is_used() -> None:
    providers = [FakeProvider("bge", REFUSED), FakeProvider("a", REFUSED), FakeProvider("b")]
    chain = chain_of(*providers)
    assert [chain.answer(request_of()).provider for _ in range(3)] == ["b"] * 3
    assert [provider.calls for provider in providers] == [1, 1, 3]  # circuits are open


def test_it_returns_to_the_first_once_that_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit, "OPEN_SECONDS", 0.05)
    bge = FakeProvider("bge", REFUSED)
    chain = chain_of(bge, FakeProvider("a"))
    assert chain.answer(request_of()).provider == "a"
    bge.error = None
    assert chain.answer(request_of()).provider == "a"
    time.sleep(0.06)
    assert [chain.answer(request_of()).provider for _ in range(2)] == ["bge", "bge"]


def test_the_error_of_the_first_is_raised_if_none_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    denied = errors.AuthenticationError("HTTP 401", 401)
    chain = chain_of(FakeProvider("bge", REFUSED), FakeProvider("a", denied))
    with pytest.raises(errors.TransportError):
        chain.answer(request_of())
    assert "embeddings: bge did not answer: no response from http://host" in caplog.text
    assert "embeddings: a did not answer: HTTP 401" in caplog.text
    with pytest.raises(errors.TransportError):
        chain.answer(request_of())


def test_an_unhealthy_provider_is_passed_over_and_the_last_is_always_asked() -> None:
    bge, a = FakeProvider("bge"), FakeProvider("a")
    bge.healthy = a.healthy = False
    assert chain_of(bge, a, fallback=False).answer(request_of()).provider == "a"
    assert (bge.calls, a.calls) == (0, 1)


def test_without_fallback_a_failure_is_raised() -> None:
    a = FakeProvider("a")
    with pytest.raises(errors.TransportError):
        chain_of(FakeProvider("bge", REFUSED), a, fallback=False).answer(request_of())
    assert a.calls == 0


@pytest.mark.parametrize("kind", [errors.ValidationError, errors.FingerprintError])
def test_an_invalid_request_is_not_sent_elsewhere(kind: type[errors.BGEError]) -> None:
    a = FakeProvider("a")
    with pytest.raises(kind):
        chain_of(FakeProvider("bge", kind("no")), a).answer(request_of())
    assert a.calls == 0


def test_a_failing_provider_is_asked_if_nobody_else_answers() -> None:
    bge, a = FakeProvider("bge", REFUSED), FakeProvider("a", REFUSED)
    chain = chain_of(bge, a)
    for calls in (1, 2):
        with pytest.raises(errors.TransportError):
            chain.answer(request_of())
        assert (bge.calls, a.calls) == (calls, 1)
    bge.error = None
    assert [chain.answer(request_of()).provider for _ in range(2)] == ["bge", "bge"]


def test_a_lone_provider_is_asked_even_after_failures() -> None:
    bge, a = FakeProvider("bge", REFUSED), FakeProvider("a")
    for chain in (chain_of(bge), chain_of(bge, a)):
        for _ in range(5):
            with pytest.raises(errors.TransportError):
                chain.answer(request_of(options=EmbedOptions(sparse=True)))
    assert (bge.calls, a.calls) == (10, 0)
    with pytest.raises(errors.ConfigurationError, match="a has neither `sparse` nor `colbert`"):
        chain_of(a).answer(request_of(options=EmbedOptions(colbert=True)))


def test_vectors_of_another_space_are_never_returned() -> None:
    refused, other = FakeProvider("a"), FakeProvider("b")
    refused.mismatch = errors.ProbeError("vectors of a do not match")
    chain = chain_of(FakeProvider("bge", REFUSED), refused, other)
    with pytest.raises(errors.FingerprintError, match=r"bge were expected. Given: those of b"):
        chain.answer(request_of("bge"))
    assert refused.calls == 0
    with pytest.raises(errors.ProbeError):  # the endpoint is not there to answer
        chain_of(refused).answer(request_of("bge"))


def test_a_budget_limits_fallbacks_alone() -> None:
    bge, a = FakeProvider("bge"), FakeProvider("a")
    chain = chain_of(bge, a, max_tokens=15)
    for _ in range(5):
        assert chain.answer(request_of()).provider == "bge"
    bge.error = errors.DeadlineError("not done")
    assert [chain.answer(request_of()).provider for _ in range(2)] == ["a", "a"]
    with pytest.raises(errors.DeadlineError):
        chain.answer(request_of())


def test_what_a_provider_does_not_count_is_estimated() -> None:
    a = FakeProvider("a")
    a.tokens = 0
    chain = chain_of(FakeProvider("bge", REFUSED), a, max_tokens=4)
    assert chain.answer(request_of()).provider == "a"  # estimated at 3
    with pytest.raises(errors.TransportError):
        chain.answer(request_of())
    ranking = RerankRequest("ab" * 50, ["cd" * 25] * 2, None)
    assert ranking.tokens == 2 * 42 + 2 * 22


def test_attempts_are_reported_with_provider_error_and_tokens(
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts: list[Attempt] = []

    def on_attempt(attempt: Attempt) -> None:
        attempts.append(attempt)
        raise ValueError("a metric")

    providers = FakeProvider("bge", REFUSED), FakeProvider("a")
    chain = chain_of(*providers, on_attempt=on_attempt)
    chain.answer(request_of())
    chain.answer(request_of())
    assert [attempt[:3] for attempt in attempts] == [
        ("embeddings", "bge", "TransportError"),
        ("embeddings", "a", None),
        ("embeddings", "a", None),
    ]
    assert [attempt.tokens for attempt in attempts] == [0, 7, 7]
    assert "on_attempt failed: ValueError" in caplog.text
    assert "a metric" not in caplog.text


def test_threads_share_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit, "OPEN_SECONDS", 0.0)  # every request is a trial, one at a time
    bge, a = FakeProvider("bge", REFUSED), FakeProvider("a")
    chain = chain_of(bge, a, max_tokens=10**6)
    names: list[str] = []

    def ask() -> None:
        names.extend(chain.answer(request_of()).provider for _ in range(50))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == ["a"] * 400
    bge.error = None
    assert chain.answer(request_of()).provider == "bge"
