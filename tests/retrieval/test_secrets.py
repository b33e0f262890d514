"""Qdrant's keys and passwords must not appear in errors, logs or output."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bge_client import BGEError, ConfigurationError
from bge_retrieval import Store
from fakes.qdrant_server import QdrantServer, refusing

CANARY = "canary-4f1c/9+x"


def test_errors_do_not_show_the_key() -> None:
    message = "x" * (295 - len(CANARY) // 2) + CANARY  # cut at 300, within the canary
    with QdrantServer(api_key=CANARY) as server:
        server.fail(refusing(400, message), on="*")
        with Store.open(url=server.url, api_key=CANARY) as store, pytest.raises(BGEError) as caught:
            store.aliases()
    assert "canary" not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize("edge", ["\n", " \r\n"])
def test_key_is_sent_stripped(edge: str) -> None:
    with (
        QdrantServer(api_key=CANARY) as server,
        Store.open(url=f"{server.url}{edge}", api_key=CANARY + edge) as store,
    ):
        assert store.aliases() == {}


@pytest.mark.parametrize(
    ("url", "key"),
    [
        (f"http://me:{CANARY}@127.0.0.1:9", None),
        (f"http://127.0.0.1:9?api-key={CANARY}", None),
        (f"ftp://[{CANARY}", None),
        (f"http://me:{CANARY}@host:port", None),
        ("http://127.0.0.1:9", f"{CANARY} {CANARY}"),
    ],
)
def test_invalid_url_or_key_is_refused_and_not_quoted(url: str, key: str | None) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Store.open(url=url, api_key=key)
    assert "canary" not in repr(caught.value)


def roll_back(url: str, key: str) -> subprocess.CompletedProcess[str]:
    """Run `bge migrate --rollback`."""
    env = os.environ | {"QDRANT_URL": url, "QDRANT_API_KEY": key}
    command = [sys.executable, "-m", "bge_client", "-v", "migrate", "--rollback", "--alias", "a"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_bge_strips_the_key_and_refuses_a_password_in_the_url() -> None:
    with QdrantServer(api_key=CANARY) as server:
        run = roll_back(f"{server.url}\n", f"{CANARY}\n")
        assert (run.returncode, "there is no alias `a`" in run.stderr) == (2, True)
        refused = roll_back(server.url.replace("//", "//me:canary-pw@"), f"{CANARY}\n")
    assert (refused.returncode, "neither a user" in refused.stderr) == (2, True)
    assert "canary" not in run.stdout + run.stderr + refused.stdout + refused.stderr
