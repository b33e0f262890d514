"""The pictures of docs/page.md: `make test-page SCREENSHOTS=docs/images/page` takes them again."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from conftest import Visits

FOLDER = os.environ.get("SCREENSHOTS")
SIZES = {"desktop": (1200, 800), "phone": (390, 800)}
SAMPLES = 140  # of the metrics, two seconds apart: five minutes
WORDS = ["градиентный", "спуск", "ищет", "минимум", "gradient", "descent", "finds", "море"]


@pytest.mark.skipif(not FOLDER, reason="takes pictures into the folder SCREENSHOTS")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screenshots(size: str, scheme: str, visits: Visits, url: str, api: httpx.Client) -> None:
    width, height = SIZES[size]
    page = visits.open(url, color_scheme=scheme, viewport={"width": width, "height": height})
    fill_the_charts(page, api)
    show_pair(page)
    take(page, f"compare-{size}-{scheme}")
    for view, result in (("rerank", "#ranking tbody"), ("tokens", "#token-list summary")):
        page.click(f"#tab-{view}")
        page.click(f"#{view} button.main")
        page.wait_for_selector(result)
        take(page, f"{view}-{size}-{scheme}")
    page.click("#tab-server")
    page.wait_for_selector("#charts path[d*=L]", state="attached")
    take(page, f"server-{size}-{scheme}")


def show_pair(page: Page) -> None:
    page.click("#compare button.main")
    page.click("#map button[data-row='0'][data-column='1']")
    page.locator(".alignment button").nth(4).focus()


def fill_the_charts(page: Page, api: httpx.Client) -> None:
    """Five minutes of load, on a clock that the test moves."""
    page.clock.install()
    page.reload()
    for sample in range(SAMPLES):
        for request in range(abs((sample * 7) % 23 - 11)):
            texts = [" ".join(WORDS[: 2 + (sample + request) % 6])] * (1 + request % 5)
            api.post("/native/embed", json={"texts": texts}).raise_for_status()
        with page.expect_response("**/metrics"):
            page.clock.run_for(2000)
    page.clock.resume()


def take(page: Page, name: str) -> None:
    from PIL import Image

    assert FOLDER is not None
    picture = Image.open(BytesIO(page.screenshot(full_page=True)))
    picture.convert("RGB").quantize(64).save(Path(FOLDER) / f"{name}.png", optimize=True)
