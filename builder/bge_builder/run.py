"""`make run`: one job through RunPod's local harness, and a reply that a person can read.

python -m bge_builder.run [--input PAYLOAD] [--full]

The job is PAYLOAD, or test_input.json. Exit codes: 1 the worker refuses it or cannot start, 2 it is
no JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from bge_worker.errors import StartError
from bge_worker.logs import configure_logging
from bge_worker.process import prepare_process
from bge_worker.serving.validation import kind_of
from bge_worker.settings import Settings

from .progress import Step

TEST_INPUT = Path("test_input.json")
NEXT = """
Next:
  make run INPUT='{"query": "sparse retrieval", "documents": ["A volcano", "Retrieval"]}'
  make run FULL=1      the whole reply, as JSON
  make serve           the HTTP server"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bge_builder.run", description=__doc__)
    parser.add_argument("--input", default="", help="a payload, with or without `input` around it")
    parser.add_argument("--full", action="store_true", help="print the whole reply as JSON")
    options = parser.parse_args()
    name = "INPUT" if options.input else str(TEST_INPUT)
    try:
        job = read_job(name, options.input or TEST_INPUT.read_text("utf-8"))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        reply, text = answer(job)
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.full:
        print(json.dumps(reply, ensure_ascii=False))
    elif "error" not in reply:
        print(f"\n{text}\n{NEXT}")
    if "error" in reply:
        print(f"error: {reply['error']}", file=sys.stderr)
    return 1 if "error" in reply else 0


def read_job(name: str, text: str) -> dict[str, Any]:
    """Return the job in `text`: a payload without `input` is wrapped.

    Raises ValueError: it is no JSON object. The message quotes none of it.
    """
    try:
        job = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        example = """'{"texts": ["a text"]}'"""
        raise ValueError(f"`{name}` is not JSON: {reason}. An example: {example}") from None
    if not isinstance(job, dict):
        raise ValueError(f"`{name}` must be a JSON object. Given: {kind_of(job)}")
    return job if "input" in job else {"input": job}


def answer(job: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the worker's reply to a job, and the reply as text.

    Raises StartError: the models cannot be loaded.
    """
    prepare_process()
    settings = replace(Settings.from_env(os.environ), log_level="WARNING")
    configure_logging(settings, os.environ)
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "ERROR")  # read by the SDK at import
    with Step("loading PyTorch and the models"):
        from handler import load  # worker/handler.py: an editable install has it on the path

        service, runpod = load(settings)
    try:
        with Step("answering, in RunPod's local harness"):
            reply = run_harness(runpod, service, job)
        from .readable import describe

        text = "" if "error" in reply else describe(job["input"], reply, service.engine)
        return reply, text
    finally:
        service.close(timeout=10)


def run_harness(runpod: Any, service: Any, job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a job as `python worker/handler.py --test_input JOB` does, and return the whole reply.

    The SDK's harness prints a reply, cut to 4,096 characters, and ends the process. So the handler
    keeps its reply here, what the harness prints is dropped, and its exit is caught.
    """
    from handler import make_handler

    handler = make_handler(service, dict)
    replies: list[dict[str, Any]] = []

    async def recording_handler(job: dict[str, Any]) -> dict[str, Any]:
        reply = await handler(job)
        replies.append(dict(reply))  # the SDK removes `error` from what it gets
        return reply

    arguments, printed = sys.argv, io.StringIO()
    sys.argv = [arguments[0], "--test_input", json.dumps(job)]
    try:
        with redirect_stdout(printed):
            runpod.serverless.start({"handler": recording_handler})
    except SystemExit:  # with 0 after a reply, 1 after an error
        pass
    finally:
        sys.argv = arguments
    # No reply: the SDK refused the job before the handler saw it. It prints "ERROR  | reason".
    return replies[0] if replies else {"error": printed.getvalue().strip().rpartition("| ")[2]}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
