"""The check before the first request notices a device that computes wrongly."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from bge_worker.engine.engine import FinishedBatch, PackedEngine
from bge_worker.serving.golden_values import PUBLISHED_REVISIONS, GoldenValue, check


def test_a_fit_device_passes(packed: PackedEngine) -> None:
    check(packed)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([2.0, 2.0], "a dense vector is not of length one"),
        ([1.0, 1.1], "the vectors of the same text differ"),
    ],
)
def test_wrong_vectors_fail_the_check(
    packed: PackedEngine, monkeypatch: pytest.MonkeyPatch, factors: list[float], message: str
) -> None:
    launch, calls = packed.launch, count()

    def launch_scaled(*arguments: Any) -> FinishedBatch:
        results: list[Any] = list(launch(*arguments).results())
        factor = factors[next(calls)]
        return FinishedBatch([r._replace(dense=r.dense * factor) for r in results])

    monkeypatch.setattr(packed, "launch", launch_scaled)
    with pytest.raises(RuntimeError, match=message):
        check(packed)


def test_published_weights_must_give_the_published_values(
    packed: PackedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name, revision), *_ = PUBLISHED_REVISIONS.items()
    published = replace(packed.models["embed"], model=name, revision=revision)
    monkeypatch.setitem(packed.models, "embed", published)
    with pytest.raises(RuntimeError, match=r"dense cosine: published 0\.6265, computed"):
        check(packed)  # the miniature's weights are others


def test_golden_values_agree_within_a_tolerance() -> None:
    assert GoldenValue("logit", -8.0, -8.08).agrees
    assert not GoldenValue("logit", -8.0, -8.1).agrees
    assert GoldenValue("logit", -8.0, -8.1, factor=5.0).agrees
