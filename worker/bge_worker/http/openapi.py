"""The OpenAPI description, from the types that validate bodies and the types of replies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from .. import __version__
from .metrics import CONTENT_TYPE
from .middleware import OPEN_PATHS
from .routes.native import NATIVE
from .routes.route import Dialect, InfoRoute, Route, TextRoute
from .routes.runpod import (
    MAX_WAIT_MS,
    MIN_WAIT_MS,
    HealthReply,
    JobBody,
    JobReply,
    PurgeReply,
    StreamReply,
)

Schema = dict[str, Any]
ERRORS = {
    403: "A browser's cross-site request",
    404: "This worker does not load the requested model",
    408: "The body did not arrive in time",
    413: "The body, the tokens or the reply exceed a limit; says how much would fit",
    422: "The body is not valid; names the field, the limit and what was given",
    429: "The queue is full; see `Retry-After`",
    500: "The log has the cause under the id in the message",
    503: "A single text does not fit the device, or the server is stopping",
}


def describe(
    routes: Sequence[Route | TextRoute], infos: Sequence[InfoRoute], *, has_key: bool
) -> Schema:
    """Return the OpenAPI document of the server."""
    schemas = _Schemas(routes, infos)
    paths: dict[str, Schema] = {}
    dialects: dict[str, Dialect] = {}
    for path in {path: None for route in routes for path in route.paths}:
        on_path = [route for route in routes if path in route.paths]
        dialects[path] = on_path[0].dialect
        bodies, replies = [route.body for route in on_path], [route.reply for route in on_path]
        spoken = [*dict.fromkeys(route.dialect for route in on_path)]
        paths[path] = {"post": schemas.post(bodies, replies, spoken)}
        paths[path]["post"] |= _parameters_of(path)
    for info in infos:
        for path in info.paths:
            dialects[path] = info.dialect
            reply = schemas.content("The reply", info.reply)
            operation = {"responses": {"200": reply}, **_parameters_of(path)}
            if "{" in path:
                operation["responses"]["404"] = schemas.content("Unknown", info.dialect.error_type)
            paths.setdefault(path.replace(":path}", "}"), {})["get"] = operation
    for prefix in ("", "/v2/{endpoint}"):
        paths |= _job_paths(schemas, prefix)
    pings = {200: "The models are loaded", 204: "They load", 503: "Unhealthy, or stopping"}
    metrics = {"description": "Metrics", "content": {CONTENT_TYPE: {}}}
    paths["/ping"] = {"get": {"responses": {str(c): {"description": d} for c, d in pings.items()}}}
    paths["/metrics"] = {"get": {"responses": {"200": metrics}}}
    components: Schema = {"schemas": schemas.components}
    if has_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path in paths.keys() - OPEN_PATHS:
            error = schemas.content("Wrong key", dialects.get(path, NATIVE).error_type)
            for operation in paths[path].values():
                operation["security"] = [{"key": []}]
                operation["responses"]["401"] = error
    title = {"title": "bge-serverless", "version": __version__}
    return {"openapi": "3.1.0", "info": title, "paths": paths, "components": components}


class _Schemas:
    """The JSON schema of every type, each named type as a component."""

    def __init__(self, routes: Sequence[Route | TextRoute], infos: Sequence[InfoRoute]) -> None:
        bodies: list[Any] = [JobBody, *(route.body for route in routes)]
        replies: list[Any] = [JobReply, StreamReply, PurgeReply, HealthReply, NATIVE.error_type]
        replies += [info.reply for info in infos]
        for route in routes:
            replies += [route.reply, route.dialect.error_type]
        schemas, self.components = msgspec.json.schema_components(
            [*bodies, *replies], ref_template="#/components/schemas/{name}"
        )
        self._schemas = list(zip([*bodies, *replies], schemas, strict=True))
        for body in bodies:
            _allow_nulls(self.components[body.__name__])

    def content(self, description: str, *types: Any) -> Schema:
        """Return JSON content of one of `types`."""
        schemas = [schema for type_, schema in self._schemas if type_ in types]
        schema = schemas[0] if len(types) == 1 else {"anyOf": schemas}
        return {"description": description, "content": {"application/json": {"schema": schema}}}

    def post(
        self, bodies: Sequence[Any], replies: Sequence[Any], dialects: Sequence[Dialect]
    ) -> Schema:
        types = [*dict.fromkeys(dialect.error_type for dialect in dialects)]
        errors = {
            str(dialect.invalid_status if status == 422 else status): self.content(
                description, *types
            )
            for status, description in ERRORS.items()
            for dialect in dialects
        }
        return {
            "requestBody": {"required": True, **self.content("The request", *bodies)},
            "responses": {"200": self.content("The reply", *replies), **errors},
        }


def _allow_nulls(body: Schema) -> None:
    """A null is an absent field (`validation.without_nulls`)."""
    for name, field in body["properties"].items():
        if name not in body.get("required", ()) and field != {}:
            examples = {"examples": field["examples"]} if "examples" in field else {}
            body["properties"][name] = {"anyOf": [field, {"type": "null"}], **examples}


def _job_paths(schemas: _Schemas, prefix: str) -> dict[str, Schema]:
    endpoint = [_parameter("endpoint", "path", {"type": "string"})] if prefix else []
    by_id = [*endpoint, _parameter("job_id", "path", {"type": "string"})]
    milliseconds = {"type": "integer", "minimum": MIN_WAIT_MS, "maximum": MAX_WAIT_MS}
    wait = _parameter("wait", "query", milliseconds)
    submit = schemas.post([JobBody], [JobReply], [NATIVE])
    job = {
        "200": schemas.content("The job", JobReply),
        "404": schemas.content("No such job", NATIVE.error_type),
    }
    waited = {**job, "422": schemas.content("`wait` is out of range", NATIVE.error_type)}
    stream = {**job, "200": schemas.content("The outputs so far", StreamReply)}
    purge = {"200": schemas.content("The number of cancelled jobs", PurgeReply)}
    health = {"200": schemas.content("Counts of jobs and workers", HealthReply)}
    return {
        f"{prefix}/run": {"post": {**submit, "parameters": endpoint}},
        f"{prefix}/runsync": {"post": {**submit, "parameters": [*endpoint, wait]}},
        f"{prefix}/status/{{job_id}}": {"get": {"parameters": by_id, "responses": {**job}}},
        f"{prefix}/status-sync/{{job_id}}": {
            "get": {"parameters": [*by_id, wait], "responses": waited}
        },
        f"{prefix}/stream/{{job_id}}": {"get": {"parameters": by_id, "responses": {**stream}}},
        f"{prefix}/purge-queue": {"post": {"parameters": endpoint, "responses": purge}},
        f"{prefix}/cancel/{{job_id}}": {"post": {"parameters": by_id, "responses": {**job}}},
        f"{prefix}/health": {"get": {"parameters": endpoint, "responses": health}},
    }


def _parameters_of(path: str) -> Schema:
    names = re.findall(r"\{(\w+)", path)
    parameters = [_parameter(name, "path", {"type": "string"}) for name in names]
    return {"parameters": parameters} if parameters else {}


def _parameter(name: str, location: str, schema: Schema) -> Schema:
    return {"name": name, "in": location, "required": location == "path", "schema": schema}
