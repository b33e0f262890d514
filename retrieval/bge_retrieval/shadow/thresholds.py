"""The verdict on a provider that ran beside another in shadow mode."""

from __future__ import annotations

from dataclasses import dataclass

from ..verdict import P50_MS, P99_MS, Check, Verdict, judge
from .summary import Pair

MEASURED = "bge"  # the provider whose latency counts, live or not


@dataclass(frozen=True)
class ShadowThresholds:
    """Limits of a pair of providers.

    Live queries have no judgements, so the similarity of the rankings stands in for quality:
    `agreement` is the minimum mean RBO, which like nDCG weights the first ranks most. `error_rate`
    is the maximum share of failed comparisons. At 1% a failure, which has no latency, is as rare
    as a query above p99.
    """

    agreement: float = 0.90
    error_rate: float = 0.01
    p50_ms: float = P50_MS
    p99_ms: float = P99_MS


def judge_pair(pair: Pair, thresholds: ShadowThresholds) -> Verdict:
    """Check the agreement, failures and latency of a pair.

    The latency is that of `bge`; if neither provider has that name, of `other`.
    """
    failed = sum(pair.errors.values())
    name = pair.live if pair.live == MEASURED else pair.other
    latency = pair.live_ms if pair.live == MEASURED else pair.other_ms
    p50, p99 = (latency.p50, latency.p99) if latency else (None, None)
    checks = [
        Check("RBO", "at least", thresholds.agreement, pair.rbo.mean if pair.rbo else None),
        Check(
            f"errors of {pair.other}",
            "at most",
            thresholds.error_rate,
            failed / (pair.count + failed),
        ),
        Check(f"p50 of {name}", "below", thresholds.p50_ms, p50, "ms"),
        Check(f"p99 of {name}", "below", thresholds.p99_ms, p99, "ms"),
    ]
    return judge(f"{pair.other} beside {pair.live}", checks, pair.count)
