"""Indexing: what is written, skipped, refused and reported."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_client import Client, ConfigurationError, TransportError, ValidationError
from bge_retrieval import Schema, Store, index
from bge_retrieval.documents import point_id
from points import contents


def test_a_document_is_a_point_with_all_its_vectors(store: Store, worker: Client) -> None:
    document = {"_id": "sea", "text": "море", "year": 1999}
    report = index(store, worker, "c", [document], schema=Schema(colbert=True))
    (point,) = contents(store, "c").items()
    id, (payload, vectors) = point
    assert id == str(uuid.uuid5(uuid.UUID("8f2f2b9e-5c0e-5d52-9d0d-6f1a6d1c3b11"), "sea"))
    assert payload == document
    direct = worker.embed("море", sparse=True, colbert=True, dtype="float32")
    np.testing.assert_allclose(vectors["dense"], direct.dense[0], atol=1e-4)  # fp16 on the wire
    np.testing.assert_allclose(vectors["colbert"], direct.colbert[0], atol=1e-3)
    assert vectors["sparse"].indices == direct.sparse[0].indices.tolist()
    assert (report.written, report.fingerprint) == (1, direct.fingerprint)


@pytest.mark.parametrize("path", ["corpus.jsonl", Path("corpus.jsonl")])
def test_a_path_is_no_iterable_of_documents(store: Store, worker: Client, path: Any) -> None:
    with pytest.raises(ConfigurationError, match="an iterable of documents, not a path"):
        index(store, worker, "c", path)


def test_a_second_run_writes_only_what_has_changed(
    store: Store, worker: Client, passages: list[dict[str, Any]]
) -> None:
    index(store, worker, "c", passages)
    before = contents(store, "c")
    report = index(store, worker, "c", passages)
    assert (report.unchanged, report.written) == (len(passages), 0)
    changed = [{**passages[0], "text": "Другой текст."}, *passages[1:], {"id": 7, "text": "новый"}]
    report = index(store, worker, "c", changed)
    assert (report.unchanged, report.written) == (len(passages) - 1, 2)
    after = contents(store, "c")
    assert after.pop(7)[0]["text"] == "новый"
    differ = [id for id in before if before[id][0] != after[id][0]]
    assert differ == [point_id(passages[0]["_id"])]
    assert before[differ[0]][1] != after[differ[0]][1]


def test_json_lines_are_documents(store: Store, worker: Client) -> None:
    index(store, worker, "c", ['{"_id": 1, "text": "море"}\n', "\n", '{"_id": 2, "text": "и"}'])
    assert contents(store, "c").keys() == {1, 2}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON: nested deeper than 100"),
        ('{"text": "x", "n": 1e400}', "line 2 is not JSON: Out of range float"),
        ('{"text": "x", "n": %s}' % ("9" * 5000), "line 2 is not JSON: Exceeds the limit"),
        ({"text": "x", "n": nested(100)}, "document 2 is not JSON: nested deeper than 100"),
        ({"text": "x", "n": nested(100_000)}, "document 2 is not JSON: nested deeper than 100"),
        ("[]", "line 2 is not a JSON object"),
        ({"id": 5}, "document 2: no text at `text`"),
        ({"text": " \n"}, "document 2: no text at `text`"),
        ({"text": "\ud800"}, "document 2 must be valid Unicode. Given: a lone surrogate"),
        ({"text": "x" * 1_000_001}, "document 2: the text .* 1000000 characters. Given: 1000001"),
        ({"text": "x", "n": float("nan")}, "document 2 is not JSON: Out of range float"),
        ({"text": "x", "id": -1}, r"document 2: an id must be from 0 to 2\^64 - 1. Given: -1"),
    ],
)
def test_an_invalid_document_is_named_and_earlier_ones_are_written(
    store: Store, worker: Client, bad: Any, message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        index(store, worker, "c", [{"id": 1, "text": "море"}, bad])
    assert contents(store, "c").keys() == {1}


def test_a_run_that_writes_nothing_leaves_no_collection(
    store: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValidationError, match="document 1: no text"):
        index(store, worker, "c", [{"id": 1}])
    assert index(store, worker, "c", ["\n"]).written == 0

    def unreachable(*_: Any, **options: Any) -> Iterator[Any]:
        yield from ()
        raise TransportError("no response")

    monkeypatch.setattr(worker, "embed_iter", unreachable)
    with pytest.raises(TransportError):
        index(store, worker, "c", [{"id": 1, "text": "море"}])
    assert not store.exists("c")


def test_a_collection_that_another_process_creates_meanwhile_is_filled(
    store: Store, worker: Client
) -> None:
    def documents(**options: Any) -> Iterator[dict[str, Any]]:
        index(store, worker, "c", [{"id": 1, "text": "море"}], **options)
        yield {"id": 2, "text": "суша"}

    index(store, worker, "c", documents())
    assert contents(store, "c").keys() == {1, 2}
    store.delete_collection("c")
    with pytest.raises(ConfigurationError, match="created `c` with other options"):
        index(store, worker, "c", documents(max_length=16))


def test_truncated_texts_are_reported(store: Store, worker: Client) -> None:
    documents = [{"id": 1, "text": "слово " * 50}, {"id": 2, "text": "море"}]
    report = index(store, worker, "c", documents, max_length=16)
    assert (report.truncated.count, [*report.truncated.first]) == (1, ["1"])
    with pytest.raises(ConfigurationError, match=r"was created with `max_length` 16\. Given: 32"):
        index(store, worker, "c", documents, max_length=32)
