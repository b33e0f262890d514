"""`bge evaluate`: several ways to search, side by side, and a verdict; or what shadow mode saw."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from tqdm import tqdm

from ..client import Client
from ..errors import ConfigurationError
from ..jina import JinaClient
from ..shadow import summarize
from .command import connected, needs
from .qdrant import PRICE, reranker_of, say, stored

if TYPE_CHECKING:
    from ..evaluate import Report, System
    from ..qdrant import Plan, Store

JINA_PRICE = 0.05  # dollars a million tokens
RERANKED = 50  # documents that the cross-encoder reads
KINDS = ("dense", "sparse", "hybrid", "hybrid+rerank", "hybrid+colbert", "jina")
SYSTEMS = ["dense", "sparse", "hybrid", "hybrid+rerank"]


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
    default=SYSTEMS,
    show_default=True,
    help=f"One of {', '.join(KINDS)}; @COLLECTION behind it for another collection.",
)
@click.option("--baseline", help="What the others are held against. [default: the first system]")
@click.option("--split", default="test", show_default=True, help="Of the judgements.")
@click.option("--queries", type=click.IntRange(1), help="Only the first so many.")
@click.option("--vector", default="", help="The name of the dense vector that `jina` asks.")
@click.option(
    "--id-field",
    default="_id",
    show_default=True,
    help="Of a payload, the document's id in the judgements; without it, the point's.",
)
@click.option("--price", default=PRICE, show_default=True, help="Dollars a second of a worker.")
@click.option(
    "--jina-price", default=JINA_PRICE, show_default=True, help="Dollars a million tokens."
)
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write all of it there.")
@click.option("--html", "html_path", type=click.Path(dir_okay=False), help="Write a page there.")
@connected("EMBEDDINGS", unless=("shadow",))
@stored(unless=("shadow",))
def evaluate(
    client: Client, store: Store, dataset: str | None, shadow: str | None, **given: Any
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
        say(summarize(shadow).as_dict())
    elif dataset is None:
        raise ConfigurationError("say DATASET, or --shadow")
    else:
        side_by_side(client, store, dataset, **given)


def side_by_side(
    client: Client,
    store: Store,
    dataset: str,
    collection: str | None,
    systems: tuple[str, ...],
    baseline: str | None,
    split: str,
    queries: int | None,
    vector: str,
    id_field: str,
    price: float,
    jina_price: float,
    json_path: str | None,
    html_path: str | None,
) -> None:
    with needs("eval"):
        from ..evaluate import Price, compare, html, read_beir, run_all, text
    judged = read_beir(dataset, split)
    asked = dict(list(judged.queries.items())[:queries])
    builder = Builder(
        store,
        client,
        id_field,
        vector,
        Price(per_second=price),
        Price(per_million_tokens=jina_price),
    )
    specs = [_spec(given, collection) for given in systems]
    built = [builder.system(spec) for spec in specs]
    baseline = baseline or specs[0].name
    if baseline not in [spec.name for spec in specs]:
        raise ConfigurationError(f"`--baseline` {baseline} is none of the systems")
    with tqdm(total=len(asked) * len(built), unit="query", disable=None) as bar:
        runs = run_all(built, asked, progress=bar.update)
    report = compare(runs, {name: judged.qrels[name] for name in asked}, baseline)
    click.echo(text(report))
    _write(report, json_path, html_path, html)


def _write(
    report: Report, json_path: str | None, html_path: str | None, html: Callable[[Report], str]
) -> None:
    if json_path:
        data = json.dumps(report.as_dict(), ensure_ascii=False, indent=1, allow_nan=False)
        Path(json_path).write_text(data + "\n", "utf-8")
    if html_path:
        Path(html_path).write_text(html(report), "utf-8")


def _spec(given: str, collection: str | None) -> Spec:
    kind, _, named = given.partition("@")
    if kind not in KINDS:
        raise ConfigurationError(f"`--system` must be one of {', '.join(KINDS)}. Given: {kind!r}")
    there = named or collection
    if not there:
        raise ConfigurationError(f"say --collection, or {kind}@COLLECTION")
    return Spec(given, kind, there)


class Builder:
    """Systems by their names, all on one store and one endpoint."""

    def __init__(
        self, store: Store, client: Client, id_field: str, vector: str, ours: Any, jina: Any
    ) -> None:
        self._store, self._client, self._id_field = store, client, id_field
        self._vector, self._ours, self._theirs = vector, ours, jina

    def system(self, spec: Spec) -> System:
        """Raises ConfigurationError, FingerprintError: its collection is missing or unfit."""
        from ..evaluate import System

        search, price = (
            (self._jina(spec), self._theirs)
            if spec.kind == "jina"
            else (self._bge(spec), self._ours)
        )
        return System(spec.name, search, price, about={"collection": spec.collection})

    def _bge(self, spec: Spec) -> Callable[[str], Any]:
        from ..evaluate import Answer
        from ..qdrant import HybridSearch

        plan = plan_of(spec.kind)
        engine = HybridSearch(
            self._store,
            self._client,
            spec.collection,
            plan,
            reranker=reranker_of(self._client, plan),
        )

        def search(query: str) -> Answer:
            found = engine.search(query, limit=100)
            model = found.seconds["embed"] + found.seconds.get("rerank", 0.0)
            ranking = [(self._document_id(hit.payload, hit.id), hit.score) for hit in found]
            return Answer(_best(ranking), model, found.tokens)

        return search

    def _jina(self, spec: Spec) -> Callable[[str], Any]:
        """Dense search in a collection of Jina's vectors, as its users have it."""
        from ..evaluate import Answer

        jina = JinaClient(os.environ.get("JINA_API_KEY", ""))
        collection = self._store.resolve(spec.collection)
        self._store.info(collection)

        def search(query: str) -> Answer:
            began = time.perf_counter()
            embedded = jina.embed(query, input_type="query")
            model = time.perf_counter() - began
            found = self._store.ask(
                "query_points",
                collection_name=collection,
                query=embedded[0].dense.tolist(),  # type: ignore[union-attr]
                using=self._vector or None,
                limit=100,
                with_payload=True,
            )
            ranking = [(self._document_id(p.payload or {}, p.id), p.score) for p in found.points]
            return Answer(_best(ranking), model, embedded.usage.total_tokens)

        return search

    def _document_id(self, payload: Any, point_id: object) -> str:
        return str(payload.get(self._id_field, point_id))


def plan_of(kind: str) -> Plan:
    from ..qdrant import Plan

    return {
        "dense": Plan(sparse=False),
        "sparse": Plan(dense=False),
        "hybrid": Plan(),
        "hybrid+rerank": Plan(rerank=RERANKED),
        "hybrid+colbert": Plan(colbert=True),
    }[kind]


def _best(ranking: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Of a document with several points (its chunks), the best one counts."""
    best: dict[str, float] = {}
    for document_id, score in ranking:
        best.setdefault(document_id, score)
    return list(best.items())
