"""Keys and passwords must not appear in errors, logs or output. A canary stands for each."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from bge_client import BGEError, Client, ConfigurationError, JinaClient, Router
from bge_client.redaction import RedactingFilter, read_secret
from fakes.scripted import Action, Scripted, completed, failed, job, status

CANARY = "canary-4f1c/9+x"
PADDING = "x" * (195 - len(CANARY) // 2)  # messages are cut at 200, 300, 500: within the canary


@pytest.mark.parametrize(
    "answer",
    [
        status(400, {"error": f"no {CANARY}"}),
        status(400, {"detail": "x" * 495 + CANARY}),
        failed(f"the key {CANARY} ran out"),
        failed(f"{PADDING}{CANARY}"),
        failed(f"ValidationError: `{CANARY}`"),
        failed('{"error_type": "' + CANARY + '"}'),
        job("COMPLETED", output={"error": CANARY}),
    ],
)
def test_endpoint_errors_do_not_show_the_key(answer: Action) -> None:
    with Scripted() as endpoint, Client(endpoint.url, CANARY, timeout=5) as client:
        endpoint.on("POST /runsync", answer)
        with pytest.raises(BGEError) as caught:
            client.info()
    assert "canary" not in str(caught.value) + repr(caught.value)


def test_jina_errors_do_not_show_the_key() -> None:
    with Scripted() as endpoint:
        endpoint.on("POST /v1/embeddings", status(400, {"detail": f"no {CANARY}"}))
        with pytest.raises(BGEError) as caught:
            JinaClient(CANARY, base=endpoint.url.removesuffix("/v2/some-id")).embed("море")
    assert "canary" not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize("edge", ["\n", " \r\n"])
def test_key_is_sent_stripped(edge: str) -> None:
    with Scripted() as endpoint:
        endpoint.on("POST /runsync", completed)
        env = {"BGE_EMBEDDINGS_ENDPOINT": endpoint.url, "RUNPOD_API_KEY": CANARY + edge}
        with Router.from_env(env) as router:
            router.embed("море")
        assert endpoint.seen[0].headers["Authorization"] == f"Bearer {CANARY}"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Client(f"http://me:{CANARY}@127.0.0.1:9"),
        lambda: Client(f"http://[{CANARY}"),
        lambda: Client(f"http://me:{CANARY}@host:port"),
        lambda: JinaClient(f"{CANARY}\x00"),
    ],
)
def test_invalid_url_or_key_is_refused_and_not_quoted(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert "canary" not in repr(caught.value)


def test_logged_traceback_is_redacted() -> None:
    read_secret(CANARY, "QDRANT_API_KEY")
    try:
        raise RuntimeError(CANARY)
    except RuntimeError:
        record = logging.LogRecord("httpx", 40, "", 0, "failed", (), sys.exc_info())
    assert RedactingFilter().filter(record)
    text = logging.Formatter().format(record)
    assert "RuntimeError: ***" in text
    assert "canary" not in text


# ------------------------------------------------------------------------------------ bge


LEAKY_HEALTH = """
import logging, os
from bge_client.client import Client
from bge_client.__main__ import main

def health(self):
    key = os.environ["RUNPOD_API_KEY"].strip()
    logging.getLogger("httpx").info("api-key: %s", key)
    raise RuntimeError(f"Illegal header value {key}")

Client.health = health
main()
"""


def bge(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BGE_")}
    env = inherited | {"RUNPOD_API_KEY": f"{CANARY}\n"} | env
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=60
    )


def test_logs_and_tracebacks_of_bge_do_not_show_the_key() -> None:
    run = bge("-c", LEAKY_HEALTH, "-v", "health", "--endpoint", "http://127.0.0.1:9")
    assert run.returncode == 1
    assert "api-key: ***" in run.stderr
    assert "Illegal header value ***" in run.stderr
    assert "canary" not in run.stdout + run.stderr
