"""How long a fuzz target runs: a moment in the suite, and FUZZ_SECONDS where that is set.

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

EXAMPLES = 150  # in one round


def fuzz_settings() -> settings:
    """Return settings under which each round draws other examples, and keeps none on disk."""
    return settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )


def rounds() -> Iterator[int]:
    """Count a first round, and others until FUZZ_SECONDS are over."""
    ends = time.monotonic() + float(os.environ.get("FUZZ_SECONDS") or 0)
    number = 0
    while number == 0 or time.monotonic() < ends:
        yield number
        number += 1
        gc.collect()  # conftest.py imports the server, which switches the automatic one off
