"""The vectors of a point."""

from __future__ import annotations

import pytest

from bge_client import Client
from bge_retrieval import Schema, Store, index, schema
from points import contents


def test_colbert_vectors_beyond_the_limit_are_dropped_and_flagged(
    store: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MULTIVECTOR_FLOATS", 6 * 512)  # five vectors of 512
    documents = [{"id": 1, "text": "много разных слов в тексте"}, {"id": 2, "text": "море"}]
    report = index(store, worker, "c", documents, schema=Schema(colbert=True))
    stored = contents(store, "c")
    assert (report.colbert_cut.count, [*report.colbert_cut.first]) == (1, ["1"])
    assert len(stored[1][1]["colbert"]) == 5
    assert stored[1][0] == {**documents[0], schema.COLBERT_CUT: True}
    assert schema.COLBERT_CUT not in stored[2][0]
    assert index(store, worker, "c", documents, schema=Schema(colbert=True)).unchanged == 2
