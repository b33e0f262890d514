"""The pages at `/` and `/docs`.

A browser loads their files from this server and from no other host. They hold no data: they
send requests to the routes of the API, with the key that their reader types in.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from ..errors import NotServedError

FOLDER = Path(__file__).with_name("static")
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "worker-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # an upgrade must not mix old scripts with new ones
}


class Page:
    """A folder of `static`, read once: `index.html` and the files that it loads."""

    def __init__(self, name: str) -> None:
        self._files = {path.name: path.read_bytes() for path in (FOLDER / name).iterdir()}

    async def get_index(self, request: Request) -> Response:
        return self._response("index.html")

    async def get_file(self, request: Request) -> Response:
        """Raises NotServedError if the page has no such file."""
        name = request.path_params["file"]
        if name not in self._files:
            raise NotServedError("the page has no such file")
        return self._response(name)

    def _response(self, name: str) -> Response:
        media_type = MEDIA_TYPES[Path(name).suffix]
        return Response(self._files[name], headers=HEADERS, media_type=media_type)
