"""A scenario: the traffic of an endpoint, its settings and its targets, from a TOML file.

days = 30
card = "L4"

[[traffic]]                 # as many as there are kinds of requests
kind = "poisson"            # or "bursts", "bulk", "csv"
per_minute = 20
hours = [8, 20]
texts = 1
tokens = 12

[endpoint]
idle_timeout = 30

[target]
p99_ms = 500
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .cards import PlanError, Task

Amount = Annotated[float, Meta(ge=0, le=1e9)]
Seconds = Annotated[float, Meta(ge=0, le=3600)]
Tokens = Annotated[float, Meta(gt=0, le=8192)]  # of a text: what the models read
Positive = Annotated[float, Meta(gt=0, le=1e9)]
Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Hour = Annotated[float, Meta(ge=0, le=24)]


class Requests(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    task: Task = "embed"


class Generated(Requests, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests of random sizes.

    A text has `tokens` tokens on average, a document of a rerank those of the query too.
    `variation` is the standard deviation of a text's tokens by their mean.
    """

    texts: Count = 1
    tokens: Tokens
    variation: Annotated[float, Meta(ge=0, le=10)] = 1.0


class Timed(Generated, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests within `hours` of the day; at other hours, and on day 6 and 7 of a week, that share
    of the rate."""

    hours: tuple[Hour, Hour] = (0, 24)
    at_night: Share = 0.0
    at_weekends: Share = 1.0


class Poisson(Timed, frozen=True, kw_only=True, tag="poisson", tag_field="kind"):
    """Independent requests."""

    per_minute: Amount


class Bursts(Timed, frozen=True, kw_only=True, tag="bursts", tag_field="kind"):
    """Bursts at random moments: each has `requests` requests within `seconds`.

    Bursts with the same `event` happen at the same moments, if their rates and hours are equal.
    """

    per_day: Amount
    requests: Count
    seconds: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    event: str = ""


class Bulk(Generated, frozen=True, kw_only=True, tag="bulk", tag_field="kind"):
    """A job: `requests` requests, all in the queue at that hour of the first day."""

    requests: Count
    hour: Hour = 0.0


class Day(Requests, frozen=True, kw_only=True, tag="csv", tag_field="kind"):
    """A recorded day, repeated: a CSV file with a row for each request, which has the columns
    `seconds` since midnight and `tokens` of all its texts."""

    file: str


Traffic = Poisson | Bursts | Bulk | Day


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the endpoint and the worker, and what is assumed of the platform.

    The settings' defaults are those of `make deploy`. Assumed, since nobody has measured them:
    seconds of a start (median and 95th percentile of a log-normal distribution), seconds from the
    end of the idle timeout to the full stop, and what the platform adds to a request.
    """

    min_workers: Annotated[int, Meta(ge=0, le=1000)] = 0
    max_workers: Annotated[int, Meta(ge=1, le=1000)] = 3
    idle_timeout: Seconds = 5.0
    scaler: Literal["QUEUE_DELAY", "REQUEST_COUNT"] = "QUEUE_DELAY"
    scaler_value: Positive = 4.0
    concurrency: Count = 32
    max_batch_tokens: Count = 16_384
    cold_start: Positive = 10.0
    cold_start_p95: Positive = 25.0
    stop_seconds: Seconds = 1.0
    request_overhead: Seconds = 0.1


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    p99_ms: Positive | None = None
    dollars: Positive | None = None  # a month


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`about` is a sentence for reports. Without `tokens_per_second`, the card's rate is used."""

    about: str = ""
    days: Annotated[int, Meta(ge=1, le=366)] = 30
    card: str = "L4"
    tokens_per_second: Positive | None = None
    traffic: list[Traffic] = []
    endpoint: Endpoint = Endpoint()
    target: Target = Target()


def read_scenario(path: Path) -> Scenario:
    """Read a TOML file. Paths of CSV files in it are relative to it.

    Raises PlanError: it is not TOML, or a field, which the message names, is missing, unknown or
    not valid.
    """
    try:
        scenario = msgspec.toml.decode(path.read_bytes(), type=Scenario)
    except (msgspec.DecodeError, ValueError) as error:
        raise PlanError(f"{path.name}: {error}") from None
    check(scenario)
    traffic = [
        msgspec.structs.replace(part, file=str(path.parent / part.file))
        if isinstance(part, Day)
        else part
        for part in scenario.traffic
    ]
    return msgspec.structs.replace(scenario, traffic=traffic)


def check(scenario: Scenario) -> None:
    """Raises PlanError: a field is not valid, or fields contradict each other."""
    try:
        msgspec.convert(msgspec.to_builtins(scenario), Scenario)
    except msgspec.ValidationError as error:
        raise PlanError(str(error)) from None
    endpoint = scenario.endpoint
    if endpoint.min_workers > endpoint.max_workers:
        raise PlanError(
            f"`min_workers` must be at most `max_workers`, {endpoint.max_workers}. "
            f"Given: {endpoint.min_workers}"
        )
    if endpoint.cold_start_p95 < endpoint.cold_start:
        raise PlanError(
            f"`cold_start_p95` must be at least `cold_start`, {endpoint.cold_start:g}. "
            f"Given: {endpoint.cold_start_p95:g}"
        )
    for part in scenario.traffic:
        if isinstance(part, Timed) and part.hours[0] >= part.hours[1]:
            raise PlanError(f"`hours` must be a start and a later end. Given: {list(part.hours)}")
