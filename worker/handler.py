"""RunPod's entry: the queue worker, and the SDK's local harness with `test_input.json`.

python worker/handler.py                       answers test_input.json, exit code 1 on failure
python worker/handler.py --test_input '{…}'    answers that
(on RunPod, its environment set)               takes jobs until told to stop
"""

from __future__ import annotations

import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bge_worker.errors import StartError, WorkerError
from bge_worker.service import Service
from bge_worker.settings import Settings


def main() -> None:
    """Load, then hand over to the SDK, which returns or exits when its loop ends."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)-7s| %(message)s")
    # The SDK's own default, DEBUG, prints payloads and replies.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
    try:
        settings = Settings.from_env(os.environ)
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(Service.start, settings)
            import runpod  # beside the models: it takes seconds, most of them waiting
        service = loading.result()
    except StartError as error:
        sys.exit(f"bge-serverless cannot start: {error}")

    async def handler(job: dict[str, Any]) -> dict[str, Any]:
        try:
            return await service.answer(job["input"])
        except WorkerError as error:
            return {"error": str(error)}  # a string: the platform loses anything else

    runpod.serverless.register_fitness_check(service.check)
    try:
        runpod.serverless.start(
            {
                "handler": handler,
                # A constant: the SDK lets the work in flight run dry whenever it changes.
                "concurrency_modifier": lambda _current: settings.concurrency,
            }
        )
    finally:
        service.close(timeout=10)


if __name__ == "__main__":
    main()
