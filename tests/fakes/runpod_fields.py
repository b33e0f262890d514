"""The fields of RunPod's API that are used here: extracted from its OpenAPI document, and checked.

python tests/fakes/runpod_fields.py OPENAPI.json    writes tests/fakes/runpod_api_fields.json
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIELDS = Path(__file__).with_name("runpod_api_fields.json")
SCHEMAS = (
    "CreateEndpointRequest",
    "UpdateEndpointRequest",
    "Endpoint",
    "ListEndpointsResponse",
    "ListRegistriesResponse",
    "ListEndpointWorkersResponse",
    "ListEndpointReleasesResponse",
    "ListServerlessBillingResponse",
    "ErrorResponse",
)
# Parameters of a path belong to all of its methods: only those of a query are listed.
QUERIES = ("/v2/serverless/{id}/workers/{workerId}/logs", "/v2/billing/serverless")
KEYWORDS = {"type", "enum", "pattern", "minimum", "maximum", "minLength", "minItems", "uniqueItems"}

TYPES: dict[str, type | tuple[type, ...]] = {
    "array": list,
    "boolean": bool,
    "integer": int,
    "null": type(None),
    "number": (int, float),
    "object": dict,
    "string": str,
}

Schema = dict[str, Any]


def extracted(document: Schema) -> Schema:
    """Return the schemas by name, the methods of each path, and the queries of some paths."""
    schemas = document["components"]["schemas"]
    paths = {path: content for path, content in document["paths"].items() if is_used(path)}
    return {
        "paths": {
            path: [method for method in content if method != "parameters"]
            for path, content in paths.items()
        },
        "queries": {path: query(paths[path]["get"], document) for path in QUERIES},
        "schemas": {name: resolved(schemas[name], schemas) for name in SCHEMAS},
    }


def is_used(path: str) -> bool:
    return path.startswith(("/v2/serverless", "/v2/billing")) or path == "/v2/registries"


def query(operation: Schema, document: Schema) -> Schema:
    """Return the schema of an operation's query parameters, as that of an object."""
    components = document["components"]
    properties = {}
    for parameter in operation["parameters"]:
        if reference := parameter.get("$ref"):
            parameter = components["parameters"][reference.rpartition("/")[2]]
        if parameter["in"] == "query":
            properties[parameter["name"]] = resolved(parameter["schema"], components["schemas"])
    return {"type": "object", "properties": properties, "required": []}


def resolved(schema: Any, schemas: dict[str, Any]) -> Schema:
    """Resolve references and compositions, and drop prose."""
    if reference := schema.get("$ref"):
        return resolved(schemas[reference.rpartition("/")[2]], schemas)
    if options := schema.get("oneOf") or schema.get("anyOf"):
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
        result |= {"type": "object", "properties": properties, "required": sorted(required)}
    if "items" in schema:
        result["items"] = resolved(schema["items"], schemas)
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = resolved(schema["additionalProperties"], schemas)
    return result


def violations(schema: Schema, value: Any, path: str = "$") -> Iterator[str]:
    """Yield each violation of the schema in `value`."""
    if "oneOf" in schema:
        if not any(not [*violations(option, value)] for option in schema["oneOf"]):
            yield f"{path}: matches none of the variants"
        return
    if "type" not in schema:
        return  # anything
    names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if isinstance(value, bool):  # Python's bool is an int
        has_type = "boolean" in names
    else:
        has_type = any(isinstance(value, TYPES[name]) for name in names)
    if not has_type:
        yield f"{path}: got {type(value).__name__}, want {' or '.join(names)}"
        return
    minimum, maximum = schema.get("minimum", value), schema.get("maximum", value)
    length = len(value) if isinstance(value, str | list) else 0
    if isinstance(value, int | float) and not minimum <= value <= maximum:
        yield f"{path}: {value} is out of range"
    if length < schema.get("minLength", 0) or length < schema.get("minItems", 0):
        yield f"{path}: too short"
    if value not in schema.get("enum", [value]):
        yield f"{path}: value must be one of {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: does not match {schema['pattern']}"
    if schema.get("uniqueItems") and len({json.dumps(item) for item in value}) < length:
        yield f"{path}: items are not unique"
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from violations(schema["items"], item, f"{path}[{index}]")
    if isinstance(value, dict):
        yield from field_violations(schema, value, path)


def field_violations(schema: Schema, value: dict[str, Any], path: str) -> Iterator[str]:
    properties, additional = schema.get("properties", {}), schema.get("additionalProperties")
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}: missing property '{name}'"
    for name, field in value.items():
        field_schema = properties.get(name, additional)
        if field_schema is None:
            yield f"{path}: additional properties '{name}' not allowed"
        else:
            yield from violations(field_schema, field, f"{path}.{name}")


def read_fields() -> Schema:
    fields: Schema = json.loads(FIELDS.read_bytes())
    return fields


def main() -> None:
    document = json.loads(Path(sys.argv[1]).read_bytes())
    FIELDS.write_text(json.dumps(extracted(document), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
