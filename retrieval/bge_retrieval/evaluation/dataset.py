"""Queries, with relevance judgements or without, in the file layout of the BEIR benchmark."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bge_client import ConfigurationError, strict_json

RELEVANT = 1  # the lowest grade of a relevant document
MAX_GRADE = 1_000_000  # trec_eval allocates a counter for each grade
MAX_GRADE_DIGITS = 20  # `int` raises above 4,300 digits
SEED = 20_240_617  # makes reports reproducible


@dataclass(frozen=True)
class Dataset:
    """The queries that have a relevant document, and the grades of their documents.

    Without judgements, `qrels` is None and there are all queries.
    `documents` are the ids in `corpus.jsonl`, or without that file the judged ids. `left_out`
    counts the queries without a relevant document, which cannot distinguish systems.
    """

    documents: frozenset[str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]] | None
    left_out: int = 0

    def draw(self, count: int | None) -> dict[str, str]:
        """Return `count` random queries in file order, always the same ones; None returns all."""
        if count is None or count >= len(self.queries):
            return self.queries
        drawn = set(random.Random(SEED).sample(list(self.queries), count))
        return {query_id: text for query_id, text in self.queries.items() if query_id in drawn}


def read_beir(folder: str | Path, split: str = "test") -> Dataset:
    """Read a BEIR folder: queries.jsonl, and optionally qrels/<split>.tsv and corpus.jsonl.

    Without a folder `qrels`, there are no judgements. Without corpus.jsonl, document ids are not
    checked.

    Raises:
        ConfigurationError: a file is missing or malformed. The message names the file and line.
    """
    folder = Path(folder)
    corpus: frozenset[str] = frozenset()
    if (folder / "corpus.jsonl").exists():
        corpus = frozenset(item_id for item_id, _, _ in _read_objects(folder / "corpus.jsonl"))
    queries = {
        item_id: _required_string(value, "text", label)
        for item_id, value, label in _read_objects(folder / "queries.jsonl")
    }
    if not (folder / "qrels").exists():
        return Dataset(corpus, queries, None)
    path = folder / "qrels" / f"{split}.tsv"
    qrels = _read_qrels(path, queries, corpus)
    documents = corpus or frozenset[str]().union(*qrels.values())
    answered = {
        query_id: grades
        for query_id, grades in qrels.items()
        if max(grades.values(), default=0) >= RELEVANT
    }
    if not answered:
        raise ConfigurationError(f"{path} has no relevant document for any query")
    judged = {query_id: text for query_id, text in queries.items() if query_id in answered}
    return Dataset(documents, judged, answered, left_out=len(queries) - len(judged))


def read_texts(folder: str | Path, ids: Collection[str]) -> dict[str, str]:
    """Return the titles and texts of documents by id. Those without a text are left out."""
    path = Path(folder) / "corpus.jsonl"
    if not ids or not path.exists():
        return {}
    texts = {}
    for item_id, value, _ in _read_objects(path):
        if item_id in ids:
            parts = [value.get("title"), value.get("text")]
            texts[item_id] = " ".join(part for part in parts if isinstance(part, str)).strip()
    return {item_id: text for item_id, text in texts.items() if text}


def _read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the `_id`, the object and the label of each line."""
    seen: set[str] = set()
    for label, line in _read_lines(path):
        try:
            value = strict_json.loads(line)
        except ValueError as error:
            raise ConfigurationError(f"{label} is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise ConfigurationError(f"{label} must be a JSON object")
        item_id = _required_string(value, "_id", label)
        if item_id in seen:
            raise ConfigurationError(f"{label} repeats the `_id` of an earlier line: {item_id!r}")
        seen.add(item_id)
        yield item_id, value, label
    if not seen:
        raise ConfigurationError(f"{path} is empty")


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the label and the text of each line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}, line {number},", line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8: {error.reason}") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None


def _required_string(value: dict[str, Any], name: str, label: str) -> str:
    """Return a field that must be a string and not blank. The error omits its value."""
    text = value.get(name)
    if not isinstance(text, str) or not text.strip():
        raise ConfigurationError(
            f"{label} must have a `{name}` that is a string and not blank. "
            f"Given: {'a blank string' if isinstance(text, str) else type(text).__name__}"
        )
    return text


def _read_qrels(
    path: Path, queries: Mapping[str, str], corpus: Collection[str]
) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    lines = _read_lines(path)
    for label, header in islice(lines, 1):
        if _is_grade(header.rpartition("\t")[2]):  # the first judgement would be skipped
            raise ConfigurationError(f"{label} must be a header: query-id, corpus-id, score")
    for label, line in lines:
        columns = line.split("\t")
        if len(columns) != 3 or not _is_grade(columns[2]):
            raise ConfigurationError(
                f"{label} must be query-id, corpus-id and an integer, separated by tabs"
            )
        if len(columns[2]) > MAX_GRADE_DIGITS or abs(int(columns[2])) > MAX_GRADE:
            raise ConfigurationError(f"{label} must have a grade from -{MAX_GRADE} to {MAX_GRADE}")
        query_id, document_id, grade = columns[0], columns[1], int(columns[2])
        if query_id not in queries:
            raise ConfigurationError(f"{label} names an unknown query: {query_id!r}")
        if corpus and document_id not in corpus:
            raise ConfigurationError(f"{label} names an unknown document: {document_id!r}")
        if qrels.setdefault(query_id, {}).setdefault(document_id, grade) != grade:
            raise ConfigurationError(f"{label} grades {query_id!r}, {document_id!r} again")
    return qrels


def _is_grade(column: str) -> bool:
    return column.strip().removeprefix("-").isdecimal()
