"""Which endpoint a request goes to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from ..errors import NotServedError
from .routes.native import NATIVE
from .routes.route import Dialect


class Endpoint(NamedTuple):
    """`path` may have parameters in braces; `dialect` is that of its errors."""

    method: str
    path: str
    handle: Callable[[Request], Awaitable[Response]]
    dialect: Dialect = NATIVE


class Router:
    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._fixed = {
            endpoint.path: endpoint for endpoint in endpoints if "{" not in endpoint.path
        }
        self._patterns = [
            (compile_path(endpoint.path)[0], endpoint)
            for endpoint in endpoints
            if "{" in endpoint.path
        ]

    def find(self, scope: Scope) -> Endpoint | None:
        """Return the endpoint of a path, for any method; set the path's parameters."""
        path: str = scope["path"]
        if path in self._fixed:
            return self._fixed[path]
        for pattern, endpoint in self._patterns:
            if match := pattern.match(path):
                scope["path_params"] = match.groupdict()
                return endpoint
        return None


async def dispatch(endpoint: Endpoint | None, scope: Scope, receive: Receive, send: Send) -> None:
    """Run an endpoint. Raises NotServedError, status 404 or 405, if there is none to run."""
    if endpoint is None:
        raise NotServedError("no such route")
    if scope["method"] != endpoint.method:
        error = NotServedError("this route takes another method")
        error.status, error.headers = 405, (("allow", endpoint.method),)
        raise error
    response = await endpoint.handle(Request(scope, receive))
    await response(scope, receive, send)
