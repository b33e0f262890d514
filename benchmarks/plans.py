"""The answers of `bge plan` in `docs/costs.md`: `make bench-costs`.

Simulates each of builder/examples/, and sweeps for those with a choice. Needs no card and no key:
equal code gives equal numbers. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec

from bge_builder.planner.advice import advise
from bge_builder.planner.arrivals import generate
from bge_builder.planner.report import as_json, make_report
from bge_builder.planner.scenario import Scenario, read_scenario
from bge_builder.planner.sweep import Grid, pareto_front, sweep
from plan_validation import save
from results import FOLDER
from workload import ROOT

FILE = FOLDER / "plan" / "answers.json"
EXAMPLES = ROOT / "builder" / "examples"
SWEPT = ("courses", "search_box")
STARTS = (2.0, 5.0, 10.0, 30.0)  # seconds, median; the 95th percentile is 2.5 times that


def answer(path: Path) -> dict[str, Any]:
    scenario = read_scenario(path)
    began = time.process_time()
    arrivals = generate(scenario.traffic, scenario.days, seed=0)
    report = make_report(scenario, arrivals)
    seconds = time.process_time() - began
    reports = [report]
    content = {"about": scenario.about, "report": as_json(report), "seconds": round(seconds, 1)}
    if path.stem in SWEPT:
        reports += sweep(scenario, arrivals, Grid())
        content["front"] = [as_json(best) for best in pareto_front(reports)]
        content["starts"] = [as_json(make_report(starting(scenario, s), arrivals)) for s in STARTS]
    return content | {"advice": advise(reports, scenario.target)}


def starting(scenario: Scenario, seconds: float) -> Scenario:
    endpoint = msgspec.structs.replace(
        scenario.endpoint, cold_start=seconds, cold_start_p95=2.5 * seconds
    )
    return msgspec.structs.replace(scenario, endpoint=endpoint)


def main() -> None:
    answers = {}
    for path in sorted(EXAMPLES.glob("*.toml")):
        answers[path.stem] = answer(path)
        print(f"{path.stem}: {answers[path.stem]['advice']}", flush=True)
    for content in answers.values():
        for report in (content["report"], *content.get("front", ()), *content.get("starts", ())):
            del report["workers"]  # of every two hours: the page has them
    save(FILE, answers)
    print(json.dumps({name: content["seconds"] for name, content in answers.items()}))


if __name__ == "__main__":
    main()
