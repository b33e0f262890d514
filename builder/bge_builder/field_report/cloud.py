"""The steps on RunPod. Each takes the run's endpoints and returns what it found."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2

from bge_client import BGEError, endpoint_state

from ..deploy.api import json_of
from ..deploy.settings import EndpointType
from . import measures
from .clients import measure_clients
from .context import IDLE_SECONDS, START_SECONDS, Context

COLD_STARTS = 3  # of each kind
DRAIN_SECONDS = 1.0  # that a request runs before its worker is taken away
FLASHBOOTS = ("FLASHBOOT", "OFF")
BILLED_DAYS = 2


@dataclass(frozen=True)
class Step:
    """`seconds` is the most that `run` takes once the endpoint answers, for the budget."""

    title: str
    endpoint_type: EndpointType
    seconds: float
    run: Callable[[Context, EndpointType], dict[str, Any]]

    @property
    def name(self) -> str:
        return f"{self.endpoint_type}: {self.title}"


def golden_values(context: Context, endpoint_type: EndpointType) -> dict[str, Any]:
    with context.client(endpoint_type) as client:
        return measures.measure_golden_values(client)


def clients(context: Context, endpoint_type: EndpointType) -> dict[str, Any]:
    url = context.url(endpoint_type)
    urls = {"openai": f"{url}/v1"}
    if endpoint_type == "queue":
        endpoint_id = context.endpoint(endpoint_type)["id"]
        urls = {"openai through RunPod's proxy": f"{url}/openai/v1", "runpod": endpoint_id}
    with context.client(endpoint_type) as client:
        return measure_clients(client, urls, context.key)


def lone_query(context: Context, endpoint_type: EndpointType) -> dict[str, Any]:
    with context.client(endpoint_type) as client:
        return measures.measure_lone_query(client)


def concurrency(context: Context, endpoint_type: EndpointType) -> dict[str, Any]:
    with context.client(endpoint_type) as client:
        return measures.measure_concurrency(client)


def throughput(context: Context, endpoint_type: EndpointType) -> dict[str, Any]:
    with context.client(endpoint_type) as client:
        return measures.measure_throughput(client)


def failed_job(context: Context, endpoint_type: EndpointType) -> dict[str, Any]:
    """Return what the platform keeps of the error of a job that fails."""
    headers = {"Authorization": f"Bearer {context.key}"}
    body = {"input": {"texts": [" "]}}
    with httpx2.Client(base_url=context.url(endpoint_type), headers=headers) as http:
        job = json_of(http.post("/runsync", json=body, timeout=START_SECONDS))
        stored = json_of(http.get(f"/status/{job['id']}"))
    return {
        "runsync": {name: value for name, value in job.items() if name in ("status", "error")},
        "fields": sorted(job),
        "fields_of_status": sorted(stored) if isinstance(stored, dict) else None,
    }


def idle(context: Context, endpoint_type: EndpointType) -> dict[str, Any]:
    """Return when the worker stops after the last request, and what /health says then."""
    with context.client(endpoint_type) as client:
        client.embed(measures.QUERY)
        seconds = context.wait_until_idle(endpoint_type)
        state = endpoint_state(client.health())
    return {"seconds_until_stopped": round(seconds, 1), "state": state.name}


def cold_starts(context: Context, endpoint_type: EndpointType) -> dict[str, Any]:
    """Return the seconds from a request without a worker to its vector, by FlashBoot."""
    outcomes: dict[str, Any] = {}
    for flashboot in FLASHBOOTS:
        context.update(endpoint_type, {"flashboot": flashboot})
        context.wait(context.endpoint(endpoint_type), endpoint_type)
        outcomes[flashboot] = [cold_start(context, endpoint_type) for _ in range(COLD_STARTS)]
    context.update(endpoint_type, {})
    return outcomes


def cold_start(context: Context, endpoint_type: EndpointType) -> dict[str, Any]:
    context.wait_until_idle(endpoint_type)
    start = time.monotonic()
    with context.client(endpoint_type) as client:
        client.embed(measures.QUERY)
    seconds = time.monotonic() - start
    return {"seconds": round(seconds, 2), "stages": start_trace(context, endpoint_type)}


def start_trace(context: Context, endpoint_type: EndpointType) -> list[str]:
    """Return the stages that the worker printed (`BGE_TRACE_START`)."""
    endpoint_id = context.endpoint(endpoint_type)["id"]
    ready = (worker.id for worker in context.workers(endpoint_type) if worker.is_ready)
    worker_id = next(ready, None)
    lines = context.runpod.worker_log(endpoint_id, worker_id) if worker_id else []
    return [line[line.index("start ") :] for line in lines if "start " in line and " s  " in line]


def parity(context: Context, endpoint_type: EndpointType) -> dict[str, Any]:
    """Compare the card's fp16 with its own fp32."""
    with context.client(endpoint_type) as client:
        half = measures.Outputs(client)
    env = {**context.settings(endpoint_type)["env"], "BGE_DTYPE": "float32"}
    context.update(endpoint_type, {"env": env})
    context.wait(context.endpoint(endpoint_type), endpoint_type)
    with context.client(endpoint_type) as client:
        single = measures.Outputs(client)
    env["BGE_DTYPE"] = "auto"
    context.update(endpoint_type, {"env": env})
    context.wait(context.endpoint(endpoint_type), endpoint_type)
    return half.compare(single)


def drain(context: Context, endpoint_type: EndpointType) -> dict[str, Any]:
    """Take the worker away during a request. Return what became of the request."""
    texts = measures.long_texts(512)
    start = time.monotonic()
    with context.client(endpoint_type) as client, ThreadPoolExecutor(1) as pool:
        client.embed(measures.QUERY)
        request = pool.submit(client.embed, texts)
        time.sleep(DRAIN_SECONDS)
        workers = context.settings(endpoint_type)["workers"]
        context.update(endpoint_type, {"workers": {**workers, "max": 0}})
        time.sleep(DRAIN_SECONDS)
        state = endpoint_state(client.health())
        context.update(endpoint_type, {})
        try:
            outcome = f"{len(request.result())} vectors"
        except BGEError as error:
            outcome = f"failed: {type(error).__name__}"
    seconds = round(time.monotonic() - start, 1)
    return {"outcome": outcome, "seconds": seconds, "state_without_workers": state.name}


def billing(context: Context, endpoint_type: EndpointType) -> dict[str, Any]:
    """Return RunPod's own figure so far, which may come hours late, and the seconds at most."""
    reply = context.runpod.billing(context.endpoint(endpoint_type)["id"], BILLED_DAYS)
    metadata = reply.get("metadata")
    totals = metadata.get("totals") if isinstance(metadata, dict) else None
    return {
        "totals": totals,
        "seconds_at_most": round(context.record.leases[-1].seconds(time.time())),
    }


COLD_SECONDS = len(FLASHBOOTS) * (START_SECONDS + COLD_STARTS * (IDLE_SECONDS + 120.0))
STEPS = (
    Step("golden values", "queue", 60, golden_values),
    Step("clients", "queue", 120, clients),
    Step("failed job", "queue", 60, failed_job),
    Step("lone query", "queue", 120, lone_query),
    Step("throughput", "queue", 300, throughput),
    Step("parity", "queue", 900, parity),
    Step("idle", "queue", IDLE_SECONDS, idle),
    Step("cold starts", "queue", COLD_SECONDS, cold_starts),
    Step("drain", "queue", 300, drain),
    Step("billing", "queue", 30, billing),
    Step("golden values", "lb", 60, golden_values),
    Step("clients", "lb", 120, clients),
    Step("lone query", "lb", 120, lone_query),
    Step("concurrency", "lb", 300, concurrency),
    Step("throughput", "lb", 300, throughput),
    Step("idle", "lb", IDLE_SECONDS, idle),
    Step("cold starts", "lb", COLD_SECONDS, cold_starts),
    Step("drain", "lb", 300, drain),
    Step("billing", "lb", 30, billing),
)
