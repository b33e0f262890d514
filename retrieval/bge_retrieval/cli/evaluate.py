"""`bge evaluate`: compare search systems, or summarize a file of shadow mode."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from tqdm import tqdm

from bge_client import Client, ConfigurationError, FingerprintError, JinaClient
from bge_client.cli import connected, refuse_unused

from .. import HybridSearch, Plan, Store
from ..documents import value_at
from ..metadata import METADATA
from ..shadow import summarize
from .index import WORKER_PRICE, print_json, with_store

if TYPE_CHECKING:
    from ..evaluation import Answer, Price, Report, Run, System

JINA_PRICE = 0.05  # dollars per million tokens
RERANK_DEPTH = 50  # documents for the cross-encoder
DEPTH = 100  # documents in a ranking
MAX_POINTS = 4_096  # per query, where documents have several points
KINDS = ("dense", "sparse", "hybrid", "hybrid+rerank", "hybrid+colbert", "jina")
DEFAULT_SYSTEMS = ["dense", "sparse", "hybrid", "hybrid+rerank"]
Ranking = list[tuple[str, float]]  # document ids and scores, best first


class Spec(NamedTuple):
    """A parsed `--system`: `hybrid` or `hybrid@collection`."""

    name: str
    kind: str
    collection: str


@click.command()
@click.argument("dataset", type=click.Path(exists=True, file_okay=False), required=False)
@click.option(
    "--shadow",
    type=click.Path(exists=True, dir_okay=False),
    help="Only summarize this file of shadow mode, as JSON.",
)
@click.option("--collection", help="A collection or an alias, for systems without @COLLECTION.")
@click.option(
    "--system",
    "systems",
    multiple=True,
    default=DEFAULT_SYSTEMS,
    show_default=True,
    help=f"One of {', '.join(KINDS)}; append @COLLECTION for another collection.",
)
@click.option("--baseline", help="The system to compare the others with. [default: the first]")
@click.option("--split", default="test", show_default=True, help="Split of the judgements.")
@click.option("--queries", type=click.IntRange(1), help="Draw this many queries at random.")
@click.option("--vector", default="", help="Name of the dense vector for `jina`.")
@click.option(
    "--id-field",
    help="Path of the judged document id in a payload: page.id. "
    "[default: _id, then id, then the point's id]",
)
@click.option(
    "--price", default=WORKER_PRICE, show_default=True, help="Dollars per second of a busy worker."
)
@click.option(
    "--jina-price", default=JINA_PRICE, show_default=True, help="Dollars per million tokens."
)
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write a JSON report.")
@click.option("--html", "html_path", type=click.Path(dir_okay=False), help="Write an HTML report.")
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
    """Run the queries of DATASET on several systems and score the results by its judgements.

    DATASET is a folder in BEIR's layout: queries.jsonl, qrels/test.tsv and optionally
    corpus.jsonl. Each query runs on all systems before the next. A candidate passes if it has at
    least 0.90 of the baseline's nDCG@10 and MRR@10 and 0.95 of its recall@100, p50 below 100 ms
    and p99 below 500 ms. `jina` needs JINA_API_KEY and a collection of Jina's vectors.

    \b
      bge evaluate course --collection courses --html report.html
      bge evaluate course --system jina@courses_v1 --system hybrid+rerank@courses
      bge evaluate --shadow shadow.jsonl
    """
    if shadow is not None:
        refuse_unused(("shadow",), "with --shadow")
        print_json(summarize(shadow).as_dict())
    elif dataset is None:
        raise ConfigurationError("pass DATASET or --shadow")
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
    try:
        from ..evaluation import Price, compare, html, read_beir, run_all, text
    except ImportError as error:
        raise ConfigurationError(
            f"this needs {error.name or 'more'}: pip install 'bge-retrieval[eval]'"
        ) from None
    specs = [_parse_spec(name, collection) for name in systems]
    if vector and all(spec.kind != "jina" for spec in specs):
        raise ConfigurationError("--vector needs the system `jina`")
    baseline = baseline or specs[0].name
    if baseline not in [spec.name for spec in specs]:
        raise ConfigurationError(f"`--baseline` must be one of the systems. Given: {baseline}")
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
    """Raises OSError if the file cannot be written, before the queries run."""
    if path is None:
        return
    exists = os.path.exists(path)
    with open(path, "ab"):
        pass
    if not exists:
        os.unlink(path)


def _check_ids(runs: Sequence[Run], document_ids: Collection[str], dataset: str) -> None:
    """Raises ConfigurationError if a system returns none of the dataset's document ids."""
    for run in runs:
        rankings = (timed.answer.ranking for timed in run.answers.values())
        returned = {document_id for ranking in rankings for document_id, _ in ranking}
        if returned and returned.isdisjoint(document_ids):
            raise ConfigurationError(
                f"{run.name} returned no document of {dataset}. It returned {min(returned)!r}, "
                f"for example, and {dataset} has {min(document_ids)!r}: pass `--id-field` with "
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
        raise ConfigurationError(f"pass --collection, or --system {kind}@COLLECTION")
    return Spec(name, kind, resolved)


class SystemBuilder:
    """Builds systems on one store and one endpoint. Close it after the run."""

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
        """Raises ConfigurationError or FingerprintError if the collection does not fit."""
        return self._jina(spec) if spec.kind == "jina" else self._bge(spec)

    def _bge(self, spec: Spec) -> System:
        from ..evaluation import Answer, System

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
        """Build a dense search in a collection of Jina's vectors."""
        from ..evaluation import Answer, System

        jina = JinaClient(os.environ.get("JINA_API_KEY", ""))
        self._jina_clients.append(jina)
        collection = self._store.resolve(spec.collection)
        size = self._vector_size(collection)
        probe = jina.embed("width", input_type="query")
        dimensions = probe[0].dense.shape[0]  # type: ignore[union-attr]
        if dimensions != size:
            raise FingerprintError(
                f"collection `{collection}` holds vectors of {size} dimensions. "
                f"Given: {dimensions}, of {probe.fingerprint}"
            )

        def search(query: str, limit: int) -> Answer:
            start = time.perf_counter()
            result = jina.embed(query, input_type="query")
            model_seconds = time.perf_counter() - start
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
        """Return the dimensions of the dense vector that `jina` searches.

        Raises:
            FingerprintError: the collection holds BGE vectors.
            ConfigurationError: `--vector` names no vector of the collection.
        """
        config = self._store.info(collection).config
        if METADATA in (config.metadata or {}):
            raise FingerprintError(
                f"collection `{collection}` holds BGE vectors, so Jina cannot search it: pass "
                f"jina@OLD with the collection of Jina's vectors, or dense@{collection}"
            )
        vectors = config.params.vectors
        by_name = vectors if isinstance(vectors, Mapping) else {"": vectors}
        params = by_name.get(self._vector)
        if params is None:
            names = ", ".join(f"`{name}`" for name in by_name if name) or "an unnamed vector"
            raise ConfigurationError(
                f"`--vector` must name the vector of collection `{collection}` that is Jina's: "
                f"{names}. Given: {self._vector!r}"
            )
        return params.size

    def _document_id(self, payload: Mapping[str, Any], point_id: object) -> str:
        """Return the document id of a point. A point without `--id-field` matches no judgement."""
        if self._id_field is None:
            return str(payload.get("_id", payload.get("id", point_id)))
        document_id = _id_at(payload, self._id_field)
        return f"point {point_id}" if document_id is None else document_id


def _id_at(payload: Mapping[str, Any], path: str) -> str | None:
    """Return the string or number at `page.id` or `chunks.0.id` as a string, or None."""
    value = value_at(payload, path)
    fits = isinstance(value, str | int | float) and not isinstance(value, bool)
    return str(value) if fits else None


def plan_of(kind: str) -> Plan:
    return {
        "dense": Plan(sparse=False),
        "sparse": Plan(dense=False),
        "hybrid": Plan(),
        "hybrid+rerank": Plan(rerank=RERANK_DEPTH),
        "hybrid+colbert": Plan(colbert=True),
    }[kind]


def _describe_plan(plan: Plan) -> str:
    """Return `dense + sparse by rrf (k 61, weights 1 and 1), 100 candidates of each`."""
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
    """Search for the best 100 documents where a document may have several points.

    Raises the limit until there are 100 documents. The next query starts with the same limit, so
    after the warm-up each query needs one search, and the measured time is that of one search.
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
    """Keep the best point (chunk) of each document."""
    best: dict[str, float] = {}
    for document_id, score in ranking:
        best.setdefault(document_id, score)
    return list(best.items())
