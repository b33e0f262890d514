"""`bge search`."""

from __future__ import annotations

from typing import Any

import click
from pydantic import ValidationError
from qdrant_client import models

from bge_client import Client, ConfigurationError
from bge_client.cli import connected, plain

from .. import Explanation, Hit, HybridSearch, Plan, SearchResult, Store, explain
from .options import collection_option, json_option, open_tokenizer, tokenizer_option, with_store
from .output import print_json, print_table

MAX_TEXT_CHARACTERS = 100  # in a terminal
EXPLAINED_HITS = 5


@click.command()
@click.argument("query")
@collection_option("A collection or an alias.")
@click.option("--limit", default=10, show_default=True, type=click.IntRange(1))
@click.option(
    "--filter",
    "filter_json",
    help='A Qdrant filter as JSON: {"must": [{"key": "lang", "match": {"value": "ru"}}]}',
)
@click.option(
    "--explain",
    "is_explained",
    is_flag=True,
    help="Show the rank of each hit in every stage, and of the best "
    f"{EXPLAINED_HITS} the tokens that match.",
)
@tokenizer_option
@click.option(
    "--neighbours",
    default=0,
    type=click.IntRange(0),
    help="Also read this many chunks before and after each hit.",
)
@json_option
@connected("EMBEDDINGS", reranking=True)
@with_store()
@click.option(
    "--mode",
    type=click.Choice(["hybrid", "dense", "sparse"]),
    default="hybrid",
    show_default=True,
)
@click.option("--colbert", is_flag=True, help="Rescore by the collection's ColBERT vectors.")
@click.option(
    "--rerank",
    type=click.IntRange(0),
    default=0,
    help="Rerank this many of the best hits with the cross-encoder.",
)
@click.option("--fusion", type=click.Choice(["rrf", "dbsf"]), default="rrf", show_default=True)
@click.option("--rrf-k", default=Plan.rrf_k, show_default=True)
@click.option(
    "--weights",
    type=(float, float),
    default=Plan.weights,
    show_default=True,
    help="Weights of dense and sparse in RRF.",
)
@click.option(
    "--candidates",
    default=Plan.candidates,
    show_default=True,
    help="Candidates from dense and from sparse.",
)
@click.option(
    "--rescore/--no-rescore",
    default=Plan.rescore,
    show_default=True,
    help="With quantized vectors: rank the best again, by the original vectors.",
)
@click.option(
    "--oversampling",
    default=Plan.oversampling,
    show_default=True,
    help="With --rescore: how many times the limit are ranked again.",
)
def search(
    client: Client,
    reranker: Client,
    store: Store,
    query: str,
    collection: str,
    limit: int,
    filter_json: str | None,
    is_explained: bool,
    tokenizer: str | None,
    neighbours: int,
    as_json: bool,
    mode: str,
    **stages: Any,
) -> None:
    """Search a collection for QUERY.

    \b
      bge search "как найти минимум функции" --collection courses --path qdrant-data
      bge search "B-tree index" --collection courses --rerank 50 --explain
    """
    plan = Plan(dense=mode != "sparse", sparse=mode != "dense", **stages)
    engine = HybridSearch(store, client, collection, plan, reranker=reranker)
    condition = _parse_filter(filter_json)
    result = engine.search(
        query, limit, filter=condition, explain=is_explained, neighbours=neighbours
    )
    if not as_json:
        print_hits(result)  # first: an explanation may fail
    explanations: dict[int, Explanation] = {}
    if is_explained:
        explanations = _explain(client, tokenizer, query, result, engine.metadata.max_length)
    if as_json:
        for index, hit in enumerate(result):
            print_json(_as_json(hit, explanations.get(index)))
        return
    for index, explanation in explanations.items():
        print_explanation(f"{index + 1}. {result[index].document_id}", explanation)


def _explain(
    client: Client, tokenizer: str | None, query: str, result: SearchResult, max_length: int | None
) -> dict[int, Explanation]:
    """Return the explanations of the best hits with a text, by index."""
    texts = {index: hit.text for index, hit in enumerate(result[:EXPLAINED_HITS]) if hit.text}
    if not texts:
        return {}
    try:
        explanations = explain(
            client,
            open_tokenizer(tokenizer, client),
            query,
            [*texts.values()],
            max_length=max_length,
        )
    except ConfigurationError as error:  # a queue endpoint has no /tokenize
        click.echo(f"bge: tokens are not shown: {error}", err=True)
        return {}
    return dict(zip(texts, explanations, strict=True))


def _as_json(hit: Hit, explanation: Explanation | None) -> dict[str, object]:
    stages = {name: [stage.rank, stage.score] for name, stage in hit.stages.items()}
    line: dict[str, object] = {
        "id": hit.id,
        "score": hit.score,
        "stages": stages,
        "payload": hit.payload,
    }
    line |= {"neighbours": hit.neighbours} if hit.neighbours else {}
    return line | ({"explanation": explanation.as_dict()} if explanation else {})


def print_hits(result: SearchResult) -> None:
    """Print a table of hits, and the time of each stage on stderr."""
    stages = list(dict.fromkeys(name for hit in result for name in hit.stages))
    rows = []
    for rank, hit in enumerate(result, 1):
        hit_stages = (hit.stages.get(name) for name in stages)
        cells = (f"{stage.rank}. {stage.score:.4f}" if stage else "-" for stage in hit_stages)
        text = plain(hit.text or "")[:MAX_TEXT_CHARACTERS]
        rows.append([f"{rank}", f"{hit.score:.4f}", *cells, hit.document_id, text])
    print_table(["", "score", *stages, "document", "text"], rows, left=("document", "text"))
    times = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in result.seconds.items())
    click.echo(f"bge: {times}", err=True)


def print_explanation(title: str, explanation: Explanation) -> None:
    """Print the similarities of a hit, with the tokens behind them."""
    shared = (
        f"{token.text} {token.query_weight:.3f} × {token.document_weight:.3f}"
        for token in explanation.shared
    )
    aligned = (
        f"{token.query_token} → {token.document_token} {token.similarity:.2f}"
        for token in explanation.aligned
    )
    click.echo(f"\n{plain(title)}")
    click.echo(f"  dense    {explanation.dense:.4f}")
    click.echo(f"  sparse   {explanation.sparse:.4f}  {plain(', '.join(shared))}")
    click.echo(f"  colbert  {explanation.colbert:.4f}  {plain(', '.join(aligned))}")


def _parse_filter(filter_json: str | None) -> Any:
    if filter_json is None:
        return None
    try:
        return models.Filter.model_validate_json(filter_json)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(map(str, first["loc"])) or "the filter"
        raise ConfigurationError(
            f"`--filter` is not a valid Qdrant filter: {location}: {first['msg']}"
        ) from None
