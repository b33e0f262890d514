"""The Qdrant test server against local mode and against the real server's errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException
from qdrant_client.http.exceptions import UnexpectedResponse as Unexpected

from conftest import ROOT
from fakes.qdrant_server import (
    Fault,
    QdrantServer,
    RecordedCall,
    busy,
    cut,
    disk_full,
    late,
    lost,
    never,
    refusing,
)

UPSERT = "PUT /collections/*/points"
UUID = "5c56c793-69f3-4fbf-87e6-c4bf54c28c26"
VECTORS = {
    "dense": models.VectorParams(size=4, distance=models.Distance.COSINE),
    "colbert": models.VectorParams(
        size=2,
        distance=models.Distance.COSINE,
        multivector_config=models.MultiVectorConfig(
            comparator=models.MultiVectorComparator.MAX_SIM
        ),
    ),
}


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    with QdrantServer() as server:
        yield server


@pytest.fixture
def client(server: QdrantServer) -> Iterator[QdrantClient]:
    """A client of a server with the collection `docs`."""
    client = QdrantClient(url=server.url)
    create(client)
    yield client
    client.close()


def create(client: QdrantClient, **settings: Any) -> bool:
    sparse = {"sparse": models.SparseVectorParams()}
    return client.create_collection(
        "docs", VECTORS, sparse_vectors_config=sparse, metadata={"fingerprint": "f"}, **settings
    )


def point(number: int, **changes: Any) -> models.PointStruct:
    vectors: dict[str, Any] = {
        "dense": [number + 1, 1, 0, number / 2],
        "sparse": models.SparseVector(indices=[number + 7, number], values=[1.5, 0.5]),
        "colbert": [[number, 1], [1, number + 2]],
    }
    payload = {"n": number, "lang": "ru" if number % 2 else "en", "title": None}
    return models.PointStruct(id=number, vector=vectors | changes, payload=payload)


def conversation(client: QdrantClient) -> Iterator[Any]:
    """Yield the responses to the requests of a migration and a search."""
    yield create(client)
    for first in (0, 6):
        yield client.upsert("docs", [point(n) for n in range(first, first + 6)]).status
    yield client.upsert("docs", [point(99).model_copy(update={"id": UUID.upper()})]).status
    alias = models.CreateAlias(collection_name="docs", alias_name="live")
    yield client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
    yield client.scroll("live", limit=5, with_vectors=True)
    yield client.scroll("live", limit=9, offset=5, with_vectors=["sparse"], with_payload=["n"])
    halves = [
        models.Prefetch(query=[1.0, 0, 0, 1], using="dense", limit=8),
        models.Prefetch(
            query=models.SparseVector(indices=[3, 9], values=[1, 2]), using="sparse", limit=8
        ),
    ]
    fusion = models.RrfQuery(rrf=models.Rrf(k=10, weights=[1, 2]))
    yield client.query_points("live", prefetch=halves, query=fusion, limit=6)
    russian = models.FieldCondition(key="lang", match=models.MatchValue(value="ru"))
    from_three = models.FieldCondition(key="n", range=models.Range(gte=3))
    condition = models.Filter(must=[russian, from_three])
    yield client.query_points("live", [[1.0, 2], [0, 1]], using="colbert", query_filter=condition)
    nested = models.Prefetch(prefetch=halves, query=fusion, limit=5)
    request = models.QueryRequest(
        query=[[1.0, 2]], using="colbert", prefetch=nested, filter=condition
    )
    yield client.query_batch_points("docs", [request, request])
    yield client.count("docs", condition)
    yield client.delete("docs", [1, 2]).status
    yield client.delete("docs", models.FilterSelector(filter=condition)).status
    yield client.set_payload("docs", {"x": [1, None]}, [4]).status
    yield client.overwrite_payload("docs", {"y": 1}, condition).status
    changed = models.PointVectors(id=6, vector={"dense": [0, 0, 0, 1]})
    yield client.update_vectors("docs", [changed]).status
    dense = models.DenseVectorConfig(size=3, distance=models.Distance.DOT)
    added = models.DenseVectorNameConfig(dense=dense)
    yield client.create_vector_name("docs", "later", added).status
    yield client.retrieve("docs", [1, 4, 6, UUID], with_vectors=True)
    yield client.update_collection("docs", metadata={"cursor": 3})
    info = client.get_collection("live")
    yield info.points_count, info.config.metadata, info.config.params.vectors
    yield client.get_aliases(), client.get_collection_aliases("docs"), client.get_collections()
    yield client.collection_exists("live"), client.collection_exists("nothing")
    yield client.delete_collection("docs"), client.get_aliases()


def test_the_server_responds_like_local_mode(server: QdrantServer) -> None:
    remote, local = QdrantClient(url=server.url), QdrantClient(":memory:")
    for got, expected in zip(conversation(remote), conversation(local), strict=True):
        assert got == expected
    assert server.calls
    assert server.conformance_errors() == []


def test_a_collection_is_described_as_it_was_made_and_changed(client: QdrantClient) -> None:
    client.delete_collection("docs")
    int8 = models.ScalarQuantizationConfig(type=models.ScalarType.INT8)
    quantization = models.ScalarQuantization(scalar=int8)
    no_graph = models.HnswConfigDiff(m=0)
    create(client, hnsw_config=no_graph, quantization_config=quantization, on_disk_payload=False)
    client.upsert("docs", [point(1)])
    client.create_payload_index("docs", "n", models.PayloadSchemaType.INTEGER)
    client.create_payload_index("docs", "title", models.PayloadSchemaType.KEYWORD)

    before = client.get_collection("docs")
    on_disk = {"dense": models.VectorParamsDiff(on_disk=True)}
    client.update_collection(
        "docs",
        hnsw_config=models.HnswConfigDiff(m=16),
        vectors_config=on_disk,
        quantization_config=models.Disabled.DISABLED,
    )
    after = client.get_collection("docs")

    assert before.config.hnsw_config.m == 0
    assert before.config.quantization_config == quantization
    assert before.config.params.on_disk_payload is False
    indexes = {
        name: (index.data_type, index.points) for name, index in before.payload_schema.items()
    }
    assert indexes == {"n": ("integer", 1), "title": ("keyword", 0)}
    assert after.config.hnsw_config.m == 16
    assert after.config.quantization_config is None
    assert after.config.params.vectors["dense"].on_disk is True


@pytest.mark.parametrize(
    ("line", "body", "code", "message"),
    [
        (UPSERT, b'{"points": [{"id": 1, "vector": {}, "extra": 1}]}', 400, "Extra inputs"),
        (UPSERT, b'{"points": [{"id": 1, "vector": {"dense": "0 1"}}]}', 400, "dense"),
        (UPSERT, b'{"points": [{"id": "1", "vector": {}}]}', 400, "not a valid UUID"),
        (UPSERT, b'{"points": [{"id": -1, "vector": {}}]}', 400, "unsigned integer"),
        (UPSERT, b'{"points": [{"id": 1, "vector": {"dense": [NaN]}}]}', 400, "Format error"),
        (UPSERT, b'{"points"', 400, "Format error in JSON body"),
        (f"{UPSERT}?wait=yes", b'{"points": []}', 400, "query parameters: `wait`"),
        (f"{UPSERT}?sync=true", b'{"points": []}', 400, "query parameters: `sync`"),
        ("POST /collections/*/points/scroll", b'{"limit": "10"}', 400, "limit"),
        ("POST /collections/*/points/scroll", b'{"order_by": "n"}', 400, "No range index"),
        ("POST /collections/*/points/payload", b'{"payload": {}}', 422, "no filter or points"),
        ("POST /collections/*/points/payload", b'{"payload": {}, "points": [9]}', 404, "id 9"),
        ("DELETE /collections/*", b"{}", 400, "there should be none"),
        ("POST /collections/*/telemetry", b"", 404, "the test server has no"),
    ],
)
def test_an_invalid_request_is_refused(
    client: QdrantClient, server: QdrantServer, line: str, body: bytes, code: int, message: str
) -> None:
    method, path = line.replace("*", "docs").split()
    response = requests.request(method, f"{server.url}{path}", data=body)
    assert response.status_code == code
    assert message in response.json()["status"]["error"]
    assert client.count("docs").count == 0


def test_recorded_calls_are_validated_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_CALLS", str(tmp_path / "calls.jsonl"))
    with QdrantServer() as server:
        for ids in ([1, UUID], [1.5]):
            requests.post(f"{server.url}/collections/docs/points", json={"ids": ids})
    (error,) = server.conformance_errors()
    assert "ids.0" in error
    (line,) = (tmp_path / "calls.jsonl").read_text("utf-8").splitlines()
    assert RecordedCall(**json.loads(line)) == server.calls[0]


def test_a_missing_collection_is_404_and_one_that_exists_409(client: QdrantClient) -> None:
    with pytest.raises(Unexpected) as missing:
        client.get_collection("nothing")
    assert missing.value.status_code == 404
    error = missing.value.structured()["status"]["error"]
    assert error == "Not found: Collection `nothing` doesn't exist!"
    with pytest.raises(Unexpected) as existing:
        create(client)
    assert existing.value.status_code == 409
    error = existing.value.structured()["status"]["error"]
    assert error == "Wrong input: Collection `docs` already exists!"


def test_a_body_above_the_limit_is_refused() -> None:
    with QdrantServer(max_body=1000) as server:
        client = QdrantClient(url=server.url)
        create(client)
        with pytest.raises(Unexpected) as caught:
            client.upsert("docs", [point(n) for n in range(20)])
        assert caught.value.status_code == 400
        assert b"is larger than allowed (limit: 1000 bytes)" in caught.value.content


def test_a_multivector_may_hold_1023_vectors_of_1024(client: QdrantClient) -> None:
    wide = models.VectorParams(
        size=1024,
        distance=models.Distance.DOT,
        multivector_config=VECTORS["colbert"].multivector_config,
    )
    client.create_collection("wide", {"colbert": wide})
    row = [0.5] * 1024
    client.upsert("wide", [models.PointStruct(id=1, vector={"colbert": [row] * 1023})])
    with pytest.raises(Unexpected, match=r"422.*\n.*\n.*1048576") as caught:
        client.upsert("wide", [models.PointStruct(id=2, vector={"colbert": [row] * 1024})])
    assert b"must be less than 1048576" in caught.value.content


def test_api_keys_are_checked() -> None:
    with QdrantServer(api_key="write", read_only_api_key="read") as server:
        url = f"{server.url}/collections/docs"
        assert requests.get(server.url).json()["version"].startswith("1.20")
        assert requests.get(url).status_code == 401
        response = requests.get(url, headers={"api-key": "else"})
        assert (response.status_code, response.text) == (401, "Invalid API key or JWT")
        read_only = {"api-key": "read"}
        assert requests.get(url, headers=read_only).status_code == 404
        assert requests.put(url, json={}, headers=read_only).status_code == 403
        with pytest.warns(UserWarning, match="insecure connection"):
            client = QdrantClient(url=server.url, api_key="write")
        assert create(client)


@pytest.mark.parametrize(
    ("fault", "error", "applied"),
    [
        (disk_full, Unexpected, 0),
        (refusing(507, "Insufficient storage"), Unexpected, 0),
        (refusing(409, "Wrong input: Conflict"), Unexpected, 0),
        (busy(retry_after=3), ResourceExhaustedResponse, 0),
        (cut, ResponseHandlingException, 0),
        (lost, ResponseHandlingException, 1),
    ],
)
def test_a_fault_happens_once_before_or_after_the_write(
    server: QdrantServer, client: QdrantClient, fault: Fault, error: type[Exception], applied: int
) -> None:
    server.fail(fault, on=UPSERT)
    with pytest.raises(error) as caught:
        client.upsert("docs", [point(1)])
    if isinstance(caught.value, ResourceExhaustedResponse):
        assert caught.value.retry_after_s == 3
    assert client.count("docs").count == applied
    client.upsert("docs", [point(1)])
    assert client.count("docs").count == 1


@pytest.mark.parametrize(("fault", "applied"), [(never, 0), (late(0.3), 1)])
def test_a_response_may_come_after_the_client_timeout(
    server: QdrantServer, client: QdrantClient, fault: Fault, applied: int
) -> None:
    server.fail(fault, on=UPSERT)
    url, body = f"{server.url}/collections/docs/points", {"points": [{"id": 1, "vector": {}}]}
    with pytest.raises(requests.ReadTimeout):
        requests.put(url, json=body, timeout=0.1)
    assert client.count("docs").count == applied


def test_faults_are_counted_per_matching_request(
    server: QdrantServer, client: QdrantClient
) -> None:
    server.fail(cut, on=UPSERT, skip=1, times=2)
    written = []
    for number in range(5):
        client.scroll("docs")
        try:
            client.upsert("docs", [point(number)])
            written.append(number)
        except ApiException:
            pass
    assert written == [0, 3, 4]


def test_a_write_that_does_not_wait_is_acknowledged_only(client: QdrantClient) -> None:
    assert client.upsert("docs", [point(1)], wait=False).status == "acknowledged"


def test_the_discarding_server_only_counts_points() -> None:
    command = [sys.executable, "-m", "fakes.qdrant_server", "--discard"]
    with subprocess.Popen(
        command, cwd=ROOT / "tests", stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        client = QdrantClient(url=process.stdout.readline().strip(), check_compatibility=False)
        try:
            create(client)
            for _ in range(2):
                client.upsert("docs", [point(n) for n in range(100)])
            with pytest.raises(Unexpected, match="not a list of points"):
                client.upsert("docs", models.Batch(ids=[1], vectors={}))
            assert client.get_collection("docs").points_count == client.count("docs").count == 200
            assert client.scroll("docs") == ([], None)
            assert client.retrieve("docs", [1]) == []
        finally:
            process.terminate()
        assert process.wait(5) == 0
