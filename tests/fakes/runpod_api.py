"""A fake of RunPod's REST API, version 2: serverless endpoints and registry credentials.

It stores created endpoints and records each write in `writes`. It validates requests as RunPod's
OpenAPI document does: `CREATE_ENDPOINT` and `UPDATE_ENDPOINT` are JSON Schemas, which
`tests/fakes/test_runpod_api.py` compares with the document. `conflicts` has the rules that the
document states in prose.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

from fakes.loopback import LoopbackServer

KEY = "rpa_a-key"
Schema = dict[str, Any]

# -------------------------------------------------------------------- the fields of a request

TEXT: Schema = {"type": "string"}
NAME = TEXT | {"minLength": 1}
TEXTS: Schema = {"type": "array", "items": TEXT}
INTEGER: Schema = {"type": "integer"}
POSITIVE = INTEGER | {"minimum": 1}
NATURAL = INTEGER | {"minimum": 0}
VERSION = r"^\d+\.\d+$"


def choice(*values: str) -> Schema:
    return TEXT | {"enum": list(values)}


def record(required: str = "", **properties: Schema) -> Schema:
    """Return the schema of an object with these fields and no others."""
    return {"type": "object", "properties": properties, "required": required.split()}


EXCLUDED = {"type": "array", "items": TEXT | {"pattern": r"^\s*[^-\s]"}, "uniqueItems": True}
CUDA_VERSIONS = {"type": "array", "items": TEXT | {"pattern": VERSION}}
GPU = {
    "pools": TEXTS | {"minItems": 1},
    "excludedTypes": EXCLUDED,
    "count": POSITIVE,
    "allowedCudaVersions": CUDA_VERSIONS,
}
CPU = record("id vcpuCount", id=NAME, vcpuCount=INTEGER | {"minimum": 2})
QUEUE_DELAY = record(
    "type queueDelay",
    type=choice("QUEUE_DELAY"),
    queueDelay={"type": "number", "minimum": 0.5},
)
REQUEST_COUNT = record("type requestCount", type=choice("REQUEST_COUNT"), requestCount=POSITIVE)
ENDPOINT = {
    "args": TEXT,
    "disk": POSITIVE,
    "env": {"type": "object", "additionalProperties": TEXT},
    "image": TEXT,
    "ports": TEXTS,
    "registry": {"type": ["string", "null"]},
    "cpu": {"type": "array", "items": CPU, "minItems": 1, "uniqueItems": True},
    "dataCenterIds": TEXTS,
    "flashboot": choice("OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"),
    "name": NAME,
    "networkVolumes": TEXTS,
    "scaling": {"oneOf": [QUEUE_DELAY, REQUEST_COUNT]},
    "timeout": INTEGER,
    "workers": record(min=NATURAL, max=NATURAL, idleTimeout=POSITIVE | {"maximum": 3600}),
}
CREATE_ENDPOINT = record(
    "name scaling type",
    **ENDPOINT,
    gpu=record("pools", **GPU, minCudaVersion=TEXT | {"pattern": VERSION}),
    templateId=NAME,
    type=choice("QUEUE", "LOAD_BALANCER"),
)
UPDATE_ENDPOINT = record(
    **ENDPOINT,
    gpu=record(**GPU, minCudaVersion=TEXT | {"pattern": f"^$|{VERSION}"}),
    templateId=TEXT,
)
TYPES: dict[str, type | tuple[type, ...]] = {
    "array": list,
    "integer": int,
    "null": type(None),
    "number": (int, float),
    "object": dict,
    "string": str,
}


def violations(schema: Schema, value: Any, path: str = "$") -> Iterator[str]:
    """Yield each violation of the schema in `value`."""
    if "oneOf" in schema:
        if not any(not [*violations(option, value)] for option in schema["oneOf"]):
            yield f"{path}: matches none of the variants"
        return
    names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if isinstance(value, bool) or not any(isinstance(value, TYPES[name]) for name in names):
        yield f"{path}: got {type(value).__name__}, want {' or '.join(names)}"
        return
    minimum, maximum = schema.get("minimum", value), schema.get("maximum", value)
    length = len(value) if isinstance(value, str | list) else 0
    if isinstance(value, int | float) and not minimum <= value <= maximum:
        yield f"{path}: {value} is out of range"
    if length < schema.get("minLength", 0) or length < schema.get("minItems", 0):
        yield f"{path}: too short"
    if value not in schema.get("enum", [value]):
        yield f"{path}: value must be one of {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: does not match {schema['pattern']}"
    if schema.get("uniqueItems") and len({json.dumps(item) for item in value}) < length:
        yield f"{path}: items are not unique"
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from violations(schema["items"], item, f"{path}[{index}]")
    if isinstance(value, dict):
        yield from field_violations(schema, value, path)


def field_violations(schema: Schema, value: dict[str, Any], path: str) -> Iterator[str]:
    properties, additional = schema.get("properties", {}), schema.get("additionalProperties")
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}: missing property '{name}'"
    for name, field in value.items():
        if field_schema := properties.get(name, additional):
            yield from violations(field_schema, field, f"{path}.{name}")
        else:
            yield f"{path}: additional properties '{name}' not allowed"


def conflicts(body: dict[str, Any], existing: dict[str, Any] | None) -> Iterator[str]:
    """Yield violations of the rules stated in prose. `existing` is the endpoint to update."""
    gpu = body.get("gpu", {})
    cuda = (existing or {}).get("gpu", {}) | gpu
    if cuda.get("minCudaVersion") and cuda.get("allowedCudaVersions"):
        yield "gpu.minCudaVersion and gpu.allowedCudaVersions are mutually exclusive"
    if existing is None:
        if ("gpu" in body) == ("cpu" in body):
            yield "exactly one of gpu and cpu"
        if not {"image", "templateId"} & body.keys():
            yield "image is required"
        if (body["type"], body["scaling"]["type"]) == ("LOAD_BALANCER", "QUEUE_DELAY"):
            yield "a load balancer scales by REQUEST_COUNT"
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


class RunPodApi(LoopbackServer):
    """An initially empty account. `answers` maps "METHOD /path" to faults."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.registries: list[dict[str, Any]] = []
        self.writes: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Answer] = {}
        self.url = f"{self.base}/v2"
        self._numbers = itertools.count(1)

    def get(self, path: str) -> tuple[int, Any]:
        if path == "/serverless":
            return 200, {"endpoints": [*self.endpoints.values()]}
        if path == "/registries":
            return 200, {"registries": self.registries}
        endpoint = self.endpoints.get(path.removeprefix("/serverless/"))
        return (200, endpoint) if endpoint else problem(404, "Not Found", "endpoint not found")

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
            "requestUrls": request_urls(endpoint_id),
            "workers": workers,
        }
        gpu = {"count": 1, "allowedCudaVersions": [], "minCudaVersion": None}
        self._set_gpu(endpoint_id, body, gpu)
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


def request_urls(endpoint_id: str) -> dict[str, str]:
    base = f"https://api.runpod.ai/v2/{endpoint_id}"
    return {
        **{name: f"{base}/{name}" for name in ("run", "health")},
        **{name: f"{base}/{name}/{{job_id}}" for name in ("status", "stream", "cancel", "retry")},
        "runSync": f"{base}/runsync",
        "purgeQueue": f"{base}/purge-queue",
    }


class _Handler(BaseHTTPRequestHandler):
    server: RunPodApi

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PATCH(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.removeprefix("/v2")
        if fault := self.server.answers.get(f"{self.command} {path}"):
            self._send(*fault)
        elif self.headers.get("Authorization") != f"Bearer {KEY}":
            self._reply(*problem(401, "Unauthorized", "missing bearer token"))
        elif self.command == "GET":
            self._reply(*self.server.get(path))
        elif self.command == "POST" and path == "/serverless":
            self._reply(*self.server.create(json.loads(body)))
        else:
            endpoint_id = path.removeprefix("/serverless/")
            self._reply(*self.server.update(endpoint_id, json.loads(body)))

    def _reply(self, status: int, body: object) -> None:
        kind = "application/json" if status < 400 else "application/problem+json"
        self._send(status, json.dumps(body), kind, None)

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
