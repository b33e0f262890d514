"""The whole field report against stand-ins of RunPod around the real worker.

`make test-field-report`: two real workers are started and a hundred requests sent.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bge_builder.__main__ import main
from bge_builder.deploy import probes
from bge_builder.field_report import cloud, command, context, local, measures
from bge_worker.settings import EngineName
from conftest import MODELS, ROOT
from fakes import load_balancer, runpod_api
from fakes.load_balancer import BalancedWorker, LoadBalancer, resolve_to_loopback
from fakes.runpod_api import RunPodApi, worker
from fakes.runpod_server import JobServer
from fakes.worker_process import WorkerProcess

KEY = load_balancer.KEY  # of both stand-ins


@pytest.fixture
def endpoints(
    runtimes: Callable[[EngineName], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """An endpoint of each type, with a real worker."""
    folder = runtimes("packed")
    env = {
        "BGE_DEVICE": "cpu",
        "BGE_EMBED_MODEL": str(folder / MODELS[0]),
        "BGE_RERANK_MODEL": str(folder / MODELS[1]),
    }
    resolve_to_loopback(monkeypatch)
    with (
        JobServer() as queue,
        WorkerProcess(ROOT / "worker" / "handler.py", queue, env) as job_worker,
        LoadBalancer() as balancer,
        BalancedWorker(env, tmp_path / "log") as balanced_worker,
    ):
        job_worker.wait_ready()
        balanced_worker.wait_for(200)
        balancer.add(balanced_worker)
        urls = {"QUEUE": queue.url, "LOAD_BALANCER": balancer.url}
        monkeypatch.setattr(probes, "URLS", urls)
        monkeypatch.setattr("runpod.endpoint_url_base", queue.url.rpartition("/")[0])
        yield


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer requests; a worker stops as soon as it is looked at."""
    for name, value in {"TEXTS": 32, "QUERIES": 5, "CONCURRENCIES": (1, 4)}.items():
        monkeypatch.setattr(measures, name, value)
    monkeypatch.setattr(cloud, "COLD_STARTS", 1)
    monkeypatch.setattr(cloud, "DRAIN_SECONDS", 0.1)
    monkeypatch.setattr(context, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(runpod_api, "KEY", KEY)
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)


def test_every_step_of_a_workstation_runs(
    runtimes: Callable[[EngineName], Path],
    short: None,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not request.config.getoption("long"):
        pytest.skip("`make test-field-report` runs it")
    monkeypatch.setattr(local, "describe_card", lambda: {"name": "a card"})
    monkeypatch.setattr(command, "FOLDER", tmp_path)
    monkeypatch.setattr(command, "UNFINISHED", tmp_path / "unfinished")
    steps = [step for step in local.STEPS if step.name != "local: benchmarks"]
    monkeypatch.setattr(local, "STEPS", steps)
    monkeypatch.chdir(ROOT)
    assert main(["field-report", "--local", "--models", str(runtimes("packed"))]) == 0
    (path,) = tmp_path.glob("*.json")
    results = json.loads(path.read_text("utf-8"))["results"]
    assert {step.name for step in steps} < results.keys()
    assert results["local: verify"]["agree"]
    assert results["local: clients"]["agree"]


def test_every_step_runs_and_nothing_is_left(
    api: RunPodApi,
    endpoints: None,
    short: None,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not request.config.getoption("long"):
        pytest.skip("`make test-field-report` runs it")
    states = itertools.cycle([[worker("w1", gpuTypeId="NVIDIA L4")], []])
    listed = api.list_workers

    def list_workers(endpoint_id: str) -> dict[str, Any]:
        api.workers = [next(states)]
        return listed(endpoint_id)

    monkeypatch.setattr(api, "list_workers", list_workers)
    api.logs["w1"] = ["start    1.40 s  torch imported", "something else"]
    code = main(["field-report", "--image", "image:1", "--max-dollars", "20"])
    results = json.loads((tmp_path / "unfinished" / "cloud.json").read_text("utf-8"))["results"]
    failed = {name: result["failed"] for name, result in results.items() if "failed" in result}
    # The stand-in does not restart its worker, which computes in fp32.
    assert failed == {"queue: parity": "ReportError: the workers computed in float32 and float32"}
    assert code == 1
    assert {step.name for step in cloud.STEPS} < results.keys()
    assert api.endpoints == {}
    assert results["queue: failed job"]["status"] == "FAILED"
    assert results["lb: clients"]["openai"] == "agrees"
    assert results["queue: clients"]["runpod"] == "agrees"
    assert not results["queue: golden values"]["agree"]  # of the miniature
