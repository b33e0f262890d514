"""Faults of a Qdrant server: each is retried or raised, and no point is lost."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from bge_client import (
    AuthenticationError,
    Client,
    ConfigurationError,
    HTTPStatusError,
    ProtocolError,
    RateLimitError,
    TooLargeError,
    TransportError,
    retry,
)
from bge_retrieval import (
    HybridSearch,
    Migration,
    Schema,
    Store,
    add_in_place,
    index,
    sync,
)
from fakes.qdrant_server import (
    PendingExchange,
    QdrantServer,
    busy,
    cut,
    disk_full,
    lost,
    never,
    refusing,
)
from fakes.scripted import raw
from points import assert_equal, contents

DOCUMENTS = [{"id": n, "text": f"текст номер {n}"} for n in range(20)]
WRITE = "PUT /collections/c/points"


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "MIN_PAUSE", 0.001)


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    with QdrantServer() as server:
        yield server
        assert server.conformance_errors() == []


@pytest.fixture
def remote(server: QdrantServer) -> Iterator[Store]:
    with Store.open(url=server.url) as store:
        yield store


@pytest.fixture(scope="module")
def expected(worker: Client) -> dict[Any, Any]:
    with Store(QdrantClient(":memory:")) as store:
        index(store, worker, "c", DOCUMENTS)
        return contents(store, "c")


@pytest.mark.parametrize(
    "fault",
    [busy(0), refusing(500, "internal"), refusing(502, "bad gateway"), cut, lost],
    ids=["429", "500", "502", "reset", "applied, then reset"],
)
def test_transient_faults_are_retried_without_loss(
    server: QdrantServer, remote: Store, worker: Client, expected: Any, fault: Any
) -> None:
    server.fail(fault, on="*", times=2)
    server.fail(fault, on=WRITE, times=3)
    index(remote, worker, "c", DOCUMENTS)
    assert_equal(contents(remote, "c"), expected)


def test_threads_have_requests_open_at_the_same_time(server: QdrantServer, remote: Store) -> None:
    both, arrivals = threading.Barrier(2, timeout=10), []

    def answer_both(exchange: PendingExchange) -> None:
        arrivals.append(both.wait())
        exchange.answer()

    server.fail(answer_both, on="GET /aliases", times=2)
    with ThreadPoolExecutor(2) as threads:
        assert [*threads.map(lambda _: remote.aliases(), range(2))] == [{}, {}]
    assert sorted(arrivals) == [0, 1]


def test_threads_share_a_folder_in_local_mode(tmp_path: Path) -> None:
    def write_and_read(thread: int) -> None:
        for number in range(20):
            id = 20 * thread + number
            store.upsert("c", [models.PointStruct(id=id, vector=[1.0] * 8, payload={"id": id})])
            assert store.payloads("c", [id]) == {id: {"id": id}}

    with Store.open(path=tmp_path) as store, ThreadPoolExecutor(8) as threads:
        params = models.VectorParams(size=8, distance=models.Distance.COSINE)
        store.create_collection("c", vectors_config=params)
        assert len([*threads.map(write_and_read, range(8))]) == 8
        assert store.count("c") == 160


def test_a_timeout_is_retried(server: QdrantServer, worker: Client, expected: Any) -> None:
    with Store.open(url=server.url, timeout=1) as remote:
        server.fail(never, on=WRITE)
        index(remote, worker, "c", DOCUMENTS)
        assert_equal(contents(remote, "c"), expected)


@pytest.mark.parametrize(
    ("fault", "attempts", "kind", "message"),
    [
        (refusing(400, "wrong"), 1, HTTPStatusError, "upsert with HTTP 400: wrong"),
        (refusing(409, "conflict"), 1, HTTPStatusError, "upsert with HTTP 409: conflict"),
        (refusing(422, "no such"), 1, HTTPStatusError, "upsert with HTTP 422: no such"),
        (refusing(401, "key"), 1, AuthenticationError, "rejects the API key: HTTP 401"),
        (disk_full, 1, HTTPStatusError, "The disk is full. Nothing is lost"),
        (refusing(507, "full"), 1, HTTPStatusError, "HTTP 507: full. The disk is full"),
        (refusing(503, "starting"), 7, HTTPStatusError, "upsert with HTTP 503: starting"),
        (cut, 7, TransportError, "no response from Qdrant to upsert"),
    ],
    ids=["400", "409", "422", "401", "500 disk full", "507", "503 for long", "reset for long"],
)
def test_a_lasting_fault_is_raised_and_the_next_run_resumes(
    server: QdrantServer,
    remote: Store,
    worker: Client,
    expected: Any,
    fault: Any,
    attempts: int,
    kind: type[Exception],
    message: str,
) -> None:
    index(remote, worker, "c", DOCUMENTS[:7])
    writes_before = server.routes().count(WRITE)
    server.fail(fault, on=WRITE, times=attempts)
    with pytest.raises(kind, match=message):
        index(remote, worker, "c", DOCUMENTS)
    assert server.routes().count(WRITE) == writes_before + attempts
    assert index(remote, worker, "c", DOCUMENTS).unchanged == 7
    assert_equal(contents(remote, "c"), expected)


def test_a_rate_limit_beyond_the_deadline_is_raised_at_once(
    server: QdrantServer, worker: Client
) -> None:
    server.fail(busy(30), on=WRITE, times=100)
    with Store(QdrantClient(url=server.url), retry_seconds=5) as remote:
        start = time.monotonic()
        with pytest.raises(RateLimitError, match="Qdrant limits the request rate"):
            index(remote, worker, "c", DOCUMENTS)
        assert time.monotonic() - start < 4  # a retry after 30 s would exceed the deadline


def test_a_request_after_close_is_not_retried(
    remote: Store, caplog: pytest.LogCaptureFixture
) -> None:
    remote.close()
    with pytest.raises(ConfigurationError, match="closed before collections"):
        remote.collections()
    assert caplog.text == ""


def test_a_closed_folder_is_named_as_a_closed_server(tmp_path: Path, worker: Client) -> None:
    store = Store.open(path=tmp_path)
    index(store, worker, "c", DOCUMENTS)
    search = HybridSearch(store, worker, "c")
    store.close()
    for call in (lambda: store.exists("c"), lambda: search.search("q")):
        with pytest.raises(ConfigurationError, match="Qdrant's client was closed before"):
            call()


@pytest.mark.parametrize("refuser", ["server", "proxy"])
def test_a_write_that_is_too_large_is_halved(worker: Client, expected: Any, refuser: str) -> None:
    with QdrantServer(max_body=60_000) as server, Store.open(url=server.url) as remote:
        if refuser == "proxy":
            server.fail(refusing(413, "Request Entity Too Large"), on=WRITE, times=2)
        index(remote, worker, "c", DOCUMENTS)
        assert_equal(contents(remote, "c"), expected)


def test_a_point_that_is_too_large_alone_is_named(worker: Client) -> None:
    with (
        QdrantServer(max_body=60_000) as server,
        Store.open(url=server.url) as remote,
        pytest.raises(TooLargeError, match="point 0 alone exceeds"),
    ):
        index(remote, worker, "c", [{"id": 0, "text": "море", "notes": "x" * 60_000}])


def test_the_key_is_sent_and_a_wrong_one_is_refused(worker: Client) -> None:
    with QdrantServer(api_key="the-right-key") as server:
        with Store.open(url=server.url, api_key="the-right-key") as remote:
            assert index(remote, worker, "c", DOCUMENTS).written == 20
        with (
            Store.open(url=server.url, api_key="a-wrong-key") as remote,
            pytest.raises(AuthenticationError, match="rejects the API key: HTTP 401"),
        ):
            HybridSearch(remote, worker, "c")


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"result": null}', b"9" * 5000, b"<html>"])
def test_an_invalid_response_is_a_protocol_error(
    server: QdrantServer, remote: Store, body: bytes
) -> None:
    server.fail(raw(body), on="*")
    with pytest.raises(ProtocolError, match="aliases"):
        remote.aliases()


def test_an_unreachable_server_is_a_transport_error(worker: Client) -> None:
    with QdrantServer() as server:
        url = server.url
    with (
        Store.open(url=url) as remote,
        pytest.raises(TransportError, match="no response from Qdrant to aliases: ConnectError"),
    ):
        HybridSearch(remote, worker, "c")


def test_over_rest_vectors_are_added_in_place(
    server: QdrantServer, remote: Store, worker: Client, passages: list[Any]
) -> None:
    params = models.VectorParams(size=512, distance=models.Distance.COSINE)
    remote.create_collection("mine", vectors_config=params)
    dense = worker.embed([passage["text"] for passage in passages[:20]]).dense
    assert dense is not None
    points = [
        models.PointStruct(id=n, vector=vector.tolist(), payload=passages[n])
        for n, vector in enumerate(dense)
    ]
    remote.upsert("mine", points)
    server.fail(lost, on="PUT /collections/mine/vectors/*")
    report = add_in_place(remote, worker, "mine", colbert=True)
    assert report.written == 20


def test_snapshots_and_removed_vectors_over_rest(
    server: QdrantServer, remote: Store, worker: Client
) -> None:
    index(remote, worker, "c", DOCUMENTS[:1])
    server.fail(lost, on="DELETE *")
    assert [remote.create_snapshot("c") for _ in range(2)] == ["c-0.snapshot", "c-1.snapshot"]
    creation = ("POST", "/collections/c/snapshots")
    queries = [call.query for call in server.calls if (call.method, call.path) == creation]
    assert queries == [{"wait": "false"}] * 2
    remote.delete_vector_name("c", "sparse")
    assert contents(remote, "c").popitem()[1][1].keys() == {"dense"}


def test_a_target_copies_the_source_settings_and_quantizes_only_dense_vectors(
    server: QdrantServer, remote: Store, worker: Client
) -> None:
    params = models.VectorParams(size=8, distance=models.Distance.COSINE)
    remote.create_collection(
        "old",
        vectors_config=params,
        shard_number=4,
        replication_factor=3,
        on_disk_payload=True,
    )
    point = models.PointStruct(id=1, vector=[1.0] * 8, payload={"text": "море"})
    remote.upsert("old", [point])
    Migration(
        remote, worker, "old", "new", schema=Schema(colbert=True, quantization="binary")
    ).run()
    (creation,) = (
        call for call in server.calls if (call.method, call.path) == ("PUT", "/collections/new")
    )
    settings = {
        name: creation.body[name]
        for name in ("shard_number", "replication_factor", "on_disk_payload")
    }
    assert settings == {"shard_number": 4, "replication_factor": 3, "on_disk_payload": True}
    assert creation.body.get("quantization_config") is None
    vectors = creation.body["vectors"]
    assert "binary" in vectors["dense"]["quantization_config"]
    assert vectors["colbert"].get("quantization_config") is None
    assert vectors["colbert"]["datatype"] == "float16"


def test_writes_in_place_are_bounded_by_bytes(
    server: QdrantServer,
    remote: Store,
    worker: Client,
    passages: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index(remote, worker, "c", passages[:20])
    monkeypatch.setattr(sync, "BATCH_BYTES", 2_000_000)
    add_in_place(remote, worker, "c", colbert=True)
    sizes = [len(json.dumps(call.body)) for call in server.calls if call.path.endswith("/vectors")]
    assert len(sizes) > 5
    assert max(sizes) < 2_500_000


def test_vectors_are_added_although_some_points_were_deleted(store: Store, worker: Client) -> None:
    index(store, worker, "c", DOCUMENTS)
    vectors = [
        models.PointVectors(id=n, vector={"sparse": models.SparseVector(indices=[1], values=[1])})
        for n in (3, 999, 5, 1000, 7)
    ]
    store.add_vectors("c", vectors)
    after = contents(store, "c")
    assert all(after[n][1]["sparse"].indices == [1] for n in (3, 5, 7))
    assert len(after) == 20


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
