"""The files of the pages at `/` and `/docs`. `page/` drives the first in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx

from bge_worker.http.page import FOLDER
from fakes.serving import KEY

MAX_BYTES = 60_000


def test_pages_and_their_files_are_open_and_forbid_everything_else(
    serve: Callable[..., str],
) -> None:
    url = serve(api_key=KEY)
    files = [f"/{path.relative_to(FOLDER)}" for path in FOLDER.rglob("*.*")]
    assert {"/page/main.js", "/docs/docs.js"} < {*files}
    for path in ("/", "/docs", *files):
        response = httpx.get(url + path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
    assert httpx.get(f"{url}/page/docs.js").status_code == 404
    assert httpx.post(url, json={"inputs": "a"}).status_code == 401


def test_without_the_page_the_routes_are_documented_at_its_address(
    serve: Callable[..., str],
) -> None:
    url = serve(page=False)
    assert httpx.get(url).text == httpx.get(f"{url}/docs").text
    assert httpx.get(f"{url}/page/main.js").status_code == 404


def test_the_page_is_small_and_names_no_other_host() -> None:
    files = [path.read_text("utf-8") for path in (FOLDER / "page").iterdir()]
    assert sum(len(file.encode()) for file in files) < MAX_BYTES
    addresses = {address for file in files for address in re.findall(r"https?://[^\"'\s]+", file)}
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG's elements
