"""`bge evaluate`: compare search systems, or judge a file of shadow mode."""

from __future__ import annotations

from typing import Any

import click

from bge_client import Client, ConfigurationError
from bge_client.cli import connected, exit_codes, refuse, refuse_unused

from .. import Store
from ..shadow import ShadowThresholds
from ..verdict import P50_MS, P99_MS
from .evaluate_shadow import evaluate_shadow
from .options import (
    WORKER_PRICE,
    collection_option,
    json_option,
    price_option,
    text_fields_option,
    tokenizer_option,
    with_store,
)

JINA_PRICE = 0.05  # dollars per million tokens
SHADOW_OPTIONS = {"shadow", "since", "min_agreement", "max_error_rate"}
COMMON_OPTIONS = {"p50_ms", "p99_ms", "as_json"}  # of --shadow and DATASET


def _dataset_or_shadow(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> str | None:
    """Return DATASET. Exits if there is nothing to evaluate, before any connection."""
    if value is None and context.params.get("shadow") is None:
        with exit_codes():
            raise ConfigurationError("pass DATASET or --shadow")
    return value


@click.command()
@click.argument(
    "dataset",
    type=click.Path(exists=True, file_okay=False),
    required=False,
    callback=_dataset_or_shadow,
)
@collection_option("A collection or an alias, for systems without @COLLECTION.", required=False)
@click.option(
    "--systems",
    default="dense,sparse,hybrid,hybrid+rerank",
    show_default=True,
    help="Separated by commas: dense, sparse or hybrid, +colbert, +rerank; or the vectors of jina, "
    "jina-v3, jina-v4, jina-v5, jina-v5-nano, or of a host, such as deepinfra. Rerankers are also "
    "+bge-reranker, +jina-reranker-v2, +jina-reranker-v3, or a host, such as +novita. Append "
    "@COLLECTION for another collection.",
)
@click.option("--baseline", help="The system to compare the others with. [default: the first]")
@click.option("--split", default="test", show_default=True, help="Split of the judgements.")
@click.option("--queries", type=click.IntRange(1), help="Draw this many queries at random.")
@click.option("--vector", default="", help="Name of a provider's dense vector.")
@click.option(
    "--id-field",
    help="Path of the judged document id in a payload: page.id. "
    "[default: _id, then id, then the point's id]",
)
@text_fields_option
@price_option("--price", WORKER_PRICE, "second of a busy worker")
@price_option("--jina-price", JINA_PRICE, "million tokens of Jina's")
@click.option("--html", "html_path", type=click.Path(dir_okay=False), help="Write an HTML report.")
@tokenizer_option
@click.option(
    "--shadow",
    type=click.Path(exists=True, dir_okay=False),
    is_eager=True,
    help="Judge the comparisons in this file of shadow mode instead.",
)
@click.option("--since", help="With --shadow: only the last minutes, hours or days, such as 7d.")
@click.option(
    "--min-agreement",
    default=ShadowThresholds.agreement,
    show_default=True,
    help="With --shadow: minimum mean RBO of the rankings.",
)
@click.option(
    "--max-error-rate",
    default=ShadowThresholds.error_rate,
    show_default=True,
    help="With --shadow: maximum share of failed comparisons.",
)
@click.option("--p50-ms", default=P50_MS, show_default=True, help="Limit of a candidate's p50.")
@click.option("--p99-ms", default=P99_MS, show_default=True, help="Limit of a candidate's p99.")
@json_option
@connected("EMBEDDINGS", unless=("shadow",), reranking=True)
@with_store(unless=("shadow",))
def evaluate(
    client: Client,
    reranker: Client,
    store: Store,
    dataset: str,
    shadow: str | None,
    since: str | None,
    min_agreement: float,
    max_error_rate: float,
    **options: Any,
) -> None:
    """Run the queries of DATASET on several systems and score the results by its judgements.

    DATASET is a folder in BEIR's layout: queries.jsonl, and optionally qrels/test.tsv and
    corpus.jsonl. Without a folder qrels, the report shows how far the rankings agree. Each query
    runs on all systems before the next. A candidate passes if it has at least 0.90 of the
    baseline's nDCG@10 and MRR@10 and 0.95 of its recall@100, p50 below 100 ms and p99 below
    500 ms. Jina's models need JINA_API_KEY, and their vectors a collection of them, whose texts a
    reranker reads. The exit code is 7 unless each candidate passes.

    \b
      bge evaluate course --collection courses --html report.html
      bge evaluate course --systems jina+rerank@courses_v1,dense+rerank@courses
      bge evaluate --shadow shadow.jsonl --since 7d
    """
    if shadow is not None:
        refuse_unused(SHADOW_OPTIONS | COMMON_OPTIONS, "with --shadow")
        limits = options["p50_ms"], options["p99_ms"]
        thresholds = ShadowThresholds(min_agreement, max_error_rate, *limits)
        evaluate_shadow(shadow, since, thresholds, as_json=options["as_json"])
        return
    refuse(SHADOW_OPTIONS, "without --shadow")
    try:
        from .evaluate_systems import evaluate_systems
    except ImportError as error:
        raise ConfigurationError(
            f"this needs {error.name or 'more'}: pip install 'bge-retrieval[eval]'"
        ) from None
    evaluate_systems(client, reranker, store, dataset, **options)
