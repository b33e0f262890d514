"""`bge plan`: scenarios, reports, advice, the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bge_builder.deploy.settings import read_settings
from bge_builder.planner import command
from bge_builder.planner.advice import advise
from bge_builder.planner.arrivals import DAY, generate
from bge_builder.planner.cards import PlanError, catalogue
from bge_builder.planner.page import labelled_hours
from bge_builder.planner.report import make_report
from bge_builder.planner.scenario import (
    Bulk,
    Day,
    Endpoint,
    Poisson,
    Scenario,
    Target,
    read_scenario,
)
from bge_builder.planner.sweep import Grid, p99, pareto_front, sweep
from bge_worker.settings import Settings
from conftest import ROOT

EXAMPLES = sorted((ROOT / "builder" / "examples").glob("*.toml"))
QUERIES = Poisson(per_minute=2, tokens=12)


def report_of(**fields: Any) -> Any:
    scenario = Scenario(days=2, **fields)
    return make_report(scenario, generate(scenario.traffic, scenario.days, seed=0))


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Any]:
    """Run `bge plan` with a scenario of this text."""

    def invoke(text: str, *options: str) -> Any:
        (tmp_path / "scenario.toml").write_text(text, "utf-8")
        return CliRunner().invoke(command.plan, [str(tmp_path / "scenario.toml"), *options])

    return invoke


def test_defaults_are_those_of_make_deploy() -> None:
    settings, defaults = read_settings("queue"), Endpoint()
    workers, scaling = settings["workers"], settings["scaling"]
    assert (workers["min"], workers["max"]) == (defaults.min_workers, defaults.max_workers)
    assert workers["idleTimeout"] == defaults.idle_timeout
    assert (scaling["type"], scaling["queueDelay"]) == (defaults.scaler, defaults.scaler_value)
    assert Settings().concurrency == defaults.concurrency


def test_the_measured_card_has_the_rate_of_its_results() -> None:
    measured = catalogue().measured
    path = ROOT / "benchmarks" / "results" / "nvidia-h100-80gb-hbm3.json"
    gpu = json.loads(path.read_text("utf-8"))["gpu"]
    peers = gpu["peers"]["mixed lengths"]
    assert measured.tokens_per_second == peers["bge-serverless"]["tokens_per_second"]
    for callers, entry in gpu["server"]["queries by callers"].items():
        seconds = measured.batch_seconds + measured.request_seconds * int(callers)
        assert seconds == pytest.approx(entry["p50_ms"] / 1e3, rel=0.2), callers


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_valid(path: Path) -> None:
    scenario = read_scenario(path)
    assert scenario.about
    assert scenario.traffic


def test_traffic_has_its_shape() -> None:
    queries = Poisson(per_minute=10, hours=(8, 20), at_night=0.1, at_weekends=0.5, tokens=12)
    times = generate([queries], 7, seed=0).times
    day, hour = times // DAY, times % DAY / 3600
    by_day = (hour >= 8) & (hour < 20)
    assert (by_day & (day < 5)).sum() == pytest.approx(5 * 720 * 10, rel=0.05)
    assert (~by_day & (day < 5)).sum() == pytest.approx(5 * 720, rel=0.1)
    assert (by_day & (day >= 5)).sum() == pytest.approx(2 * 720 * 5, rel=0.05)


def test_tokens_of_a_request_have_the_mean_and_the_variation_of_its_texts() -> None:
    tokens = generate([Bulk(requests=20_000, texts=4, tokens=100, variation=1)], 1, seed=0).tokens
    assert tokens.mean() == pytest.approx(400, rel=0.02)
    assert tokens.std() == pytest.approx(200, rel=0.05)


def test_a_recorded_day_is_repeated(tmp_path: Path) -> None:
    file = tmp_path / "day.csv"
    file.write_text("seconds,tokens\n30,7\n10,5\n", "utf-8")
    requests = generate([Day(file=str(file))], 2, seed=0)
    assert requests.times.tolist() == [10, 30, DAY + 10, DAY + 30]
    assert requests.tokens.tolist() == [5, 7, 5, 7]


@pytest.mark.parametrize("row", ["x,1", "90000,1", "1,-1", "nan,1", "1,inf", "1", "1" * 200_000])
def test_a_row_of_a_csv_file_that_is_not_valid_is_named(row: str, tmp_path: Path) -> None:
    file = tmp_path / "day.csv"
    file.write_text(f"seconds,tokens\n1,1\n{row}\n", "utf-8")
    with pytest.raises(PlanError, match=r"day\.csv, line [23]"):
        generate([Day(file=str(file))], 2, seed=0)


@pytest.mark.parametrize(
    "text", ["", "seconds,tokens\n", "seconds, tokens\n1, 1\n", "seconds\n1\n"]
)
def test_a_csv_file_without_requests_or_a_column_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "day.csv"
    file.write_text(text, "utf-8")
    with pytest.raises(PlanError, match="tokens"):
        generate([Day(file=str(file))], 2, seed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("days = 0", "$.days"),
        ("weeks = 1", "weeks"),
        ("[[traffic]]\nkind = 'poisson'\nper_minute = 1\ntokens = 0", "$.traffic[0].tokens"),
        ("[endpoint]\nmin_workers = 4", "`min_workers` must be at most `max_workers`, 3"),
        ("[endpoint]\ncold_start = 60", "`cold_start_p95`"),
        ("card = 'T4'", "`card` must be one of A4000"),
        ("[[traffic]]\nkind = 'poisson'\nper_minute = 1e6\ntokens = 1", "at most 5,000,000"),
        (
            "[[traffic]]\nkind = 'bulk'\nrequests = 1000000\ntexts = 1000000\ntokens = 1",
            "micro-batches",
        ),
        ("days =", "scenario.toml"),
    ],
)
def test_an_invalid_scenario_is_refused(plan: Callable[..., Any], text: str, message: str) -> None:
    result = plan(text)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("idle-timeout", "nan"), ("tokens-per-second", "inf"), ("days", "0"), ("min-workers", "-1")],
)
def test_an_option_is_as_valid_as_its_field(
    plan: Callable[..., Any], option: str, value: str
) -> None:
    result = plan("", f"--{option}", value)
    assert result.exit_code == 2
    assert option.replace("-", "_") in result.output
    assert len(result.output.splitlines()) == 1


def test_the_command_prints_a_report_and_writes_a_page(
    plan: Callable[..., Any], tmp_path: Path
) -> None:
    text = "days = 1\n[[traffic]]\nkind = 'poisson'\nper_minute = 1\ntokens = 12\n"
    page = tmp_path / "plan.html"
    result = plan(text, "--sweep", "--sweep-cards", "L4,H100", "--html", str(page))
    assert result.exit_code == 0, result.output
    assert "Pareto front" in result.output
    assert result.output.splitlines()[-1].startswith("Call a hosted API")
    html = page.read_text("utf-8")
    assert html.count("<svg") == 2
    assert "://" not in html
    result = plan(text, "--json")
    content = json.loads(result.output)
    assert content["report"]["dollars"]["total"] > 0


def test_dollars_are_those_of_a_month_of_thirty_days() -> None:
    report = report_of(endpoint=Endpoint(min_workers=1, max_workers=1))
    assert report.dollars.total == pytest.approx(0.00019 * 30 * DAY)


def test_a_job_pays_for_min_workers_until_it_has_ended() -> None:
    job = Bulk(requests=100, texts=1000, tokens=100)
    report = report_of(traffic=[job], endpoint=Endpoint(min_workers=1, max_workers=1))
    paid = 3600 * report.last_reply_hours + report.endpoint.idle_timeout
    assert report.dollars.total == pytest.approx(0.00019 * paid, rel=0.01)


def test_hosted_costs_are_tokens_by_price() -> None:
    (cost, *_) = report_of(traffic=[Bulk(requests=100, texts=1000, tokens=100)], card="L4").hosted
    assert cost.same_model
    assert cost.dollars == pytest.approx(10e6 * 0.01e-6, rel=0.05)  # a job is done once


def test_providers_without_a_reranker_are_no_choice_for_reranking() -> None:
    names = {
        cost.name for cost in report_of(traffic=[Bulk(requests=1, tokens=9, task="rerank")]).hosted
    }
    assert names == {model.name for model in catalogue().hosted if model.rerank is not None}


def test_the_front_has_no_report_that_another_one_beats() -> None:
    scenario = Scenario(days=1, traffic=[QUERIES])
    requests = generate(scenario.traffic, 1, seed=0)
    grid = Grid(("L4", "H100"), (5, 600), (0, 1))
    reports = list(sweep(scenario, requests, grid))
    front = pareto_front(reports)
    assert len(reports) == 2 * (2 * 2 + 1 + 2)  # one to one worker: the idle timeout is nothing
    for report in reports:
        assert any(
            best.dollars.total <= report.dollars.total and 0.99 * p99(best) <= p99(report)
            for best in front
        )
    assert np.all(np.diff([report.dollars.total for report in front]) > 0)
    assert np.all(np.diff([p99(report) for report in front]) < 0)


def test_the_average_of_the_workers_is_what_is_paid() -> None:
    report = report_of(traffic=[QUERIES])
    seconds = sum(report.workers) * 3600 * report.period_hours
    # Paid seconds are whole ones, and those after the last reply are in no period.
    assert 15 * seconds == pytest.approx(report.dollars.total / 0.00019, rel=0.05)


@pytest.mark.parametrize(
    ("hours", "labels"),
    [
        (0.3, ["0 min", "10 min"]),
        (12.1, ["0 h", "3 h", "6 h", "9 h", "12 h"]),
        (168, ["day 1", "day 4", "day 7"]),
    ],
)
def test_the_time_axis_has_few_labels(hours: float, labels: list[str]) -> None:
    assert [label for _, label in labelled_hours(hours)] == labels


class TestAdvice:
    def test_little_traffic_is_cheaper_hosted(self) -> None:
        report = report_of(traffic=[QUERIES])
        assert advise([report], Scenario().target).startswith("Call a hosted API")

    def test_a_large_job_is_cheaper_on_own_workers(self) -> None:
        report = report_of(traffic=[Bulk(requests=10_000, texts=1000, tokens=100)])
        assert advise([report], Scenario().target).startswith("Deploy L4 workers")

    def test_no_traffic(self) -> None:
        assert "costs nothing" in advise([report_of()], Scenario().target)

    def test_a_target_that_is_missed_is_named(self) -> None:
        own = report_of(traffic=[Bulk(requests=10_000, texts=1000, tokens=100)])
        hosted = report_of(traffic=[QUERIES])
        for report in (own, hosted):
            advice = advise([report], Target(p99_ms=1, dollars=1e6))
            assert "a p99 of 1 ms" in advice
            assert "$1,000,000" not in advice

    def test_the_cheapest_endpoint_that_meets_the_target_is_compared(self) -> None:
        cold, warm = (
            report_of(traffic=[QUERIES], endpoint=Endpoint(min_workers=count)) for count in (0, 1)
        )
        assert "(1 to 3" in advise([cold, warm], Target(p99_ms=500))
        assert "(0 to 3" in advise([cold, warm], Target())
