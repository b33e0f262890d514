"""RunPod's entry point: the queue worker, and the SDK's local harness with `test_input.json`.

python worker/handler.py                       answers test_input.json; exit code 1 on failure
python worker/handler.py --test_input '{…}'    answers this payload
(with RunPod's environment variables)          takes jobs until a signal
"""

from __future__ import annotations

import gc

# Objects that imports create stay alive: collecting garbage among them costs 0.3 s of a start.
gc.disable()

import argparse
import json
import os
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_worker.errors import StartError, WorkerError, logged_inference_error
from bge_worker.logs import configure_logging
from bge_worker.process import prepare_process
from bge_worker.runpod.job_scaler import UnloggedReply, import_runpod
from bge_worker.settings import Settings
from bge_worker.startup import StartTrace, missing_extra, read_ahead

if TYPE_CHECKING:  # imports torch
    from bge_worker.serving.service import Service


def make_handler(
    service: Service, reply_type: type[dict[str, Any]]
) -> Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]:
    """Return the SDK's handler: a job in, a reply or an error out."""
    from bge_worker.serving.payload import answer_payload

    async def handler(job: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = await answer_payload(service, job.get("input"))
            return reply_type(reply.body)
        except WorkerError as error:
            failure = error
        except Exception as error:
            failure = logged_inference_error(error)
        failed: dict[str, Any] = {"error": str(failure)}  # the platform drops all but strings
        if not service.healthy:
            failed["refresh_worker"] = True  # RunPod replaces this worker
        return failed

    return handler


def load(settings: Settings) -> tuple[Service, Any]:
    """Load the models and import RunPod's SDK, at the same time: its import mostly waits.

    Raises:
        StartError: the models cannot be loaded.
        ModuleNotFoundError: the extra `runpod` is not installed.
    """
    trace = StartTrace(enabled=settings.trace_start)
    trace.mark("python, settings")
    read_ahead((settings.embed_model, settings.rerank_model))
    with ThreadPoolExecutor(1) as pool:
        sdk = pool.submit(import_runpod)
        payload = pool.submit(import_module, "bge_worker.serving.payload")  # for `make_handler`
        from bge_worker.engine.engine import load_engine
        from bge_worker.serving.service import Service

        trace.mark("torch imported")
        service = Service(load_engine(settings), settings)
        trace.mark("models loaded")
        payload.result()
        runpod = sdk.result()
        trace.mark("runpod imported")
    return service, runpod


def check_test_input(arguments: list[str]) -> None:
    """Raises StartError if the test input is not JSON: the SDK would show a traceback."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--test_input")
    test_input = parser.parse_known_args(arguments)[0].test_input
    file = Path("test_input.json")
    if test_input is None and not file.is_file():
        return
    try:
        json.loads(file.read_bytes() if test_input is None else test_input)
    except (ValueError, RecursionError) as error:
        name = "test_input.json" if test_input is None else "--test_input"
        raise StartError(f"`{name}` is not JSON: {error}") from None


def main() -> None:
    """Load, then run the SDK's loop until it returns or exits."""
    prepare_process()
    # The SDK's default, DEBUG, logs payloads and replies.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
    on_runpod = "RUNPOD_WEBHOOK_GET_JOB" in os.environ
    try:
        if not on_runpod:
            check_test_input(sys.argv[1:])
        settings = Settings.from_env(os.environ)
        configure_logging(settings, os.environ)
        service, runpod = load(settings)
        gc.freeze()  # the collector skips these objects from now on
        gc.enable()
    except StartError as error:
        sys.exit(f"bge-serverless cannot start: {error}")
    except ModuleNotFoundError as error:
        sys.exit(missing_extra(error, "runpod"))

    # The local harness prints the reply.
    reply_type: type[dict[str, Any]] = UnloggedReply if on_runpod else dict
    runpod.serverless.register_fitness_check(service.check)
    try:
        runpod.serverless.start(
            {
                "handler": make_handler(service, reply_type),
                # Constant: whenever it changes, the SDK waits for all jobs in flight.
                "concurrency_modifier": lambda _current: settings.concurrency,
            }
        )
    finally:
        service.close(timeout=10)


if __name__ == "__main__":
    main()
