"""Validate recorded calls against Qdrant's published OpenAPI, independently of its Python client.

    QDRANT_CALLS=calls.jsonl pytest tests/retrieval
    python tests/retrieval/qdrant_openapi.py calls.jsonl

npm has the specification as the types of Qdrant's JavaScript client. They are fetched into a
temporary folder and converted to JSON schemas, which needs npm, Node 18 and the network. A field
that is unknown, or newer than the pinned release, is an error.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema_rs import Validator, validator_for

CLIENT = "@qdrant/js-client-rest"
PACKAGES = [f"{CLIENT}@1.19.0", "ts-json-schema-generator@2.4.0", "typescript@5.8.3"]
TYPES = f"node_modules/{CLIENT}/dist/types/openapi/generated_schema.d.ts"


class OpenApi:
    """Qdrant's paths and operations, as JSON schemas."""

    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions = definitions
        self._validator = cache(self._validator_for)

    @classmethod
    def fetch(cls) -> OpenApi:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "package.json").write_text('{"private": true}')
            quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
            install = ["npm", "install", *quiet, *PACKAGES]
            subprocess.run(install, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            types = Path(folder, TYPES).read_text("utf-8")
            Path(folder, "flat.ts").write_text(flatten(types), "utf-8")
            generate = ["npx", "--no-install", "ts-json-schema-generator", "--no-type-check"]
            generate += ["--path", "flat.ts", "--type", "paths", "--out", "schema.json"]
            subprocess.run(generate, cwd=folder, check=True)
            schema = json.loads(Path(folder, "schema.json").read_text("utf-8"))
        return cls(schema["definitions"])

    def errors(self, call: dict[str, Any]) -> Iterator[str]:
        """Yield what is wrong with a call."""
        call_line = f"{call['method']} {call['path']}"
        operation = self._operation(call["method"].lower(), call["path"])
        if operation is None:
            yield f"{call_line}: no such operation"
            return
        query = {name: _parse_parameter(value) for name, value in call["query"].items()}
        parameters = self._validator(operation, "parameters", "query")
        body = self._validator(operation, "requestBody", "content", "application/json")
        for validator, value in [(parameters, query), (body, call["body"])]:
            if validator:
                for error in validator.iter_errors(value):
                    path = ".".join(map(str, error.instance_path))
                    yield f"{call_line}: {path}: {error.message[:300]}"
            elif value:
                yield f"{call_line}: must not have {value}"

    def _operation(self, method: str, path: str) -> str | None:
        """Return the operation's name. Paths without variables take precedence."""
        paths = self._definitions["paths"]["properties"]
        for template in sorted(paths, key=lambda template: template.count("{")):
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
                operation = paths[template]["properties"].get(method)
                if operation:
                    return str(operation["$ref"]).removeprefix("#/definitions/")
        return None

    def _validator_for(self, operation: str, *path: str) -> Validator | None:
        schema = self._definitions[operation]
        for name in path:
            schema = schema["properties"].get(name)
            if schema is None:
                return None
        return validator_for({"allOf": [schema], "definitions": self._definitions})


def flatten(types: str) -> str:
    """Give each type a name, which the generator needs for recursive types."""
    # The types declare a nullable value as null or any object.
    types = types.replace("(Record<string, unknown> | null)", "null")
    types = re.sub(r'components\["schemas"\]\["(\w+)"\]', r"Schema\1", types)
    types = re.sub(r'operations\["(\w+)"\]', r"Operation\1", types)
    helpers, _, _ = types.partition("export interface")
    (paths,) = re.findall(r"^export interface paths \{\n.*?^\}\n", types, re.S | re.M)
    (schemas,) = re.findall(r"^    schemas: \{\n(.*?)^    \};\n", types, re.S | re.M)
    (operations,) = re.findall(r"^export interface operations \{\n(.*?)^\}\n", types, re.S | re.M)
    schemas = re.sub(r"^ {8}(\w+): ", r"export type Schema\1 = ", schemas, flags=re.M)
    operations = re.sub(r"^ {4}(\w+): ", r"export type Operation\1 = ", operations, flags=re.M)
    return "".join([helpers, paths, schemas, operations])


def _parse_parameter(value: str) -> Any:
    """Parse a parameter of the query string."""
    return json.loads(value) if re.fullmatch(r"true|false|-?[0-9]+", value) else value


def main() -> None:
    lines = [line for name in sys.argv[1:] for line in Path(name).read_text("utf-8").splitlines()]
    if not lines:
        sys.exit("usage: qdrant_openapi.py CALLS.jsonl, with at least one call in it")
    api = OpenApi.fetch()
    errors = [error for line in lines for error in api.errors(json.loads(line))]
    print("".join(f"{error}\n" for error in errors), end="")
    print(f"{len(lines)} calls against the OpenAPI of {PACKAGES[0]}: {len(errors)} errors")
    sys.exit(bool(errors))


if __name__ == "__main__":
    main()
