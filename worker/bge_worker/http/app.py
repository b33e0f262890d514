"""The HTTP application: the table of routes around one service.

A route reads its body into a request, the service answers it, and the route turns the reply into
its dialect and into bytes. What applies to every request is in `middleware.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route as StarletteRoute
from starlette.routing import Router
from starlette.types import ASGIApp

from ..serving.openai import MODELS, models_reply
from ..serving.validation import validate
from ..settings import Settings
from . import openapi
from .jobs import Jobs
from .json_codec import JsonParser, is_small, to_json
from .loading import LoadingService
from .memory import HeldBytes
from .metrics import CONTENT_TYPE, Metrics
from .middleware import Middleware, RouteTable
from .routes import cohere, native, openai, tei
from .routes.route import Dialect, Route
from .routes.runpod import RunPodRoutes
from .timeouts import Timeouts

if TYPE_CHECKING:  # imports torch, and /ping is answered before that
    from ..serving.service import Service

Endpoint = Callable[[Request], Awaitable[Response]]
ROUTES: tuple[Route, ...] = (*native.ROUTES, *openai.ROUTES, *cohere.ROUTES, *tei.ROUTES)


class Server:
    """The application. It answers /ping at once, everything else when the service has loaded."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        service: Future[Service],
        timeouts: Timeouts | None = None,
        held: HeldBytes | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._service = LoadingService(service)
        self._json = JsonParser()
        timeouts, held = timeouts or Timeouts(), held or HeldBytes()
        jobs = RunPodRoutes(Jobs(self._service, self._json, held, settings), self._json, timeouts)
        routes = [*self._inference_routes(), *job_routes(jobs), *self._state_routes()]
        dialects: dict[str, Dialect] = {MODELS: openai.OPENAI}
        for route in reversed(ROUTES):
            dialects |= dict.fromkeys(route.paths, route.dialect)
        self.asgi: ASGIApp = Middleware(
            Router(routes, redirect_slashes=False),
            settings,
            metrics,
            held,
            RouteTable(routes, dialects),
            timeouts,
        )

    def _inference_routes(self) -> list[StarletteRoute]:
        paths = {path: None for route in ROUTES for path in route.paths}
        return [post(path, self._inference_endpoint(path)) for path in paths]

    def _inference_endpoint(self, path: str) -> Endpoint:
        routes = [route for route in ROUTES if path in route.paths]

        async def endpoint(request: Request) -> Response:
            return await self._answer(routes, await request.body())

        return endpoint

    async def _answer(self, routes: Sequence[Route], raw: bytes) -> Response:
        """Answer a body with the first of `routes` whose key it holds."""
        service = await self._service.wait()  # before parsing: while models load, bodies stay bytes
        body = await self._json.parse(raw)
        fields = body if isinstance(body, dict) else {}
        route = next((route for route in routes if route.key in fields), routes[0])
        parsed = validate(body, route.body, "body")
        request = parsed.to_request(service.model(route.role), service.settings)
        reply = await service.answer(request)
        if is_small(reply):
            content = encode(route, reply)
        else:
            content = await asyncio.to_thread(encode, route, reply)
        return Response(content, media_type="application/json")

    def _state_routes(self) -> list[StarletteRoute]:
        return [
            get("/ping", self._ping),
            get("/metrics", self._get_metrics),
            get(MODELS, self._get_models),
            get("/openapi.json", self._get_openapi),
            get("/docs", self._get_docs),
        ]

    async def _ping(self, request: Request) -> Response:
        if not self._service.is_loaded:
            return Response(status_code=204)
        return Response(status_code=200 if self._service.is_healthy else 503)

    async def _get_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def _get_models(self, request: Request) -> Response:
        service = await self._service.wait()
        reply = models_reply(service.models.values())
        return Response(to_json(reply), media_type="application/json")

    async def _get_openapi(self, request: Request) -> Response:
        document = openapi.describe(ROUTES, has_key=self._settings.api_key is not None)
        return Response(to_json(document), media_type="application/json")

    async def _get_docs(self, request: Request) -> Response:
        return HTMLResponse(openapi.DOCS_PAGE)


def job_routes(jobs: RunPodRoutes) -> list[StarletteRoute]:
    """RunPod's API: at the root, and under the id of an endpoint."""
    return [
        route
        for prefix in ("", "/v2/{endpoint}")
        for route in (
            post(prefix + "/run", jobs.run),
            post(prefix + "/runsync", jobs.runsync),
            get(prefix + "/status/{job_id}", jobs.status),
            post(prefix + "/cancel/{job_id}", jobs.cancel),
            get(prefix + "/health", jobs.health),
        )
    ]


def encode(route: Route, reply: dict[str, Any]) -> bytes:
    return to_json(route.build_reply(reply))


def post(path: str, endpoint: Endpoint) -> StarletteRoute:
    return StarletteRoute(path, endpoint, methods=["POST"])


def get(path: str, endpoint: Endpoint) -> StarletteRoute:
    route = StarletteRoute(path, endpoint, methods=["GET"])
    route.methods = {"GET"}  # Starlette adds HEAD
    return route
