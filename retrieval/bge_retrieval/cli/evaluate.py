"""`bge evaluate`: compare search systems, or judge a file of shadow mode."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import click
from tqdm import tqdm

from bge_client import Client, ConfigurationError
from bge_client.cli import connected, refuse_unused

from .. import Store
from ..shadow import ShadowThresholds
from ..verdict import P50_MS, P99_MS
from .options import WORKER_PRICE, json_option, text_fields_option, with_store
from .output import exit_unless_passed, print_json
from .shadow import report_shadow

JINA_PRICE = 0.05  # dollars per million tokens
KINDS = (
    *("dense", "sparse", "hybrid", "dense+rerank", "hybrid+rerank", "hybrid+colbert"),
    *("jina", "jina+rerank"),
)
SHADOW_OPTIONS = {"shadow", "since", "min_agreement", "max_error_rate"}
COMMON_OPTIONS = {"p50_ms", "p99_ms", "as_json"}  # of --shadow and DATASET


class Spec(NamedTuple):
    """A parsed item of `--systems`: `hybrid` or `hybrid@collection`."""

    name: str
    kind: str
    collection: str


@click.command()
@click.argument("dataset", type=click.Path(exists=True, file_okay=False), required=False)
@click.option("--collection", help="A collection or an alias, for systems without @COLLECTION.")
@click.option(
    "--systems",
    default="dense,sparse,hybrid,hybrid+rerank",
    show_default=True,
    help=f"Of {', '.join(KINDS)}, separated by commas; append @COLLECTION for another collection.",
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
@text_fields_option
@click.option(
    "--price", default=WORKER_PRICE, show_default=True, help="Dollars per second of a busy worker."
)
@click.option(
    "--jina-price", default=JINA_PRICE, show_default=True, help="Dollars per million tokens."
)
@click.option("--html", "html_path", type=click.Path(dir_okay=False), help="Write an HTML report.")
@click.option(
    "--shadow",
    type=click.Path(exists=True, dir_okay=False),
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
    dataset: str | None,
    shadow: str | None,
    since: str | None,
    min_agreement: float,
    max_error_rate: float,
    **options: Any,
) -> None:
    """Run the queries of DATASET on several systems and score the results by its judgements.

    DATASET is a folder in BEIR's layout: queries.jsonl, qrels/test.tsv and optionally
    corpus.jsonl. Each query runs on all systems before the next. A candidate passes if it has at
    least 0.90 of the baseline's nDCG@10 and MRR@10 and 0.95 of its recall@100, p50 below 100 ms
    and p99 below 500 ms. `jina` needs JINA_API_KEY and a collection of Jina's vectors;
    `jina+rerank` also reads its texts. The exit code is 7 unless each candidate passes.

    \b
      bge evaluate course --collection courses --html report.html
      bge evaluate course --systems jina+rerank@courses_v1,dense+rerank@courses
      bge evaluate --shadow shadow.jsonl --since 7d
    """
    if shadow is not None:
        refuse_unused(SHADOW_OPTIONS | COMMON_OPTIONS, "with --shadow")
        limits = options["p50_ms"], options["p99_ms"]
        thresholds = ShadowThresholds(min_agreement, max_error_rate, *limits)
        report_shadow(shadow, since, thresholds, as_json=options["as_json"])
        return
    names = {parameter.name or "" for parameter in click.get_current_context().command.params}
    refuse_unused(names - SHADOW_OPTIONS, "without --shadow")
    if dataset is None:
        raise ConfigurationError("pass DATASET or --shadow")
    compare_systems(client, reranker, store, dataset, **options)


def compare_systems(
    client: Client,
    reranker: Client,
    store: Store,
    dataset: str,
    collection: str | None,
    systems: str,
    baseline: str | None,
    split: str,
    queries: int | None,
    vector: str,
    id_field: str | None,
    text_fields: tuple[str, ...],
    price: float,
    jina_price: float,
    html_path: str | None,
    p50_ms: float,
    p99_ms: float,
    as_json: bool,
) -> None:
    try:
        from .. import evaluation
        from .report_tables import print_report
    except ImportError as error:
        raise ConfigurationError(
            f"this needs {error.name or 'more'}: pip install 'bge-retrieval[eval]'"
        ) from None
    specs = [_parse_spec(name.strip(), collection) for name in systems.split(",")]
    _check_jina_options(specs, vector, text_fields)
    baseline = baseline or specs[0].name
    if baseline not in [spec.name for spec in specs]:
        raise ConfigurationError(f"`--baseline` must be one of the systems. Given: {baseline}")
    _check_writable(html_path)
    judged = evaluation.read_beir(dataset, split)
    drawn = judged.draw(queries)
    with evaluation.SystemBuilder(
        store,
        client,
        reranker,
        id_field=id_field,
        vector=vector,
        text_fields=text_fields or ("text",),
        bge_price=evaluation.Price(per_second=price),
        jina_price=evaluation.Price(per_million_tokens=jina_price),
    ) as builder:
        built = [builder.system(*spec) for spec in specs]
        with tqdm(total=len(drawn) * len(built), unit="query", disable=None) as bar:
            runs = evaluation.run_all(built, drawn, progress=bar.update)
    evaluation.check_document_ids(runs, judged.documents, dataset)
    report = evaluation.compare(
        runs,
        {name: judged.qrels[name] for name in drawn},
        baseline,
        evaluation.Thresholds(p50_ms=p50_ms, p99_ms=p99_ms),
        drawn_from=len(judged.queries),
        left_out=judged.left_out,
    )
    if as_json:
        print_json(report.as_dict())
    else:
        print_report(report)
    if html_path:
        collections = dict.fromkeys(str(system.about["collection"]) for system in built)
        title = f"{Path(dataset).resolve().name}: search in {', '.join(collections)}"
        Path(html_path).write_text(evaluation.html(report, title), "utf-8")
    exit_unless_passed(comparison.verdict for comparison in report.comparisons)


def _check_jina_options(specs: list[Spec], vector: str, text_fields: tuple[str, ...]) -> None:
    kinds = {spec.kind for spec in specs}
    if vector and kinds.isdisjoint({"jina", "jina+rerank"}):
        raise ConfigurationError("--vector needs the system `jina` or `jina+rerank`")
    if text_fields and "jina+rerank" not in kinds:
        raise ConfigurationError("--text-field needs the system `jina+rerank`")


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
        raise ConfigurationError(f"`--systems` must be of {', '.join(KINDS)}. Given: {kind!r}")
    resolved = own_collection or collection
    if not resolved:
        raise ConfigurationError(f"pass --collection, or --systems {kind}@COLLECTION")
    return Spec(name, kind, resolved)
