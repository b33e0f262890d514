"""The significance of differences between two systems on the same queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .dataset import SEED

Values = NDArray[np.float64]
RESAMPLES = 9_999  # the test is exact for up to 13 queries that differ
BATCH = 200  # resamples at a time: bounds memory to BATCH × N numbers


def interval(gaps: Values) -> tuple[float, float]:
    """Return the 95% percentile-bootstrap interval of the mean of `gaps` [N]."""
    if len(gaps) < 2:  # each resample is the same
        return float(gaps[0]), float(gaps[0])
    result = stats.bootstrap((gaps,), np.mean, method="percentile", **_resampling())
    low, high = result.confidence_interval
    return float(low), float(high)


def paired_p(gaps: Values) -> float:
    """Return the two-sided p-value of a paired randomization test, which flips signs at random.

    `gaps` [N] has one difference for each query. Zeros do not affect the test and are dropped.
    """
    nonzero = gaps[gaps != 0]
    if len(nonzero) < 2:  # both signs are equally far from zero
        return 1.0
    # For a single sample, "samples" permutes its signs.
    result = stats.permutation_test(
        (nonzero,), np.mean, permutation_type="samples", **_resampling()
    )
    return float(result.pvalue)


def _resampling() -> dict[str, Any]:
    rng = np.random.default_rng(SEED)
    return {"vectorized": True, "n_resamples": RESAMPLES, "batch": BATCH, "rng": rng}


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values with Holm's correction for multiple tests."""
    corrected, minimum = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        minimum = max(minimum, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = minimum
    return corrected
