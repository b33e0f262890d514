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

LASTING = bool(os.environ.get("FUZZ_SECONDS"))


def fuzz_settings(examples: int = 150) -> settings:
    """Return settings of one round: the same examples in every run of the suite, others in each
    round of one that lasts; none is kept on disk."""
    return settings(
        max_examples=500 if LASTING else examples,
        deadline=None,
        database=None,
        derandomize=not LASTING,
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
