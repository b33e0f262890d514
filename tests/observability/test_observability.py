"""The dashboard and the alerts of deploy/observability, on a real Prometheus."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bge_worker.engine.engine import Engine
from bge_worker.settings import Settings
from fakes.faults import MAX_QUEUE, BrokenEngine, FaultyEngine, SlowEngine, load, reranking
from fakes.serving import KEY, eventually, serving
from pages import ROOT

# The device that fails ends a thread.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

FOLDER = ROOT / "deploy" / "observability"
BINARIES = ROOT / ".prometheus" / "usr" / "bin"  # `make test-observability`
SOON = 60.0  # seconds: waited for in full only if something is broken
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
DASHBOARD = json.loads((FOLDER / "grafana" / "bge.json").read_text("utf-8"))


@dataclass(frozen=True)
class Prometheus:
    """`servers` are the instances by name: healthy, faulty, slow, broken, absent."""

    url: str
    servers: dict[str, str]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an instant query."""
        reply = httpx.get(f"{self.url}/api/v1/query", params={"query": expression})
        assert reply.status_code == 200, reply.text
        samples: list[dict[str, Any]] = reply.json()["data"]["result"]
        return samples

    def firing(self) -> set[tuple[str, str]]:
        """Return the names and instances of the alerts that fire."""
        alerts = httpx.get(f"{self.url}/api/v1/alerts").json()["data"]["alerts"]
        labels = [alert["labels"] for alert in alerts if alert["state"] == "firing"]
        return {(item["alertname"], item.get("instance", "")) for item in labels}


@pytest.fixture(scope="session")
def binaries(request: pytest.FixtureRequest) -> Path:
    if not request.config.getoption("--observability"):
        pytest.skip("needs Debian's prometheus: make test-observability")
    path = shutil.which("prometheus", path=f"{BINARIES}:{os.environ['PATH']}")
    assert path is not None
    return Path(path).parent


@pytest.fixture(scope="session")
def prometheus(
    binaries: Path, packed: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Prometheus, while requests are sent to the servers."""
    folder = tmp_path_factory.mktemp("prometheus")
    with ExitStack() as stack:
        urls = {
            "healthy": stack.enter_context(serving(packed, Settings(api_key=KEY))),
            "faulty": stack.enter_context(serving(FaultyEngine(), Settings())),
            "slow": stack.enter_context(serving(SlowEngine(), Settings(max_queue=MAX_QUEUE))),
            "broken": stack.enter_context(serving(BrokenEngine(), Settings())),
            "absent": f"http://127.0.0.1:{free_port()}",
        }
        servers = {name: url.removeprefix("http://") for name, url in urls.items()}
        write_config(folder, [*servers.values()])
        httpx.post(f"{urls['broken']}/native/rerank", json=reranking("x"))  # ends its thread
        url = stack.enter_context(running(binaries / "prometheus", folder))
        stack.enter_context(load(urls))
        yield Prometheus(url, servers)


def write_config(folder: Path, targets: list[str]) -> None:
    """Write the published configuration with other targets and shorter times."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
    (scrape,) = config["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["bge:8000"]}]
    config["global"] = dict.fromkeys(config["global"], "500ms")
    scrape["static_configs"] = [{"targets": targets}]
    scrape["authorization"]["credentials_file"] = str(folder / "key")
    (folder / "key").write_text(KEY)
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))
    for rule in rules["groups"][0]["rules"]:
        rule.pop("for", None)
        rule["expr"] = re.sub(r"\[\d+m\]", "[10s]", rule["expr"])
    (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def running(binary: Path, folder: Path) -> Iterator[str]:
    """Yield the address of a Prometheus with the configuration in `folder`."""
    address = f"127.0.0.1:{free_port()}"
    command = [
        str(binary),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with subprocess.Popen(command) as process:
        try:
            eventually(lambda: is_ready(f"http://{address}"))
            yield f"http://{address}"
        finally:
            process.send_signal(signal.SIGTERM)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").status_code == 200
    except httpx.ConnectError:
        return False


# ---------------------------------------------------------------------------------- tests


def test_every_alert_fires_at_its_fault_and_not_without(prometheus: Prometheus) -> None:
    servers = prometheus.servers
    expected = {
        ("BgeDown", servers["absent"]),
        ("BgeUnhealthy", servers["broken"]),
        ("BgeModelsDiffer", ""),
        ("BgeErrors", servers["faulty"]),
        ("BgeOverloaded", servers["slow"]),
        ("BgeQueueSlow", servers["slow"]),
        ("BgeDeviceBusy", servers["slow"]),
        ("BgeOutOfMemory", servers["faulty"]),
        ("BgeOverflow", servers["faulty"]),
        ("BgeTruncated", servers["faulty"]),
    }
    deadline = time.monotonic() + SOON
    while missing := expected - prometheus.firing():
        assert time.monotonic() < deadline, missing
        time.sleep(0.5)
    # The rest is a matter of time: how busy this machine is.
    of_healthy = {name for name, server in prometheus.firing() if server == servers["healthy"]}
    assert of_healthy <= {"BgeQueueSlow", "BgeDeviceBusy"}
    assert {name for name, _ in expected} | {"BgeRestarting"} == {rule["alert"] for rule in RULES}


def test_every_expression_of_the_dashboard_returns_data(prometheus: Prometheus) -> None:
    """While the alerts above fire, which are annotations."""
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    expressions += [item["expr"] for item in DASHBOARD["annotations"]["list"]]
    expressions += ['up{job="bge"}']
    _, instance = DASHBOARD["templating"]["list"]
    assert instance["definition"] == 'label_values(up{job="bge"}, instance)'
    deadline = time.monotonic() + SOON
    while empty := [text for text in expressions if not has_data(prometheus, text)]:
        assert time.monotonic() < deadline, empty
        time.sleep(0.5)


def has_data(prometheus: Prometheus, expression: str) -> bool:
    expression = expression.replace("$instance", ".*").replace("$__rate_interval", "1m")
    return any(math.isfinite(float(sample["value"][1])) for sample in prometheus.query(expression))


def test_alerts_wait_as_long_as_they_say(binaries: Path, tmp_path: Path) -> None:
    """And a server that restarts is reported: this process cannot."""
    down = {"series": 'up{job="bge", instance="a"}', "values": "1 0x20"}
    starts = {"series": 'process_start_time_seconds{job="bge", instance="a"}', "values": "1 2 3 4"}
    tests: dict[str, Any] = {
        "rule_files": [str(FOLDER / "alerts.yml")],
        "tests": [
            {
                "interval": "1m",
                "input_series": [down, starts],
                "alert_rule_test": [
                    firing("BgeDown", "2m", None),
                    firing("BgeDown", "3m", "a does not answer /metrics"),
                    firing("BgeRestarting", "2m", None),
                    firing("BgeRestarting", "3m", "a started 3 times in 15 minutes"),
                ],
            }
        ],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    command = [str(binaries / "promtool"), "test", "rules", str(tmp_path / "tests.yml")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def firing(alert: str, after: str, summary: str | None) -> dict[str, Any]:
    labels = {"severity": "critical", "instance": "a", "job": "bge"}
    alerts = [{"exp_labels": labels, "exp_annotations": {"summary": summary}}] if summary else []
    return {"eval_time": after, "alertname": alert, "exp_alerts": alerts}
