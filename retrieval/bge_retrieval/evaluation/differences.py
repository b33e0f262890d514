"""Why two systems rank the documents of a query differently: what matches in those that moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bge_client import Client

from ..explain import Explanation, explain
from ..tokens import Tokenizer
from .comparison import Report
from .systems import Run

DOCUMENTS = 3  # of each ranking, from the first


class MovedDocument(NamedTuple):
    """A document with different ranks, from 1; None: the system did not return it."""

    document_id: str
    baseline_rank: int | None
    candidate_rank: int | None


class Reason(NamedTuple):
    document: MovedDocument
    explanation: Explanation


class Case(NamedTuple):
    """A query on which a candidate is compared with the baseline."""

    candidate: str
    query_id: str


def moved_documents(
    report: Report, runs: Sequence[Run], cases: Iterable[Case]
) -> dict[Case, list[MovedDocument]]:
    """Return the documents that moved, of those that either system ranks among the first."""
    by_name = {run.name: run for run in runs}
    moved = {}
    for case in cases:
        baseline = _ranks(by_name[report.baseline], case.query_id)
        candidate = _ranks(by_name[case.candidate], case.query_id)
        first = dict.fromkeys([*[*baseline][:DOCUMENTS], *[*candidate][:DOCUMENTS]])
        documents = [MovedDocument(id, baseline.get(id), candidate.get(id)) for id in first]
        moved[case] = [item for item in documents if item.baseline_rank != item.candidate_rank]
    return moved


def _ranks(run: Run, query_id: str) -> dict[str, int]:
    ranking = run.answers[query_id].answer.ranking
    return {document_id: rank for rank, (document_id, _) in enumerate(ranking, 1)}


def explain_moved(
    client: Client,
    tokenizer: Tokenizer,
    queries: Mapping[str, str],
    moved: Mapping[Case, Sequence[MovedDocument]],
    texts: Mapping[str, str],
) -> dict[Case, list[Reason]]:
    """Explain each document that has a text, by the client's model.

    Raises:
        BGEError: see `errors.py`.
    """
    reasons = {}
    for case, documents in moved.items():
        known = [document for document in documents if document.document_id in texts]
        if known:
            of_documents = [texts[document.document_id] for document in known]
            explanations = explain(client, tokenizer, queries[case.query_id], of_documents)
            reasons[case] = [*map(Reason, known, explanations)]
    return reasons
