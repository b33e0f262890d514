"""`make field-report`: run the steps, delete the endpoints, write the report."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from types import FrameType
from typing import Any

from bge_client import BGEError
from bge_client.redaction import read_secret, redact

from ..deploy import api
from ..deploy.api import RunPod
from ..deploy.settings import DeployError, read_settings
from . import cloud, local
from .budget import Budget, BudgetError
from .context import PREFIX, START_SECONDS, Context, delete_all
from .record import Record, ReportError, open_record
from .report import status_table, write_report

FOLDER = Path("field-reports")
UNFINISHED = FOLDER / "unfinished"  # a file of a run for each kind; git ignores them
SIGNALS = (signal.SIGINT, signal.SIGTERM)
REAL_API = "https://api.runpod.io/v2"


def run_field_report(
    image: str | None, registry: str | None, max_dollars: float, is_local: bool, models: Path
) -> int:
    """Run all steps that have not run, then write the report. Return 0 if all are done.

    Raises:
        ReportError: a precondition is not met, or the next step could exceed the cap.
        DeployError: RunPod refuses, or no worker gets ready.
    """
    signal.signal(signal.SIGTERM, interrupt)  # as Ctrl-C: the endpoints are deleted
    return run_local(models) if is_local else run_cloud(image, registry, max_dollars)


def interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


# -------------------------------------------------------------------------------- on RunPod


def run_cloud(image: str | None, registry: str | None, max_dollars: float) -> int:
    image = image or published_image()
    key = required_key()
    path = UNFINISHED / "cloud.json"
    record = open_record(path, image)
    budget = Budget(max_dollars, read_settings("queue")["gpu"]["pools"])
    steps = [step for step in cloud.STEPS if not is_done(record, step.name)]
    print(f"{len(steps)} of {len(cloud.STEPS)} steps to run, for at most ${max_dollars:.2f}")
    with RunPod(key) as runpod:
        if registry:
            registry = runpod.registry(registry)
        context = Context(runpod, key, image, registry, record, path)
        try:
            for step in steps:
                budget.check(record, step.name, step.seconds + START_SECONDS)
                run_step(context, step)
                print(f"  at most ${budget.spent(record):.2f} so far", flush=True)
        except KeyboardInterrupt:
            print("\ninterrupted. Run the command again to go on", flush=True)
            return 130
        finally:
            close(context)
    return finish(record, path, budget.spent(record), is_real=api.API == REAL_API)


def run_step(context: Context, step: cloud.Step) -> None:
    """Run a step and keep its result. A failure of the endpoint is a result too.

    Raises DeployError: RunPod refuses, or no worker gets ready.
    """
    print(f"{step.name} …", flush=True)
    context.endpoint(step.endpoint_type)
    start = time.monotonic()
    try:
        result = step.run(context, step.endpoint_type)
    except (BudgetError, DeployError):
        raise
    except (BGEError, ReportError) as error:
        result = failure(error)
    keep(context.record, step.name, result, time.monotonic() - start)
    context.save()


def close(context: Context) -> None:
    """Delete the run's endpoints. Further signals do not prevent it."""
    handlers = {name: signal.signal(name, signal.SIG_IGN) for name in SIGNALS}
    try:
        context.close()
        print("the endpoints of this run are deleted", flush=True)
    except DeployError as error:
        raise ReportError(
            f"an endpoint may be left, at a cost: {error}. Run `make field-report CLEAN=1`"
        ) from None
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)


def run_clean() -> int:
    """Delete the endpoints of all runs, those of killed ones too."""
    with RunPod(required_key()) as runpod:
        names = delete_all(runpod, PREFIX)
    print(
        "\n".join(f"deleted: {name}" for name in names) or "no endpoint of a field report is left"
    )
    return 0


def required_key() -> str:
    key = read_secret(os.environ.get("RUNPOD_API_KEY"), "RUNPOD_API_KEY")
    if key is None:
        raise ReportError("`RUNPOD_API_KEY` is not set. On a workstation pass LOCAL=1")
    return key


def published_image() -> str:
    """Return the image that the repository's workflow publishes.

    Raises ReportError: the repository has no remote on GitHub.
    """
    command = ["git", "remote", "get-url", "origin"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    _, host, name = process.stdout.strip().removesuffix(".git").rpartition("github.com")
    if process.returncode or not host:
        raise ReportError("pass IMAGE=…: the repository has no remote on GitHub to take it from")
    return f"ghcr.io/{name.lstrip(':/').lower()}:latest"


# ------------------------------------------------------------------------ on a workstation


def run_local(models: Path) -> int:
    path = UNFINISHED / "local.json"
    record = open_record(path, "local")
    description = local.card()
    record.card = description["name"]
    record.results["local: card"] = description
    server = local.LocalServer(models)
    try:
        for step in local.STEPS:
            if is_done(record, step.name):
                continue
            print(f"{step.name} …", flush=True)
            start = time.monotonic()
            try:
                result = step.run(server)
            except BGEError as error:
                result = failure(error)
            keep(record, step.name, result, time.monotonic() - start)
            record.save(path)
    except KeyboardInterrupt:
        print("\ninterrupted. Run the command again to go on", flush=True)
        return 130
    finally:
        server.close()
    return finish(record, path, 0.0, is_real=True)


# ----------------------------------------------------------------------------------- both


def is_done(record: Record, name: str) -> bool:
    """Whether a step has a result. One that failed runs again."""
    return name in record.results and "failed" not in record.results[name]


def failure(error: Exception) -> dict[str, Any]:
    return {"agree": False, "failed": redact(f"{type(error).__name__}: {error}")}


def keep(record: Record, name: str, result: dict[str, Any], seconds: float) -> None:
    record.results[name] = {**result, "step_seconds": round(seconds, 1)}
    print(f"  {'FAILED' if 'failed' in result else 'done'} after {seconds:.0f} s", flush=True)


def finish(record: Record, path: Path, dollars: float, *, is_real: bool) -> int:
    """Write the report, unless this was a rehearsal on a stand-in."""
    failed = [name for name, result in record.results.items() if "failed" in result]
    for name in failed:
        print(f"{name}: {record.results[name]['failed']}")
    if not is_real:
        print("a rehearsal: no report is written")
        return 0 if not failed else 1
    report = write_report(record, FOLDER, dollars)
    path.unlink()
    print(f"{report}: commit it, or send it. The README's table: `make field-report TABLE=1`")
    return 0 if not failed else 1


def run_table() -> int:
    print(status_table(FOLDER))
    return 0
