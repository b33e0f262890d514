"""RunPod's entry: the queue worker, and the SDK's local harness with `test_input.json`.

python worker/handler.py                       answers test_input.json, exit code 1 on failure
python worker/handler.py --test_input '{…}'    answers that
(on RunPod, its environment set)               takes jobs until told to stop
"""

from __future__ import annotations

import gc

# What the imports below make stays: looking for garbage among it costs 0.3 s of a start.
gc.disable()

import argparse
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_worker.errors import StartError, WorkerError
from bge_worker.process import prepare_process
from bge_worker.runpod.job_scaler import Quiet, import_runpod
from bge_worker.settings import Settings
from bge_worker.startup import mark, read_ahead

if TYPE_CHECKING:
    from bge_worker.serving.service import Service


def handler_for(
    service: Service, reply_type: type[dict[str, Any]]
) -> Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]:
    """The SDK's handler: a job in, a reply or an error out."""

    async def handler(job: dict[str, Any]) -> dict[str, Any]:
        try:
            return reply_type(await service.answer(job.get("input")))
        except WorkerError as error:
            failed: dict[str, Any] = {"error": str(error)}  # the platform loses all but strings
            if not service.healthy:
                failed["refresh_worker"] = True  # RunPod puts a fresh worker in this one's place
            return failed

    return handler


def load(settings: Settings) -> tuple[Service, Any]:
    """The service and RunPod's SDK, whose import takes long, most of it waiting: side by side.

    Raises:
        StartError: the models cannot be loaded.
    """
    mark("python, settings")
    read_ahead((settings.embed_model, settings.rerank_model))
    with ThreadPoolExecutor(1) as pool:
        sdk = pool.submit(import_runpod)
        from bge_worker.serving.service import Service

        mark("torch imported")
        service = Service.start(settings)
        mark("models loaded")
        runpod = sdk.result()
        mark("runpod imported")
    return service, runpod


def check_test_input(arguments: list[str]) -> None:
    """Raises StartError: the SDK's harness would show a traceback for what is no JSON."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--test_input")
    given = parser.parse_known_args(arguments)[0].test_input
    file = Path("test_input.json")
    if given is None and not file.is_file():
        return
    try:
        json.loads(file.read_bytes() if given is None else given)
    except (ValueError, RecursionError) as error:
        name = "test_input.json" if given is None else "--test_input"
        raise StartError(f"`{name}` is not JSON: {error}") from None


def main() -> None:
    """Load, then hand over to the SDK, which returns or exits when its loop ends."""
    prepare_process()
    logging.basicConfig(level=logging.INFO, format="%(levelname)-7s| %(message)s")
    # The SDK's own default, DEBUG, prints payloads and replies.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
    try:
        if "RUNPOD_WEBHOOK_GET_JOB" not in os.environ:
            check_test_input(sys.argv[1:])
        settings = Settings.from_env(os.environ)
        service, runpod = load(settings)
        gc.freeze()  # nor need it be looked through again while the worker answers
        gc.enable()
    except StartError as error:
        sys.exit(f"bge-serverless cannot start: {error}")

    # The local harness prints the reply, and is meant to.
    reply_type: type[dict[str, Any]] = Quiet if "RUNPOD_WEBHOOK_GET_JOB" in os.environ else dict
    runpod.serverless.register_fitness_check(service.check)
    try:
        runpod.serverless.start(
            {
                "handler": handler_for(service, reply_type),
                # A constant: the SDK lets the work in flight run dry whenever it changes.
                "concurrency_modifier": lambda _current: settings.concurrency,
            }
        )
    finally:
        service.close(timeout=10)


if __name__ == "__main__":
    main()
