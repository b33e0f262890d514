"""`python worker/server.py` as a process: its start, its end, and what it refuses to start with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from bge_worker.settings import EngineName
from conftest import MODELS, ROOT
from fakes.server_process import SERVER, ServerProcess, free_port
from fakes.serving import connected

BULK = {"texts": ["море и суша " * 300] * 20}


@pytest.fixture
def env(runtimes: Callable[[EngineName], Path]) -> dict[str, str]:
    folder = runtimes("packed")
    return {
        "BGE_DEVICE": "cpu",
        "BGE_EMBED_MODEL": str(folder / MODELS[0]),
        "BGE_RERANK_MODEL": str(folder / MODELS[1]),
    }


def test_requests_wait_while_the_models_load(env: dict[str, str], tmp_path: Path) -> None:
    with ServerProcess(env, tmp_path / "log") as server:
        assert server.wait_for(204)[-1] == 204
        early = httpx.post(f"{server.url}/native/embed", json={"texts": "море"}, timeout=60)
        assert early.status_code == 200
        assert server.ping() == 200


def test_sigterm_during_loading_ends_the_process(env: dict[str, str], tmp_path: Path) -> None:
    with ServerProcess(env, tmp_path / "log") as server:
        server.wait_for(204)
        server.terminate()
        assert server.process.wait(timeout=5) == 0


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGHUP])
def test_requests_in_flight_finish_after_a_signal(
    name: signal.Signals, env: dict[str, str], tmp_path: Path
) -> None:
    with ServerProcess(env, tmp_path / "log") as server, ThreadPoolExecutor(4) as pool:
        server.wait_for(200)
        route = f"{server.url}/native/embed"
        in_flight = [pool.submit(httpx.post, route, json=BULK, timeout=60) for _ in range(4)]
        while b"bge_queue_depth 4.0" not in httpx.get(f"{server.url}/metrics").content:
            assert not any(future.done() for future in in_flight)
        server.process.send_signal(name)
        refused = httpx.post(route, json={"texts": "море"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "this worker is stopping" in refused.json()["error"]
        assert server.ping() == 503  # a load balancer sends no more requests
        replies = [future.result() for future in in_flight]
        assert [len(reply.json()["embeddings"]) for reply in replies] == [20] * 4
        assert server.process.wait(timeout=10) == 0
        assert server.ping() is None
        assert "Traceback" not in server.log


def test_a_killed_server_restarts_on_its_port(env: dict[str, str], tmp_path: Path) -> None:
    server = ServerProcess(env, tmp_path / "log")
    for _ in range(2):
        with server, httpx.Client(base_url=server.url) as client:
            server.wait_for(200)
            assert client.post("/native/embed", json={"texts": "море"}).status_code == 200


def test_the_health_port_answers_ping(env: dict[str, str], tmp_path: Path) -> None:
    health = free_port()
    with ServerProcess(env | {"PORT_HEALTH": str(health)}, tmp_path / "log") as server:
        server.wait_for(200)
        assert httpx.get(f"http://127.0.0.1:{health}/ping").status_code == 200


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--host", "0.0.0.0"], {}, "`BGE_API_KEY` is not set"),
        (["--host", "::"], {}, "`BGE_API_KEY` is not set"),
        (["--host", "not a host"], {"BGE_INSECURE": "1"}, "cannot listen on not a host:"),
        (["--port", "99999"], {}, "`--port` must be a port, a whole number from 1 to 65535"),
        (["--port", "-5"], {}, "`--port` must be a port"),
        (["--port", "9" * 5000], {}, "`--port` must be a port"),
        (["--port", ""], {}, "`--port` must be a port"),
        ([], {"PORT_HEALTH": "x"}, "`PORT_HEALTH` must be a port"),
        ([], {"PORT_HEALTH": "70000"}, "`PORT_HEALTH` must be a port"),
        ([], {"PORT_HEALTH": "9" * 5000}, "`PORT_HEALTH` must be a port"),
        ([], {"BGE_API_KEY": "a key"}, "`BGE_API_KEY` must be printable ASCII without spaces"),
        ([], {"BGE_INSECURE": "yes"}, "`BGE_INSECURE` must be one of 0, 1"),
        ([], {"BGE_EMBED_MODEL": "/nowhere"}, "`/nowhere` is not a runtime folder"),
    ],
)
def test_a_failed_start_is_explained_in_one_line(
    arguments: list[str], variables: dict[str, str], message: str, env: dict[str, str]
) -> None:
    ended = subprocess.run(
        [sys.executable, SERVER, "--port", str(free_port()), *arguments],
        env=env | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()[-1]) < 250
    assert "Traceback" not in ended.stderr
    assert "a key" not in ended.stderr


def test_the_container_health_check_uses_no_proxy(env: dict[str, str], tmp_path: Path) -> None:
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:1")
    with ServerProcess(env, tmp_path / "log") as server:
        server.wait_for(204)
        check = subprocess.run(
            ["sh", ROOT / "worker" / "entrypoint.sh", "health"],
            env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PORT": str(server.port)}
            | proxies,
            timeout=60,
        )
        assert check.returncode == 0


def test_the_insecure_option_admits_any_host_name(env: dict[str, str], tmp_path: Path) -> None:
    with ServerProcess(env, tmp_path / "log", "--insecure") as server:
        server.wait_for(204)
        proxied = httpx.get(f"{server.url}/health", headers={"Host": "bge.example"})
        assert proxied.status_code == 200


def test_ping_is_answered_with_few_descriptors(env: dict[str, str], tmp_path: Path) -> None:
    server = ServerProcess(env, tmp_path / "log", descriptors=256)
    with server, ExitStack() as stack:
        server.wait_for(200)
        for _ in range(300):
            stack.enter_context(connected(server.url))
        assert server.ping() == 200


def test_a_port_in_use_is_named(env: dict[str, str], tmp_path: Path) -> None:
    with ServerProcess(env, tmp_path / "log") as server:
        server.wait_for(204)
        command = [sys.executable, str(SERVER), "--port", str(server.port)]
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 1
        message = f"cannot listen on 127.0.0.1:{server.port}: the port is in use; set another"
        assert message in ended.stderr


@pytest.mark.parametrize("variables", [{}, {"BGE_EMBED_MODEL": ""}, {"BGE_API_KEY": "secret"}])
def test_the_request_that_is_shown_works_when_pasted(
    variables: dict[str, str], env: dict[str, str], tmp_path: Path
) -> None:
    with ServerProcess(env | variables, tmp_path / "log") as server:
        server.wait_for(200)
        assert f"documentation  {server.url}/docs" in server.log
        command = server.log.partition("  try ")[2].strip()
        shell_env = variables | {"PATH": os.environ["PATH"], "NO_PROXY": "*"}
        shown = subprocess.run(command, shell=True, env=shell_env, capture_output=True, timeout=60)
        assert b'"object":' in shown.stdout, shown
        assert "secret" not in server.log
