"""RunPod's REST API on this machine: templates and endpoints, as documented in 2026-11.

It keeps what is created, refuses fields that it does not know and a wrong key, and notes each
write in `writes`.
"""

from __future__ import annotations

import itertools
import json
from http.server import BaseHTTPRequestHandler
from typing import Any

from fakes.loopback import LoopbackServer

KEY = "rpa_a-key"
FIELDS = {
    "templates": {
        *("category", "containerDiskInGb", "containerRegistryAuthId", "dockerEntrypoint"),
        *("dockerStartCmd", "env", "imageName", "isPublic", "isServerless", "name", "ports"),
        *("readme", "volumeInGb", "volumeMountPath"),
    },
    "endpoints": {
        *("allowedCudaVersions", "computeType", "cpuFlavorIds", "dataCenterIds", "flashboot"),
        *("executionTimeoutMs", "gpuCount", "gpuTypeIds", "idleTimeout", "name", "templateId"),
        *("networkVolumeId", "scalerType", "scalerValue", "vcpuCount", "workersMax"),
        "workersMin",
    },
}
REQUIRED = {"templates": {"imageName", "name"}, "endpoints": {"templateId"}}


class RunPodApi(LoopbackServer):
    """An account that is empty at first."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.kept: dict[str, dict[str, dict[str, Any]]] = {"templates": {}, "endpoints": {}}
        self.writes: list[tuple[str, str, dict[str, Any]]] = []
        self.url = f"{self.base}/v1"
        self._numbers = itertools.count(1)

    def write(self, kind: str, given_id: str | None, body: dict[str, Any]) -> tuple[int, Any]:
        unknown = body.keys() - FIELDS[kind]
        if unknown:
            return 400, {"error": f"unknown fields: {sorted(unknown)}"}
        if given_id is None:
            missing = REQUIRED[kind] - body.keys()
            names = {one["name"] for one in self.kept[kind].values()}
            if missing or body.get("name") in names:
                return 400, {"error": f"missing {sorted(missing)}, or the name is taken"}
            given_id = f"{kind[0]}{next(self._numbers):08}"
            self.kept[kind][given_id] = {"id": given_id}
        elif given_id not in self.kept[kind]:
            return 404, {"error": "not found"}
        self.writes.append((kind, given_id, body))
        self.kept[kind][given_id] |= body
        return 200, self.kept[kind][given_id]


class _Handler(BaseHTTPRequestHandler):
    server: RunPodApi

    def do_GET(self) -> None:
        kind = self.path.removeprefix("/v1/")
        if self._admitted() and kind in FIELDS:
            self._reply(200, list(self.server.kept[kind].values()))

    def do_POST(self) -> None:
        self._write()

    def do_PATCH(self) -> None:
        self._write()

    def _write(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind, _, given_id = self.path.removeprefix("/v1/").partition("/")
        if self._admitted():
            self._reply(*self.server.write(kind, given_id or None, body))

    def _admitted(self) -> bool:
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self._reply(401, {"error": "unauthorized"})
            return False
        return True

    def _reply(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's own output readable."""
