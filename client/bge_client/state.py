"""What `/health` shows of an endpoint: whether it answers, sleeps, or never will."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from .errors import ProtocolError

# What a load balancer replies while no worker is healthy.
NO_WORKERS = "no workers available"
DOWN = {"unhealthy", "throttled"}


class EndpointState(Enum):
    """The value says in words what the endpoint is, and what to do.

    RunPod does not show max workers: an endpoint that is switched off looks asleep, until a request
    has waited for minutes.
    """

    READY = "ready: a worker answers"
    STARTING = "starting: a worker loads the models"
    ASLEEP = "asleep: a request starts a worker, unless max workers is 0"
    NO_WORKER = (
        "without a worker, while requests wait. If none starts within minutes, raise max workers "
        "of the endpoint (RunPod lowers it to 0 after 7 idle days)"
    )
    BROKEN = (
        "broken: every worker is unhealthy (its log says why) or throttled (no GPU of the chosen "
        "types is free)"
    )


def endpoint_state(health: Mapping[str, object]) -> EndpointState:
    """Return the state that the response of `Client.health` shows.

    Raises:
        ProtocolError: `health` is no such response.
    """
    if health.get("error") == NO_WORKERS:
        return EndpointState.NO_WORKER
    workers, jobs = health.get("workers"), health.get("jobs")
    if not isinstance(workers, dict) or any(type(n) is not int for n in workers.values()):
        raise ProtocolError("the response of /health has no valid `workers`")
    kinds = {kind for kind, count in workers.items() if count > 0}
    if kinds - DOWN:
        return EndpointState.STARTING if kinds - DOWN == {"initializing"} else EndpointState.READY
    if kinds:
        return EndpointState.BROKEN
    waiting = jobs.get("inQueue") if isinstance(jobs, dict) else None
    return EndpointState.NO_WORKER if waiting else EndpointState.ASLEEP
