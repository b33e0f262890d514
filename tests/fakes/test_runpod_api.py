"""The stand-in of RunPod's API knows the fields that RunPod's own OpenAPI document has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conftest import ROOT
from fakes.runpod_api import CREATE_ENDPOINT, UPDATE_ENDPOINT, RunPodApi, Schema

DOCUMENT = ROOT.parent / "shared" / "runpod-rest-v2.openapi.json"
KEPT = {"type", "enum", "pattern", "minimum", "maximum", "minLength", "minItems", "uniqueItems"}


@pytest.mark.skipif(not DOCUMENT.exists(), reason="RunPod's OpenAPI document is not beside this")
@pytest.mark.parametrize(
    ("name", "ours"),
    [("CreateEndpointRequest", CREATE_ENDPOINT), ("UpdateEndpointRequest", UPDATE_ENDPOINT)],
)
def test_the_stand_in_has_the_documented_fields(name: str, ours: Schema) -> None:
    schemas = json.loads(DOCUMENT.read_bytes())["components"]["schemas"]
    assert sorted_fields(plain(schemas[name], schemas)) == sorted_fields(ours)


SMALLEST = {
    "name": "x",
    "type": "QUEUE",
    "image": "x",
    "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
    "gpu": {"pools": ["ADA_24"]},
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
        ({"cpu": [{"id": "cpu5c", "vcpuCount": 2}]}, 400),
    ],
)
def test_it_creates_only_what_the_document_allows(fields: dict[str, Any], status: int) -> None:
    with RunPodApi() as api:
        assert api.create(SMALLEST | fields)[0] == status
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
def test_it_updates_only_what_the_document_allows(fields: dict[str, Any], status: int) -> None:
    gpu = {"pools": ["ADA_24"], "minCudaVersion": "13.0"}
    with RunPodApi() as api:
        endpoint = api.create(SMALLEST | {"gpu": gpu})[1]
        assert api.update(endpoint["id"], fields)[0] == status
        assert api.update("nowhere", fields)[0] == 404


def plain(schema: Any, schemas: dict[str, Any]) -> Schema:
    """Without references, compositions and prose."""
    if reference := schema.get("$ref"):
        return plain(schemas[reference.rpartition("/")[2]], schemas)
    if options := schema.get("oneOf"):
        return {"oneOf": [plain(option, schemas) for option in options]}
    result: Schema = {name: schema[name] for name in KEPT & schema.keys()}
    required, properties = {*schema.get("required", ())}, {}
    for part in schema.get("allOf", ()):
        merged = plain(part, schemas)
        required |= {*merged.pop("required", ())}
        properties |= merged.pop("properties", {})
        result |= merged
    for field, content in schema.get("properties", {}).items():
        properties[field] = properties.get(field, {}) | plain(content, schemas)
    if properties:
        result |= {"properties": properties, "required": [*required]}
    if "items" in schema:
        result["items"] = plain(schema["items"], schemas)
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = plain(schema["additionalProperties"], schemas)
    return result


def sorted_fields(schema: Schema) -> Schema:
    """In one order: names of fields and what is required."""
    return json.loads(
        json.dumps(schema, sort_keys=True),
        object_hook=lambda part: {
            key: sorted(value) if key == "required" and isinstance(value, list) else value
            for key, value in part.items()
        },
    )
