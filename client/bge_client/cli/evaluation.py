"""`bge evaluate`: several ways to search, side by side, and a verdict; or what shadow mode saw."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from tqdm import tqdm

from ..client import Client
from ..errors import ConfigurationError, FingerprintError
from ..jina import JinaClient
from ..shadow import summarize
from .command import connected, needs, refuse_unused
from .qdrant import WORKER_PRICE, print_json, with_store

if TYPE_CHECKING:
    from ..evaluate import Answer, Price, Report, Run, System
    from ..qdrant import Plan, Store

JINA_PRICE = 0.05  # dollars a million tokens
RERANK_DEPTH = 50  # documents that the cross-encoder reads
DEPTH = 100  # documents of a ranking
MAX_POINTS = 4_096  # asked for at once, where many are of one document
KINDS = ("dense", "sparse", "hybrid", "hybrid+rerank", "hybrid+colbert", "jina")
DEFAULT_SYSTEMS = ["dense", "sparse", "hybrid", "hybrid+rerank"]
Ranking = list[tuple[str, float]]  # document ids and scores, best first


class Spec(NamedTuple):
    """`hybrid`, or `hybrid@collection`."""

    name: str
    kind: str
    collection: str


@click.command()
@click.argument("dataset", type=click.Path(exists=True, file_okay=False), required=False)
@click.option(
    "--shadow",
    type=click.Path(exists=True, dir_okay=False),
    help="Instead of all else: sum up a file that shadow mode has written, as JSON.",
)
@click.option("--collection", help="A collection or an alias; the systems' own @NAME wins.")
@click.option(
    "--system",
    "systems",
    multiple=True,
    default=DEFAULT_SYSTEMS,
    show_default=True,
    help=f"One of {', '.join(KINDS)}; @COLLECTION behind it for another collection.",
)
@click.option("--baseline", help="What the others are held against. [default: the first system]")
@click.option("--split", default="test", show_default=True, help="Of the judgements.")
@click.option("--queries", type=click.IntRange(1), help="Only so many, drawn at random.")
@click.option("--vector", default="", help="The name of the dense vector that `jina` asks.")
@click.option(
    "--id-field",
    help="Where a payload has the document's id in the judgements: page.id. "
    "[default: _id, then id, then the point's id]",
)
@click.option(
    "--price",
    default=WORKER_PRICE,
    show_default=True,
    help="Dollars a second of a worker that is busy.",
)
@click.option(
    "--jina-price", default=JINA_PRICE, show_default=True, help="Dollars a million tokens."
)
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write all of it there.")
@click.option("--html", "html_path", type=click.Path(dir_okay=False), help="Write a page there.")
@connected("EMBEDDINGS", unless=("shadow",), reranking=True)
@with_store(unless=("shadow",))
def evaluate(
    client: Client,
    reranker: Client,
    store: Store,
    dataset: str | None,
    shadow: str | None,
    **args: Any,
) -> None:
    """Ask several systems the queries of DATASET and hold their answers against its judgements.

    DATASET is a folder in BEIR's layout: queries.jsonl, qrels/test.tsv, and corpus.jsonl if there
    is one. Each query goes to all systems in turn. A candidate passes that keeps 0.90 of the
    baseline's nDCG@10 and MRR@10 and 0.95 of its recall@100, with p50 below 100 ms and p99 below
    500 ms. `jina` wants JINA_API_KEY and a collection of Jina's vectors.

    \b
      bge evaluate course --collection courses --html report.html
      bge evaluate course --system jina@courses_v1 --system hybrid+rerank@courses
      bge evaluate --shadow shadow.jsonl
    """
    if shadow is not None:
        refuse_unused(("shadow",), "with --shadow")
        print_json(summarize(shadow).as_dict())
    elif dataset is None:
        raise ConfigurationError("say DATASET, or --shadow")
    else:
        compare_systems(client, reranker, store, dataset, **args)


def compare_systems(
    client: Client,
    reranker: Client,
    store: Store,
    dataset: str,
    collection: str | None,
    systems: tuple[str, ...],
    baseline: str | None,
    split: str,
    queries: int | None,
    vector: str,
    id_field: str | None,
    price: float,
    jina_price: float,
    json_path: str | None,
    html_path: str | None,
) -> None:
    with needs("eval"):
        from ..evaluate import Price, compare, html, read_beir, run_all, text
    specs = [_parse_spec(name, collection) for name in systems]
    if vector and all(spec.kind != "jina" for spec in specs):
        raise ConfigurationError("--vector is for `jina`, which is none of the systems")
    baseline = baseline or specs[0].name
    if baseline not in [spec.name for spec in specs]:
        raise ConfigurationError(f"`--baseline` {baseline} is none of the systems")
    for path in (json_path, html_path):
        _check_writable(path)
    judged = read_beir(dataset, split)
    drawn = judged.draw(queries)
    prices = Price(per_second=price), Price(per_million_tokens=jina_price)
    with SystemBuilder(store, client, reranker, id_field, vector, *prices) as builder:
        built = [builder.system(spec) for spec in specs]
        with tqdm(total=len(drawn) * len(built), unit="query", disable=None) as bar:
            runs = run_all(built, drawn, depth=DEPTH, progress=bar.update)
    _check_ids(runs, judged.documents, dataset)
    qrels = {name: judged.qrels[name] for name in drawn}
    report = compare(
        runs, qrels, baseline, drawn_from=len(judged.queries), left_out=judged.left_out
    )
    click.echo(text(report))
    _write(report, json_path, html_path, html)


def _check_writable(path: str | None) -> None:
    """Raises OSError: it is not; found out before an hour of queries, not after it."""
    if path is None:
        return
    exists = os.path.exists(path)
    with open(path, "ab"):
        pass
    if not exists:
        os.unlink(path)


def _check_ids(runs: Sequence[Run], document_ids: Collection[str], dataset: str) -> None:
    """Raises ConfigurationError: what a system found are other ids than those of the judgements."""
    for run in runs:
        rankings = (timed.answer.ranking for timed in run.answers.values())
        returned = {document_id for ranking in rankings for document_id, _ in ranking}
        if returned and returned.isdisjoint(document_ids):
            raise ConfigurationError(
                f"{run.name} named no document that {dataset} knows. It named {min(returned)!r}, "
                f"for example, and {dataset} knows {min(document_ids)!r}: pass `--id-field` with "
                "the path of the id in a payload"
            )


def _write(
    report: Report, json_path: str | None, html_path: str | None, html: Callable[[Report], str]
) -> None:
    if json_path:
        data = json.dumps(report.as_dict(), ensure_ascii=False, indent=1, allow_nan=False)
        Path(json_path).write_text(data + "\n", "utf-8")
    if html_path:
        Path(html_path).write_text(html(report), "utf-8")


def _parse_spec(name: str, collection: str | None) -> Spec:
    kind, _, own_collection = name.partition("@")
    if kind not in KINDS:
        raise ConfigurationError(f"`--system` must be one of {', '.join(KINDS)}. Given: {kind!r}")
    resolved = own_collection or collection
    if not resolved:
        raise ConfigurationError(f"say --collection, or {kind}@COLLECTION")
    return Spec(name, kind, resolved)


class SystemBuilder:
    """Systems by their names, all on one store and one endpoint; close it after they were asked."""

    def __init__(
        self,
        store: Store,
        client: Client,
        reranker: Client,
        id_field: str | None,
        vector: str,
        bge_price: Price,
        jina_price: Price,
    ) -> None:
        self._store, self._client, self._reranker = store, client, reranker
        self._id_field, self._vector = id_field, vector
        self._bge_price, self._jina_price = bge_price, jina_price
        self._jina_clients: list[JinaClient] = []

    def __enter__(self) -> SystemBuilder:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._jina_clients:
            client.close()

    def system(self, spec: Spec) -> System:
        """Raises ConfigurationError, FingerprintError: its collection is missing or unfit."""
        return self._jina(spec) if spec.kind == "jina" else self._bge(spec)

    def _bge(self, spec: Spec) -> System:
        from ..evaluate import Answer, System
        from ..qdrant import HybridSearch

        plan = plan_of(spec.kind)
        engine = HybridSearch(
            self._store, self._client, spec.collection, plan, reranker=self._reranker
        )

        def search(query: str, limit: int) -> Answer:
            result = engine.search(query, limit=limit)
            model_seconds = result.seconds["embed"] + result.seconds.get("rerank", 0.0)
            ranking = [(self._document_id(hit.payload, hit.id), hit.score) for hit in result]
            return Answer(ranking, model_seconds, result.tokens)

        about: dict[str, str | int | float] = {
            "collection": engine.collection,
            "fingerprint": engine.metadata.fingerprint,
            "plan": _describe_plan(plan),
        }
        return System(spec.name, UniqueDocuments(search), self._bge_price, about)

    def _jina(self, spec: Spec) -> System:
        """Dense search in a collection of Jina's vectors, as its users have it."""
        from ..evaluate import Answer, System

        jina = JinaClient(os.environ.get("JINA_API_KEY", ""))
        self._jina_clients.append(jina)
        collection = self._store.resolve(spec.collection)
        size = self._vector_size(collection)
        probe = jina.embed("width", input_type="query")
        _check_size(probe.fingerprint, probe[0].dense.shape[0], collection, size)  # type: ignore[union-attr]

        def search(query: str, limit: int) -> Answer:
            began = time.perf_counter()
            result = jina.embed(query, input_type="query")
            model_seconds = time.perf_counter() - began
            points = self._store.query(
                collection,
                query=result[0].dense.tolist(),  # type: ignore[union-attr]
                using=self._vector or None,
                limit=limit,
            )
            ranking = [(self._document_id(p.payload or {}, p.id), p.score) for p in points]
            return Answer(ranking, model_seconds, result.usage.total_tokens)

        about: dict[str, str | int | float] = {"collection": collection, "model": probe.model}
        if self._vector:
            about["vector"] = self._vector
        return System(spec.name, UniqueDocuments(search), self._jina_price, about)

    def _vector_size(self, collection: str) -> int:
        """Of the vectors that Jina's are compared with.

        Raises:
            FingerprintError: they are ours.
            ConfigurationError: `--vector` does not say which.
        """
        from ..qdrant.metadata import METADATA

        config = self._store.info(collection).config
        if METADATA in (config.metadata or {}):
            raise FingerprintError(
                f"collection `{collection}` holds BGE vectors, and Jina's cannot be compared with "
                f"them: say jina@OLD with the collection of Jina's vectors, or dense@{collection}"
            )
        vectors = config.params.vectors
        by_name = vectors if isinstance(vectors, Mapping) else {"": vectors}
        params = by_name.get(self._vector)
        if params is None:
            names = ", ".join(f"`{name}`" for name in by_name if name) or "one without a name"
            raise ConfigurationError(
                f"`--vector` must say which vector of collection `{collection}` is Jina's. "
                f"There are: {names}. Given: {self._vector!r}"
            )
        return params.size

    def _document_id(self, payload: Mapping[str, Any], point_id: object) -> str:
        """A point without the `--id-field` given is none of the judged documents."""
        if self._id_field is None:
            return str(payload.get("_id", payload.get("id", point_id)))
        document_id = _id_at(payload, self._id_field)
        return f"point {point_id}" if document_id is None else document_id


def _check_size(fingerprint: str, dimensions: int, collection: str, size: int) -> None:
    if dimensions != size:
        raise FingerprintError(
            f"collection `{collection}` holds vectors of {size} dimensions. Given: those of "
            f"{fingerprint}, of {dimensions}"
        )


def _id_at(payload: Mapping[str, Any], path: str) -> str | None:
    """The string or number at `page.id` or `chunks.0.id`; a key may hold a dot itself."""
    from ..qdrant.documents import value_at

    value = value_at(payload, path)
    fits = isinstance(value, str | int | float) and not isinstance(value, bool)
    return str(value) if fits else None


def plan_of(kind: str) -> Plan:
    from ..qdrant import Plan

    return {
        "dense": Plan(sparse=False),
        "sparse": Plan(dense=False),
        "hybrid": Plan(),
        "hybrid+rerank": Plan(rerank=RERANK_DEPTH),
        "hybrid+colbert": Plan(colbert=True),
    }[kind]


def _describe_plan(plan: Plan) -> str:
    """For the report: `dense + sparse by rrf (k 61, weights 1 and 1), 100 candidates of each`."""
    legs = " + ".join(name for name in ("dense", "sparse") if getattr(plan, name))
    if plan.is_fused and plan.fusion == "rrf":
        legs += " by rrf (k {}, weights {:g} and {:g})".format(plan.rrf_k, *plan.weights)
    elif plan.is_fused:
        legs += f" by {plan.fusion}"
    stages = [legs, f"{plan.candidates} candidates of each"]
    stages += ["colbert"] if plan.colbert else []
    stages += [f"the best {plan.rerank} reranked"] if plan.rerank else []
    return ", ".join(stages)


class UniqueDocuments:
    """A search for the best hundred documents, where several points may be of one document.

    It asks for more points until so many documents are there. The next query begins as deep: once
    warmed up, each is asked once, and what is measured is one search.
    """

    def __init__(self, search: Callable[[str, int], Answer]) -> None:
        self._search = search
        self._points = DEPTH

    def __call__(self, query: str) -> Answer:
        seconds, tokens = 0.0, 0
        while True:
            answer = self._search(query, self._points)
            seconds, tokens = seconds + answer.model_seconds, tokens + answer.tokens
            best = _best_per_document(answer.ranking)
            is_exhausted = len(answer.ranking) < self._points or self._points == MAX_POINTS
            if len(best) >= DEPTH or is_exhausted:
                return answer._replace(ranking=best[:DEPTH], model_seconds=seconds, tokens=tokens)
            self._points = min(4 * self._points, MAX_POINTS)


def _best_per_document(ranking: Ranking) -> Ranking:
    """Of a document with several points (its chunks), the best one counts."""
    best: dict[str, float] = {}
    for document_id, score in ranking:
        best.setdefault(document_id, score)
    return list(best.items())
