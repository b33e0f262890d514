"""RunPod's REST API, version 2, on this machine: serverless endpoints and registry credentials.

It keeps what is created and notes each write in `writes`. It refuses what RunPod's OpenAPI document
refuses: `CREATE_ENDPOINT` and `UPDATE_ENDPOINT` say in JSON Schema's words which fields there are
(`tests/fakes/test_runpod_api.py` compares them with the document), `conflicts` holds the rules
that the document has in prose.
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
WHOLE: Schema = {"type": "integer"}
POSITIVE = WHOLE | {"minimum": 1}
NATURAL = WHOLE | {"minimum": 0}
VERSION = r"^\d+\.\d+$"


def choice(*values: str) -> Schema:
    return TEXT | {"enum": list(values)}


def record(required: str = "", **properties: Schema) -> Schema:
    """An object of these fields and no others."""
    return {"type": "object", "properties": properties, "required": required.split()}


EXCLUDED = {"type": "array", "items": TEXT | {"pattern": r"^\s*[^-\s]"}, "uniqueItems": True}
CUDA_VERSIONS = {"type": "array", "items": TEXT | {"pattern": VERSION}}
GPU = {
    "pools": TEXTS | {"minItems": 1},
    "excludedTypes": EXCLUDED,
    "count": POSITIVE,
    "allowedCudaVersions": CUDA_VERSIONS,
}
CPU = record("id vcpuCount", id=NAME, vcpuCount=WHOLE | {"minimum": 2})
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
    "timeout": WHOLE,
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
    """What of `value` the schema refuses."""
    if "oneOf" in schema:
        if not any(not [*violations(option, value)] for option in schema["oneOf"]):
            yield f"{path}: matches none of the variants"
        return
    names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if isinstance(value, bool) or not any(isinstance(value, TYPES[name]) for name in names):
        yield f"{path}: got {type(value).__name__}, want {' or '.join(names)}"
        return
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    length = len(value) if isinstance(value, str | list) else 0
    if isinstance(value, int | float) and not low <= value <= high:
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
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}: missing property '{name}'"
    for name, field in value.items():
        if field_schema := properties.get(name, others):
            yield from violations(field_schema, field, f"{path}.{name}")
        else:
            yield f"{path}: additional properties '{name}' not allowed"


def conflicts(body: dict[str, Any], kept: dict[str, Any] | None) -> Iterator[str]:
    """The rules that the document has in prose; `kept` is the endpoint that is changed."""
    gpu = body.get("gpu", {})
    cuda = (kept or {}).get("gpu", {}) | gpu
    if cuda.get("minCudaVersion") and cuda.get("allowedCudaVersions"):
        yield "gpu.minCudaVersion and gpu.allowedCudaVersions are mutually exclusive"
    if kept is None:
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
            if name in body.keys() - kept.keys()
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
    """Given in place of the account's own answer."""

    status: int
    body: str = ""
    content_type: str = "application/json"
    location: str | None = None


class RunPodApi(LoopbackServer):
    """An account that is empty at first. `answers` are faults, by method and path."""

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
        given_id = f"ep{next(self._numbers):08}"
        workers = {"min": 0, "max": 3, "idleTimeout": 10} | body.get("workers", {})
        self.endpoints[given_id] = {
            **DEFAULTS,
            **body,
            "id": given_id,
            "requestUrls": request_urls(given_id),
            "workers": workers,
        }
        self._place(given_id, body, {"count": 1, "allowedCudaVersions": [], "minCudaVersion": None})
        self.writes.append((given_id, body))
        return 201, self.endpoints[given_id]

    def update(self, given_id: str, body: dict[str, Any]) -> tuple[int, Any]:
        if given_id not in self.endpoints:
            return problem(404, "Not Found", "endpoint not found")
        if errors := [*violations(UPDATE_ENDPOINT, body)]:
            return problem(422, "Unprocessable Entity", "Request validation failed.", errors)
        kept = self.endpoints[given_id]
        if errors := [*conflicts(body, kept)]:
            return problem(400, "Bad Request", errors[0])
        workers = kept["workers"] | body.get("workers", {})
        gpu = kept["gpu"]
        if "pools" in body.get("gpu", {}):
            gpu = {name: value for name, value in gpu.items() if name != "excludedTypes"}
        self.endpoints[given_id] = {**kept, **body, "workers": workers}
        self._place(given_id, body, gpu)
        self.writes.append((given_id, body))
        return 200, self.endpoints[given_id]

    def _place(self, given_id: str, body: dict[str, Any], before: dict[str, Any]) -> None:
        """The GPUs as RunPod gives them back: nothing for no exclusions, null for no floor."""
        gpu = before | body.get("gpu", {})
        gpu["minCudaVersion"] = gpu["minCudaVersion"] or None
        if not gpu.get("excludedTypes"):
            gpu.pop("excludedTypes", None)
        self.endpoints[given_id]["gpu"] = gpu


def problem(
    status: int, title: str, detail: str, errors: list[str] | None = None
) -> tuple[int, Any]:
    """RFC 9457."""
    body = {"title": title, "status": status, "detail": detail}
    return status, body | ({"errors": errors} if errors else {})


def request_urls(given_id: str) -> dict[str, str]:
    base = f"https://api.runpod.ai/v2/{given_id}"
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
            given_id = path.removeprefix("/serverless/")
            self._reply(*self.server.update(given_id, json.loads(body)))

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
        """Keep the test's own output readable."""
