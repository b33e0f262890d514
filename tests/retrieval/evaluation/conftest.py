"""Faster statistics for all tests of evaluation."""

from __future__ import annotations

import pytest

from bge_retrieval.evaluation import statistics


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
