"""A real server and Debian's Chromium. `make test-page` installs the driver in `.venv-page`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[4]
MODELS = ROOT / "models" / "miniature-packed"
START_SECONDS = 60
# No other host can be reached, or even looked up.
CHROMIUM = ("--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
# What Chromium itself writes when a server refuses a request.
REFUSED = "Failed to load resource: the server responded with a status of 4"


@contextmanager
def server(**variables: str) -> Iterator[str]:
    """Yield the address of `worker/server.py` with the miniature."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    env |= {
        "BGE_EMBED_MODEL": str(MODELS / "bge-m3"),
        "BGE_RERANK_MODEL": str(MODELS / "bge-reranker-v2-m3"),
        "BGE_LOG_LEVEL": "WARNING",
        **variables,
    }
    python = ROOT / ".venv" / "bin" / "python"
    command = [str(python), str(ROOT / "worker" / "server.py"), "--port", str(port)]
    process = subprocess.Popen(command, env=env)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield url
    finally:
        process.kill()
        process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            if httpx.get(f"{url}/ping").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise TimeoutError("the server did not start")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="`make test-page` installs Playwright")
    executable = shutil.which("chromium")
    assert executable, "install Debian's chromium"
    with (
        api.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=executable, args=[*CHROMIUM]) as browser,
    ):
        yield browser


@pytest.fixture(scope="session")
def url(browser: Browser) -> Iterator[str]:
    with server() as address:
        yield address


@pytest.fixture(scope="session")
def key() -> str:
    return "a-key-of-the-tests"


@pytest.fixture(scope="session")
def locked_url(browser: Browser, key: str) -> Iterator[str]:
    with server(BGE_API_KEY=key) as address:
        yield address


class Visits:
    """Opens pages; in the end, no page has written to its console or asked another host."""

    def __init__(self, browser: Browser, contexts: ExitStack) -> None:
        self._browser = browser
        self._contexts = contexts
        self.messages: list[str] = []

    def open(self, url: str, **options: Any) -> Page:
        """`options` are those of a browser context."""
        context = self._contexts.enter_context(self._browser.new_context(**options))
        page = context.new_page()
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        context.on("request", lambda request: self._check(request.url, httpx.URL(url)))
        page.goto(url)
        return page

    def _check(self, requested: str, url: httpx.URL) -> None:
        if httpx.URL(requested).netloc != url.netloc:
            self.messages.append(f"request to {requested}")


@pytest.fixture
def visits(browser: Browser) -> Iterator[Visits]:
    with ExitStack() as contexts:
        visits = Visits(browser, contexts)
        yield visits
        assert [text for text in visits.messages if not text.startswith(REFUSED)] == []


class Reader:
    """Somebody who uses the page: fills the forms, sends them and waits for the result."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def compare(self, texts: list[str]) -> None:
        page, fields = self.page, self.page.locator("#compare-texts textarea")
        page.click("#tab-compare")
        while fields.count() > len(texts):
            page.locator("#compare-texts button").last.click()
        while fields.count() < len(texts):
            page.click("#compare-add")
        for index, text in enumerate(texts):
            fields.nth(index).fill(text)
        page.click("#compare button.main")
        page.wait_for_selector("#map button", timeout=60_000)

    def open_pair(self, row: int, column: int) -> None:
        self.page.click(f"#map button[data-row='{row}'][data-column='{column}']")
        self.page.wait_for_selector("#pair [data-score]", timeout=60_000)

    def rerank(self, query: str, documents: list[str]) -> None:
        self.page.click("#tab-rerank")
        self.page.fill("#rerank-query", query)
        self.page.fill("#rerank-documents", "\n".join(documents))
        self.page.click("#rerank button.main")
        self.page.wait_for_selector("#ranking tbody")

    def tokenize(self, text: str) -> None:
        self.page.click("#tab-tokens")
        self.page.fill("#tokens-text", text)
        self.page.click("#tokens button.main")
        self.page.wait_for_selector("#token-list summary")

    def watch(self) -> None:
        self.page.click("#tab-server")
        self.page.wait_for_selector("#info table")


@pytest.fixture
def reader(visits: Visits, url: str) -> Reader:
    return Reader(visits.open(url))


@pytest.fixture
def api(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
