"""`make field-report`: run the steps, delete the endpoint, write the report."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from bge_client import BGEError
from bge_client.redaction import read_secret, redact

from ..deploy import api
from ..deploy.api import RunPod
from ..deploy.settings import DeployError, read_settings
from ..errors import BuilderError
from . import cloud, local
from .budget import Budget
from .context import PREFIX, START_SECONDS, Context, delete_all
from .interrupts import SIGNALS, StepTimeoutError, interrupt_on_signals, time_limit
from .record import Record, ReportError, open_record, read_record
from .report import status_table, write_report

FOLDER = Path("field-reports")
UNFINISHED = FOLDER / "unfinished"  # git ignores it
REAL_API = "https://api.runpod.io/v2"
INTERRUPTED = 130


def run_field_report(
    image: str | None, registry: str | None, max_dollars: float, is_local: bool, models: Path
) -> int:
    """Run all steps that have no result, then write the report. Return 1 if one failed.

    Raises:
        ReportError: a precondition is not met, or the next step could exceed the cap.
        DeployError: RunPod refuses, or no worker gets ready.
    """
    if not (math.isfinite(max_dollars) and max_dollars > 0):
        raise ReportError(f"`MAX_DOLLARS` must be above 0. Given: {max_dollars}")
    interrupt_on_signals()
    return run_local(models) if is_local else run_cloud(image, registry, max_dollars)


# -------------------------------------------------------------------------------- on RunPod


def run_cloud(image: str | None, registry: str | None, max_dollars: float) -> int:
    image = image or published_image()
    key = required_key()
    path = cloud_file()
    record = open_record(path, image, api.API)
    budget = Budget(max_dollars, read_settings("queue")["gpu"])
    steps = [step for step in cloud.STEPS if not record.is_done(step.name)]
    print(f"{len(steps)} of {len(cloud.STEPS)} steps to run, for at most ${max_dollars:.2f}")
    with RunPod(key) as runpod:
        if registry:
            registry = runpod.registry(registry)
        context = Context(runpod, key, image, registry, record, path)
        try:
            run_steps(context, budget, steps)
        except KeyboardInterrupt:
            print("\ninterrupted. Run the command again to go on", flush=True)
            return INTERRUPTED
        finally:
            close(context)
    return finish(record, path, budget.spent(record))


def run_steps(context: Context, budget: Budget, steps: Sequence[cloud.Step]) -> None:
    for step in steps:
        seconds = step.seconds + START_SECONDS
        budget.check(context.record, step.name, seconds)
        print(f"{step.name} …", flush=True)
        start = time.monotonic()
        try:
            with time_limit(seconds):
                context.endpoint(step.endpoint_type)
                result = run_step(context, step)
        except StepTimeoutError:
            result = failure(f"not done within {seconds:.0f} seconds")
        keep(context.record, step.name, result, time.monotonic() - start, context.ids)
        context.save()
        print(f"  at most ${budget.spent(context.record):.2f} so far", flush=True)


def run_step(context: Context, step: cloud.Step) -> dict[str, Any]:
    """Return the result of a step. That the endpoint fails is a result too."""
    try:
        return step.run(context)
    except (BGEError, BuilderError, httpx2.HTTPError) as error:
        return failure(f"{type(error).__name__}: {error}")


def close(context: Context) -> None:
    """Delete the run's endpoint. Further signals do not prevent it.

    Raises ReportError: one may be left.
    """
    handlers = {name: signal.signal(name, signal.SIG_IGN) for name in SIGNALS}
    try:
        context.close()
        print("the endpoints of this run are deleted", flush=True)
    except DeployError as error:
        raise ReportError(
            f"an endpoint may be left, at a cost: {error}. Run `make field-report CLEAN=1`"
        ) from error
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)


def run_clean() -> int:
    """Delete the endpoints of all runs, those of killed ones too."""
    with RunPod(required_key()) as runpod:
        names = delete_all(runpod, PREFIX)
    if record := read_record(cloud_file()):
        record.end_leases()
        record.save(cloud_file())
    lines = [f"deleted: {name}" for name in names] or ["no endpoint of a field report is left"]
    print("\n".join(lines))
    return 0


def cloud_file() -> Path:
    return UNFINISHED / "cloud.json"


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
    record = open_record(path, "local", REAL_API)
    record.results["local: card"] = local.describe_card()
    server = local.LocalServer(models)
    try:
        for step in local.STEPS:
            if record.is_done(step.name):
                continue
            print(f"{step.name} …", flush=True)
            start = time.monotonic()
            try:
                result = step.run(server)
            except BGEError as error:
                result = failure(f"{type(error).__name__}: {error}")
            keep(record, step.name, result, time.monotonic() - start, [])
            record.save(path)
    except KeyboardInterrupt:
        print("\ninterrupted. Run the command again to go on", flush=True)
        return INTERRUPTED
    finally:
        server.close()
    return finish(record, path, 0.0)


# ----------------------------------------------------------------------------------- both


def failure(reason: str) -> dict[str, Any]:
    return {"agree": False, "failed": reason}


def keep(
    record: Record, name: str, result: dict[str, Any], seconds: float, ids: Sequence[str]
) -> None:
    """Store a result without keys and without the ids of endpoints."""
    text = redact(json.dumps({**result, "step_seconds": round(seconds, 1)}))
    for endpoint_id in ids:
        text = text.replace(endpoint_id, "ENDPOINT")
    record.results[name] = json.loads(text)
    print(f"  {'FAILED' if 'failed' in result else 'done'} after {seconds:.0f} s", flush=True)


def finish(record: Record, path: Path, dollars: float) -> int:
    """Write the report, unless this was a rehearsal on a stand-in. Return 1 if a step failed."""
    failed = record.failed
    for name in failed:
        print(f"{name}: {record.results[name]['failed']}")
    if record.api != REAL_API:
        print("a rehearsal: no report is written")
        return 1 if failed else 0
    record.report = write_report(record, FOLDER, dollars)
    print(
        f"{record.report}: commit it, or send it. `make field-report TABLE=1`: the README's table"
    )
    if failed:
        record.save(path)
        print("run the command again to try the failed steps again")
        return 1
    path.unlink(missing_ok=True)
    return 0


def run_table() -> int:
    print(status_table(FOLDER))
    return 0
