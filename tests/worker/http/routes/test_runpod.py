"""RunPod's own client."""

from __future__ import annotations

import pytest

from fakes.serving import KEY, TEXTS


def test_runpod_endpoint(
    url: str, vectors: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import runpod  # takes a second

    monkeypatch.setattr(runpod, "endpoint_url_base", f"{url}/v2")
    endpoint = runpod.Endpoint("any-id", api_key=KEY)
    request = {"input": {"texts": TEXTS}}
    assert endpoint.run_sync(request)["embeddings"] == vectors
    job = endpoint.run(request)
    assert job.output(timeout=10)["embeddings"] == vectors
    assert job.status() == "COMPLETED"
    assert endpoint.health()["workers"]["ready"] == 1
    failed = endpoint.run({"input": {"texts": []}})
    assert failed.output(timeout=10) is None
    assert failed.status() == "FAILED"
    assert failed.cancel()["status"] == "FAILED"  # what is over stays as it is
