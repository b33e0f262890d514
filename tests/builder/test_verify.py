"""The published values, with the real weights if they are there, and the tolerance."""

from __future__ import annotations

import pytest

from bge_builder.pins import PINS
from bge_builder.verify import verify
from bge_worker.engine.engine import Engine
from bge_worker.serving import golden_values
from bge_worker.serving.golden_values import PUBLISHED_REVISIONS, GoldenValue
from conftest import MODELS, ROOT

REAL = ROOT / "models" / "bge-packed"


@pytest.mark.skipif(
    not (REAL / "done").exists(),
    reason="no real weights: make verify MODELS=bge fetches them",
)
@pytest.mark.parametrize("model", MODELS)
def test_the_real_weights_compute_the_published_values(model: str) -> None:
    _, golden = verify(REAL / model)
    assert golden
    assert [value for value in golden if not value.agrees] == []


def test_other_weights_do_not_have_the_published_values(
    packed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert golden_values.golden_values(packed) == []
    monkeypatch.setattr(golden_values, "is_published", lambda model: True)
    values = golden_values.golden_values(packed)
    assert len(values) == 12
    assert sum(value.agrees for value in values) < 4


def test_the_published_revisions_are_the_pinned_ones() -> None:
    assert {pin.repo: pin.revision for pin in PINS} == PUBLISHED_REVISIONS


def test_a_value_agrees_within_the_tolerance() -> None:
    assert GoldenValue("logit", -8.1875, -8.26).agrees
    assert not GoldenValue("logit", -8.1875, -8.30).agrees
    assert GoldenValue("lexical score", 0.0, 0.004).agrees
    assert not GoldenValue("dense cosine", 0.6265, 0.60).agrees
