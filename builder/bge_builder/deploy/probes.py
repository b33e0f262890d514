"""Requests that start a worker and show that one answers.

An endpoint without work starts no worker: `/workers` alone would be watched for ever. A probe is
sent again and again, and never raises for what a later one may not meet.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Protocol

import httpx2

from .api import json_of
from .settings import DeployError

# By the endpoint's `type`.
URLS = {
    "QUEUE": "https://api.runpod.ai/v2/{id}",
    "LOAD_BALANCER": "https://{id}.api.runpod.ai",
}
TIMEOUT = 5.0  # a load balancer holds a request for up to two minutes
CANCEL_SECONDS = 2.0
MIN_TTL_SECONDS = 10  # RunPod's
LOST = ("CANCELLED", "TIMED_OUT")


class Probe(Protocol):
    def answers(self) -> bool:
        """Whether a worker has answered. Starts one if there is none.

        Raises DeployError: the endpoint does not accept the key.
        """

    def close(self) -> None:
        """Withdraw the request: a queued job would keep a broken image restarting, at a cost."""


class JobProbe:
    """A job for an endpoint with a queue: the worker describes itself."""

    def __init__(self, http: httpx2.Client, seconds: float) -> None:
        self._http = http
        # RunPod drops a job that nobody withdraws.
        ttl = round(max(seconds, MIN_TTL_SECONDS) * 1000)
        self._body = {"input": {"info": True}, "policy": {"ttl": ttl}}
        self._job: str | None = None

    def answers(self) -> bool:
        if self._job is None:
            job = exchange(self._http, "POST", "/run", self._body)
            if isinstance(job.get("id"), str):
                self._job = job["id"]
            return False
        job = exchange(self._http, "GET", f"/status/{self._job}")
        status = job.get("status")
        if status in LOST or job.get("http_status") == 404:
            self._job = None
        if status in ("COMPLETED", "FAILED"):  # a worker took it; the first request shows more
            self._job = None
            return True
        return False

    def close(self) -> None:
        if self._job is not None:
            with suppress(httpx2.HTTPError):
                self._http.post(f"/cancel/{self._job}", timeout=CANCEL_SECONDS)
            self._job = None


class PingProbe:
    """A health check through the load balancer."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def answers(self) -> bool:
        return exchange(self._http, "GET", "/ping").get("http_status") == 200

    def close(self) -> None:
        """Nothing waits."""


def exchange(http: httpx2.Client, method: str, path: str, body: object = None) -> dict[str, Any]:
    """Return the JSON object of the reply, if any, and `http_status`; empty without a reply."""
    try:
        response = http.request(method, path, json=body)
    except httpx2.HTTPError:
        return {}
    if response.status_code in (401, 403):
        raise DeployError(f"the endpoint does not accept the key: HTTP {response.status_code}")
    reply = json_of(response) if response.is_success else None
    return {**(reply if isinstance(reply, dict) else {}), "http_status": response.status_code}


def make_probe(endpoint_type: str, http: httpx2.Client, seconds: float) -> Probe:
    return PingProbe(http) if endpoint_type == "LOAD_BALANCER" else JobProbe(http, seconds)


def url_of(endpoint_id: str, endpoint_type: str) -> str:
    return URLS[endpoint_type].format(id=endpoint_id)
