"""The OpenAPI description, from the types that validate bodies and the types of replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from .. import __version__
from ..serving.openai import MODELS, OpenAIModelsReply
from .metrics import CONTENT_TYPE
from .middleware import OPEN_PATHS
from .routes.native import NATIVE
from .routes.openai import OPENAI
from .routes.route import Dialect, Route
from .routes.runpod import MAX_WAIT_MS, MIN_WAIT_MS, HealthReply, JobBody, JobReply

Schema = dict[str, Any]
REF = "#/components/schemas/{name}"
ERRORS = {
    403: "A browser's cross-site request",
    404: "This worker does not load the requested model",
    408: "The body did not arrive in time",
    413: "The body, the tokens or the reply exceed a limit; says how much would fit",
    422: "The body is not valid; names the field, the limit and what was given",
    429: "The queue is full; see `Retry-After`",
    500: "The log has the cause under the id in the message",
    503: "A single text does not fit the device",
}
WAIT = {
    "name": "wait",
    "in": "query",
    "description": "Milliseconds to wait for the end of the job",
    "schema": {"type": "integer", "minimum": MIN_WAIT_MS, "maximum": MAX_WAIT_MS},
}


def describe(routes: Sequence[Route], *, has_key: bool) -> Schema:
    """Return the OpenAPI document of the server."""
    schemas = _Schemas(routes)
    paths: dict[str, dict[str, Schema]] = {}
    dialects: dict[str, Dialect] = {MODELS: OPENAI}
    for path in {path: None for route in routes for path in route.paths}:
        on_path = [route for route in routes if path in route.paths]
        dialects[path] = on_path[0].dialect
        paths[path] = {"post": _inference_operation(schemas, path, on_path)}
    for prefix in ("", "/v2/{endpoint}"):
        paths |= _job_paths(schemas, prefix)
    paths |= {
        "/ping": {"get": _plain("The models are loaded", {204: "They load", 503: "Unhealthy"})},
        "/metrics": {"get": {"responses": {"200": _content("Metrics", {}, CONTENT_TYPE)}}},
        MODELS: {"get": {"responses": {"200": schemas.content("Models", OpenAIModelsReply)}}},
    }
    components: Schema = {"schemas": schemas.components}
    if has_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path in paths.keys() - OPEN_PATHS:
            error = schemas.content("Missing key", dialects.get(path, NATIVE).error_type)
            for operation in paths[path].values():
                operation["security"] = [{"key": []}]
                operation["responses"]["401"] = error
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "bge-serverless",
            "version": __version__,
            "description": "BGE embeddings and reranking in the dialects of existing clients",
        },
        "paths": paths,
        "components": components,
    }


class _Schemas:
    """The JSON schema of every type, each named type as a component."""

    def __init__(self, routes: Sequence[Route]) -> None:
        bodies: list[Any] = [JobBody, *(route.body for route in routes)]
        replies: list[Any] = [JobReply, HealthReply, OpenAIModelsReply]
        for route in routes:
            replies += [route.reply, route.dialect.error_type]
        types = [*bodies, *replies, NATIVE.error_type]
        schemas, self.components = msgspec.json.schema_components(types, ref_template=REF)
        self._of = [(type_, schema) for type_, schema in zip(types, schemas, strict=True)]
        for body in bodies:
            _allow_nulls(self.components[body.__name__])

    def of(self, type_: Any) -> Schema:
        return next(schema for candidate, schema in self._of if candidate is type_)

    def content(self, description: str, *types: Any) -> Schema:
        """Return a request's or response's JSON content: one of `types`."""
        schemas = [self.of(type_) for type_ in types]
        return _content(description, schemas[0] if len(schemas) == 1 else {"anyOf": schemas})


def _allow_nulls(body: Schema) -> None:
    """A null is an absent field (`validation.without_nulls`)."""
    for name, field in body["properties"].items():
        if name not in body.get("required", ()) and field != {}:
            body["properties"][name] = {"anyOf": [field, {"type": "null"}]}


def _content(description: str, schema: Schema, media_type: str = "application/json") -> Schema:
    content = {media_type: {"schema": schema} if schema else {}}
    return {"description": description, "content": content}


def _plain(ok: str, others: dict[int, str]) -> Schema:
    responses = {200: ok, **others}
    return {"responses": {str(code): {"description": text} for code, text in responses.items()}}


def _inference_operation(schemas: _Schemas, path: str, routes: Sequence[Route]) -> Schema:
    return {
        "operationId": path,
        "requestBody": {
            "required": True,
            **schemas.content("The request", *(route.body for route in routes)),
        },
        "responses": {
            "200": schemas.content("The reply", *(route.reply for route in routes)),
            **_errors(schemas, routes[0].dialect),
        },
    }


def _errors(schemas: _Schemas, dialect: Dialect) -> Schema:
    return {str(code): schemas.content(text, dialect.error_type) for code, text in ERRORS.items()}


def _job_paths(schemas: _Schemas, prefix: str) -> dict[str, dict[str, Schema]]:
    parameters = [_path_parameter("endpoint")] if prefix else []
    job = schemas.content("The job", JobReply)
    submit = {
        "requestBody": {"required": True, **schemas.content("The job's input", JobBody)},
        "responses": {"200": job, **_errors(schemas, NATIVE)},
    }
    by_id = {
        "parameters": [*parameters, _path_parameter("job_id")],
        "responses": {"200": job, "404": schemas.content("No such job", NATIVE.error_type)},
    }
    health = {"200": schemas.content("Counts of jobs and workers", HealthReply)}
    return {
        f"{prefix}/run": {"post": {**submit, "parameters": parameters}},
        f"{prefix}/runsync": {"post": {**submit, "parameters": [*parameters, WAIT]}},
        f"{prefix}/status/{{job_id}}": {"get": dict(by_id)},
        f"{prefix}/cancel/{{job_id}}": {"post": dict(by_id)},
        f"{prefix}/health": {"get": {"parameters": parameters, "responses": health}},
    }


def _path_parameter(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


DOCS_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>bge-serverless</title>
<link rel="stylesheet" href="https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui"})</script>
</body>
</html>
"""
