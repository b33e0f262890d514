"""RunPod's jobs: their states, their time limits, and how long results are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from bge_worker.http import jobs
from bge_worker.http.timeouts import Timeouts
from fakes.engine import FakeEngine
from fakes.serving import RERANK, eventually, metric


def submit(url: str, path: str, **policy: int) -> dict[str, Any]:
    return dict(httpx.post(url + path, json={"input": RERANK, "policy": policy}).json())


def status(url: str, job: dict[str, Any]) -> dict[str, Any]:
    return dict(httpx.get(f"{url}/status/{job['id']}").json())


def test_a_job_has_the_states_of_the_platform(
    serve: Callable[..., str], engine: FakeEngine
) -> None:
    url = serve(concurrency=3)
    engine.gate.clear()
    running = [submit(url, "/run") for _ in range(3)]
    waiting = submit(url, "/v2/some-id/run")
    assert waiting["status"] == "IN_QUEUE"
    assert [status(url, job)["status"] for job in running] == ["IN_PROGRESS"] * 3
    counts = httpx.get(f"{url}/health").json()["jobs"]
    assert (counts["inProgress"], counts["inQueue"], counts["completed"]) == (3, 1, 0)
    cancelled = submit(url, "/runsync?wait=1000")
    assert cancelled["status"] == "IN_QUEUE"
    status_sync = f"{url}/v2/some-id/status-sync/{waiting['id']}"
    assert httpx.get(f"{status_sync}?wait=1000").json()["status"] == "IN_QUEUE"
    assert httpx.get(f"{status_sync}?wait=1").status_code == 422
    assert httpx.post(f"{url}/cancel/{cancelled['id']}").json()["status"] == "CANCELLED"
    engine.gate.set()
    completed = httpx.get(status_sync).json()
    assert completed["status"] == "COMPLETED"
    assert completed["output"]["results"][0]["index"] == 1  # "three" is longer than "one"
    assert completed.keys() == {
        *("id", "status", "output", "delayTime", "executionTime", "workerId")
    }
    assert status(url, cancelled)["status"] == "CANCELLED"
    assert submit(url, "/runsync")["status"] == "COMPLETED"


@pytest.mark.parametrize("limit", ["executionTimeout", "ttl"])
def test_a_job_over_a_time_limit_is_timed_out(
    serve: Callable[..., str], engine: FakeEngine, limit: str
) -> None:
    url = serve(concurrency=3)
    engine.gate.clear()
    job = submit(url, "/runsync", **{limit: 100})
    assert job["status"] == "TIMED_OUT"
    assert job["error"] == f"TimeoutError: `policy.{limit}` of 100 ms is over"
    eventually(lambda: metric(url, "bge_queue_depth") == 0)


def test_results_are_dropped_by_age_and_by_size(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(timeouts=Timeouts(runsync_result=0.2))
    short_lived, long_lived = submit(url, "/runsync"), submit(url, "/run")
    assert short_lived["status"] == "COMPLETED"
    eventually(lambda: "is no longer kept" in status(url, short_lived).get("error", ""))
    assert status(url, long_lived)["status"] == "COMPLETED"
    monkeypatch.setattr(jobs, "MAX_RESULT_BYTES", 1)
    newest = submit(url, "/run")
    eventually(lambda: status(url, newest)["status"] == "COMPLETED")
    assert "is no longer kept" in status(url, long_lived)["error"]


def test_jobs_beyond_the_queue_limit_are_refused(
    serve: Callable[..., str], engine: FakeEngine
) -> None:
    url = serve(max_queue=2)
    engine.gate.clear()
    submit(url, "/run")
    submit(url, "/run")
    refused = httpx.post(f"{url}/run", json={"input": RERANK})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
