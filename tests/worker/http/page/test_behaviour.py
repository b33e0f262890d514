"""Errors, the key, hostile texts, the keyboard, accessibility, long work, and the snippets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from conftest import Reader, Visits

HOSTILE = [
    "<img src=x onerror='window.injected = 1'>",
    "<script>window.injected = 1</script>",
    '"><svg onload=window.injected=1>',
    "\u202eright to left\u202c שלום עולם مرحبا",
    "combining " + "e\u0301\u0323\u0308" * 20,
]
VIEWS = ("compare", "rerank", "tokens", "server")


def error_of(page: Page, view: str) -> str:
    error = page.locator(f"#{view} .error")
    error.wait_for()
    return error.inner_text()


def test_an_error_is_a_sentence(reader: Reader) -> None:
    page = reader.page
    page.locator("#compare-texts textarea").nth(1).fill("  ")
    page.click("#compare button.main")
    sentence = "`texts[1]` must not be empty or blank. Given: a string of white space."
    assert error_of(page, "compare") == sentence
    reader.compare(["a", "b"])
    assert page.is_hidden("#compare .error")

    page.click("#tab-rerank")
    file = {"name": "a.json", "mimeType": "application/json", "buffer": b"{"}
    page.set_input_files("#rerank-file", files=[file])
    assert error_of(page, "rerank") == "a.json is not valid JSON."


def test_an_error_of_a_ranking_names_the_query(reader: Reader) -> None:
    reader.page.click("#tab-rerank")
    reader.page.fill("#rerank-query", "")
    reader.page.click("#rerank button.main")
    assert error_of(reader.page, "rerank").startswith("`query` must not be empty")


def test_a_server_that_does_not_answer_is_named(reader: Reader, visits: Visits) -> None:
    reader.page.context.set_offline(True)
    reader.page.click("#compare button.main")
    assert error_of(reader.page, "compare") == ("The server does not answer. Is it still running?")
    visits.messages = [text for text in visits.messages if "ERR_INTERNET_DISCONNECTED" not in text]


def test_the_key_is_asked_for_and_kept_for_the_tab(
    visits: Visits, locked_url: str, key: str
) -> None:
    page = visits.open(locked_url)
    for typed, reason in (("wrong", "needs a key"), (key, "refused this key")):
        page.wait_for_selector(f"#key-reason:has-text('{reason}')")
        page.fill("#key-value", typed)
        page.click("#key button.main")
    page.wait_for_selector("#key", state="hidden")
    page.click("#compare button.main")
    page.wait_for_selector("#map button")
    assert "$BGE_API_KEY" in page.inner_text("#compare pre")
    assert key not in page.content()

    page.reload()
    page.click("#compare button.main")
    page.wait_for_selector("#map button")
    page.click("#key-forget")
    page.wait_for_selector("#key[open]")


def test_a_key_is_not_forgotten_when_an_older_request_is_refused(
    visits: Visits, locked_url: str, key: str
) -> None:
    page = visits.open(f"{locked_url}/docs")
    held = []
    page.route("**/metrics", lambda route: held.append(route), times=1)
    page.goto(locked_url)
    page.click("#compare button.main")
    page.fill("#key-value", "ключ")
    page.click("#key button.main")
    assert page.is_visible("#key-value:invalid")  # no header can have it
    page.fill("#key-value", key)
    page.click("#key button.main")
    page.wait_for_selector("#map button")
    held[0].continue_()
    page.click("#tab-server")
    page.wait_for_selector("#info table")
    assert page.is_hidden("#key")


def test_without_a_key_only_the_reader_s_requests_ask_again(
    visits: Visits, locked_url: str
) -> None:
    page = visits.open(f"{locked_url}/#server")
    page.click("#key button[value=cancel]")
    assert error_of(page, "server") == "This server needs a key."
    page.wait_for_timeout(2500)  # the next samples of the metrics
    assert page.is_hidden("#key")
    page.click("#tab-compare")
    page.click("#compare button.main")
    page.wait_for_selector("#key[open]")


def test_texts_are_shown_as_text(reader: Reader) -> None:
    page = reader.page
    reader.compare(HOSTILE)
    assert page.locator("#map bdi").all_text_contents() == [text[:80] for text in HOSTILE]
    for column in range(1, len(HOSTILE)):
        reader.open_pair(0, column)
    reader.rerank(HOSTILE[0], HOSTILE)
    shown = page.locator("#ranking bdi").all_text_contents()
    assert sorted(shown) == sorted(HOSTILE)
    for text in HOSTILE:
        reader.tokenize(text)
        shown = page.locator("#token-list .token").all_text_contents()
        assert "".join(shown).count("injected") == text.count("injected")
    assert page.locator("main img, main script, main svg[onload]").count() == 0
    assert page.evaluate("window.injected") is None


def test_the_policy_stops_an_inline_script(reader: Reader, visits: Visits) -> None:
    """What the page never does itself: were HTML ever parsed, nothing in it would run."""
    reader.page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.injected=1\">')"
    )
    reader.page.wait_for_timeout(200)
    assert reader.page.evaluate("window.injected") is None
    assert any("Content Security Policy" in text for text in visits.messages)
    visits.messages.clear()


def test_the_documentation_sends_its_examples(visits: Visits, locked_url: str, key: str) -> None:
    page = visits.open(f"{locked_url}/docs")
    page.fill("#key", key)
    page.press("#key", "Enter")
    route = page.locator("details", has=page.locator("code", has_text="/native/rerank"))
    route.locator("summary").click()
    route.locator("button").click()
    route.locator("pre", has_text="relevance_score").wait_for()


def test_the_keyboard_reaches_everything(reader: Reader) -> None:
    page = reader.page
    page.focus("#tab-compare")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#rerank")
    page.keyboard.press("ArrowLeft")
    page.locator("#compare-texts textarea").first.focus()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#map button")
    page.locator("#map button").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("h2:has-text('Text 2 as query, text 3 as document')")
    page.locator(".alignment button").first.focus()
    page.keyboard.press("ArrowRight")
    assert (
        page.locator(".alignment button").nth(1).evaluate("node => node === document.activeElement")
    )
    assert page.locator(".alignment .selected:not(line)").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_no_violation(scheme: str, width: int, visits: Visits, url: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = visits.open(
        url, color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True
    )
    fill_every_view(page)
    for view in VIEWS:
        page.click(f"#tab-{view}")
        violations = Axe().run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in violations] == [], view
        # Nothing is wider than the screen, except what scrolls by itself.
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def fill_every_view(page: Page) -> None:
    page.click("#compare button.main")
    page.click("#map button[data-row='0'][data-column='1']")
    page.click("#pair summary")
    page.click("#tab-rerank")
    page.click("#rerank button.main")
    page.wait_for_selector("#ranking tbody")
    page.click("#tab-tokens")
    page.click("#tokens button.main")
    page.click("#token-list summary")
    page.click("#tab-server")
    page.wait_for_selector("#charts path[d*=L]", state="attached")


COUNT_FRAMES = """() => {
  window.pauses = [];
  let last = performance.now();
  const count = now => {
    window.pauses.push(now - last);
    last = now;
    requestAnimationFrame(count);
  };
  requestAnimationFrame(count);
}"""


def test_frames_are_drawn_during_long_work(reader: Reader) -> None:
    """20 texts of 2,000 characters. Prints the longest pause between two frames."""
    words = "градиент спуск минимум функции потерь gradient descent loss море суша "
    texts = [(words[index:] + words * 40)[:2000] for index in range(20)]
    reader.page.evaluate(COUNT_FRAMES)
    reader.compare(texts)
    assert reader.page.locator("#map button").count() == 400
    shown = reader.page.locator("#compare pre").text_content() or ""
    assert len(shown) < 21_000
    assert shown.endswith(" characters)")
    reader.open_pair(0, 19)
    pauses = reader.page.evaluate("window.pauses")
    print(f"{len(pauses)} frames, the longest pause {max(pauses):.0f} ms")
    assert len(pauses) > 10


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_a_snippet_sends_the_request_of_the_view(
    language: str, visits: Visits, locked_url: str, key: str
) -> None:
    page = visits.open(locked_url)
    page.fill("#key-value", key)
    page.click("#key button.main")
    page.wait_for_selector("#key", state="hidden")
    page.click("#tab-rerank")
    query = 'it\'s "quoted" \\ море\nna\u2028 $HOME'
    page.fill("#rerank-query", query)
    page.fill("#rerank-documents", "о море\nо суше")
    with page.expect_response("**/native/rerank") as sent:
        page.click("#rerank button.main")
    page.wait_for_selector("#ranking tbody")
    page.click(f"#rerank .languages button:has-text('{language}')")
    snippet = page.locator("#rerank pre").text_content() or ""
    digest = sent.value.json()["input_digest"]
    assert digest in run(language, snippet, key)


def run(language: str, snippet: str, key: str) -> str:
    """Return what a snippet prints."""
    commands: dict[str, list[str]] = {
        "curl": ["sh", "-c", snippet],
        "Python": [sys.executable, "-c", snippet],
        "JavaScript": ["node", "--input-type=module", "-e", snippet],
    }
    if shutil.which(commands[language][0]) is None:
        pytest.skip(f"{commands[language][0]} is not installed")
    env: dict[str, Any] = {"PATH": os.environ["PATH"], "BGE_API_KEY": key}
    process = subprocess.run(
        commands[language], env=env, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 0, process.stderr
    return process.stdout
