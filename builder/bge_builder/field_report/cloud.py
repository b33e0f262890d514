"""The steps on RunPod."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2

from bge_client import Client, endpoint_state

from ..deploy.api import json_of
from ..deploy.settings import DeployError, EndpointType, Fields
from . import measures
from .clients import measure_clients
from .context import IDLE_SECONDS, START_SECONDS, Context
from .record import ReportError

COLD_STARTS = 3  # of each kind
DRAIN_SECONDS = 1.0  # that a request runs before its worker is taken away
JOB_SECONDS = 300.0  # for a single job
FLASHBOOTS = ("FLASHBOOT", "OFF")
BILLED_DAYS = 2
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


@dataclass(frozen=True)
class Step(ABC):
    """`seconds` is the most that it may take."""

    title: str
    endpoint_type: EndpointType
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.endpoint_type}: {self.title}"

    @abstractmethod
    def run(self, context: Context) -> dict[str, Any]:
        """Return what was measured. Raises BGEError, BuilderError or HTTPError."""


@dataclass(frozen=True)
class ClientStep(Step):
    """Measures the endpoint through its client."""

    measure: Callable[[Client], dict[str, Any]]

    def run(self, context: Context) -> dict[str, Any]:
        with context.client(self.seconds) as client:
            return self.measure(client)


@dataclass(frozen=True)
class PlatformStep(Step):
    """Measures what RunPod does with the endpoint."""

    measure: Callable[[Context], dict[str, Any]]

    def run(self, context: Context) -> dict[str, Any]:
        return self.measure(context)


def queue_clients(context: Context) -> dict[str, Any]:
    urls = {"openai through RunPod's proxy": f"{context.url}/openai/v1", "runpod": context.ids[-1]}
    with context.client() as client:
        return measure_clients(client, urls, context.key)


def balancer_clients(context: Context) -> dict[str, Any]:
    with context.client() as client:
        return measure_clients(client, {"openai": f"{context.url}/v1"}, context.key)


def http_client(context: Context) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {context.key}"}
    return httpx2.Client(base_url=context.url, headers=headers, timeout=JOB_SECONDS)


def finished_job(http: httpx2.Client, payload: Fields) -> Fields:
    """Submit a job and return its state at the end.

    Raises ReportError: the reply is not a job, or it has not ended in time.
    """
    job = json_of(http.post("/run", json={"input": payload}))
    end = time.monotonic() + JOB_SECONDS
    while isinstance(job, dict) and isinstance(job.get("id"), str):
        if job.get("status") in ENDED:
            return job
        if time.monotonic() > end:
            raise ReportError(f"a job is {job.get('status')} after {JOB_SECONDS:.0f} s")
        time.sleep(1.0)
        job = json_of(http.get(f"/status/{job['id']}"))
    raise ReportError("the reply is not a job")


def failed_job(context: Context) -> dict[str, Any]:
    """Return what the platform keeps of the error of a job that fails."""
    with http_client(context) as http:
        job = finished_job(http, {"texts": [" "]})
    return {"status": job["status"], "error": job.get("error"), "fields": sorted(job)}


def queue_idle(context: Context) -> dict[str, Any]:
    """Return when the worker stops after the last request, and what /health says then."""
    with context.client() as client:
        client.embed(measures.QUERY)
        seconds = context.wait_until_idle()
        state = endpoint_state(client.health())
    return {"seconds_until_stopped": round(seconds, 1), "state": state.name}


def balancer_idle(context: Context) -> dict[str, Any]:
    """Return when the worker stops after the last request. A look at /health would start one."""
    with context.client() as client:
        client.embed(measures.QUERY)
    return {"seconds_until_stopped": round(context.wait_until_idle(), 1)}


def cold_starts(context: Context) -> dict[str, Any]:
    """Return the seconds from a request without a worker to its vector, by FlashBoot."""
    outcomes: dict[str, Any] = {}
    try:
        for flashboot in FLASHBOOTS:
            context.wait(context.update({"flashboot": flashboot}))
            outcomes[flashboot] = [cold_start(context) for _ in range(COLD_STARTS)]
    finally:
        context.update({})
    return outcomes


def cold_start(context: Context) -> dict[str, Any]:
    context.wait_until_idle()
    start = time.monotonic()
    with context.client() as client:
        client.embed(measures.QUERY)
    seconds = time.monotonic() - start
    return {"seconds": round(seconds, 2), "stages": start_trace(context)}


def start_trace(context: Context) -> list[str]:
    """Return the stages that the worker printed (`BGE_TRACE_START`), if its log can be read."""
    try:
        worker = next((worker for worker in context.workers() if worker.is_ready), None)
        lines = context.runpod.worker_log(context.ids[-1], worker.id) if worker else []
    except DeployError:
        return []
    return [line[line.index("start ") :] for line in lines if "start " in line and " s  " in line]


def parity(context: Context) -> dict[str, Any]:
    """Compare the card's fp16 with its own fp32.

    Raises ReportError: no worker with fp32 has started.
    """
    with context.client() as client:
        half = measures.Outputs(client)
        env = context.settings("queue")["env"]
        try:
            context.wait(context.update({"env": {**env, "BGE_DTYPE": "float32"}}))
            single = measures.Outputs(client)
        finally:
            context.wait(context.update({}))
    compared = half.compare(single)
    if half.dtype != "float16" or single.dtype != "float32":
        raise ReportError(f"the workers computed in {half.dtype} and {single.dtype}")
    return compared


def drain(context: Context) -> dict[str, Any]:
    """Take the worker away during a request. Return what became of the request."""
    workers = context.settings("queue")["workers"]
    pool = ThreadPoolExecutor(1)
    with http_client(context) as http:
        with context.client() as client:
            client.embed(measures.QUERY)
        request = pool.submit(outcome_of_request, http, context.record.leases[-1].endpoint_type)
        try:
            time.sleep(DRAIN_SECONDS)
            context.update({"workers": {**workers, "max": 0}})
            outcome = request.result()
        finally:
            pool.shutdown(wait=False)  # the request has a timeout of its own
            context.update({})
    return outcome


def outcome_of_request(http: httpx2.Client, endpoint_type: str) -> dict[str, Any]:
    """Send one long request, without retries. Return its status and how long it took."""
    payload = {"texts": measures.long_texts(512), "encoding_format": "base64"}
    start = time.monotonic()
    try:
        if endpoint_type == "queue":
            status = finished_job(http, payload)["status"]
        else:
            status = f"HTTP {http.post('/native/embed', json=payload).status_code}"
    except (httpx2.HTTPError, ReportError) as error:
        status = type(error).__name__
    return {"status": status, "seconds": round(time.monotonic() - start, 1)}


def billing(context: Context) -> dict[str, Any]:
    """Return RunPod's own figure so far, which may come hours late, and the seconds at most."""
    seconds = round(context.record.leases[-1].seconds(time.time()))
    try:
        metadata = context.runpod.billing(context.ids[-1], BILLED_DAYS).get("metadata")
    except DeployError as error:  # a key may lack the right
        return {"totals": None, "reason": str(error), "seconds_at_most": seconds}
    totals = metadata.get("totals") if isinstance(metadata, dict) else None
    return {"totals": totals, "seconds_at_most": seconds}


COLD_SECONDS = len(FLASHBOOTS) * (START_SECONDS + COLD_STARTS * (IDLE_SECONDS + 120.0))
STEPS: tuple[Step, ...] = (
    ClientStep("golden values", "queue", 60, measures.measure_golden_values),
    PlatformStep("clients", "queue", 120, queue_clients),
    PlatformStep("failed job", "queue", JOB_SECONDS, failed_job),
    ClientStep("lone query", "queue", 120, measures.measure_lone_query),
    ClientStep("throughput", "queue", 300, measures.measure_throughput),
    PlatformStep("parity", "queue", 2 * START_SECONDS + 60, parity),
    PlatformStep("idle", "queue", IDLE_SECONDS + 30, queue_idle),
    PlatformStep("cold starts", "queue", COLD_SECONDS, cold_starts),
    PlatformStep("drain", "queue", JOB_SECONDS + 60, drain),
    PlatformStep("billing", "queue", 30, billing),
    ClientStep("golden values", "lb", 60, measures.measure_golden_values),
    PlatformStep("clients", "lb", 120, balancer_clients),
    ClientStep("lone query", "lb", 120, measures.measure_lone_query),
    ClientStep("concurrency", "lb", 300, measures.measure_concurrency),
    ClientStep("throughput", "lb", 300, measures.measure_throughput),
    PlatformStep("idle", "lb", IDLE_SECONDS + 30, balancer_idle),
    PlatformStep("cold starts", "lb", COLD_SECONDS, cold_starts),
    PlatformStep("drain", "lb", JOB_SECONDS + 60, drain),
    PlatformStep("billing", "lb", 30, billing),
)
