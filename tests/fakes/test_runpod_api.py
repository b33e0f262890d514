"""The stand-in of RunPod's API knows the fields that RunPod's own OpenAPI document has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conftest import ROOT
from fakes.runpod_api import CREATE_ENDPOINT, UPDATE_ENDPOINT, Schema

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
