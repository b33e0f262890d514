"""The server keeps to its own OpenAPI document."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as conformance

from bge_worker.http.app import INFO_ROUTES, ROUTES
from bge_worker.http.openapi import describe
from bge_worker.http.routes.route import Route
from fakes.serving import RERANK

CHECKS = [
    not_a_server_error,
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_schema_conformance,
]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.body.__name__)
def test_examples_are_answered(route: Route, url: str) -> None:
    schemas = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]
    fields = schemas[route.body.__name__]["properties"].items()
    body = {name: field["examples"][0] for name, field in fields if "examples" in field}
    assert httpx.post(url + route.paths[-1], json=body).status_code == 200


def test_a_key_is_documented_on_all_paths_but_the_open_ones() -> None:
    def paths_with_key(*, has_key: bool) -> set[str]:
        paths: dict[str, Any] = describe(ROUTES, INFO_ROUTES, has_key=has_key)["paths"]
        return {
            path for path in paths if "401" in str(next(iter(paths[path].values()))["responses"])
        }

    every_path = set(describe(ROUTES, INFO_ROUTES, has_key=True)["paths"])
    assert paths_with_key(has_key=True) == every_path - {"/ping", "/health"}
    assert not paths_with_key(has_key=False)


def test_random_requests_get_documented_responses(url: str, request: pytest.FixtureRequest) -> None:
    """No 5xx, no undocumented status or content type, every body as its schema says."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    examples = 500 if request.config.getoption("--long") else 8
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {"/run", "/rerank", "/embed"} < {operation.path for operation in operations}
    job_id = httpx.post(f"{url}/run", json={"input": RERANK}).json()["id"]
    for operation in operations:
        check_operation(operation, examples, job_id)


def check_operation(operation: schemathesis.APIOperation, examples: int, job_id: str) -> None:
    """Models and jobs get existing names: random strings would only ever be refused."""
    model = "miniature/" + ("bge-reranker-v2-m3" if "rerank" in operation.path else "bge-m3")

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def check(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = model
        if "job_id" in case.path_parameters:
            case.path_parameters["job_id"] = job_id
        case.call_and_validate(checks=CHECKS, timeout=30)

    check()
