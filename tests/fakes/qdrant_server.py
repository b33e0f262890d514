"""A local server with the part of Qdrant's REST API that the client uses, on local mode.

    with QdrantServer() as server:
        server.fail(lost, on="PUT /collections/*/points", times=2)
        client = QdrantClient(url=server.url)

Bodies must fit the models that qdrant-client generates from Qdrant's OpenAPI, without unknown
fields. Refusals have the server's own statuses and texts. `calls` records the requests.

As a program, `cd tests && python -m fakes.qdrant_server [--port N] [--discard]` prints its address
and serves until SIGTERM; with `--discard` it counts points and forgets them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from qdrant_client import QdrantClient
from qdrant_client.http.models import models as m

from fakes.loopback import LoopbackServer
from fakes.scripted import Action, Exchange, raw, reset, silence, status

VERSION = "1.20.0"
MAX_BODY = 32 * 1024 * 1024
MULTIVECTOR_FLOATS = 1024 * 1024  # exclusive limit
# Names a file to which every server appends its calls as JSON lines.
CALLS = "QDRANT_CALLS"


@dataclass(frozen=True)
class RecordedCall:
    """A request. The body is None if it was missing or not JSON."""

    method: str
    path: str
    query: dict[str, str]
    body: Any


class Refusal(Exception):
    """An error response."""

    def __init__(self, code: int, error: str) -> None:
        super().__init__(error)
        self.code = code


# --------------------------------------------------------------------------------- faults


@dataclass(frozen=True)
class PendingExchange(Exchange):
    """A valid request that has been neither applied nor answered."""

    apply: Callable[[], tuple[int, bytes]]

    def answer(self) -> None:
        self.reply(*self.apply(), {"Content-Type": "application/json"})


Fault = Callable[[PendingExchange], None]


def refusing(code: int, error: str, **headers: str) -> Action:
    """Respond with an error in Qdrant's format, without applying the request."""
    return status(code, _error(error), Content_Type="application/json", **headers)


def _error(message: str) -> dict[str, Any]:
    return {"status": {"error": message}, "time": 0.0}


def busy(retry_after: int) -> Action:
    message = "Rate limiting exceeded: Write rate limit exceeded, retry later"
    return refusing(429, message, Retry_After=str(retry_after))


FULL = "No space left on device: WAL buffer size exceeds available disk space"
disk_full = refusing(500, f"Service internal error: {FULL}")
cut = reset  # before the request is applied
never = silence


def lost(exchange: PendingExchange) -> None:
    """Apply the request, and reset the connection before the response."""
    exchange.apply()
    reset(exchange)


def late(seconds: float) -> Fault:
    """Apply the request at once, and respond later."""

    def fault(exchange: PendingExchange) -> None:
        response = exchange.apply()
        time.sleep(seconds)
        exchange.reply(*response, {"Content-Type": "application/json"})

    return fault


@dataclass
class _PlannedFault:
    fault: Fault
    on: str
    skip: int
    times: int


# --------------------------------------------------------------------------------- engine


@dataclass(frozen=True)
class _Request:
    """A validated request."""

    route: _Route
    names: list[str]
    body: Any
    wait: bool


# The defaults of `config.params`, except for the vectors.
PARAMS = {
    "shard_number": 1,
    "sharding_method": None,
    "replication_factor": 1,
    "write_consistency_factor": 1,
    "on_disk_payload": True,
    "payload": None,
    "id_tracker": None,
}


class _Engine:
    """Local mode, with the settings and payload indexes that only the server has."""

    def __init__(self) -> None:
        self.local = QdrantClient(":memory:")
        self._settings: dict[str, dict[str, Any]] = {}  # collection → over local mode's `config`
        self._indexes: dict[str, dict[str, dict[str, Any]]] = {}  # collection → field → index
        self._snapshots: dict[str, list[str]] = {}  # collection → names
        self._operations = itertools.count(1)

    # Collections.

    def collections(self, request: _Request) -> Any:
        return self.local.get_collections()

    def exists(self, request: _Request) -> Any:
        return {"exists": self.local.collection_exists(request.names[0])}

    def create(self, request: _Request) -> Any:
        name, body = request.names[0], request.body
        self.local.create_collection(
            name, body.vectors, body.sparse_vectors, metadata=body.metadata
        )
        fields = _as_dict(body)
        params = PARAMS | {key: fields[key] for key in PARAMS if key in fields}
        self._settings[name] = _merged({"params": params}, _settings(fields))
        return True

    def info(self, request: _Request) -> Any:
        name = self._resolve(request.names[0])
        info = self.local.get_collection(name).model_dump(mode="json")
        info["config"] = _merged(info["config"], self._settings.get(name, {}))
        info["payload_schema"] = {
            field: index | {"points": self._indexed_count(name, field)}
            for field, index in self._indexes.get(name, {}).items()
        }
        return info

    def update(self, request: _Request) -> Any:
        name, body = self._resolve(request.names[0]), request.body
        self.local.update_collection(
            name,
            vectors_config=body.vectors,
            sparse_vectors_config=body.sparse_vectors,
            metadata=body.metadata,
        )
        fields = _as_dict(body)
        vectors = fields.get("vectors", {})
        params = fields.get("params", {}) | {"vectors": vectors.get("", vectors)}
        self._settings[name] = _merged(self._settings[name], _settings(fields) | {"params": params})
        return True

    def drop(self, request: _Request) -> Any:
        self._settings.pop(request.names[0], None)
        self._indexes.pop(request.names[0], None)
        return self.local.delete_collection(request.names[0])

    def add_vector(self, request: _Request) -> Any:
        name, body = self._resolve(request.names[0]), request.body
        self.local.create_vector_name(name, request.names[1], body)
        if isinstance(body, m.DenseVectorNameConfig) and body.dense.datatype:
            params = {"vectors": {request.names[1]: {"datatype": body.dense.datatype.value}}}
            self._settings[name] = _merged(self._settings[name], {"params": params})
        return self._update_result(request)

    def drop_vector(self, request: _Request) -> Any:
        name, vector = self._resolve(request.names[0]), request.names[1]
        self.local.delete_vector_name(name, vector)
        self._settings[name]["params"].get("vectors", {}).pop(vector, None)
        return self._update_result(request)

    def create_snapshot(self, request: _Request) -> Any:
        names = self._snapshots.setdefault(request.names[0], [])
        names.append(f"{request.names[0]}-{len(names)}.snapshot")
        return {"name": names[-1], "size": 1} if request.wait else None

    def snapshots(self, request: _Request) -> Any:
        return [{"name": name, "size": 1} for name in self._snapshots.get(request.names[0], [])]

    def index(self, request: _Request) -> Any:
        name, schema = self._resolve(request.names[0]), request.body.field_schema
        self.local.get_collection(name)  # raises for an unknown collection
        if schema is None:
            raise Refusal(400, "Bad request: the test server does not infer a field's type")
        params = {} if isinstance(schema, m.PayloadSchemaType) else _as_dict(schema)
        index = {"data_type": params["type"], "params": params} if params else {"data_type": schema}
        self._indexes.setdefault(name, {})[request.body.field_name] = index
        return self._update_result(request)

    def aliases(self, request: _Request) -> Any:
        return self.local.get_aliases()

    def aliases_of(self, request: _Request) -> Any:
        return self.local.get_collection_aliases(request.names[0])

    def change_aliases(self, request: _Request) -> Any:
        return self.local.update_collection_aliases(request.body.actions)

    # Points.

    def upsert(self, request: _Request) -> Any:
        self.local.upsert(
            request.names[0],
            request.body.batch if isinstance(request.body, m.PointsBatch) else request.body.points,
            update_filter=request.body.update_filter,
            update_mode=request.body.update_mode,
        )
        return self._update_result(request)

    def update_vectors(self, request: _Request) -> Any:
        body = request.body
        self.local.update_vectors(request.names[0], body.points, update_filter=body.update_filter)
        return self._update_result(request)

    def set_payload(self, request: _Request) -> Any:
        self.local.set_payload(
            request.names[0], request.body.payload, _selector(request.body), request.body.key
        )
        return self._update_result(request)

    def overwrite_payload(self, request: _Request) -> Any:
        self.local.overwrite_payload(
            request.names[0], request.body.payload, _selector(request.body)
        )
        return self._update_result(request)

    def delete(self, request: _Request) -> Any:
        self.local.delete(request.names[0], request.body)
        return self._update_result(request)

    def retrieve(self, request: _Request) -> Any:
        body = request.body
        with_payload = True if body.with_payload is None else body.with_payload
        return self.local.retrieve(
            request.names[0], body.ids, with_payload, body.with_vector or False
        )

    def scroll(self, request: _Request) -> Any:
        body = request.body
        self._check_order(request.names[0], body.order_by)
        points, following = self.local.scroll(
            request.names[0],
            scroll_filter=body.filter,
            limit=10 if body.limit is None else body.limit,
            order_by=body.order_by,
            offset=body.offset,
            with_payload=True if body.with_payload is None else body.with_payload,
            with_vectors=body.with_vector or False,
        )
        return {"points": points, "next_page_offset": following}

    def count(self, request: _Request) -> Any:
        return self.local.count(request.names[0], request.body.filter)

    def query(self, request: _Request) -> Any:
        return self._query_points(request.names[0], [request.body])[0]

    def query_batch(self, request: _Request) -> Any:
        return self._query_points(request.names[0], request.body.searches)

    # Helpers.

    def _query_points(self, name: str, requests: list[m.QueryRequest]) -> list[m.QueryResponse]:
        # Local mode searches exactly, and warns about search parameters.
        plain = [request.model_copy(update={"params": None}) for request in requests]
        return self.local.query_batch_points(name, plain)

    def _resolve(self, name: str) -> str:
        """Return the collection of an alias, or the name itself."""
        aliases = {a.alias_name: a.collection_name for a in self.local.get_aliases().aliases}
        return aliases.get(name, name)

    def _update_result(self, request: _Request) -> dict[str, Any]:
        state = "completed" if request.wait else "acknowledged"
        return {"operation_id": next(self._operations), "status": state}

    def _indexed_count(self, name: str, field: str) -> int:
        empty = m.IsEmptyCondition(is_empty=m.PayloadField(key=field))
        return self.local.count(name, m.Filter(must_not=[empty])).count

    def _check_order(self, name: str, order_by: str | m.OrderBy | None) -> None:
        """Refuse an order without an index, as the server does."""
        key = order_by.key if isinstance(order_by, m.OrderBy) else order_by
        index = self._indexes.get(self._resolve(name), {}).get(key or "", {})
        if key and index.get("data_type") not in ("integer", "float", "datetime", "uuid"):
            message = f"No range index for `order_by` key: `{key}`. Please create one"
            raise Refusal(400, f"Bad request: {message} to use `order_by`.")


class _Discarding(_Engine):
    """Counts the points of all writes, and stores none."""

    def __init__(self) -> None:
        super().__init__()
        self._points = 0

    def upsert(self, request: _Request) -> Any:
        self._points += len(request.body)
        return self._update_result(request)

    def info(self, request: _Request) -> Any:
        return super().info(request) | {"points_count": self._points}

    def count(self, request: _Request) -> Any:
        return {"count": self._points}


def _as_dict(model: Any) -> dict[str, Any]:
    return dict(model.model_dump(mode="json", exclude_none=True))


def _settings(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of `config`, except `params`, from a create or update request."""
    names = ("hnsw_config", "wal_config", "quantization_config", "strict_mode_config")
    settings = {name: fields[name] for name in names if name in fields}
    return settings | {"optimizer_config": fields.get("optimizers_config", {})}


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Merge `top` into `base` recursively; a quantization config is replaced as a whole."""
    merged = dict(base)
    for key, value in top.items():
        current = base.get(key)
        if isinstance(value, dict) and isinstance(current, dict) and key != "quantization_config":
            merged[key] = _merged(current, value)
        else:
            merged[key] = None if value == "Disabled" else value
    return merged


def _selector(body: m.SetPayload) -> list[Any] | m.Filter:
    selector = body.filter if body.points is None else body.points
    if selector is None:
        raise Refusal(422, "Validation error in JSON body: [no filter or points provided]")
    return selector


# --------------------------------------------------------------------------------- routes


@dataclass(frozen=True)
class _Route:
    method: str
    path: re.Pattern[str]
    action: str  # a method of the engine
    body: TypeAdapter[Any] | None
    query: tuple[str, ...]

    @property
    def is_write(self) -> bool:
        return self.method != "GET" and "consistency" not in self.query


def _route(line: str, action: str, body: Any = None, query: str = "") -> _Route:
    method, path = line.split()
    pattern = re.compile(re.sub(r"\{\w+\}", "([^/]+)", path))
    return _Route(method, pattern, action, body and TypeAdapter(body), tuple(query.split()))


ALTERS, WRITES, READS = "timeout", "wait ordering timeout", "consistency timeout"
QUERY = {
    "wait": "true|false",
    "ordering": "weak|medium|strong",
    "timeout": "[1-9][0-9]*",
    "consistency": "[1-9][0-9]*|majority|quorum|all",
}
C, P = "/collections/{c}", "/collections/{c}/points"
UPSERT = _route(f"PUT {P}", "upsert", m.PointInsertOperations, WRITES)
ROUTES = [
    _route("GET /collections", "collections"),
    _route("GET /aliases", "aliases"),
    _route("POST /collections/aliases", "change_aliases", m.ChangeAliasesOperation, ALTERS),
    _route(f"GET {C}/exists", "exists"),
    _route(f"GET {C}/aliases", "aliases_of"),
    _route(f"GET {C}", "info"),
    _route(f"PUT {C}", "create", m.CreateCollection, ALTERS),
    _route(f"PATCH {C}", "update", m.UpdateCollection, ALTERS),
    _route(f"DELETE {C}", "drop", None, ALTERS),
    _route(f"PUT {C}/index", "index", m.CreateFieldIndex, WRITES),
    _route(f"PUT {C}/vectors/{{v}}", "add_vector", m.VectorNameConfig, WRITES),
    _route(f"DELETE {C}/vectors/{{v}}", "drop_vector", None, WRITES),
    _route(f"POST {C}/snapshots", "create_snapshot", None, "wait"),
    _route(f"GET {C}/snapshots", "snapshots"),
    UPSERT,
    _route(f"POST {P}", "retrieve", m.PointRequest, READS),
    _route(f"POST {P}/scroll", "scroll", m.ScrollRequest, READS),
    _route(f"POST {P}/count", "count", m.CountRequest, READS),
    _route(f"POST {P}/query", "query", m.QueryRequest, READS),
    _route(f"POST {P}/query/batch", "query_batch", m.QueryRequestBatch, READS),
    _route(f"POST {P}/delete", "delete", m.PointsSelector, WRITES),
    _route(f"PUT {P}/vectors", "update_vectors", m.UpdateVectors, WRITES),
    _route(f"POST {P}/payload", "set_payload", m.SetPayload, WRITES),
    _route(f"PUT {P}/payload", "overwrite_payload", m.SetPayload, WRITES),
]


def conformance_error(call: RecordedCall) -> str | None:
    """Return why a recorded call is invalid, or None."""
    try:
        _parse_request(call, b"" if call.body is None else to_json(call.body), _validate)
    except Refusal as refused:
        return f"{call.method} {call.path}: {refused}"
    return None


def _parse_request(
    call: RecordedCall, content: bytes, validate: Callable[[_Route, bytes], Any]
) -> _Request:
    route, names = _match_route(call)
    for name, value in call.query.items():
        if name not in route.query or not re.fullmatch(QUERY[name], value):
            raise Refusal(400, f"Deserialize error in query parameters: `{name}`: `{value}`")
    return _Request(route, names, validate(route, content), call.query.get("wait") == "true")


def _match_route(call: RecordedCall) -> tuple[_Route, list[str]]:
    for route in ROUTES:
        match = route.path.fullmatch(call.path)
        if match and route.method == call.method:
            return route, [unquote(name) for name in match.groups()]
    raise Refusal(404, f"the test server has no {call.method} {call.path}")


def _validate(route: _Route, content: bytes) -> Any:
    if route.body is None:
        if content:
            raise Refusal(400, "Format error in JSON body: there should be none")
        return None
    _parse_json(content)
    try:
        body = route.body.validate_json(content, strict=True)
    except ValidationError as error:
        # Each member of a union reports an error; the deepest one is the relevant one.
        deepest = max(error.errors(include_input=False), key=lambda error_: len(error_["loc"]))
        location = ".".join(map(str, deepest["loc"]))
        raise Refusal(400, f"Format error in JSON body: {location}: {deepest['msg']}") from None
    _check_limits(body)
    return body


def _validate_names(route: _Route, content: bytes) -> Any:
    """Check only the field names of an upsert's points; validate other requests fully."""
    if route is not UPSERT:
        return _validate(route, content)
    points = _parse_json(content).get("points", [{}])
    if any(point.keys() - {"payload"} != {"id", "vector"} for point in points):
        raise Refusal(400, "Format error in JSON body: not a list of points")
    return points


def _parse_json(content: bytes) -> Any:
    """Parse JSON, and refuse NaN, which the models would accept."""
    try:
        return from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"Format error in JSON body: {error}") from None


def _check_limits(body: Any) -> None:
    """Check limits of the server that the models lack."""
    points = body.points if isinstance(body, m.PointsList) else []
    if any(isinstance(point.id, int) and not 0 <= point.id < 2**64 for point in points):
        raise Refusal(400, "Format error in JSON body: a point's id is an unsigned integer or UUID")
    for location, vector in _vectors(body):
        if isinstance(vector, list) and vector and isinstance(vector[0], list):
            size = sum(map(len, vector))
            if size >= MULTIVECTOR_FLOATS:
                message = (
                    f"Total size of all vectors ({size}) must be less than {MULTIVECTOR_FLOATS}"
                )
                raise Refusal(422, f"Validation error in JSON body: [{location}: {message}]")


def _vectors(body: Any) -> Iterator[tuple[str, Any]]:
    match body:
        case m.PointsList() | m.UpdateVectors():
            for number, vector in enumerate([point.vector for point in body.points]):
                by_name = vector if isinstance(vector, dict) else {"": vector}
                yield from (
                    (f"points[{number}].vector.?.data", vector) for vector in by_name.values()
                )
        case m.PointsBatch():
            columns = body.batch.vectors
            for column in columns.values() if isinstance(columns, dict) else [columns]:
                yield from (("batch", vector) for vector in column)
        case m.QueryRequestBatch():
            for request in body.searches:
                yield from _vectors(request)
        case m.QueryRequest() | m.Prefetch():
            yield "query", getattr(body.query, "nearest", body.query)
            nested = body.prefetch or []
            for prefetch in nested if isinstance(nested, list) else [nested]:
                yield from _vectors(prefetch)


def _server_refusal(error: Exception) -> Refusal:
    """Convert an exception of local mode to the server's error."""
    if isinstance(error, KeyError):
        return Refusal(404, f"Not found: No point with id {error.args[0]} found")
    message = str(error).removeprefix("Wrong input: ")
    if match := re.fullmatch("Collection (.+) not found", message):
        return Refusal(404, f"Not found: Collection `{match[1]}` doesn't exist!")
    if match := re.fullmatch("Collection (.+) already exists", message):
        return Refusal(409, f"Wrong input: Collection `{match[1]}` already exists!")
    return Refusal(400, f"Wrong input: {message}")


# --------------------------------------------------------------------------------- server


class QdrantServer(LoopbackServer):
    """A Qdrant server, empty at the start."""

    request_queue_size = 128  # the client opens a connection for every request

    def __init__(
        self,
        *,
        api_key: str | None = None,
        read_only_api_key: str | None = None,
        max_body: int = MAX_BODY,
        port: int = 0,
        discard: bool = False,
    ) -> None:
        self._port = port
        super().__init__(_Handler)
        self.url = self.base
        self.calls: list[RecordedCall] = []
        self.max_body = max_body
        self._keys = {api_key: True, read_only_api_key: False}  # → whether it allows writes
        self._keys.pop(None, None)
        self._discard = discard
        self._engine = _Discarding() if discard else _Engine()
        self._lock = threading.Lock()
        self._planned: list[_PlannedFault] = []

    def server_bind(self) -> None:
        self.server_address = (str(self.server_address[0]), self._port)
        super().server_bind()

    def __exit__(self, *exception: object) -> None:
        # A client requests the version in a thread, which warns if the server is gone.
        for thread in threading.enumerate():
            if "_check_compatibility" in thread.name:
                thread.join(5)
        super().__exit__(*exception)
        self._engine.local.close()
        if CALLS in os.environ:
            self._save(Path(os.environ[CALLS]))

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # OSError: the client disconnected, or a fault
            super().handle_error(request, client_address)

    # For tests.

    def fail(self, fault: Fault, *, on: str = "*", times: int = 1, skip: int = 0) -> None:
        """Apply a fault to the next `times` valid requests to "METHOD /path" (`*` is a wildcard).

        The first `skip` requests pass. If several faults match, the first one planned applies.
        """
        with self._lock:
            self._planned.append(_PlannedFault(fault, on, skip, times))

    def routes(self) -> list[str]:
        """Return "METHOD /path" of each request, in order."""
        return [f"{call.method} {call.path}" for call in self.calls]

    def conformance_errors(self) -> list[str]:
        """Return the errors of the recorded calls that are invalid."""
        return [error for error in map(conformance_error, self.calls) if error]

    # For clients.

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        content = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        path, _, query = handler.path.partition("?")
        body = None if self._discard else _json_or_none(content)
        fields = dict(parse_qsl(query, keep_blank_values=True))
        call = RecordedCall(handler.command, path, fields, body)
        exchange = (call.method, path, dict(handler.headers), body, handler)
        if path == "/":
            # Not recorded: the client sends it from a thread, at any time.
            title = {"title": "qdrant - vector search engine", "version": VERSION}
            Exchange(*exchange).reply(200, to_json(title), {"Content-Type": "application/json"})
            return
        if not self._discard:
            self.calls.append(call)
        try:
            self._authorize(handler.headers.get("api-key"), call)
            request = self._accept(call, content)
        except Refusal as error:
            # Unlike other errors, a 401 is plain text.
            plain = error.code == 401
            refuse = raw(str(error).encode(), 401) if plain else refusing(error.code, str(error))
            refuse(Exchange(*exchange))
        else:
            self._fault_of(call)(PendingExchange(*exchange, apply=lambda: self._apply(request)))

    def _authorize(self, key: str | None, call: RecordedCall) -> None:
        if not self._keys:
            return
        if key is None:
            raise Refusal(401, "Must provide an API key or an Authorization bearer token")
        if key not in self._keys:
            raise Refusal(401, "Invalid API key or JWT")
        if not self._keys[key] and _match_route(call)[0].is_write:
            raise Refusal(403, "Forbidden: Write access is required")

    def _accept(self, call: RecordedCall, content: bytes) -> _Request:
        if len(content) > self.max_body:
            message = f"JSON payload ({len(content)} bytes) is larger than allowed"
            raise Refusal(400, f"Payload error: {message} (limit: {self.max_body} bytes).")
        return _parse_request(call, content, _validate_names if self._discard else _validate)

    def _fault_of(self, call: RecordedCall) -> Fault:
        with self._lock:
            for planned in self._planned:
                if not planned.times or not fnmatchcase(f"{call.method} {call.path}", planned.on):
                    continue
                if planned.skip:
                    planned.skip -= 1
                    continue
                planned.times -= 1
                return planned.fault
        return PendingExchange.answer

    def _apply(self, request: _Request) -> tuple[int, bytes]:
        try:
            with self._lock:
                result = getattr(self._engine, request.route.action)(request)
                content = to_json({"result": result, "status": "ok", "time": 0.0})
        except (KeyError, ValueError, TypeError) as error:
            refused = _server_refusal(error)
        except Refusal as error:
            refused = error
        else:
            return 200, content
        return refused.code, to_json(_error(str(refused)))

    def _save(self, file: Path) -> None:
        with file.open("a", encoding="utf-8") as lines:
            for call in self.calls:
                if conformance_error(call) is None:
                    lines.write(json.dumps(vars(call)) + "\n")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: QdrantServer

    def do_GET(self) -> None:
        self.server.serve(self)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's own output readable."""


def _json_or_none(content: bytes) -> Any:
    try:
        return _parse_json(content)
    except Refusal:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description="A test server with Qdrant's REST API.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--discard", action="store_true", help="count points without storing them")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with QdrantServer(port=args.port, discard=args.discard) as server:
        print(server.url, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
