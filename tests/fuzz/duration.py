"""How long a fuzz target runs: one short round in the test suite, or FUZZ_SECONDS if set.

@fuzz_settings()
@given(...)
def check_parser(...): ...

def test_parser() -> None:
    for _ in rounds():
        check_parser()
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator

from hypothesis import HealthCheck, settings

IS_LONG = bool(os.environ.get("FUZZ_SECONDS"))


def fuzz_settings(examples: int = 100) -> settings:
    """Return the settings of one round.

    The suite runs the same examples every time; with FUZZ_SECONDS every round has new ones.
    """
    return settings(
        max_examples=500 if IS_LONG else examples,
        deadline=None,
        database=None,
        derandomize=not IS_LONG,
        suppress_health_check=list(HealthCheck),
    )


def rounds() -> Iterator[int]:
    """Yield a round's number, once or until FUZZ_SECONDS are over."""
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS") or 0)
    number = 0
    while number == 0 or time.monotonic() < end:
        yield number
        number += 1
        gc.collect()  # conftest.py imports the server, which disables automatic collection
