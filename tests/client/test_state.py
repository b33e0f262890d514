"""What `/health` says of an endpoint."""

from __future__ import annotations

from typing import Any

import pytest

from bge_client import EndpointState, endpoint_state, errors


@pytest.mark.parametrize(
    ("workers", "in_queue", "state"),
    [
        ({"idle": 1, "ready": 1, "unhealthy": 1}, 0, EndpointState.READY),
        ({"running": 1, "throttled": 2}, 9, EndpointState.READY),
        ({"initializing": 1, "throttled": 2}, 1, EndpointState.STARTING),
        ({"idle": 0, "unhealthy": 0}, 0, EndpointState.ASLEEP),
        ({}, 0, EndpointState.ASLEEP),
        ({"idle": 0}, 1, EndpointState.NO_WORKER),
        ({"unhealthy": 1, "throttled": 2, "idle": 0}, 1, EndpointState.BROKEN),
    ],
)
def test_state_follows_from_workers_and_waiting_jobs(
    workers: dict[str, int], in_queue: int, state: EndpointState
) -> None:
    assert endpoint_state({"workers": workers, "jobs": {"inQueue": in_queue}}) is state


@pytest.mark.parametrize("health", [{}, {"workers": 1}, {"workers": {"idle": "1"}}])
def test_other_bodies_are_refused(health: Any) -> None:
    with pytest.raises(errors.ProtocolError, match="no valid `workers`"):
        endpoint_state(health)
