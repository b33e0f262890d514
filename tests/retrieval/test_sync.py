"""Which documents are current, and the size of writes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as edge

from bge_client import Client, ValidationError
from bge_retrieval import Store, index, sync
from bge_retrieval.sync import is_current
from points import contents


def test_of_documents_that_share_an_id_the_last_one_stays(
    store: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "PAGE", 2)
    far = [{"id": 1, "text": "первый"}, *({"id": n, "text": f"{n}"} for n in range(2, 9))]
    for documents in (
        [far[0], {"id": 1, "text": "последний"}],
        [*far, {"id": 1, "text": "последний"}],
    ):
        for _ in range(3):
            index(store, worker, "c", documents)
            assert contents(store, "c")[1][0]["text"] == "последний"


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}, True),
        (True, 1, False),
        (1, 1.0, True),
        (0.1 + 0.2, 0.3, True),
        (0.3, 0.3000001, False),
        ([1, 2], [1], False),
        ({"a": 1}, {"b": 1}, False),
        ("1", 1, False),
    ],
)
def test_payloads_are_equal_if_a_filter_cannot_tell_them_apart(
    left: Any, right: Any, equal: bool
) -> None:
    assert sync.json_equal(left, right) == sync.json_equal(right, left) == equal


UUID = "8f2f2b9e-5c0e-5d52-9d0d-6f1a6d1c3b11"


@pytest.mark.parametrize("notation", [UUID.upper(), UUID.replace("-", ""), f"urn:uuid:{UUID}"])
@pytest.mark.parametrize("location", ["in one page", "on the way", "stored"])
def test_one_uuid_in_two_notations_is_refused(
    store: Store, worker: Client, monkeypatch: pytest.MonkeyPatch, notation: str, location: str
) -> None:
    first, second = {"_id": UUID, "text": "море"}, {"_id": notation, "text": "суша"}
    if location == "stored":
        index(store, worker, "c", [first])
    if location == "on the way":
        monkeypatch.setattr(sync, "PAGE", 1)
    documents = [second] if location == "stored" else [first, second]
    with pytest.raises(ValidationError, match=f"document `{notation}`: .* is `{UUID}`"):
        index(store, worker, "c", documents)
    assert [payload for payload, _ in contents(store, "c").values()] == [first]
    assert index(store, worker, "c", [first]).unchanged == 1


def test_writes_are_bounded_by_points_and_by_bytes(
    store: Store, worker: Client, passages: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(store, "upsert", lambda _, points: sizes.append(len(points)))
    index(store, worker, "c", [passages[n % 150] | {"_id": n} for n in range(300)])
    monkeypatch.setattr(sync, "BATCH_BYTES", 50_000)
    index(store, worker, "d", passages)
    assert sizes[:2] == [256, 44]
    assert sum(sizes[2:]) == len(passages)
    assert max(sizes[2:]) < 12  # of at least 5.6 KB each


def test_a_payload_read_back_from_the_engine_is_current(
    tmp_path: Path,
) -> None:
    """Some floats come back with a different last digit, which must not count as a change."""
    rng = random.Random(3)
    payloads: list[dict[str, Any]] = [
        {"a": rng.random(), "b": [rng.gauss(0, 1e-4)], "c": {"d": 1.7e9 + rng.random()}}
        for _ in range(3000)
    ]
    shard = edge.EdgeShard.create(
        str(tmp_path), edge.EdgeConfig(vectors={"v": edge.EdgeVectorParams(1, edge.Distance.Dot)})
    )
    points = [edge.Point(n, {"v": [1.0]}, payload) for n, payload in enumerate(payloads)]
    shard.update(edge.UpdateOperation.upsert_points(points))
    records, _ = shard.scroll(edge.ScrollRequest(limit=len(points), with_payload=True))
    shard.close()
    assert len(records) == len(points)
    assert any(record.payload != payloads[record.id] for record in records)
    assert all(is_current(record.payload, payloads[record.id]) for record in records)
