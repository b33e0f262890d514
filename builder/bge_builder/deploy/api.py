"""RunPod's REST API, version 2: the operations that a deployment needs.

It has no templates: an endpoint names its image. Its lists have no pages; a response that announces
another page is refused.
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2

from bge_client.redaction import redact

from .plan import Change, base_name
from .settings import DeployError, Fields

API = "https://api.runpod.io/v2"
TIMEOUT = 60.0
MAX_REASON_CHARACTERS = 500  # characters of what RunPod says
PAGE_FIELD = re.compile("next|cursor|has_?more", re.IGNORECASE)
READY = ("RUNNING", "IDLE")
LOG_LINES = 20
MAX_LOG_CHARACTERS = 300  # of a line
# RunPod keeps the stream of a log open. Its past is over after a silence.
LOG_SILENCE_SECONDS = 5.0
MAX_LOG_SECONDS = 15.0


class NotFoundError(DeployError):
    """RunPod has nothing with this id."""


class UnavailableError(DeployError):
    """RunPod does not respond, or asks to come back later: a later request may succeed."""


@dataclass(frozen=True)
class Worker:
    """A worker. `is_stale`: it runs an older version of the endpoint, and will be replaced."""

    id: str
    status: str
    is_stale: bool = False
    started_at: str | None = None
    gpu: str | None = None
    data_center: str | None = None

    @property
    def is_ready(self) -> bool:
        return self.status in READY

    @property
    def description(self) -> str:
        state = self.status.lower() + (", of an older version" if self.is_stale else "")
        parts = (f"worker {self.id}: {state}", self.gpu, self.data_center, self.started_at)
        return redact(", ".join(part for part in parts if part))


class RunPod:
    """The operations of RunPod's REST API that a deployment needs."""

    def __init__(self, key: str) -> None:
        """Raises DeployError if the environment's proxy is not a URL."""
        headers = {"Authorization": f"Bearer {key}"}
        try:
            self._http = httpx2.Client(base_url=API, headers=headers, timeout=TIMEOUT)
        except (httpx2.InvalidURL, ValueError) as error:
            raise DeployError(f"no connection can be made: {error}") from None

    def __enter__(self) -> RunPod:
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()

    def endpoint(self, endpoint_id: str) -> Fields:
        """Raises DeployError if there is no endpoint with that id."""
        return self._with_id(self._request("GET", endpoint_path(endpoint_id)))

    def endpoints(self) -> list[Fields]:
        return self._list("/serverless", "endpoints")

    def endpoint_by_name(self, name: str) -> Fields | None:
        """Raises DeployError if several endpoints have that name."""
        endpoints = [
            endpoint for endpoint in self.endpoints() if base_name(endpoint.get("name")) == name
        ]
        if len(endpoints) > 1:
            ids = ", ".join(endpoint["id"] for endpoint in endpoints)
            raise DeployError(f"several endpoints have the name {name}: {ids}. Pass ENDPOINT=id")
        return endpoints[0] if endpoints else None

    def registry(self, name_or_id: str) -> str:
        """Return the id of a registry credential.

        Raises:
            DeployError: no credential has that id or name, or several have that name.
        """
        registries = self._list("/registries", "registries")
        if any(registry["id"] == name_or_id for registry in registries):
            return name_or_id
        ids = [registry["id"] for registry in registries if registry.get("name") == name_or_id]
        if len(ids) != 1:
            known = ", ".join(
                f"{registry.get('name')} ({registry['id']})" for registry in registries
            )
            raise DeployError(
                f"`registry` must name one credential of this account. Given: {name_or_id}; "
                f"known: {known or 'none'}"
            )
        return str(ids[0])

    def apply(self, change: Change) -> Fields:
        """Make the change and return the endpoint."""
        if change.current is None:
            return self._with_id(self._request("POST", "/serverless", change.fields))
        if not change.fields:
            return change.current
        path = endpoint_path(change.current["id"])
        return self._with_id(self._request("PATCH", path, change.fields))

    def delete(self, endpoint_id: str) -> None:
        """Delete an endpoint, unless it is gone already."""
        with suppress(NotFoundError):
            self._send("DELETE", endpoint_path(endpoint_id))

    def version(self, endpoint_id: str) -> int | None:
        """Return the version of an endpoint's configuration, None if RunPod does not say."""
        version = self.releases(endpoint_id).get("endpointVersion")
        return version if isinstance(version, int) else None

    def workers(self, endpoint_id: str, after_version: int | None = None) -> list[Worker]:
        """Return the workers. Those of `after_version` and before are stale, even if RunPod does
        not say so yet."""
        return [
            Worker(
                id=worker["id"],
                status=str(worker.get("status")),
                is_stale=bool(worker.get("isStale")) or is_before(worker, after_version),
                started_at=text_or_none(worker.get("startedAt")),
                gpu=text_or_none(worker.get("gpuTypeId")),
                data_center=text_or_none(worker.get("dataCenterId")),
            )
            for worker in self._list(f"{endpoint_path(endpoint_id)}/workers", "workers")
        ]

    def releases(self, endpoint_id: str) -> Fields:
        """Return the releases, newest first, and how far the last one has come."""
        return self._request("GET", f"{endpoint_path(endpoint_id)}/releases")

    def billing(self, endpoint_id: str, days: int) -> Fields:
        """Return what the endpoint has cost in the last days, today included."""
        query = {"serverlessId": endpoint_id, "bucketSize": "day", "lastN": days}
        return self._request("GET", "/billing/serverless", query=query)

    def worker_log(self, endpoint_id: str, worker_id: str) -> list[str]:
        """Return the last lines of a worker's and its host's log, redacted."""
        path = f"{endpoint_path(endpoint_id)}/workers/{quote(worker_id, safe='')}/logs"
        end = time.monotonic() + MAX_LOG_SECONDS
        lines: deque[str] = deque(maxlen=LOG_LINES)
        query = {"tail": LOG_LINES}
        try:
            with self._http.stream(
                "GET", path, params=query, timeout=LOG_SILENCE_SECONDS
            ) as response:
                if not response.is_success:
                    raise DeployError(f"GET {path}: HTTP {response.status_code}")
                for event in response.iter_lines():
                    lines += log_lines(event)
                    if time.monotonic() > end:
                        break
        except httpx2.ReadTimeout:
            pass
        except httpx2.HTTPError as error:
            raise UnavailableError(f"GET {path}: no response from RunPod ({error})") from None
        return [*lines]

    def _list(self, path: str, key: str) -> list[Fields]:
        """Raises DeployError if there is no list, an item has no id, or there are more pages."""
        reply = self._request("GET", path)
        if page_fields := [name for name in reply if PAGE_FIELD.search(name) and reply[name]]:
            raise DeployError(
                f"GET {path} returned `{page_fields[0]}`, so there may be more pages, which RunPod "
                "does not document. Pass ENDPOINT=id"
            )
        items = reply.get(key)
        if not isinstance(items, list):
            raise DeployError(f"GET {path} returned no list `{key}`")
        return [self._with_id(item) for item in items]

    @staticmethod
    def _with_id(item: Any) -> Fields:
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            raise DeployError("RunPod returned an item without `id`")
        return item

    def _request(
        self, method: str, path: str, body: object = None, query: Fields | None = None
    ) -> Fields:
        """Raises DeployError if there is no response, an error, or no JSON object."""
        response = self._send(method, path, body, query)
        reply = json_of(response)
        if not isinstance(reply, dict):
            raise DeployError(
                f"{method} {path}: HTTP {response.status_code}{reason(response, reply)}"
            )
        return reply

    def _send(
        self, method: str, path: str, body: object = None, query: Fields | None = None
    ) -> httpx2.Response:
        """Raises DeployError if there is no response, or an error."""
        try:
            response = self._http.request(method, path, json=body, params=query)
        except httpx2.HTTPError as error:
            raise UnavailableError(f"{method} {path}: no response from RunPod ({error})") from None
        status = response.status_code
        if status == 401:
            raise DeployError("RunPod does not accept `RUNPOD_API_KEY`")
        if not response.is_success:
            kind = UnavailableError if status == 429 or status >= 500 else DeployError
            kind = NotFoundError if status == 404 else kind
            raise kind(f"{method} {path}: HTTP {status}{reason(response, json_of(response))}")
        return response


def is_before(worker: Fields, after_version: int | None) -> bool:
    version = worker.get("version")
    return isinstance(version, int) and after_version is not None and version <= after_version


def endpoint_path(endpoint_id: str) -> str:
    return f"/serverless/{quote(endpoint_id, safe='')}"


def log_lines(event: str) -> list[str]:
    """Return the line of a log in an event of its stream, if it has one."""
    if not event.startswith("data:"):
        return []
    try:
        data = json.loads(event.removeprefix("data:"))
        text = redact(f"{data['source']}: {data['line']}")
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
    # A terminal would obey control characters.
    printable = "".join(c if c.isprintable() else " " for c in text)
    return [printable[:MAX_LOG_CHARACTERS].rstrip()]


def text_or_none(value: object) -> str | None:
    return None if value is None else str(value)


def json_of(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def reason(response: httpx2.Response, reply: Any) -> str:
    """Describe an RFC 9457 problem (title, detail, errors), or a response that is none."""
    if isinstance(reply, dict):
        errors = reply.get("errors")
        failures = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
        parts = (reply.get("title"), reply.get("detail"), failures)
        text = ": ".join(str(part) for part in parts if part)
        return f" {text[:MAX_REASON_CHARACTERS]}" if text else ""
    if response.is_redirect:
        return ", a redirect, which is not followed"
    if not response.content:
        return " with an empty body"
    return f", not a JSON object ({response.headers.get('Content-Type', 'no content type')})"
