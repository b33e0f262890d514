"""`bge evaluate`: compare search systems, or summarize a file of shadow mode."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import click
from tqdm import tqdm

from bge_client import Client, ConfigurationError
from bge_client.cli import connected, refuse_unused

from .. import Store
from ..shadow import summarize
from .options import WORKER_PRICE, print_json, with_store

JINA_PRICE = 0.05  # dollars per million tokens
KINDS = ("dense", "sparse", "hybrid", "hybrid+rerank", "hybrid+colbert", "jina")
DEFAULT_SYSTEMS = ["dense", "sparse", "hybrid", "hybrid+rerank"]


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
        from .. import evaluation
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
    judged = evaluation.read_beir(dataset, split)
    drawn = judged.draw(queries)
    with evaluation.SystemBuilder(
        store,
        client,
        reranker,
        id_field=id_field,
        vector=vector,
        bge_price=evaluation.Price(per_second=price),
        jina_price=evaluation.Price(per_million_tokens=jina_price),
    ) as builder:
        built = [builder.system(*spec) for spec in specs]
        with tqdm(total=len(drawn) * len(built), unit="query", disable=None) as bar:
            runs = evaluation.run_all(built, drawn, progress=bar.update)
    evaluation.check_document_ids(runs, judged.documents, dataset)
    qrels = {name: judged.qrels[name] for name in drawn}
    report = evaluation.compare(
        runs, qrels, baseline, drawn_from=len(judged.queries), left_out=judged.left_out
    )
    click.echo(evaluation.text(report))
    if json_path:
        Path(json_path).write_text(evaluation.json_text(report), "utf-8")
    if html_path:
        Path(html_path).write_text(evaluation.html(report), "utf-8")


def _check_writable(path: str | None) -> None:
    """Raises OSError if the file cannot be written, before the queries run."""
    if path is None:
        return
    exists = os.path.exists(path)
    with open(path, "ab"):
        pass
    if not exists:
        os.unlink(path)


def _parse_spec(name: str, collection: str | None) -> Spec:
    kind, _, own_collection = name.partition("@")
    if kind not in KINDS:
        raise ConfigurationError(f"`--system` must be one of {', '.join(KINDS)}. Given: {kind!r}")
    resolved = own_collection or collection
    if not resolved:
        raise ConfigurationError(f"pass --collection, or --system {kind}@COLLECTION")
    return Spec(name, kind, resolved)
