"""`bge evaluate DATASET`: run the queries, and print the report. Needs the extra `eval`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from bge_client import BGEError, Client, ConfigurationError
from bge_client.cli import progress_bar

from .. import Store, evaluation
from ..evaluation.comparison import METRICS
from ..evaluation.differences import Case, Reason
from ..evaluation.report import (
    AGREEMENT_COLUMNS,
    DIFFERENCE_COLUMNS,
    agreement_row,
    difference_row,
    notes,
    query_summary,
)
from .options import open_tokenizer
from .output import exit_unless_passed, print_json, print_table, print_verdict

MAX_QUERY_CHARACTERS = 60  # in a terminal


class Spec(NamedTuple):
    """A parsed item of `--systems`: `hybrid` or `hybrid@collection`."""

    name: str
    kind: evaluation.Kind
    collection: str


def evaluate_systems(
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
    tokenizer: str | None,
    p50_ms: float,
    p99_ms: float,
    as_json: bool,
) -> None:
    """Print the report, and exit with 7 unless each candidate passes."""
    specs = [_parse_spec(name.strip(), collection) for name in systems.split(",")]
    _check_provider_options(specs, vector, text_fields)
    baseline = baseline or specs[0].name
    if baseline not in [spec.name for spec in specs]:
        raise ConfigurationError(f"`--baseline` must be one of the systems. Given: {baseline}")
    _check_writable(html_path)
    data = evaluation.read_beir(dataset, split)
    drawn = data.draw(queries)
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
        runs = _run([builder.system(*spec) for spec in specs], drawn)
    evaluation.check_document_ids(runs, data.documents, dataset)
    report = evaluation.compare(
        runs,
        data.qrels and {query_id: data.qrels[query_id] for query_id in drawn},
        baseline,
        evaluation.Thresholds(p50_ms=p50_ms, p99_ms=p99_ms),
        drawn_from=len(data.queries),
        left_out=data.left_out,
    )
    if as_json:
        print_json(report.as_dict())
    else:
        print_report(report)
    if html_path:
        reasons = _reasons(client, tokenizer, dataset, runs, report)
        page = evaluation.html(report, _title(dataset, report), reasons)
        Path(html_path).write_text(page, "utf-8")
    verdicts = (comparison.verdict for comparison in report.comparisons)
    exit_unless_passed(verdict for verdict in verdicts if verdict is not None)


def _parse_spec(name: str, collection: str | None) -> Spec:
    kind, _, own_collection = name.partition("@")
    parsed = evaluation.Kind.parse(kind)
    resolved = own_collection or collection
    if not resolved:
        raise ConfigurationError(f"pass --collection, or --systems {kind}@COLLECTION")
    return Spec(name, parsed, resolved)


def _check_provider_options(specs: Sequence[Spec], vector: str, text_fields: Sequence[str]) -> None:
    hosted = [spec.kind for spec in specs if spec.kind.is_hosted]
    if vector and not hosted:
        raise ConfigurationError("--vector needs a system of a provider's vectors, such as `jina`")
    if text_fields and not any(kind.reranker for kind in hosted):
        raise ConfigurationError(
            "--text-field needs a system of a provider's vectors with a reranker: `jina+rerank`"
        )


def _check_writable(path: str | None) -> None:
    """Raises OSError if the file cannot be written, before the queries run."""
    if path is None:
        return
    exists = os.path.exists(path)
    with open(path, "ab"):
        pass
    if not exists:
        os.unlink(path)


def _run(systems: Sequence[evaluation.System], queries: dict[str, str]) -> list[evaluation.Run]:
    with progress_bar("queries", len(queries) * len(systems)) as bar:
        return evaluation.run_all(systems, queries, progress=bar.update)


def _reasons(
    client: Client,
    tokenizer: str | None,
    dataset: str,
    runs: Sequence[evaluation.Run],
    report: evaluation.Report,
) -> dict[Case, list[Reason]]:
    """Explain the documents that moved. Without their texts, or a tokenizer, there is nothing."""
    moved = evaluation.moved_documents(report, runs, evaluation.shown_cases(report))
    ids = {document.document_id for documents in moved.values() for document in documents}
    texts = evaluation.read_texts(dataset, ids)
    opened = open_tokenizer(tokenizer, client)
    try:
        return evaluation.explain_moved(client, opened, report.queries, moved, texts)
    except BGEError as error:  # a queue endpoint has no /tokenize
        click.echo(f"bge: the report does not say why rankings differ: {error}", err=True)
        return {}


def _title(dataset: str, report: evaluation.Report) -> str:
    collections = dict.fromkeys(str(system.about["collection"]) for system in report.systems)
    return f"{Path(dataset).resolve().name}: search in {', '.join(collections)}"


# --------------------------------------------------------------------------------- tables


def print_report(report: evaluation.Report) -> None:
    """Print the systems, the differences from the baseline and the verdicts."""
    click.echo(f"{query_summary(report)}, {report.date}, the baseline is {report.baseline}\n")
    metrics = [*METRICS] if report.is_judged else []
    head = ["system", *metrics, "p50 ms", "p99 ms", "$ per 1,000"]
    rows = [_system_row(report.baseline, system) for system in report.systems]
    print_table(head, rows, left=("system",))
    click.echo("".join(f"\n{note}." for note in notes(report)))
    if not report.comparisons:
        return
    click.echo()
    _print_agreement(report)
    if not report.is_judged:
        _print_least_agreement(report)
        return
    click.echo()
    differences = [
        [comparison.name, metric, *difference_row(difference)]
        for comparison in report.comparisons
        for metric, difference in comparison.differences.items()
    ]
    head = ["candidate", "metric", *DIFFERENCE_COLUMNS]
    print_table(head, differences, left=("candidate", "metric"))
    for comparison in report.comparisons:
        if comparison.verdict is not None:
            print_verdict(comparison.verdict)


def _print_agreement(report: evaluation.Report) -> None:
    rows = [[item.name, *agreement_row(item.agreement)] for item in report.comparisons]
    print_table(["candidate", *AGREEMENT_COLUMNS], rows, left=("candidate",))


def _print_least_agreement(report: evaluation.Report) -> None:
    """Print the queries to look at."""
    head = ["candidate", "query", "RBO", f"first of {report.baseline}", "first of the candidate"]
    rows = []
    for item in report.comparisons:
        for query in item.agreement.least:
            documents = " ".join(query.baseline), " ".join(query.candidate)
            text = report.queries[query.query_id][:MAX_QUERY_CHARACTERS]
            rows.append([item.name, query.query_id, f"{query.rbo:.3f}", *documents, text])
    click.echo("\nQueries whose rankings agree least\n")
    print_table([*head, "text"], rows, left=("candidate", "query", *head[3:], "text"))


def _system_row(baseline: str, system: evaluation.Measured) -> list[str]:
    return [
        f"{system.name} (baseline)" if system.name == baseline else system.name,
        *(f"{mean:.4f}" for mean in system.means.values()),
        f"{system.p50_ms:.1f}",
        f"{system.p99_ms:.1f}",
        "unknown" if system.cost is None else f"{system.cost:,.4f}",
    ]
