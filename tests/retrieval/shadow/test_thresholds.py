"""The verdict on a pair of providers."""

from __future__ import annotations

from bge_retrieval.shadow import ShadowThresholds, judge_pair
from bge_retrieval.shadow.summary import Latency, Pair, Spread

FAST, SLOW = Latency(50.0, 90.0), Latency(300.0, 900.0)
SIMILAR = Spread(0.95, 0.9, 0.95)
PAIR = Pair("bge", "jina", 99, {"JobError": 1}, None, SIMILAR, None, 1.0, FAST, SLOW)


def test_the_latency_is_that_of_bge_whether_live_or_not() -> None:
    live = judge_pair(PAIR, ShadowThresholds())
    assert (live.outcome, [check.measured for check in live.checks]) == (
        "pass",
        [0.95, 0.01, 50, 90],
    )
    beside = Pair("jina", "bge", 99, {}, None, SIMILAR, None, 1.0, SLOW, FAST)
    assert judge_pair(beside, ShadowThresholds()).outcome == "pass"
    others = Pair("a", "b", 99, {}, None, SIMILAR, None, 1.0, FAST, SLOW)
    verdict = judge_pair(others, ShadowThresholds())
    assert [check.name for check in verdict.checks if not check.passed] == ["p50 of b", "p99 of b"]


def test_a_pair_without_successes_passes_no_check() -> None:
    failed = Pair("jina", "bge", 0, {"JobError": 30}, None, None, None, None, SLOW, None)
    verdict = judge_pair(failed, ShadowThresholds())
    assert not any(check.passed for check in verdict.checks)
    assert "RBO – (required: at least 90%)" in verdict.sentence
