"""The HTTP routes: a table of foreign and native shapes around one service, and RunPod's own API.

A route reads its body into a native request, the service answers, the reply is put into the
route's shape. What every request passes before and after is `gate.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from fastapi import FastAPI, Query, Response
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Scope

from .. import __version__
from ..errors import InferenceError, NotServedError, StartError, ValidationError, WorkerError
from ..serving import dialects
from ..serving.requests import EmbedRequest, RerankRequest, Work, parse
from ..settings import Settings
from . import bodies
from .jobs import RUN_KEPT, RUNSYNC_KEPT, Job, Jobs, Order, read_order
from .json_codec import JsonParser, to_json
from .memory import HeldBytes
from .metrics import MESSAGE, Metrics
from .middleware import BODY_SECONDS, OPEN_ROUTES, Gate, error_headers

if TYPE_CHECKING:  # brings torch, and /ping is answered before that is there
    from ..engine.engine import ModelInfo
    from ..serving.service import Service

Role = Literal["embed", "rerank"]
Dialect = Literal["native", "openai", "rerank", "tei"]
Documented: TypeAlias = dict[int | str, dict[str, Any]]  # what a route may answer, by status
Read: TypeAlias = "Callable[[object, ModelInfo, Settings], Work]"

Wait = Annotated[int, Query(ge=1000, le=300_000, description="Milliseconds to wait for the end")]
V2 = "/v2/{endpoint}"
ERROR_MODELS: dict[Dialect, type[BaseModel]] = {
    "native": bodies.NativeError,
    "openai": bodies.OpenAIError,
    "rerank": bodies.ForeignError,
    "tei": bodies.ForeignError,
}
ERRORS = {
    403: "A browser's request from another site",
    404: "This worker does not load the model asked for",
    408: "The body did not arrive in time",
    413: "The body, the tokens or the reply exceed a limit; says how much would fit",
    422: "The body breaks the contract; names the field, the limit and what was given",
    429: "The queue is full; see `Retry-After`",
    500: "The log tells more under the id in the message",
    503: "One text alone does not fit the device",
}


@dataclass(frozen=True)
class Shape:
    """One shape of request and reply, and where it is served.

    Of two shapes on one path, the first whose `sign` the body holds reads it.
    """

    paths: tuple[str, ...]
    sign: str
    dialect: Dialect
    role: Role
    read: Read
    reply: Callable[[Mapping[str, Any]], Any]
    takes: type[BaseModel]
    gives: type[BaseModel]


def native_embed(body: object, model: ModelInfo, settings: Settings) -> Work:
    request = parse(body, settings.max_texts)
    if not isinstance(request, EmbedRequest):
        raise ValidationError("`texts` is required here")
    return request


def native_rerank(body: object, model: ModelInfo, settings: Settings) -> Work:
    request = parse(body, settings.max_texts)
    if not isinstance(request, RerankRequest):
        raise ValidationError("`query` and `documents` are required here")
    return request


SHAPES = (
    Shape(
        ("/native/embed",), "texts", "native", "embed", native_embed, dict,
        bodies.NativeEmbedRequest, bodies.NativeEmbedReply,
    ),
    Shape(
        ("/native/rerank",), "query", "native", "rerank", native_rerank, dict,
        bodies.NativeRerankRequest, bodies.NativeRerankReply,
    ),
    Shape(
        (dialects.OPENAI_EMBEDDINGS, "/embeddings"), "input", "openai", "embed",
        dialects.openai_embed_request, dialects.openai_embed_reply,
        bodies.OpenAIRequest, bodies.OpenAIReply,
    ),
    Shape(
        ("/v1/rerank", "/v2/rerank", "/rerank"), "documents", "rerank", "rerank",
        dialects.rerank_request, dialects.rerank_reply,
        bodies.RerankRequest, bodies.RerankReply,
    ),
    Shape(
        ("/rerank",), "texts", "tei", "rerank",
        dialects.tei_rerank_request, dialects.tei_rerank_reply,
        bodies.TeiRerankRequest, bodies.TeiRerankReply,
    ),
    Shape(
        ("/embed",), "inputs", "tei", "embed",
        dialects.tei_embed_request, dialects.tei_embed_reply,
        bodies.TeiEmbedRequest, bodies.TeiEmbedReply,
    ),
    Shape(
        ("/embed_sparse",), "inputs", "tei", "embed",
        dialects.tei_sparse_request, dialects.tei_sparse_reply,
        bodies.TeiSparseRequest, bodies.TeiSparseReply,
    ),
)  # fmt: skip
DIALECTS: dict[str, Dialect] = {
    path: shape.dialect for shape in reversed(SHAPES) for path in shape.paths
} | {dialects.OPENAI_MODELS: "openai"}


class Server:
    """The application. It answers /ping at once, and everything else once `models` is resolved."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        models: Future[Service],
        body_seconds: float = BODY_SECONDS,
        held: HeldBytes | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._models = models
        self._json = JsonParser()
        held = HeldBytes() if held is None else held
        self._jobs = Jobs(
            self._answer, self._service, held, settings.concurrency, settings.max_queue
        )
        self._routes = FastAPI(
            title="bge-serverless", version=__version__, redoc_url=None, redirect_slashes=False
        )
        self._add_shapes()
        self._add_runpod("")
        self._add_runpod(V2)
        self._add_state()
        self._routes.add_exception_handler(WorkerError, self._refuse)
        self._routes.add_exception_handler(RequestValidationError, self._refuse)
        self._routes.add_exception_handler(HTTPException, self._refuse)
        self._routes.openapi = self._openapi  # type: ignore[method-assign]
        self._patterns = [r for r in self._routes.routes if "{" in getattr(r, "path", "")]
        self._fixed = {path for r in self._routes.routes if (path := getattr(r, "path", ""))}
        self.asgi: ASGIApp = Gate(
            self._routes, settings, metrics, held, self._route_of, body_seconds=body_seconds
        )

    # ------------------------------------------------------------------------- routes

    def _add_shapes(self) -> None:
        for path in {path: None for shape in SHAPES for path in shape.paths}:
            shapes = [shape for shape in SHAPES if path in shape.paths]
            self._routes.post(
                path,
                name=path,
                response_model=None,
                responses=responses(DIALECTS[path], *(shape.gives for shape in shapes)),
                openapi_extra=takes(*(shape.takes for shape in shapes)),
            )(self._endpoint(shapes))

    def _endpoint(self, shapes: list[Shape]) -> Callable[[HttpRequest], Any]:
        async def endpoint(request: HttpRequest) -> Response:
            raw = await request.body()
            service = await self._service()  # first: while the models load, bodies wait as bytes
            body = await self._json.parse(raw)
            fields = body if isinstance(body, dict) else {}
            shape = next((shape for shape in shapes if shape.sign in fields), shapes[0])
            content = await service.respond(
                lambda: shape.read(body, service.model(shape.role), self._settings),
                lambda reply: to_json(shape.reply(reply)),
                len(raw),
            )
            return Response(content, media_type="application/json")

        return endpoint

    def _add_runpod(self, prefix: str) -> None:
        """RunPod's own API, for one worker; `prefix` may hold an endpoint's id, any will do."""
        job = responses("native", bodies.JobReply)
        # FastAPI declares what a function takes, and ours take no notice of the endpoint's id.
        endpoint = [
            {"name": "endpoint", "in": "path", "required": True, "schema": {"type": "string"}}
        ] * prefix.count("{")
        found: Any = {
            "response_model": None,
            "responses": {200: job[200], 404: {**job[404], "description": "No such job"}},
            "openapi_extra": {"parameters": endpoint},
        }

        taken: Any = {
            "response_model": None,
            "responses": job,
            "openapi_extra": takes(bodies.JobRequest) | {"parameters": endpoint},
        }

        @self._routes.post(prefix + "/run", **taken)
        async def run(request: HttpRequest) -> Response:
            return self._job_reply(self._jobs.submit(await self._order(request), RUN_KEPT))

        @self._routes.post(prefix + "/runsync", **taken)
        async def runsync(request: HttpRequest, wait: Wait = 90_000) -> Response:
            job = self._jobs.submit(await self._order(request), RUNSYNC_KEPT)
            try:
                async with asyncio.timeout(wait / 1e3):
                    await job.over.wait()
            except TimeoutError:
                pass  # the caller polls
            except asyncio.CancelledError:  # the caller is gone and was never told the job's id
                self._jobs.cancel(job)
                raise
            return self._job_reply(job)

        @self._routes.get(prefix + "/status/{job_id}", **found)
        async def status(job_id: str) -> Response:
            return self._job_reply(self._job(job_id))

        @self._routes.post(prefix + "/cancel/{job_id}", **found)
        async def cancel(job_id: str) -> Response:
            job = self._job(job_id)
            self._jobs.cancel(job)
            return self._job_reply(job)

        @self._routes.get(
            prefix + "/health",
            response_model=bodies.Health,
            openapi_extra={"parameters": endpoint},
        )
        async def health() -> Any:
            return self._jobs.health(loaded=self._models.done(), healthy=self._healthy)

    def _add_state(self) -> None:
        pings: Documented = {
            204: {"description": "The models load"},
            503: {"description": "Unhealthy"},
        }

        @self._routes.get("/ping", response_class=Response, responses={200: {}, **pings})
        async def ping() -> Response:
            if not self._models.done():
                return Response(status_code=204)
            return Response(status_code=200 if self._healthy else 503)

        @self._routes.get(
            "/metrics", response_class=Response, responses={200: {"content": {MESSAGE: {}}}}
        )
        async def metrics() -> Response:
            return Response(self._metrics.text(), media_type=MESSAGE)

        @self._routes.get(dialects.OPENAI_MODELS, response_model=bodies.OpenAIModels)
        async def models() -> Any:
            return dialects.openai_models((await self._service()).models.values())

    # ------------------------------------------------------------------------ answers

    @property
    def _healthy(self) -> bool:
        loaded = self._models.done() and self._models.exception() is None
        return loaded and self._models.result().healthy

    async def _service(self) -> Service:
        """The service, waited for while the models load.

        Raises:
            InferenceError: they could not be loaded, and the server is about to stop.
        """
        try:
            if self._models.done():
                return self._models.result()
            return await asyncio.shield(asyncio.wrap_future(self._models))
        except StartError:
            raise InferenceError("this worker could not start; its log says why") from None

    async def _order(self, request: HttpRequest) -> Order:
        """The job that a request to `/run` or `/runsync` brings."""
        raw = await request.body()
        return read_order(await self._json.parse(raw), raw)

    async def _answer(self, raw: bytes) -> bytes:
        most = self._settings.max_texts
        service = await self._service()
        payload = (await self._json.parse(raw))["input"]
        return await service.respond(lambda: parse(payload, most), to_json, len(raw))

    def _job(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None:
            raise NotServedError("no such job, or its result is no longer kept")
        return job

    def _job_reply(self, job: Job) -> Response:
        return Response(self._jobs.reply(job), media_type="application/json")

    async def _refuse(self, request: HttpRequest, error: Exception) -> Response:
        """An error in the words of the route's dialect."""
        dialect = self._route_of(request.scope)[1]
        if isinstance(error, WorkerError):
            body = dialects.error_in(dialect, error)
            headers = {name.decode(): value.decode() for name, value in error_headers(error)}
            return Response(to_json(body), error.status, headers, "application/json")
        if isinstance(error, RequestValidationError):
            first = error.errors()[0]
            wrong = ValidationError(f"`{first['loc'][-1]}`: {first['msg']}")
            return await self._refuse(request, wrong)
        assert isinstance(error, HTTPException)
        reason = {404: "no such route", 405: "this route takes another method"}
        no_route = NotServedError(reason.get(error.status_code, error.detail))
        said = to_json(dialects.error_in(dialect, no_route))
        return Response(said, error.status_code, error.headers, "application/json")

    def _route_of(self, scope: Scope) -> tuple[str, str]:
        """The route's template and dialect; what a caller typed goes into no log."""
        path: str = scope["path"]
        if path in self._fixed:
            return path, DIALECTS.get(path, "native")
        for route in self._patterns:
            if route.matches(scope)[0] != Match.NONE:
                return str(route.path), "native"  # type: ignore[attr-defined]
        return "unknown", "native"

    def _openapi(self) -> dict[str, Any]:
        """FastAPI's own, and the bodies that our endpoints read themselves."""
        if self._routes.openapi_schema is None:
            schema = get_openapi(
                title=self._routes.title,
                version=self._routes.version,
                description="BGE embeddings and reranking in the shapes existing clients speak",
                routes=self._routes.routes,
            )
            models: list[type[BaseModel]] = [*(shape.takes for shape in SHAPES), bodies.JobRequest]
            _, defined = models_json_schema(
                [(model, "validation") for model in models],
                ref_template="#/components/schemas/{model}",
            )
            schema["components"]["schemas"].update(defined["$defs"])
            for operation in _operations(schema):
                # FastAPI's own, for a path's parameter that is any string.
                if operation["responses"].get("422", {}).get("description") == "Validation Error":
                    del operation["responses"]["422"]
            if self._settings.api_key is not None:
                self._document_key(schema)
            self._routes.openapi_schema = schema
        return self._routes.openapi_schema

    def _document_key(self, schema: dict[str, Any]) -> None:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path in schema["paths"].keys() - OPEN_ROUTES:
            error = ERROR_MODELS[DIALECTS.get(path, "native")].__name__
            for operation in schema["paths"][path].values():
                operation["security"] = [{"key": []}]
                operation["responses"]["401"] = {
                    "description": "The key is missing or wrong",
                    "content": {
                        "application/json": {"schema": {"$ref": f"#/components/schemas/{error}"}}
                    },
                }


def _operations(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in schema["paths"].values() for operation in path.values()]


def takes(*models: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI of a body that the endpoint reads by itself."""
    refs = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
    schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def responses(dialect: Dialect, *gives: Any) -> Documented:
    """OpenAPI of what a POST may answer."""
    union = gives[0]
    for other in gives[1:]:
        union = union | other
    error = ERROR_MODELS[dialect]
    return {
        200: {"model": union, "description": "The answer"},
        **{status: {"model": error, "description": text} for status, text in ERRORS.items()},
    }
