"""The endpoint of a run: one at a time, deployed when a step needs its type."""

from __future__ import annotations

import time
from pathlib import Path

import httpx2

from bge_client import Client

from ..deploy.api import RunPod, UnavailableError, Worker
from ..deploy.plan import plan
from ..deploy.probes import TIMEOUT, make_probe, url_of
from ..deploy.settings import DeployError, EndpointType, Fields, read_settings
from ..deploy.wait import History, failure_report, wait_for_worker
from ..errors import BuilderError
from .interrupts import signals_deferred
from .record import Lease, Record, ReportError

PREFIX = "bge-field-report"  # of the names: what is left of a killed run is found by it
START_SECONDS = 600.0  # for a worker, image pull included
IDLE_SECONDS = 180.0  # for a worker to stop
POLL_SECONDS = 2.0
STARTED = ("RUNNING", "IDLE", "INITIALIZING")
DELETE_ATTEMPTS, DELETE_PAUSE = 5, 3.0


class Context:
    """What the cloud's steps share."""

    def __init__(
        self, runpod: RunPod, key: str, image: str, registry: str | None, record: Record, path: Path
    ) -> None:
        self.runpod = runpod
        self.key = key
        self.record = record
        self.ids: list[str] = []  # of all endpoints of this process
        self._image, self._registry = image, registry
        self._path = path
        self._type: EndpointType | None = None
        self._endpoint: Fields = {}

    def save(self) -> None:
        self.record.save(self._path)

    def endpoint(self, endpoint_type: EndpointType) -> Fields:
        """Return the endpoint of that type, deployed and with a worker that answers.

        Raises DeployError: RunPod refuses, or no worker gets ready.
        """
        if self._type != endpoint_type:
            self.close()
            self._deploy(endpoint_type)
        return self._endpoint

    def _deploy(self, endpoint_type: EndpointType) -> None:
        # Counted from before the request: it may succeed and its response be lost.
        lease = Lease(endpoint_type, time.time())
        self.record.leases.append(lease)
        self.save()
        with signals_deferred():
            self._endpoint = self.runpod.apply(plan(self.settings(endpoint_type), None))
            self.ids.append(self._endpoint["id"])
            self._type = endpoint_type
        history = self.wait(History())
        stages = [{"stage": stage, "at_seconds": round(at, 1)} for stage, at in history.stages]
        lease.gpu = next((worker.gpu for worker in history.workers if worker.gpu), None)
        number = sum(other.endpoint_type == endpoint_type for other in self.record.leases)
        name = f"{endpoint_type}: first start" + (f" of endpoint {number}" if number > 1 else "")
        self.record.results[name] = {"stages": stages, "gpu": lease.gpu}
        self.save()

    def settings(self, endpoint_type: EndpointType) -> Fields:
        """Return the fields of `deploy.toml` with a name of the run's own and one worker."""
        settings = read_settings(endpoint_type)
        env = {**settings["env"], "BGE_TRACE_START": "1", "BGE_DTYPE": "auto"}
        own = {
            "name": f"{PREFIX}-{self.record.run_id}-{endpoint_type}",
            "image": self._image,
            "workers": {**settings["workers"], "min": 0, "max": 1},
            "env": env,
        }
        if self._registry:
            own["registry"] = self._registry
        return {**settings, **own}

    def update(self, changes: Fields) -> History:
        """Change fields of the endpoint, and the others back to `settings`.

        Returns the history with which `wait` waits for a worker of the new version.
        """
        if self._type is None:
            raise AssertionError("no endpoint is deployed. This is a bug.")
        history = History(after_version=self.runpod.version(self._endpoint["id"]))
        settings = {**self.settings(self._type), **changes}
        self._endpoint = self.runpod.apply(plan(settings, self._endpoint))
        return history

    def wait(self, history: History) -> History:
        """Wait until a worker answers.

        Raises DeployError as `wait_for_worker`, having printed the log of a worker that failed.
        """
        endpoint_id, kind = self._endpoint["id"], self._endpoint["type"]
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx2.Client(base_url=self.url, headers=headers, timeout=TIMEOUT) as http:
            probe = make_probe(kind, http, START_SECONDS)
            try:
                wait_for_worker(self.runpod, endpoint_id, probe, history, START_SECONDS)
            except BuilderError:
                for line in failure_report(self.runpod, endpoint_id, history.workers):
                    print(line)
                raise
            finally:
                probe.close()
        return history

    @property
    def url(self) -> str:
        return url_of(self._endpoint["id"], self._endpoint["type"])

    def client(self, timeout: float = START_SECONDS) -> Client:
        return Client(self.url, self.key, timeout=timeout)

    def workers(self) -> list[Worker]:
        return self.runpod.workers(self._endpoint["id"])

    def wait_until_idle(self) -> float:
        """Wait until no worker is left. Return the seconds.

        Raises ReportError: one still runs after `IDLE_SECONDS`.
        """
        start = time.monotonic()
        while any(worker.status in STARTED for worker in self.workers()):
            if time.monotonic() - start > IDLE_SECONDS:
                raise ReportError(
                    f"a worker still runs after {IDLE_SECONDS:.0f} s without a request"
                )
            time.sleep(POLL_SECONDS)
        return time.monotonic() - start

    def close(self) -> None:
        """Delete every endpoint of this run, also one whose creation was not answered.

        Raises DeployError: RunPod refuses.
        """
        if self._type is not None:
            delete(self.runpod, self._endpoint["id"])
            self._type = None
        if self.record.leases:
            delete_all(self.runpod, f"{PREFIX}-{self.record.run_id}")
        self.record.end_leases()
        self.save()


def delete(runpod: RunPod, endpoint_id: str) -> None:
    """Raises DeployError: RunPod refuses, or stays unavailable."""
    for _ in range(DELETE_ATTEMPTS - 1):
        try:
            runpod.delete(endpoint_id)
            return
        except UnavailableError:
            time.sleep(DELETE_PAUSE)
    runpod.delete(endpoint_id)


def list_endpoints(runpod: RunPod) -> list[Fields]:
    """Raises DeployError: RunPod refuses, or stays unavailable."""
    for _ in range(DELETE_ATTEMPTS - 1):
        try:
            return runpod.endpoints()
        except UnavailableError:
            time.sleep(DELETE_PAUSE)
    return runpod.endpoints()


def delete_all(runpod: RunPod, prefix: str) -> list[str]:
    """Delete the endpoints whose names begin so. Return the names.

    Raises DeployError: RunPod refuses one. The others are deleted before.
    """
    names: list[str] = []
    failure: DeployError | None = None
    for endpoint in list_endpoints(runpod):
        name = str(endpoint.get("name"))
        if name.startswith(f"{prefix}-"):
            try:
                delete(runpod, endpoint["id"])
                names.append(name)
            except DeployError as error:
                failure = error
    if failure is not None:
        raise failure
    return names
