"""The HTTP application: the table of routes around one service.

A route reads its body into a request, the service answers it, and the route turns the reply into
its dialect and into bytes. What applies to every request is in `middleware.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from ..serving.requests import Reply
from ..serving.validation import names, unknown_fields, validate
from ..settings import Settings
from . import openapi
from .draining import Drain
from .jobs import Jobs
from .json_codec import JsonParser, to_json
from .loading import LoadingService
from .memory import HeldBytes
from .metrics import CONTENT_TYPE, Metrics
from .middleware import Middleware
from .page import Page
from .routes import (
    cohere,
    infinity,
    native,
    ollama,
    openai,
    rerank,
    tei,
    tei_info,
    tei_rerank,
    vllm,
)
from .routes.route import InfoRoute, Route, TextRoute
from .routes.runpod import RunPodRoutes
from .routing import Endpoint, Router
from .timeouts import Timeouts

if TYPE_CHECKING:  # imports torch, and /ping is answered before that
    from ..serving.service import Service

ROUTES: tuple[Route | TextRoute, ...] = (
    *(*native.ROUTES, *openai.ROUTES, *cohere.ROUTES, *rerank.ROUTES, *tei.ROUTES),
    *(*tei_rerank.ROUTES, *vllm.ROUTES, *infinity.ROUTES, *ollama.ROUTES, *tei_info.ROUTES),
)
INFO_ROUTES = (
    *native.INFO_ROUTES,
    *openai.INFO_ROUTES,
    *tei_info.INFO_ROUTES,
    *infinity.INFO_ROUTES,
    *ollama.INFO_ROUTES,
)


class Application:
    """The application. It answers /ping at once, everything else when the service has loaded."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        service: Future[Service],
        timeouts: Timeouts | None = None,
        held: HeldBytes | None = None,
        drain: Drain | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._service = LoadingService(service)
        self._json = JsonParser()
        timeouts, held = timeouts or Timeouts(), held or HeldBytes()
        self._drain = drain or Drain()
        jobs = RunPodRoutes(Jobs(self._service, self._json, held, settings), self._json, timeouts)
        endpoints = [*self._endpoints(), *job_endpoints(jobs)]
        middleware = Middleware(Router(endpoints), settings, metrics, held, timeouts, self._drain)
        self.asgi: ASGIApp = middleware
        if settings.cors_origins:
            self.asgi = CORSMiddleware(
                middleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "x-ignored-fields", "retry-after"],
            )

    def _endpoints(self) -> list[Endpoint]:
        endpoints = [
            Endpoint("GET", "/ping", self._ping),
            Endpoint("GET", "/metrics", self._get_metrics),
            Endpoint("GET", "/openapi.json", self._get_openapi),
            *page_endpoints(self._settings.page),
        ]
        for path in {path: None for route in ROUTES for path in route.paths}:
            routes = [route for route in ROUTES if path in route.paths]
            handle = partial(self._answer, routes)
            endpoints.append(Endpoint("POST", path, handle, routes[0].dialect, reads_body=True))
        for info in INFO_ROUTES:
            handle = partial(self._describe, info)
            endpoints += [Endpoint("GET", path, handle, info.dialect) for path in info.paths]
        return endpoints

    async def _answer(self, routes: Sequence[Route | TextRoute], request: Request) -> Response:
        """Answer with the first of `routes` whose key the body holds."""
        raw = await request.body()
        service = await self._service.wait()  # before parsing: while models load, bodies stay bytes
        body = await self._json.parse(raw)
        route = next((route for route in routes if holds(body, route.key)), routes[-1])
        request.scope["exchange"].dialect = route.dialect
        if isinstance(route, TextRoute):
            valid = validate(body, route.body, "body")
            content = to_json(await asyncio.to_thread(valid.answer, service))
        else:
            content = await self._infer(route, body, service)
        ignored = unknown_fields(body, route.body)
        shown = names(ignored).replace("`", "").replace("…", "...")  # ASCII, for a header
        headers = {"x-ignored-fields": shown} if ignored else None
        return Response(content, headers=headers, media_type="application/json")

    async def _infer(self, route: Route, body: object, service: Service) -> bytes:
        model = service.model(route.role)
        valid = validate(body, route.body, "body")
        reply = await service.answer(valid.to_request(model, service.settings))
        if reply.is_small:
            return encode(valid, reply)
        return await asyncio.to_thread(encode, valid, reply)

    async def _describe(self, info: InfoRoute, request: Request) -> Response:
        description = info.build(await self._service.wait(), request.path_params)
        return Response(to_json(description), media_type="application/json")

    async def _ping(self, request: Request) -> Response:
        if not self._service.is_loaded:
            return Response(status_code=204)
        is_ready = self._service.is_healthy and not self._drain.is_stopping
        return Response(status_code=200 if is_ready else 503)

    async def _get_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def _get_openapi(self, request: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    @cached_property
    def _openapi(self) -> bytes:
        return to_json(
            openapi.describe(ROUTES, INFO_ROUTES, has_key=self._settings.api_key is not None)
        )


def page_endpoints(has_page: bool) -> list[Endpoint]:
    """The page at `/`, and the documentation of the routes, which is also at `/` without it."""
    docs = Page("docs")
    endpoints = [
        Endpoint("GET", "/docs", docs.get_index),
        Endpoint("GET", "/docs/{file}", docs.get_file),
    ]
    if not has_page:
        return [Endpoint("GET", "/", docs.get_index), *endpoints]
    page = Page("page")
    files = Endpoint("GET", "/page/{file}", page.get_file)
    return [Endpoint("GET", "/", page.get_index), files, *endpoints]


def job_endpoints(jobs: RunPodRoutes) -> list[Endpoint]:
    """RunPod's API: at the root, and under the id of an endpoint."""
    return [
        Endpoint(method, prefix + path, handle, reads_body=path in ("/run", "/runsync"))
        for prefix in ("", "/v2/{endpoint}")
        for method, path, handle in (
            ("POST", "/run", jobs.run),
            ("POST", "/runsync", jobs.runsync),
            ("GET", "/status/{job_id}", jobs.status),
            ("GET", "/status-sync/{job_id}", jobs.status_sync),
            ("GET", "/stream/{job_id}", jobs.stream),
            ("POST", "/cancel/{job_id}", jobs.cancel),
            ("POST", "/purge-queue", jobs.purge_queue),
            ("GET", "/health", jobs.health),
        )
    ]


def holds(body: object, key: str) -> bool:
    """Return whether a body has a field; `key` may be a path such as `inputs.sentences`."""
    field, _, rest = key.partition(".")
    if not isinstance(body, dict) or body.get(field) is None:  # a null is an absent field
        return False
    return not rest or holds(body[field], rest)


def encode(body: Any, reply: Reply) -> bytes:
    """Return the reply in the dialect of the request's body."""
    return to_json(body.to_reply(reply.body))
