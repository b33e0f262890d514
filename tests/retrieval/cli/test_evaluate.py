"""`bge evaluate`: its searches, options and errors."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from qdrant_client import models

from bge_client import Client, ConfigurationError, EmbedResult, JinaClient
from bge_retrieval import HybridSearch, Plan, Store, evaluation, index
from bge_retrieval.evaluation import Answer, Kind, SystemBuilder, providers
from bge_retrieval.evaluation.builder import _id_at
from bge_retrieval.evaluation.provider_search import ProviderSearch
from bge_retrieval.evaluation.unique_documents import UniqueDocuments
from bge_retrieval.shadow.recorder import utc
from commands import COURSE, Run, report
from fakes.host_vectors import dense_of
from fakes.hosts import Host
from fakes.scripted import Exchange, Scripted, status

DIMENSIONS = 16


@pytest.fixture
def bge_options(run: Run, tmp_path: Path) -> tuple[object, ...]:
    """Options for a collection of BGE vectors. Its payloads have three candidates for an id."""
    lines = [
        {"_id": f"net-0{n}", "page": {"id": f"net-0{n}", "number": n}, "text": f"TCP {n}"}
        for n in range(1, 9)
    ]
    source = tmp_path / "corpus.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    options = ("--collection", "course", "--path", tmp_path / "qdrant")
    assert run("index", source, *options).exit_code == 0
    return options


@pytest.fixture
def jina(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    """Jina's API, with the same vector for every text."""

    def answer(exchange: Exchange) -> None:
        data = [
            {"index": n, "embedding": [1.0] * DIMENSIONS}
            for n, _ in enumerate(exchange.body["input"])
        ]
        status(200, {"data": data, "usage": {"total_tokens": 7}})(exchange)

    def rerank(exchange: Exchange) -> None:
        """The last document is the best."""
        count = len(exchange.body["documents"])
        results = [{"index": n, "relevance_score": n / count} for n in reversed(range(count))]
        status(200, {"results": results, "usage": {"total_tokens": 11}})(exchange)

    with Scripted() as api:
        api.on("POST /v1/embeddings", answer)
        api.on("POST /v1/rerank", rerank)
        monkeypatch.setattr(providers, "JinaClient", functools.partial(JinaClient, base=api.url))
        monkeypatch.setenv("JINA_API_KEY", "secret")
        yield api


def make_collection(path: Path, vectors: Any, chunks: int = 1, documents: int = 3) -> None:
    """Create a collection `old` of another model's vectors, `chunks` points per document."""
    with Store.open(path=path) as store:
        store.client.create_collection("old", vectors_config=vectors)
        if not isinstance(vectors, models.VectorParams):
            return
        rng = np.random.default_rng(1)
        points = [
            models.PointStruct(
                id=n,
                vector=(1 + rng.random(vectors.size)).tolist(),
                payload={"_id": f"net-{n // chunks:03}"},
            )
            for n in range(chunks * documents)
        ]
        store.client.upsert("old", points)


def test_jina_reranks_the_texts_of_its_collection(run: Run, tmp_path: Path, jina: Scripted) -> None:
    make_collection(tmp_path, params(), documents=60)
    with Store.open(path=tmp_path) as store:
        store.client.set_payload("old", {"page": {"content": "TCP"}}, points=[*range(60)])
        with SystemBuilder(store, None, None, text_fields=["page.content"]) as systems:
            plain, reranked = (
                systems.system(kind, kind, "old").search("TCP") for kind in ("jina", "jina+rerank")
            )
    ids, reranked_ids = ([id for id, _ in answer.ranking] for answer in (plain, reranked))
    assert reranked_ids == ids[:50][::-1] + ids[50:]
    assert (plain.tokens, reranked.tokens) == (7, 18)
    refused = run("evaluate", COURSE, "--systems", "jina+rerank@old", "--path", tmp_path)
    assert_refused(refused, 2, "but no point of `old` has one at `text`: pass `--text-field`")


def params(size: int = DIMENSIONS) -> models.VectorParams:
    return models.VectorParams(size=size, distance=models.Distance.COSINE)


def assert_refused(result: Result, code: int, message: str) -> None:
    assert (result.exit_code, message in result.stderr) == (code, True), result.output
    assert len(result.stderr.splitlines()) == 1


def test_a_provider_searches_bge_vectors_of_its_fingerprint_alone(
    run: Run, bge_options: tuple[object, ...], jina: Scripted, worker: Client, tmp_path: Path
) -> None:
    result = run("evaluate", COURSE, "--systems", "jina", *bge_options)
    assert_refused(result, 5, "`course` holds vectors of miniature/bge-m3, fingerprint")

    class Host:
        """The same model elsewhere."""

        def check_fingerprint(self, expected: str) -> None:
            pass

        def embed(self, texts: str, *, input_type: str) -> EmbedResult:
            assert input_type == "query"
            return worker.embed(texts)

    with Store.open(path=tmp_path / "qdrant") as store:
        hits = ProviderSearch(store, Host(), "course").search("TCP 5", 3)  # type: ignore[arg-type]
        expected = HybridSearch(store, worker, "course", Plan(sparse=False)).search("TCP 5", 3)
    assert [(hit.id, hit.text) for hit in hits] == [(hit.id, hit.text) for hit in expected]


@pytest.mark.parametrize(
    ("vectors", "vector", "code", "message"),
    [
        (params(8), "", 5, "holds vectors of 8 dimensions. Given: 16, of jina/jina-embeddings"),
        ({"a": params(), "b": params(8)}, "", 2, "is the provider's: `a`, `b`. Given: ''"),
        ({"a": params(), "b": params(8)}, "c", 2, "is the provider's: `a`, `b`. Given: 'c'"),
        ({"a": params(), "b": params(8)}, "b", 5, "holds vectors of 8 dimensions"),
        (params(), "a", 2, "is the provider's: an unnamed vector. Given: 'a'"),
    ],
)
def test_jina_needs_a_vector_of_its_own_dimensions(
    vectors: Any,
    vector: str,
    code: int,
    message: str,
    run: Run,
    tmp_path: Path,
    jina: Scripted,
) -> None:
    make_collection(tmp_path, vectors)
    options = ("--systems", "jina@old", "--vector", vector, "--path", tmp_path)
    assert_refused(run("evaluate", COURSE, *options), code, message)


def test_a_hundred_documents_are_found_among_their_chunks(
    run: Run, tmp_path: Path, jina: Scripted
) -> None:
    """Each document has four points, so 100 points are about 25 documents."""
    dataset = tmp_path / "dataset"
    (dataset / "qrels").mkdir(parents=True)
    (dataset / "queries.jsonl").write_text('{"_id": "q", "text": "TCP"}\n', "utf-8")
    judged = "".join(f"q\tnet-{n:03}\t1\n" for n in range(100))
    (dataset / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, "utf-8")
    make_collection(tmp_path / "qdrant", params(), chunks=4, documents=100)
    options = ("--systems", "jina@old", "--path", tmp_path / "qdrant", "--json")
    (system,) = report(run("evaluate", dataset, *options))["systems"]
    assert system["means"]["recall@100"] == 1
    assert system["tokens"] == 7  # one search after the warm-up
    about = {"collection": "old", "model": "jina-embeddings-v3", "$ a million tokens": 0.05}
    assert system["about"] == about


@pytest.mark.parametrize(
    ("documents", "chunks", "limits"),
    [
        (100, 1, [100]),
        (40, 1, [100]),  # fewer points than requested: the collection is exhausted
        (120, 2, [100, 400]),
        (2, 10_000, [100, 400, 1600, 4096]),
    ],
)
def test_the_limit_grows_until_there_are_enough_documents(
    documents: int, chunks: int, limits: list[int]
) -> None:
    requested: list[int] = []

    def search(query: str, limit: int) -> Answer:
        requested.append(limit)
        points = range(min(limit, documents * chunks))
        return Answer([(str(n // chunks), -float(n)) for n in points], 1.0, 3, len(points))

    search_documents = UniqueDocuments(search)
    answer = search_documents("q")
    assert requested == limits
    assert [name for name, _ in answer.ranking] == [str(n) for n in range(len(answer.ranking))]
    assert len(answer.ranking) == min(documents, 100, -(-limits[-1] // chunks))
    assert (answer.model_seconds, answer.tokens) == (len(limits), 3 * len(limits))
    assert search_documents("q").tokens == 3  # starts with the same limit


def test_id_field_is_a_path_into_the_payload(run: Run, bge_options: tuple[object, ...]) -> None:
    command = ("evaluate", COURSE, "--systems", "dense", "--queries", 30, *bge_options)
    assert run(*command).exit_code == run(*command, "--id-field", "page.id").exit_code == 0
    for field, returned in (("page.number", "'1'"), ("page", "'point ")):
        result = run(*command, "--id-field", field)
        assert_refused(result, 2, f"dense returned no document of {COURSE}. It returned {returned}")
        assert "pass `--id-field`" in result.stderr


def test_a_path_is_a_key_or_goes_through_objects_and_lists() -> None:
    payload = {"a.b": 1, "a": {"b": 2, "c": ["x", {"d": 0.5}]}, "e": True, "f": None}
    paths = ("a.b", "a.c.0", "a.c.1.d", "a.c.2", "a.c.x", "a", "e", "f", "g.h")
    assert [_id_at(payload, path) for path in paths] == ["1", "x", "0.5", *[None] * 6]


def test_the_report_says_that_queries_were_drawn(
    run: Run, bge_options: tuple[object, ...], tmp_path: Path
) -> None:
    page_path = tmp_path / "r.html"
    command = ("evaluate", COURSE, "--systems", "dense+rerank", "--queries", 30, *bge_options)
    assert run(*command).stdout.startswith("30 of 75 queries, drawn at random, ")
    (system,) = report(run(*command, "--html", page_path, "--json"))["systems"]
    about = system["about"]
    assert about.keys() == {"collection", "fingerprint", "plan", "$ a second"}
    assert about["plan"] == "dense, 100 candidates of each, the best 50 reranked"
    page = page_path.read_text("utf-8")
    assert "<title>course: search in course</title>" in page
    assert "30 of 75 queries, drawn at random" in page
    for value in about.values():
        assert str(value) in page


def test_unwritable_output_is_refused_before_the_first_query(
    run: Run, bge_options: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "SystemBuilder", None)  # a call would fail
    path = tmp_path / "missing" / "r.html"
    result = run("evaluate", COURSE, *bge_options, "--html", path)
    assert_refused(result, 2, f"{path}: No such file or directory")


def test_a_failed_query_is_named(run: Run, tmp_path: Path, jina: Scripted) -> None:
    make_collection(tmp_path, params())
    probe_response = status(200, {"data": [{"index": 0, "embedding": [1.0] * DIMENSIONS}]})
    jina.on("POST /v1/embeddings", probe_response, status(401))
    first = json.loads((COURSE / "queries.jsonl").read_text("utf-8").partition("\n")[0])["_id"]
    result = run("evaluate", COURSE, "--systems", "jina@old", "--path", tmp_path)
    assert_refused(result, 3, f"bge: AuthenticationError: `jina@old`, query '{first}': ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shadow", __file__, COURSE], "DATASET means nothing with --shadow"),
        (["--shadow", __file__, "--systems", "dense"], "--systems means nothing with --shadow"),
        (["--shadow", __file__, "--html", "x"], "--html means nothing with --shadow"),
        (
            [COURSE, "--collection", "c", "--vector", "v"],
            "--vector needs a system of a provider's vectors",
        ),
        (
            [COURSE, "--collection", "c", "--text-field", "t"],
            "--text-field needs a system of a provider",
        ),
        ([COURSE, "--collection", "c", "--since", "7d"], "--since means nothing without --shadow"),
    ],
)
def test_an_unused_option_is_refused(
    arguments: list[object], message: str, run: Run, tmp_path: Path
) -> None:
    make_collection(tmp_path, params())
    path = [] if "--shadow" in arguments else ["--path", tmp_path]
    assert_refused(run("evaluate", *arguments, *path), 2, message)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("dense", Kind("dense")),
        ("hybrid+colbert+rerank", Kind("hybrid", colbert=True, reranker="bge-reranker")),
        ("sparse+jina-reranker-v3", Kind("sparse", reranker="jina-reranker-v3")),
        ("jina+rerank", Kind("jina", reranker="jina-reranker-v2")),
        ("jina-v5+bge-reranker", Kind("jina-v5", reranker="bge-reranker")),
        ("novita+rerank", Kind("novita", reranker="novita")),
    ],
)
def test_a_kind_is_a_retrieval_and_what_follows_it(text: str, kind: Kind) -> None:
    assert Kind.parse(text) == kind


@pytest.mark.parametrize(
    "text", ["", "jina-v9", "dense+", "rerank", "jina+colbert", "dense+rerank+colbert", "dense+x"]
)
def test_an_unknown_kind_is_refused_with_the_names(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"deepinfra.* then \+colbert .* Given: "):
        Kind.parse(text)


def test_models_of_jina_are_requested_by_their_names(
    run: Run, tmp_path: Path, jina: Scripted
) -> None:
    make_collection(tmp_path, params(), documents=2)
    with Store.open(path=tmp_path) as store, SystemBuilder(store, None, None) as systems:
        store.client.set_payload("old", {"text": "TCP"}, points=[0, 1])
        for name in ("jina-v3", "jina-v4", "jina-v5", "jina-v5-nano"):
            systems.system(name, name, "old")
        system = systems.system("a", "jina-v5+jina-reranker-v3", "old")
    assert system.about["reranker"] == "jina-reranker-v3, the best 50"
    assert [exchange.body["model"] for exchange in jina.seen] == [
        "jina-embeddings-v3",
        "jina-embeddings-v4",
        "jina-embeddings-v5-text-small",
        "jina-embeddings-v5-text-nano",
        "jina-reranker-v3",
        "jina-embeddings-v5-text-small",
    ]


def test_bge_hits_are_reranked_by_another_provider(
    run: Run, bge_options: tuple[object, ...], jina: Scripted
) -> None:
    systems = "dense,dense+jina-reranker-v3"
    command = ("evaluate", COURSE, "--systems", systems, "--queries", 2, "--json", *bge_options)
    plain, reranked = json.loads(run(*command).stdout)["systems"]
    assert reranked["about"]["reranker"] == "jina-reranker-v3"
    assert (plain["cost"] is None, reranked["cost"] is None) == (False, True)


def test_a_host_of_the_same_model_searches_the_collection_whose_probe_it_passes(
    run: Run, bge_options: tuple[object, ...], worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    systems = "dense,vllm,dense+vllm"
    command = ("evaluate", COURSE, "--systems", systems, "--queries", 2, "--json", *bge_options)
    with Host("vllm", lambda texts: dense_of(worker, texts)) as host:
        for name, value in host.env.items():
            monkeypatch.setenv(name, value)
        results = json.loads(run(*command).stdout)
        host.embed = lambda texts: -dense_of(worker, texts)
        refused = run(*command)
    dense, hosted, reranked = results["systems"]
    assert hosted["means"] == dense["means"]
    assert (hosted["about"]["model"], reranked["about"]["reranker"]) == (host.model, "vllm")
    assert (hosted["cost"], reranked["cost"]) == (None, None)
    assert results["comparisons"][0]["agreement"]["overlap"] == 1
    assert refused.exit_code == 5
    assert "`course` holds vectors of miniature/bge-m3, fingerprint" in refused.stderr
    assert "vectors of vllm do not match: text `ru` has cosine -1.0" in refused.stderr


def test_a_system_may_have_any_plan(store: Store, worker: Client) -> None:
    index(store, worker, "c", [{"id": 1, "text": "море"}])
    with SystemBuilder(store, worker, worker) as systems:
        system = systems.planned("mine", Plan(weights=(1.0, 3.0), rerank=5), "c")
    assert system.about["plan"] == (
        "dense + sparse by rrf (k 61, weights 1 and 3), 100 candidates of each, the best 5 reranked"
    )
    assert [document_id for document_id, _ in system.search("море").ranking] == ["1"]


def test_without_judgements_only_the_rankings_are_compared(
    run: Run, indexed: Path, tmp_path: Path
) -> None:
    dataset, page_path = tmp_path / "queries", tmp_path / "r.html"
    dataset.mkdir()
    lines = (COURSE / "queries.jsonl").read_text("utf-8").splitlines()[:12]
    (dataset / "queries.jsonl").write_text("\n".join(lines), "utf-8")
    command = ("evaluate", dataset, "--collection", "course", "--path", indexed)
    command += ("--systems", "dense,sparse,dense@course")
    result = run(*command, "--html", page_path)
    assert result.exit_code == 0
    assert re.search(r"dense@course +1\.000 +1\.000 +1\.000 +1\.000\n", result.stdout)
    assert "nDCG" not in result.stdout
    data = report(run(*command, "--json"))
    sparse, equal = data["comparisons"]
    assert 0 < sparse["agreement"]["rbo"] < 1
    least = sparse["agreement"]["least"]
    assert [query["rbo"] for query in least] == sorted(query["rbo"] for query in least)
    assert (sparse["verdict"], equal["agreement"]["least"]) == (None, [])
    page = page_path.read_text("utf-8")
    assert "Queries whose rankings agree least" in page
    assert least[0]["baseline"][0] in page
    assert "nDCG" not in page


def test_evaluate_prints_tables_or_json_and_exits_by_its_verdicts(
    run: Run, indexed: Path, tmp_path: Path
) -> None:
    command = ("evaluate", COURSE, "--collection", "course", "--path", indexed, "--queries", 25)
    command += ("--systems", "dense,hybrid@course", "--p50-ms", 1e6, "--p99-ms", 1e6)
    result = run(*command, "--json", "--html", tmp_path / "r.html")
    data = report(result)
    assert [system["name"] for system in data["systems"]] == ["dense", "hybrid@course"]
    assert len(data["queries"]) == 25
    assert 0.2 < data["systems"][1]["means"]["nDCG@10"] < 1
    assert data["comparisons"][0]["verdict"]["outcome"] == "pass"
    page = (tmp_path / "r.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    links, targets = (set(re.findall(rf'{name}="#?(why-\d+)"', page)) for name in ("href", "id"))
    assert links == targets != set()
    result = run(*command, "--p99-ms", 0)
    assert result.exit_code == 7
    assert "FAIL: hybrid@course falls short in 1 of 5 checks: p99 " in result.stdout


def test_a_missing_reranker_is_named(
    run: Run, bge_options: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Scripted() as endpoint:
        monkeypatch.setenv("BGE_RERANKER_ENDPOINT", endpoint.url)
        result = run("evaluate", COURSE, "--systems", "dense+rerank", *bge_options)
    assert_refused(result, 1, "HTTPStatusError: `dense+rerank` needs a reranker: HTTP 404")


def write_shadow(path: Path, *days: int, count: int = 25) -> Path:
    """Write comparisons of Jina with bge of so many days ago. Those of 9 days ago disagree."""
    lines = [
        {"kind": "comparison", "time": utc(time.time() - 86_400 * day), "live": "jina"}
        | {"other": "bge", "live_ms": 300.0, "other_ms": 50.0, "overlap": 1.0, "tau": None}
        | {"rbo": 0.2 if day == 9 else 0.95, "same_first": True}
        for day in days
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--since", "7d"], 0, "PASS: bge beside jina passes all 4 checks: RBO 95.0%, errors of"),
        ([], 7, "FAIL: bge beside jina falls short in 1 of 4 checks: RBO 57.5% (required: at"),
        (["--min-agreement", 0.5], 0, "passes all 4 checks"),
        (["--since", "7d", "--p50-ms", 50], 7, "p50 of bge 50.0 ms (required: below 50 ms)"),
        (["--since", "1h"], 2, "has no comparison since 2"),
        (["--since", "soon"], 2, "must be a number of minutes, hours or days, such as 7d. Given"),
    ],
)
def test_shadow_is_judged_by_its_window(
    options: list[object], code: int, text: str, run: Run, tmp_path: Path
) -> None:
    log = write_shadow(tmp_path / "shadow.jsonl", 9, 6)
    result = run("evaluate", "--shadow", log, *options)
    assert (result.exit_code, text in result.output) == (code, True), result.output


def test_a_shadow_summary_names_its_thresholds_and_needs_no_endpoint(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BGE_EMBEDDINGS_ENDPOINT")
    log = write_shadow(tmp_path / "shadow.jsonl", 1)
    lines = run("evaluate", "--shadow", log).stdout.splitlines()
    rows = [re.split(r" {2,}", line.strip()) for line in lines]
    assert ["RBO", "at least 90%", "95.0%", "yes"] in rows
    assert ["errors of bge", "at most 1%", "0.0%", "yes"] in rows
    assert ["p50 of bge", "below 100 ms", "50.0 ms", "yes"] in rows
    assert ["p99 of bge", "below 500 ms", "50.0 ms", "yes"] in rows
    summary = report(run("evaluate", "--shadow", log, "--json"))
    assert (summary["count"], summary["verdicts"][0]["outcome"]) == (25, "pass")
    few = run("evaluate", "--shadow", write_shadow(log, 1, count=19))
    assert (few.exit_code, "19 queries are too few for a verdict" in few.stdout) == (7, True)


def test_a_missing_extra_says_what_to_install(served: str, indexed: Path, tmp_path: Path) -> None:
    """In a process without ir-measures."""
    (tmp_path / "ir_measures.py").write_text("raise ImportError(name='ir_measures')")
    command = [sys.executable, "-m", "bge_client", "evaluate", COURSE, "--collection", "course"]
    result = subprocess.run(
        [*command, "--endpoint", served, "--path", indexed],
        cwd=tmp_path,  # its ir_measures is imported first
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr == (
        "bge: ConfigurationError: this needs ir_measures: pip install 'bge-retrieval[eval]'\n"
    )
