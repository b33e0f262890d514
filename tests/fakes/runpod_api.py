"""A fake of RunPod's REST API, version 2: serverless endpoints, their workers, releases and costs.

It stores created endpoints and records each write in `writes`. It validates requests as RunPod's
OpenAPI document does, with the fields in `runpod_api_fields.json`. `conflicts` has the rules that
the document states in prose.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from fakes.loopback import LoopbackServer
from fakes.runpod_fields import read_fields, violations

KEY = "rpa_a-key"
FIELDS = read_fields()
CREATE_ENDPOINT = FIELDS["schemas"]["CreateEndpointRequest"]
UPDATE_ENDPOINT = FIELDS["schemas"]["UpdateEndpointRequest"]
LOGS_PATH, BILLING_PATH = sorted(FIELDS["queries"], reverse=True)
OPEN_SECONDS = 5.0  # that the stream of a log stays open without a line


def conflicts(body: dict[str, Any], existing: dict[str, Any] | None) -> Iterator[str]:
    """Yield violations of the rules stated in prose. `existing` is the endpoint to update."""
    gpu = body.get("gpu", {})
    endpoint = (existing or {}) | body
    kind, scaling = endpoint.get("type"), endpoint.get("scaling", {}).get("type")
    if (kind, scaling) == ("LOAD_BALANCER", "QUEUE_DELAY"):
        yield "a load balancer scales by REQUEST_COUNT"
    if (kind, scaling) == ("QUEUE", "REQUEST_COUNT") and "idleTimeout" in body.get("workers", {}):
        yield "workers.idleTimeout does not apply to a queue that scales by REQUEST_COUNT"
    cuda = (existing or {}).get("gpu", {}) | gpu
    if cuda.get("minCudaVersion") and cuda.get("allowedCudaVersions"):
        yield "gpu.minCudaVersion and gpu.allowedCudaVersions are mutually exclusive"
    if existing is None:
        if ("gpu" in body) == ("cpu" in body):
            yield "exactly one of gpu and cpu"
        if not {"image", "templateId"} & body.keys():
            yield "image is required"
    else:
        if "excludedTypes" in gpu and "pools" not in gpu:
            yield "gpu.excludedTypes requires gpu.pools"
        yield from (
            f"the endpoint has no {name}"
            for name in ("gpu", "cpu")
            if name in body.keys() - existing.keys()
        )


# ------------------------------------------------------------------------------- the account

DEFAULTS: dict[str, Any] = {
    "args": "",
    "createdAt": "2026-11-01T12:00:00Z",
    "dataCenterIds": [],
    "disk": 20,
    "env": {},
    "flashboot": "OFF",
    "networkVolumes": [],
    "ports": [],
    "registry": None,
    "timeout": 300_000,
}


class Answer(NamedTuple):
    """A fault, sent instead of the regular response."""

    status: int
    body: str = ""
    content_type: str = "application/json"
    location: str | None = None


def worker(worker_id: str = "w1", status: str = "IDLE", **fields: Any) -> dict[str, Any]:
    """Return a worker as RunPod shows it, on no machine yet unless `fields` says so."""
    return {"id": worker_id, "status": status, "gpuCount": 1, "isStale": False} | fields


class RunPodApi(LoopbackServer):
    """An initially empty account. `answers` maps "METHOD /path" to faults.

    `workers` has the workers of each look at them; the last one repeats. `logs` maps their ids to
    lines. `costs` maps endpoints' ids to dollars a day.
    """

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.releases: dict[str, list[dict[str, Any]]] = {}
        self.workers: list[list[dict[str, Any]]] = [[]]
        self.logs: dict[str, list[str]] = {}
        self.costs: dict[str, float] = {}
        self.registries: list[dict[str, Any]] = []
        self.writes: list[tuple[str, dict[str, Any]]] = []
        self.deleted: list[str] = []
        self.answers: dict[str, Answer] = {}
        self.url = f"{self.base}/v2"
        self.stopped = threading.Event()
        self._numbers = itertools.count(1)

    def __exit__(self, *exception: object) -> None:
        self.stopped.set()
        super().__exit__(*exception)

    def get(self, path: str, query: dict[str, Any]) -> tuple[int, Any]:
        if path == "/serverless":
            return 200, {"endpoints": [*self.endpoints.values()]}
        if path == "/registries":
            return 200, {"registries": self.registries}
        if path == "/billing/serverless":
            return self.billing(query)
        endpoint_id, _, part = path.removeprefix("/serverless/").partition("/")
        if endpoint_id not in self.endpoints:
            return problem(404, "Not Found", "endpoint not found")
        if part == "workers":
            return 200, self.list_workers(endpoint_id)
        if part == "releases":
            return 200, self.list_releases(endpoint_id)
        return 200, self.endpoints[endpoint_id]

    def list_workers(self, endpoint_id: str) -> dict[str, Any]:
        workers = self.workers.pop(0) if len(self.workers) > 1 else self.workers[0]
        statuses = ("running", "idle", "initializing", "throttled", "unhealthy")
        counts = {s: sum(w["status"] == s.upper() for w in workers) for s in statuses}
        return {
            "workers": workers,
            "summary": counts | {"total": len(workers)},
            "endpointVersion": len(self.releases.get(endpoint_id, ())),
        }

    def list_releases(self, endpoint_id: str) -> dict[str, Any]:
        latest = sum(not worker["isStale"] for worker in self.workers[0])
        total = len(self.workers[0])
        return {
            "endpointVersion": len(self.releases.get(endpoint_id, ())),
            "rollout": {
                "inProgress": latest < total,
                "workersOnLatest": latest,
                "workersTotal": total,
                "percentOnLatest": 100 * latest // total if total else 0,
            },
            "releases": self.releases.get(endpoint_id, [])[::-1],
        }

    def billing(self, query: dict[str, Any]) -> tuple[int, Any]:
        if errors := [*violations(FIELDS["queries"][BILLING_PATH], query)]:
            return problem(422, "Unprocessable Entity", "Request validation failed.", errors)
        if "lastN" in query and {"startTime", "endTime"} & query.keys():
            return problem(400, "Bad Request", "lastN excludes startTime and endTime")
        window = {"startTime": "2026-11-01T00:00:00Z", "endTime": "2026-11-02T00:00:00Z"}
        ids = [i for i in self.costs if query.get("serverlessId", i) == i]
        records = [amounts(self.costs[i]) | window | {"serverlessId": i} for i in ids]
        metadata = {
            "query": {**window, "bucketSize": query.get("bucketSize", "day")},
            "recordCount": len(records),
            "uniqueServerlessCount": len(records),
            "totals": amounts(sum(self.costs[i] for i in ids)),
        }
        return 200, {"records": records, "metadata": metadata}

    def delete(self, endpoint_id: str) -> tuple[int, Any]:
        if self.endpoints.pop(endpoint_id, None) is None:
            return problem(404, "Not Found", "endpoint not found")
        self.deleted.append(endpoint_id)
        return 204, None

    def _release(self, endpoint_id: str, body: dict[str, Any], before: dict[str, Any]) -> None:
        releases = self.releases.setdefault(endpoint_id, [])
        diff = [{"field": n, "old": before.get(n), "new": v} for n, v in body.items()]
        version = len(releases) + 1
        releases.append(
            {
                "id": f"rel{version}",
                "version": version,
                "source": "MANUAL",
                "createdAt": DEFAULTS["createdAt"],
                "workerCount": 0,
                "diff": diff,
            }
        )

    def create(self, body: dict[str, Any]) -> tuple[int, Any]:
        if errors := [*violations(CREATE_ENDPOINT, body)]:
            return problem(422, "Unprocessable Entity", "Request validation failed.", errors)
        if errors := [*conflicts(body, None)]:
            return problem(400, "Bad Request", errors[0])
        endpoint_id = f"ep{next(self._numbers):08}"
        workers = {"min": 0, "max": 3, "idleTimeout": 10} | body.get("workers", {})
        self.endpoints[endpoint_id] = {
            **DEFAULTS,
            **body,
            "id": endpoint_id,
            "requestUrls": request_urls(endpoint_id, body["type"]),
            "workers": workers,
        }
        gpu = {"count": 1, "allowedCudaVersions": [], "minCudaVersion": None}
        self._set_gpu(endpoint_id, body, gpu)
        self._release(endpoint_id, body, {})
        self.writes.append((endpoint_id, body))
        return 201, self.endpoints[endpoint_id]

    def update(self, endpoint_id: str, body: dict[str, Any]) -> tuple[int, Any]:
        if endpoint_id not in self.endpoints:
            return problem(404, "Not Found", "endpoint not found")
        if errors := [*violations(UPDATE_ENDPOINT, body)]:
            return problem(422, "Unprocessable Entity", "Request validation failed.", errors)
        existing = self.endpoints[endpoint_id]
        if errors := [*conflicts(body, existing)]:
            return problem(400, "Bad Request", errors[0])
        workers = existing["workers"] | body.get("workers", {})
        gpu = existing["gpu"]
        if "pools" in body.get("gpu", {}):
            gpu = {name: value for name, value in gpu.items() if name != "excludedTypes"}
        self.endpoints[endpoint_id] = {**existing, **body, "workers": workers}
        self._set_gpu(endpoint_id, body, gpu)
        self._release(endpoint_id, body, existing)
        self.writes.append((endpoint_id, body))
        return 200, self.endpoints[endpoint_id]

    def _set_gpu(self, endpoint_id: str, body: dict[str, Any], previous: dict[str, Any]) -> None:
        """Store `gpu` as RunPod returns it, with empty `excludedTypes` removed."""
        gpu = previous | body.get("gpu", {})
        gpu["minCudaVersion"] = gpu["minCudaVersion"] or None
        if not gpu.get("excludedTypes"):
            gpu.pop("excludedTypes", None)
        self.endpoints[endpoint_id]["gpu"] = gpu


def problem(
    status: int, title: str, detail: str, errors: list[str] | None = None
) -> tuple[int, Any]:
    """Return a problem response of RFC 9457."""
    body = {"title": title, "status": status, "detail": detail}
    return status, body | ({"errors": errors} if errors else {})


def amounts(total: float) -> dict[str, float]:
    parts = dict.fromkeys(("cpuAmount", "diskAmount", "feeAmount"), 0.0)
    return parts | {"totalAmount": total, "gpuAmount": total}


def request_urls(endpoint_id: str, endpoint_type: str) -> dict[str, str]:
    if endpoint_type == "LOAD_BALANCER":
        base = f"https://{endpoint_id}.api.runpod.ai"
        return {"base": base, "health": f"{base}/ping"}
    base = f"https://api.runpod.ai/v2/{endpoint_id}"
    return {
        **{name: f"{base}/{name}" for name in ("run", "health")},
        **{name: f"{base}/{name}/{{job_id}}" for name in ("status", "stream", "cancel", "retry")},
        "runSync": f"{base}/runsync",
        "purgeQueue": f"{base}/purge-queue",
    }


def is_documented(method: str, path: str) -> bool:
    return any(
        re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), f"/v2{path}")
        and method.lower() in methods
        for template, methods in FIELDS["paths"].items()
    )


def query_values(text: str) -> dict[str, Any]:
    return {name: int(v) if v.isdecimal() else v for name, v in parse_qsl(text)}


class _Handler(BaseHTTPRequestHandler):
    server: RunPodApi

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, _, text = self.path.removeprefix("/v2").partition("?")
        query = query_values(text)
        if fault := self.server.answers.get(f"{self.command} {path}"):
            self._send(*fault)
        elif self.headers.get("Authorization") != f"Bearer {KEY}":
            self._reply(*problem(401, "Unauthorized", "missing bearer token"))
        elif not is_documented(self.command, path):
            self._reply(*problem(405, "Method Not Allowed", f"{self.command} {path}"))
        elif log := re.fullmatch("/serverless/[^/]+/workers/([^/]+)/logs", path):
            self._stream(log[1], query)
        else:
            self._reply(*self._answer(path, query, body))

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

    def _answer(self, path: str, query: dict[str, Any], body: bytes) -> tuple[int, Any]:
        endpoint_id = path.removeprefix("/serverless/")
        if self.command == "GET":
            return self.server.get(path, query)
        if self.command == "DELETE":
            return self.server.delete(endpoint_id)
        if path == "/serverless":
            return self.server.create(json.loads(body))
        return self.server.update(endpoint_id, json.loads(body))

    def _stream(self, worker_id: str, query: dict[str, Any]) -> None:
        """Send the last lines of a log, then wait for new ones, which never come."""
        if errors := [*violations(FIELDS["queries"][LOGS_PATH], query)]:
            return self._reply(*problem(422, "Unprocessable Entity", "invalid query", errors))
        if worker_id not in self.server.logs:
            return self._reply(*problem(404, "Not Found", "worker not found"))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for line in self.server.logs[worker_id][-query.get("tail", 100) :]:
            ts = DEFAULTS["createdAt"]
            data = json.dumps({"source": "container", "line": line, "ts": ts})
            self.wfile.write(f"id: {ts}\ndata: {data}\n\n".encode())
        self.server.stopped.wait(OPEN_SECONDS)
        return None

    def _reply(self, status: int, body: object) -> None:
        kind = "application/json" if status < 400 else "application/problem+json"
        self._send(status, "" if body is None else json.dumps(body), kind, None)

    def _send(self, status: int, body: str, content_type: str, location: str | None) -> None:
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
