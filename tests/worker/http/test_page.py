"""The files of the page at `/`. `page/` drives it in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx

from bge_worker.http.page import FOLDER
from fakes.serving import KEY

MAX_BYTES = 60_000


def test_the_page_and_its_files_are_open_and_forbid_everything_else(
    serve: Callable[..., str],
) -> None:
    url = serve(api_key=KEY)
    for path in ("/", *(f"/page/{file.name}" for file in FOLDER.iterdir())):
        response = httpx.get(url + path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
    assert httpx.get(f"{url}/page/docs.html").status_code == 404
    assert httpx.post(url, json={"inputs": "a"}).status_code == 401


def test_without_the_page_the_routes_are_documented_at_its_address(
    serve: Callable[..., str],
) -> None:
    url = serve(page=False)
    assert httpx.get(url).text == httpx.get(f"{url}/docs").text
    assert httpx.get(f"{url}/page/main.js").status_code == 404


def test_the_page_is_small_and_names_no_other_host() -> None:
    files = [path.read_text("utf-8") for path in FOLDER.iterdir()]
    assert sum(len(file.encode()) for file in files) < MAX_BYTES
    addresses = {address for file in files for address in re.findall(r"https?://[^\"'\s]+", file)}
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG's elements
