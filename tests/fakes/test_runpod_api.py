"""The fake of RunPod's API has the fields of RunPod's OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conftest import ROOT
from fakes.runpod_api import CREATE_ENDPOINT, UPDATE_ENDPOINT, RunPodApi, Schema

DOCUMENT = ROOT.parent / "shared" / "runpod-rest-v2.openapi.json"
KEYWORDS = {"type", "enum", "pattern", "minimum", "maximum", "minLength", "minItems", "uniqueItems"}


@pytest.mark.skipif(not DOCUMENT.exists(), reason="needs RunPod's OpenAPI document")
@pytest.mark.parametrize(
    ("name", "fake"),
    [("CreateEndpointRequest", CREATE_ENDPOINT), ("UpdateEndpointRequest", UPDATE_ENDPOINT)],
)
def test_fake_has_the_documented_fields(name: str, fake: Schema) -> None:
    schemas = json.loads(DOCUMENT.read_bytes())["components"]["schemas"]
    assert sorted_fields(resolved(schemas[name], schemas)) == sorted_fields(fake)


MINIMAL = {
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


def resolved(schema: Any, schemas: dict[str, Any]) -> Schema:
    """Resolve references and compositions, and drop prose."""
    if reference := schema.get("$ref"):
        return resolved(schemas[reference.rpartition("/")[2]], schemas)
    if options := schema.get("oneOf"):
        return {"oneOf": [resolved(option, schemas) for option in options]}
    result: Schema = {name: schema[name] for name in KEYWORDS & schema.keys()}
    required, properties = {*schema.get("required", ())}, {}
    for part in schema.get("allOf", ()):
        merged = resolved(part, schemas)
        required |= {*merged.pop("required", ())}
        properties |= merged.pop("properties", {})
        result |= merged
    for field, content in schema.get("properties", {}).items():
        properties[field] = properties.get(field, {}) | resolved(content, schemas)
    if properties:
        result |= {"properties": properties, "required": [*required]}
    if "items" in schema:
        result["items"] = resolved(schema["items"], schemas)
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = resolved(schema["additionalProperties"], schemas)
    return result


def sorted_fields(schema: Schema) -> Schema:
    """Sort the fields and the `required` lists, for comparison."""
    return json.loads(
        json.dumps(schema, sort_keys=True),
        object_hook=lambda part: {
            key: sorted(value) if key == "required" and isinstance(value, list) else value
            for key, value in part.items()
        },
    )
