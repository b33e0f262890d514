"""Providers in order: the first that is healthy, fit for the request and not failing answers it.

request ─▶ is_healthy ─▶ Circuit ─▶ Budget, from the second on ─▶ fingerprint, probe ─▶ reply
              │             │           │                            │                │
              └─────────────┴───────────┴────────────────────────────┴────────────────┴─▶ next
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from ..chunking import estimate_tokens
from ..codec import EmbedOptions
from ..errors import BGEError, BudgetError, ConfigurationError, FingerprintError, ProbeError
from ..results import EmbedResult, RerankResult
from . import InputType, Provider
from .circuit import NO_FALLBACK_ERRORS, Budget, Circuit

log = logging.getLogger("bge_client")

SKIP_ERRORS = (ProbeError, BudgetError)  # of a provider that must not be used
Result = TypeVar("Result", EmbedResult, RerankResult)
ResultOut = TypeVar("ResultOut", EmbedResult, RerankResult, covariant=True)


class Attempt(NamedTuple):
    """A request to a provider. `error` is the type of its error, or None.

    `tokens` is the provider's count, 0 if it has none.
    """

    route: str
    provider: str
    error: str | None
    seconds: float
    tokens: int


OnAttempt = Callable[[Attempt], object]


@dataclass(frozen=True)
class Route:
    """The providers of one kind of request, in order.

    The next one is used if the one before is unhealthy; with `fallback`, also if it fails.
    """

    name: str
    providers: Sequence[Provider]
    fallback: bool = True


class ProviderRequest(Protocol[ResultOut]):
    """A request that any provider of a route may get."""

    @property
    def tokens(self) -> int:
        """The estimated number of tokens."""

    def suits(self, provider: Provider) -> bool:
        """Return whether the provider has what is requested."""

    def send(self, provider: Provider) -> ResultOut: ...


@dataclass(frozen=True)
class EmbedRequest:
    texts: list[str]
    input_type: InputType
    options: EmbedOptions
    expect_fingerprint: str | None

    @property
    def tokens(self) -> int:
        return sum(estimate_tokens(text, None) for text in self.texts)

    def suits(self, provider: Provider) -> bool:
        return not (provider.dense_only and (self.options.sparse or self.options.colbert))

    def send(self, provider: Provider) -> EmbedResult:
        """Raises FingerprintError if the vectors do not have the expected fingerprint."""
        expected = self.expect_fingerprint
        if expected is not None:
            provider.check_fingerprint(expected)
        result = provider.embed(self.texts, input_type=self.input_type, options=self.options)
        if expected not in (None, result.fingerprint):
            raise FingerprintError(
                f"vectors of model {expected} were expected. "
                f"Given: those of {result.fingerprint}, from {result.provider}"
            )
        return result


@dataclass(frozen=True)
class RerankRequest:
    query: str
    documents: list[str]
    top_n: int | None

    @property
    def tokens(self) -> int:
        texts = [self.query] * len(self.documents) + self.documents
        return sum(estimate_tokens(text, None) for text in texts)

    def suits(self, provider: Provider) -> bool:
        return True

    def send(self, provider: Provider) -> RerankResult:
        return provider.rerank(self.query, self.documents, top_n=self.top_n)


@dataclass(frozen=True)
class _Link:
    """A provider of a chain, with its circuit. All but the first are fallbacks with a budget."""

    provider: Provider
    circuit: Circuit
    budget: Budget


class Chain(Generic[Result]):
    """The providers of a route, each with a circuit. Threads may share it.

    `on_attempt` is called after each request to a provider. Its errors are logged by type.

    Raises:
        ConfigurationError: the route has no provider.
    """

    def __init__(self, route: Route, budget: Budget, on_attempt: OnAttempt | None) -> None:
        if not route.providers:
            raise ConfigurationError(f"the {route.name} have no provider")
        budgets = [Budget(), *[budget] * (len(route.providers) - 1)]
        self._links = [
            _Link(provider, Circuit(), budget)
            for provider, budget in zip(route.providers, budgets, strict=True)
        ]
        self._route, self._on_attempt = route, on_attempt

    def close(self) -> None:
        for link in self._links:
            link.provider.close()

    def answer(self, request: ProviderRequest[Result]) -> Result:
        """Return the result of the first provider that answers.

        Raises:
            ConfigurationError: no provider has the vectors that are requested.
            BGEError: of the first provider that did not answer. Those of the others are logged.
        """
        links = [link for link in self._links if request.suits(link.provider)]
        if not links:
            names = ", ".join(link.provider.name for link in self._links)
            raise ConfigurationError(f"{names} has neither `sparse` nor `colbert` vectors")
        failures: dict[str, BGEError] = {}  # by provider
        for link, is_trial in self._in_order(links):
            try:
                return self._attempt(link, request, is_trial)
            except BGEError as error:
                if not self._is_passed_on(error):
                    raise
                name = link.provider.name
                log.warning("%s: %s did not answer: %s", self._route.name, name, error)
                failures[name] = error
        order = (link.provider.name for link in links)
        raise next(failures[name] for name in order if name in failures)

    def _in_order(self, links: Sequence[_Link]) -> Iterator[tuple[_Link, bool]]:
        """Yield the providers to ask until one answers, and whether the request is its trial.

        One with an open circuit comes last: it is asked if nobody else has answered.
        """
        open_links = []
        for link in links:
            if link is not links[-1] and not link.provider.is_healthy():
                log.warning("%s: %s is not healthy", self._route.name, link.provider.name)
            elif (state := link.circuit.admit()) == "open":
                open_links.append(link)
            else:
                yield link, state == "trial"
        yield from ((link, False) for link in open_links[:1])

    def _is_passed_on(self, error: BGEError) -> bool:
        """Return whether the next provider may answer after this error."""
        if isinstance(error, SKIP_ERRORS):
            return True
        return self._route.fallback and not isinstance(error, NO_FALLBACK_ERRORS)

    def _attempt(self, link: _Link, request: ProviderRequest[Result], is_trial: bool) -> Result:
        """Send a request if the budget allows it, and record how it ended."""
        failure: BaseException | None = None
        tokens, reserved, used = request.tokens, 0, 0
        try:
            link.budget.reserve(tokens)
            reserved = tokens
            result = self._send(link, request)
            used = result.usage.total_tokens or reserved
            if is_trial:
                log.warning("%s: %s answers again", self._route.name, link.provider.name)
            return result
        except BaseException as error:
            failure = error
            raise
        finally:
            link.budget.settle(reserved, used)
            link.circuit.record(failure, is_trial=is_trial)

    def _send(self, link: _Link, request: ProviderRequest[Result]) -> Result:
        """Send a request, and report it."""
        start = time.perf_counter()
        try:
            result = request.send(link.provider)
        except BGEError as error:
            self._report(link, type(error).__name__, start, 0)
            raise
        self._report(link, None, start, result.usage.total_tokens)
        return result

    def _report(self, link: _Link, error: str | None, start: float, tokens: int) -> None:
        if self._on_attempt is None:
            return
        seconds = time.perf_counter() - start
        try:
            self._on_attempt(Attempt(self._route.name, link.provider.name, error, seconds, tokens))
        except Exception as failure:
            log.warning("on_attempt failed: %s", type(failure).__name__)
