"""The endpoints of a run."""

from __future__ import annotations

import time
from pathlib import Path

import httpx2

from bge_client import Client

from ..deploy.api import RunPod, Worker
from ..deploy.plan import plan
from ..deploy.probes import TIMEOUT, make_probe, url_of
from ..deploy.settings import EndpointType, Fields, read_settings
from ..deploy.wait import History, wait_for_worker
from .budget import MAX_WORKERS
from .record import Lease, Record, ReportError

PREFIX = "bge-field-report"  # of the names: what is left of a killed run is found by it
START_SECONDS = 600.0  # for a worker, image pull included
IDLE_SECONDS = 180.0  # for a worker to stop
POLL_SECONDS = 2.0


class Context:
    """What the cloud's steps share: one endpoint at a time, created when a step needs its type."""

    def __init__(
        self, runpod: RunPod, key: str, image: str, registry: str | None, record: Record, path: Path
    ) -> None:
        self.runpod = runpod
        self.key = key
        self.record = record
        self._image, self._registry = image, registry
        self._path = path
        self._endpoints: dict[EndpointType, Fields] = {}  # at most one

    def save(self) -> None:
        self.record.save(self._path)

    def endpoint(self, endpoint_type: EndpointType) -> Fields:
        """Return the endpoint of that type, deployed and with a worker that answers."""
        if endpoint_type not in self._endpoints:
            self.close()
            self._endpoints[endpoint_type] = self._deploy(endpoint_type)
        return self._endpoints[endpoint_type]

    def _deploy(self, endpoint_type: EndpointType) -> Fields:
        settings = self.settings(endpoint_type)
        # Counted from before the request: it may succeed and its response be lost.
        self.record.leases.append(Lease(endpoint_type, time.time()))
        self.save()
        endpoint = self.runpod.apply(plan(settings, None))
        history = self.wait(endpoint, endpoint_type)
        stages = [{"stage": stage, "at_seconds": round(at, 1)} for stage, at in history.stages]
        worker = next((worker for worker in history.workers if worker.is_ready), None)
        if worker is not None and worker.gpu:
            self.record.card = worker.gpu
        first_start = {"stages": stages, "gpu": worker.gpu if worker else None}
        self.record.results.setdefault(f"{endpoint_type}: first start", first_start)
        self.save()
        return endpoint

    def settings(self, endpoint_type: EndpointType) -> Fields:
        """Return the fields of `deploy.toml` with a name of the run's own and one worker."""
        settings = read_settings(endpoint_type)
        workers = {**settings["workers"], "max": MAX_WORKERS}
        env = {**settings["env"], "BGE_TRACE_START": "1"}
        name = f"{PREFIX}-{self.record.run_id}-{endpoint_type}"
        own = {"name": name, "image": self._image, "workers": workers, "env": env}
        if self._registry:
            own["registry"] = self._registry
        return {**settings, **own}

    def update(self, endpoint_type: EndpointType, changes: Fields) -> None:
        """Change fields of an endpoint, and wait for a worker of its new version."""
        endpoint = self.endpoint(endpoint_type)
        settings = {**self.settings(endpoint_type), **changes}
        self._endpoints[endpoint_type] = self.runpod.apply(plan(settings, endpoint))

    def wait(self, endpoint: Fields, endpoint_type: EndpointType) -> History:
        """Wait until a worker answers. Raises DeployError as `wait_for_worker`."""
        history = History()
        kind = endpoint["type"]
        headers = {"Authorization": f"Bearer {self.key}"}
        url = url_of(endpoint["id"], kind)
        with httpx2.Client(base_url=url, headers=headers, timeout=TIMEOUT) as http:
            probe = make_probe(kind, http, START_SECONDS)
            try:
                wait_for_worker(self.runpod, endpoint["id"], probe, history, START_SECONDS)
            finally:
                probe.close()
        return history

    def url(self, endpoint_type: EndpointType) -> str:
        endpoint = self.endpoint(endpoint_type)
        return url_of(endpoint["id"], endpoint["type"])

    def client(self, endpoint_type: EndpointType) -> Client:
        return Client(self.url(endpoint_type), self.key, timeout=START_SECONDS)

    def workers(self, endpoint_type: EndpointType) -> list[Worker]:
        return self.runpod.workers(self.endpoint(endpoint_type)["id"])

    def wait_until_idle(self, endpoint_type: EndpointType) -> float:
        """Wait until no worker is left. Return the seconds.

        Raises ReportError: one still runs after `IDLE_SECONDS`.
        """
        start = time.monotonic()
        while any(worker.is_ready for worker in self.workers(endpoint_type)):
            if time.monotonic() - start > IDLE_SECONDS:
                raise ReportError(
                    f"a worker still runs {IDLE_SECONDS:.0f} s after the last request"
                )
            time.sleep(POLL_SECONDS)
        return time.monotonic() - start

    def close(self) -> None:
        """Delete every endpoint of this run, also one whose creation was not answered."""
        self._endpoints.clear()
        delete_all(self.runpod, f"{PREFIX}-{self.record.run_id}")
        now = time.time()
        for lease in self.record.leases:
            lease.end = lease.end or now
        self.save()


def delete_all(runpod: RunPod, prefix: str) -> list[str]:
    """Delete the endpoints whose names begin so. Return the names.

    Raises DeployError: RunPod refuses. All others are deleted before.
    """
    names = []
    failure: Exception | None = None
    for endpoint in runpod.endpoints():
        name = str(endpoint.get("name"))
        if not name.startswith(prefix):
            continue
        try:
            runpod.delete(endpoint["id"])
            names.append(name)
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure
    return names
