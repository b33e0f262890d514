"""The pages' tables of routes, fields, errors, settings and metrics are those of the code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from bge_client.providers.presets import PRESETS
from bge_worker import errors
from bge_worker.engine.engine import Engine
from bge_worker.http.app import INFO_ROUTES, ROUTES, Application
from bge_worker.http.jobs import MAX_RESULT_BYTES
from bge_worker.http.memory import MAX_HELD_BYTES
from bge_worker.http.metrics import Metrics
from bge_worker.http.middleware import MAX_BODY_BYTES, MAX_RUN_BYTES, MAX_RUNSYNC_BYTES
from bge_worker.http.timeouts import Timeouts
from bge_worker.serving.service import Service
from bge_worker.settings import Settings
from pages import ROOT, Page

HTTP_API = Page(ROOT / "docs" / "http-api.md")
SECTIONS = re.split(r"^## ", HTTP_API.text, flags=re.MULTILINE)
FALLBACK = Page(ROOT / "docs" / "fallback.md")
OPERATIONS = Page(ROOT / "docs" / "operations.md")


@pytest.fixture(scope="module")
def service(packed: Engine) -> Iterator[Service]:
    service = Service(packed, Settings())
    yield service
    service.close(timeout=10)


def test_every_route_is_documented_and_no_other() -> None:
    app = Application(Settings(), Metrics(), Future())
    router = app.asgi._router  # type: ignore[attr-defined]
    endpoints = [endpoint for group in router._fixed.values() for endpoint in group]
    endpoints += [endpoint for _, endpoint in router._patterns]
    routes = {f"{endpoint.method} {endpoint.path.replace(':path', '')}" for endpoint in endpoints}
    assert set(re.findall(r"`((?:GET|POST) /[^`]*)`", HTTP_API.text)) == routes


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.paths[0])
def test_every_field_of_a_body_is_documented(route: Any) -> None:
    """In a section that names the path; where a table has the field, with its default."""
    body = {field.encode_name: field.default for field in msgspec.structs.fields(route.body)}
    sections = [text for text in SECTIONS if f"`POST {route.paths[0]}`" in text]
    sections = [text for text in map(with_linked_fields, sections) if body.keys() <= names(text)]
    assert sections, route.paths
    assert any(wrong_defaults(text, body) == [] for text in sections), [
        wrong_defaults(text, body) for text in sections
    ]


def with_linked_fields(section: str) -> str:
    headings = re.findall(r"takes the fields of \[(\w+)\]", section)
    return section + "".join(HTTP_API.section(f"## {heading}") for heading in headings)


def names(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


def wrong_defaults(section: str, body: dict[str, Any]) -> list[str]:
    """Return the fields whose rows all lack the default."""
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line[:3] == "| `"]
    return [
        name
        for name, default in body.items()
        if type(default) in (bool, int, str)
        and (cells := [row[1] for row in rows if len(row) > 1 and name in names(row[0])])
        and not any(json.dumps(default) in cell for cell in cells)
    ]


def test_every_reply_of_info_is_documented(packed_service: Service) -> None:
    body = packed_service.info().body
    expected = {*body, *body["limits"], *body["models"], *body["models"]["embed"]}
    assert expected <= names(HTTP_API.section("## Info"))
    assert INFO_ROUTES[0].paths == ("/native/info",)


def test_errors_have_the_documented_status() -> None:
    classes = [
        error
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.WorkerError)
    ]
    expected = {
        (f"`{error.__name__}`", str(error.status), "yes" if error.retry else "no")
        for error in classes
        if error is not errors.WorkerError
    }
    assert {tuple(row[:3]) for row in HTTP_API.table("## Errors")} == expected


def test_every_setting_is_documented_with_its_default() -> None:
    rows = {row[0].strip("`"): row[1] for row in OPERATIONS.table("## Settings")}
    settings = {f"BGE_{field.name.upper()}": field.default for field in fields(Settings)}
    assert {name for name in rows if name.startswith("BGE_")} == {*settings, "BGE_MODE"}
    for name, default in settings.items():
        assert shown(default) in rows[name], name


def shown(default: object) -> str:
    """A default as the table writes it; empty for one that depends on the device."""
    if default is None or default == ():
        return ""
    if isinstance(default, bool):
        return f"`{int(default)}`"
    return f"`{default.as_posix() if isinstance(default, Path) else default}`"


def test_every_metric_is_documented(packed_service: Service) -> None:
    metrics = Metrics()
    metrics.watch(packed_service)
    types = re.findall(r"^# TYPE (\w+) \w+$", metrics.text().decode(), re.MULTILINE)
    exported = {name for name in types if not name.endswith("_created")}
    assert {row[0].strip("`") for row in OPERATIONS.table("## Metrics")} == exported


def test_every_provider_is_documented_with_its_key_and_documentation() -> None:
    rows = {row[0].strip("`"): row for row in FALLBACK.table("## Providers")}
    for name, preset in PRESETS.items():
        _, _, reranks, key, documentation = rows[name]
        has_reranker = preset.rerank_model is not None or name == "openai_compatible"
        assert (reranks != "no") == has_reranker
        assert key.startswith(f"`{name.upper()}_API_KEY`" if preset.needs_key else "optional")
        assert f"({preset.documentation})" in documentation
    assert {*PRESETS, "bge", "jina"} <= {*rows}


def test_every_alert_is_documented() -> None:
    rules = yaml.safe_load((ROOT / "deploy/observability/alerts.yml").read_text("utf-8"))
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    table = OPERATIONS.table("## Dashboard and alerts")
    assert [row[0].strip("`") for row in table] == alerts


def test_limits_of_the_http_server_are_those_of_the_code() -> None:
    limits = {row[0]: row[1] for row in OPERATIONS.table("## Limits of the HTTP server")}
    timeouts = Timeouts()
    assert limits["no request, or incomplete headers"] == f"{timeouts.head:.0f} s"
    assert limits["bytes of a body"] == (
        f"{MAX_BODY_BYTES // 10**6} MB; `/runsync` {MAX_RUNSYNC_BYTES // 10**6}, "
        f"`/run` {MAX_RUN_BYTES // 10**6}"
    )
    assert limits["time of a body"] == f"{timeouts.body:.0f} s"
    assert limits["body that no route reads"] == f"{timeouts.unread:.0f} s after the response"
    assert limits["idle connection, even if it sends line ends"] == f"{timeouts.keep_alive:.0f} s"
    assert limits["results of finished jobs"] == (
        f"{MAX_RESULT_BYTES >> 30} GiB; `/runsync` {timeouts.runsync_result / 60:.0f} minute, "
        f"`/run` {timeouts.run_result / 60:.0f}"
    )
    assert f"{MAX_HELD_BYTES >> 20} MiB together" in limits.values()


def test_a_limit_names_a_test_that_exists() -> None:
    for heading, folder in (
        ("## Limits of the HTTP server", ROOT / "tests" / "worker" / "http"),
        ("## The queue worker", ROOT / "tests" / "worker"),
    ):
        for *_, cell in OPERATIONS.table(heading):
            file = "test_handler.py"  # unless the row names one
            for part in re.findall(r"`([^`]+)`", cell):
                name, _, test = part.rpartition(": ")
                file = name or (part if part.endswith(".py") else file)
                source = (folder / file).read_text("utf-8")
                assert part.endswith(".py") or f"def {test}(" in source, part
