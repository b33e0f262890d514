"""The fake of RunPod's API has the fields of RunPod's OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from conftest import ROOT
from fakes.runpod_api import KEY, RunPodApi, worker
from fakes.runpod_fields import extracted, read_fields, violations

DOCUMENT = ROOT.parent / "shared" / "runpod-rest-v2.openapi.json"
FIELDS = read_fields()


@pytest.mark.skipif(not DOCUMENT.exists(), reason="needs RunPod's OpenAPI document")
def test_fields_are_those_of_the_document() -> None:
    """If this fails, run `python tests/fakes/runpod_fields.py DOCUMENT`."""
    assert extracted(json.loads(DOCUMENT.read_bytes())) == FIELDS


@pytest.mark.parametrize(
    ("path", "query", "schema"),
    [
        ("/serverless", {}, "ListEndpointsResponse"),
        ("/serverless/ep00000001", {}, "Endpoint"),
        ("/serverless/ep00000002", {}, "Endpoint"),
        ("/serverless/ep00000001/workers", {}, "ListEndpointWorkersResponse"),
        ("/serverless/ep00000001/releases", {}, "ListEndpointReleasesResponse"),
        ("/serverless/nowhere/releases", {}, "ErrorResponse"),
        ("/registries", {}, "ListRegistriesResponse"),
        ("/billing/serverless", {"lastN": 7, "bucketSize": "day"}, "ListServerlessBillingResponse"),
        ("/billing/serverless", {"lastN": 7, "endTime": "2026-11-01T00:00:00Z"}, "ErrorResponse"),
        ("/billing/serverless", {"lastN": 0}, "ErrorResponse"),
    ],
)
def test_replies_have_the_documented_fields(path: str, query: dict[str, Any], schema: str) -> None:
    with RunPodApi() as api:
        api.create(MINIMAL)
        api.create(MINIMAL | LOAD_BALANCER)
        api.workers = [[worker(), worker("w2", "THROTTLED", gpuTypeId=None)]]
        api.costs = {"ep00000001": 1.5}
        status, reply = api.get(path, query)
        assert [*violations(FIELDS["schemas"][schema], reply)] == []
        assert (status < 400) == (schema != "ErrorResponse")


def test_an_undocumented_operation_is_refused() -> None:
    with RunPodApi() as api:
        reply = httpx2.put(f"{api.url}/serverless", headers={"Authorization": f"Bearer {KEY}"})
        assert reply.status_code == 405


MINIMAL = {
    "name": "x",
    "type": "QUEUE",
    "image": "x",
    "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
    "gpu": {"pools": ["ADA_24"]},
}
LOAD_BALANCER = {
    "type": "LOAD_BALANCER",
    "scaling": {"type": "REQUEST_COUNT", "requestCount": 32},
    "workers": {"idleTimeout": 5},
}
BOTH = {"pools": ["ADA_24"], "minCudaVersion": "13.0", "allowedCudaVersions": ["13.0"]}


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 201),
        ({"gpuTypeIds": []}, 422),
        ({"image": 7}, 422),
        ({"timeout": "60000"}, 422),
        ({"timeout": True}, 422),
        ({"name": None}, 422),
        ({"flashboot": True}, 422),
        ({"env": {"A": 1}}, 422),
        ({"workers": {"min": -1}}, 422),
        ({"workers": {"idleTimeout": 3601}}, 422),
        ({"scaling": {"type": "QUEUE_DELAY"}}, 422),
        ({"scaling": {"type": "QUEUE_DELAY", "queueDelay": 4, "requestCount": 1}}, 422),
        ({"gpu": {"pools": []}}, 422),
        ({"gpu": {"pools": ["ADA_24"], "minCudaVersion": "13"}}, 422),
        ({"gpu": {"pools": ["ADA_24"], "excludedTypes": ["a", "a"]}}, 422),
        ({"gpu": BOTH}, 400),
        ({"gpu": BOTH | {"allowedCudaVersions": []}}, 201),
        ({"type": "LOAD_BALANCER"}, 400),
        (LOAD_BALANCER, 201),
        (LOAD_BALANCER | {"type": "QUEUE"}, 400),
        ({"cpu": [{"id": "cpu5c", "vcpuCount": 2}]}, 400),
    ],
)
def test_create_accepts_only_what_the_document_allows(fields: dict[str, Any], status: int) -> None:
    with RunPodApi() as api:
        assert api.create(MINIMAL | fields)[0] == status
        assert len(api.writes) == (status == 201)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 200),
        ({"type": "QUEUE"}, 422),
        ({"gpu": {"excludedTypes": ["NVIDIA L4"]}}, 400),
        ({"gpu": {"allowedCudaVersions": ["12.8"]}}, 400),
        ({"gpu": {"allowedCudaVersions": ["12.8"], "minCudaVersion": ""}}, 200),
        ({"cpu": [{"id": "cpu5c", "vcpuCount": 2}]}, 400),
    ],
)
def test_update_accepts_only_what_the_document_allows(fields: dict[str, Any], status: int) -> None:
    gpu = {"pools": ["ADA_24"], "minCudaVersion": "13.0"}
    with RunPodApi() as api:
        endpoint = api.create(MINIMAL | {"gpu": gpu})[1]
        assert api.update(endpoint["id"], fields)[0] == status
        assert api.update("nowhere", fields)[0] == 404
