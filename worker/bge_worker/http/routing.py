"""Which endpoint a request goes to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, TypedDict

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from ..errors import NotServedError, WorkerError
from .routes.native import NATIVE
from .routes.route import Dialect


class Endpoint(NamedTuple):
    """`path` may have parameters in braces; `dialect` is that of its errors.

    An endpoint that reads no body runs at once, even if the server is full.
    """

    method: str
    path: str
    handle: Callable[[Request], Awaitable[Response]]
    dialect: Dialect = NATIVE
    reads_body: bool = False


class UnknownPathError(TypedDict):
    """The message where the clients of every dialect look for it."""

    error: Mapping[str, Any]
    detail: str
    message: str


def unknown_path_body(error: WorkerError) -> UnknownPathError:
    message = str(error)
    details = {
        "message": message,
        "type": "invalid_request_error",
        "param": None,
        "code": type(error).__name__,
    }
    return {"error": details, "detail": message, "message": message}


UNKNOWN_PATH = Dialect(unknown_path_body, UnknownPathError)


class Router:
    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._fixed: dict[str, list[Endpoint]] = {}
        self._patterns = []
        for endpoint in endpoints:
            if "{" in endpoint.path:
                self._patterns.append((compile_path(endpoint.path)[0], endpoint))
            else:
                self._fixed.setdefault(endpoint.path, []).append(endpoint)

    def find(self, scope: Scope) -> Endpoint | None:
        """Return the endpoint of a path, for its method if there is one; set the parameters.

        A trailing slash and doubled slashes are ignored.
        """
        path = "/" + "/".join(filter(None, scope["path"].split("/")))
        if path in self._fixed:
            endpoints = self._fixed[path]
            return next((e for e in endpoints if e.method == scope["method"]), endpoints[0])
        for pattern, endpoint in self._patterns:
            if match := pattern.match(path):
                scope["path_params"] = match.groupdict()
                return endpoint
        return None

    async def dispatch(
        self, endpoint: Endpoint | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Run an endpoint. Raises NotServedError, status 404 or 405, if there is none to run."""
        if endpoint is None:
            nearest = get_close_matches(scope["path"][:100], self._fixed, n=1, cutoff=0)
            raise NotServedError(f"no such route. The nearest is `{nearest[0]}`")
        if scope["method"] != endpoint.method:
            on_path = self._fixed.get(endpoint.path, [endpoint])
            allowed = ", ".join(dict.fromkeys(other.method for other in on_path))
            error = NotServedError(f"this route takes {allowed}")
            error.status, error.headers = 405, (("allow", allowed),)
            raise error
        response = await endpoint.handle(Request(scope, receive))
        await response(scope, receive, send)
