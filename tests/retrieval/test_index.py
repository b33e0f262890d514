"""Collections of BGE vectors: indexing, refused collections, search."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from bge_client import BGEError, Client, ConfigurationError, FingerprintError, ValidationError
from bge_retrieval import (
    CollectionMetadata,
    HybridSearch,
    Plan,
    Schema,
    Store,
    index,
    schema,
    search,
    sync,
)
from bge_retrieval.documents import point_id, text_at
from points import contents

FILTER = models.Filter(
    must=[models.FieldCondition(key="metadata.lang", match=models.MatchValue(value="ru"))]
)
QUERY = "разделение выборки на обучающую и тестовую"


@pytest.fixture(scope="module")
def course(worker: Client, passages: list[dict[str, Any]]) -> Any:
    """The course material with dense, sparse and ColBERT vectors."""
    with Store(QdrantClient(":memory:")) as store:
        index(store, worker, "course", passages, schema=Schema(colbert=True))
        yield store


def ids(hits: Any) -> list[str]:
    return [hit.document_id for hit in hits]


# ---------------------------------------------------------------------------------- index


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
        ({"id": 5}, "document 2 has no text at `text`"),
        ({"text": " \n"}, "document 2 has no text at `text`"),
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


def test_text_at_follows_paths_through_the_payload() -> None:
    payload = {"page": {"content": ["первый", {"body": "второй"}]}, "a.b": "третий", "n": 1}
    assert text_at(payload, ["page.content.0"]) == "первый"
    assert text_at(payload, ["page.content.1.body", "a.b"]) == "второй\nтретий"
    assert text_at(payload, ["page.content." + "9" * 5000]) is None
    for path in ("page", "page.content.2", "page.content.x", "n", "a.c", ""):
        assert text_at(payload, [path]) is None


@given(st.one_of(st.integers(0, 2**64 - 1), st.text(), st.dictionaries(st.text(), st.integers())))
def test_point_ids_are_stable_and_valid_in_qdrant(document_id: Any) -> None:
    id = point_id(document_id)
    assert id == point_id(document_id)
    assert id == document_id if isinstance(document_id, int) else uuid.UUID(str(id))


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


def test_truncated_texts_are_reported(store: Store, worker: Client) -> None:
    documents = [{"id": 1, "text": "слово " * 50}, {"id": 2, "text": "море"}]
    report = index(store, worker, "c", documents, max_length=16)
    assert (report.truncated.count, [*report.truncated.first]) == (1, ["1"])
    with pytest.raises(ConfigurationError, match=r"was created with `max_length` 16\. Given: 32"):
        index(store, worker, "c", documents, max_length=32)


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


# ------------------------------------------------------------------------- one model only


@pytest.fixture
def jina(store: Store) -> Store:
    """A collection of unnamed vectors, as with Jina."""
    params = models.VectorParams(size=512, distance=models.Distance.COSINE)
    store.create_collection("jina", vectors_config=params)
    return store


def test_a_collection_without_metadata_is_neither_written_nor_searched(
    jina: Store, worker: Client
) -> None:
    message = "has no metadata that names the model .* `bge migrate jina NEW` .* --in-place"
    with pytest.raises(FingerprintError, match=message):
        index(jina, worker, "jina", [{"id": 1, "text": "море"}])
    with pytest.raises(FingerprintError, match=message):
        HybridSearch(jina, worker, "jina")
    assert jina.count("jina") == 0


def test_a_collection_of_another_model_is_neither_written_nor_searched(
    store: Store, worker: Client
) -> None:
    metadata = CollectionMetadata("jina/jina-embeddings-v3/1024", "jina-embeddings-v3", 512)
    Schema().ensure(store, "c", metadata)
    message = "holds vectors of jina-embeddings-v3, .* Given: e3f.* `bge migrate c NEW`"
    with pytest.raises(FingerprintError, match=message):
        index(store, worker, "c", [{"id": 1, "text": "море"}])
    with pytest.raises(FingerprintError, match=message):
        HybridSearch(store, worker, "c").search("море")
    assert store.count("c") == 0


def test_a_missing_collection_error_lists_the_existing_ones(jina: Store, worker: Client) -> None:
    with pytest.raises(ConfigurationError, match=r"no collection `c`\. Existing: jina"):
        HybridSearch(jina, worker, "c")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Qdrant's lock
def test_a_folder_cannot_be_opened_twice(tmp_path: Any) -> None:
    with (
        Store.open(path=tmp_path),
        pytest.raises(ConfigurationError, match=r"open in another process.*QDRANT_URL"),
    ):
        Store.open(path=tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Qdrant's lock
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("meta.json", b""),
        ("meta.json", b"[1]"),
        ("meta.json", b'{"collections": {"c": {}}}'),
        ("meta.json", b"\xff"),
        ("storage.sqlite", b"\xff" * 999),
    ],
)
def test_a_broken_folder_is_named(
    tmp_path: Path, worker: Client, name: str, content: bytes
) -> None:
    with Store.open(path=tmp_path) as store:
        index(store, worker, "c", [{"_id": 1, "text": "море"}])
    (path,) = tmp_path.rglob(name)
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"{tmp_path} cannot be read as a folder of"):
        Store.open(path=tmp_path)


# --------------------------------------------------------------------------------- search


@pytest.mark.parametrize(
    "plan",
    [
        Plan(sparse=False),
        Plan(dense=False),
        Plan(),
        Plan(fusion="dbsf"),
        Plan(colbert=True),
        Plan(rerank=20),
        Plan(sparse=False, colbert=True, rerank=5),
    ],
    ids=lambda plan: "+".join(k for k, v in vars(plan).items() if v is True) + plan.fusion,
)
def test_explain_returns_the_rank_and_score_of_every_stage(
    course: Store, worker: Client, plan: Plan
) -> None:
    result = HybridSearch(course, worker, "course", plan).search(QUERY, 5, explain=True)
    assert len(result) == 5
    stages = ("rerank", "colbert", "fused", "dense", "sparse")
    final = next(name for name in stages if name in result[0].stages)
    assert [hit.stages[final].rank for hit in result] == [1, 2, 3, 4, 5]
    assert [hit.stages[final].score for hit in result] == pytest.approx(
        [hit.score for hit in result]
    )
    plain = HybridSearch(course, worker, "course", plan).search(QUERY, 5)
    assert ids(plain) == ids(result)
    assert plain[0].stages == {}


def test_every_plan_finds_the_relevant_passage(course: Store, worker: Client) -> None:
    for plan in (Plan(dense=False), Plan(), Plan(colbert=True), Plan(rerank=20)):
        engine = HybridSearch(course, worker, "course", plan)
        assert "net-07" in ids(engine.search("TCP congestion control", 5)), plan


def test_rrf_is_the_sum_of_weighted_reciprocal_ranks(course: Store, worker: Client) -> None:
    plan = Plan(rrf_k=7, weights=(1.0, 3.0), candidates=50)
    result = HybridSearch(course, worker, "course", plan).search(QUERY, 20, explain=True)
    for hit in result:
        legs = [(hit.stages.get("dense"), 1.0), (hit.stages.get("sparse"), 3.0)]
        expected = sum(1 / (leg.rank / weight + 7 - 1) for leg, weight in legs if leg)
        assert hit.score == pytest.approx(expected)


def test_the_filter_applies_to_every_stage(course: Store, worker: Client) -> None:
    engine = HybridSearch(course, worker, "course", Plan(candidates=5, colbert=True, rerank=3))
    result = engine.search("TCP congestion control", 5, filter=FILTER)
    assert len(result) == 5  # the unfiltered best five are English
    assert {hit.payload["metadata"]["lang"] for hit in result} == {"ru"}


def test_an_alias_is_followed_when_it_moves(
    store: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        index(store, worker, name, [{"_id": name, "text": "море"}])
    store.point_alias("live", "one")
    engine = HybridSearch(store, worker, "live")
    assert ids(engine.search("море")) == ["one"]
    store.point_alias("live", "two")
    monkeypatch.setattr(search, "ALIAS_TTL_SECONDS", 0.0)
    assert ids(engine.search("море")) == ["two"]


def test_a_search_resolves_the_alias_again_when_its_collection_was_dropped(
    store: Store, worker: Client
) -> None:
    index(store, worker, "one", [{"_id": "old", "text": "море"}])
    store.point_alias("live", "one")
    engine = HybridSearch(store, worker, "live", Plan(rerank=1))
    index(store, worker, "two", [{"_id": "new", "text": "море"}])
    store.point_alias("live", "two")
    store.delete_collection("one")
    assert ids(engine.search("море", explain=True)) == ["new"]
    store.delete_collection("two")
    with pytest.raises(BGEError):
        engine.search("море")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense": False, "sparse": False}, "at least one of `dense` and `sparse`"),
        ({"fusion": "sum"}, "`fusion` must be rrf or dbsf. Given: sum"),
        ({"rrf_k": 0}, "`rrf_k` must be at least 1. Given: 0"),
        ({"weights": (0.0, 0.0)}, "`weights` must be two numbers"),
        ({"candidates": 0}, "`candidates` must be at least 1"),
    ],
)
def test_an_invalid_plan_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Plan(**options)
