"""A set of judged queries, in the layout of the BEIR benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigurationError

RELEVANT = 1  # the lowest grade of a relevant document


class Passage(NamedTuple):
    """A document of the corpus."""

    title: str
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Dataset:
    """Queries that have a relevant document, and the grades of documents for them.

    `corpus` is empty if there was no `corpus.jsonl`. `left_out` queries have no relevant document:
    no system can do well or badly on them.
    """

    corpus: dict[str, Passage]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    left_out: int = 0


def read_beir(folder: str | Path, split: str = "test") -> Dataset:
    """A folder as the BEIR benchmark has them: queries.jsonl, qrels/<split>.tsv, corpus.jsonl.

    Without corpus.jsonl, for a collection that is indexed already, document ids are not checked.

    Raises:
        ConfigurationError: a file is missing or broken; names it, and the line.
    """
    folder = Path(folder)
    corpus = {}
    if (folder / "corpus.jsonl").exists():
        corpus = _by_id(folder / "corpus.jsonl", _passage)
    queries = _by_id(folder / "queries.jsonl", _query)
    path = folder / "qrels" / f"{split}.tsv"
    qrels = _read_qrels(path, queries, corpus)
    answered = {
        query_id: grades
        for query_id, grades in qrels.items()
        if max(grades.values(), default=0) >= RELEVANT
    }
    if not answered:
        raise ConfigurationError(f"{path} names no relevant document for any query")
    asked = {query_id: text for query_id, text in queries.items() if query_id in answered}
    return Dataset(corpus, asked, answered, left_out=len(queries) - len(asked))


def _by_id(path: Path, read: Callable[[dict[str, Any], str], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for where, line in _lines(path):
        try:
            value = json.loads(line)
        except ValueError:
            raise ConfigurationError(f"{where} is not JSON") from None
        if not isinstance(value, dict):
            raise ConfigurationError(f"{where} must be a JSON object")
        given_id = _string(value, "_id", where)
        if given_id in found:
            raise ConfigurationError(f"{where} has the `_id` of an earlier line: {given_id!r}")
        found[given_id] = read(value, where)
    if not found:
        raise ConfigurationError(f"{path} is empty")
    return found


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines that are not blank, each after the words that say where it stands."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}, line {number},", line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8: {error.reason}") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None


def _string(value: dict[str, Any], name: str, where: str, default: str | None = None) -> str:
    """Not blank, unless it may be left out. The error names the type alone: it may be a text."""
    found = value.get(name, default)
    if not isinstance(found, str) or (default is None and not found.strip()):
        raise ConfigurationError(
            f"{where} must have a string `{name}`{', not blank' if default is None else ''}. "
            f"Given: {'a blank' if isinstance(found, str) else type(found).__name__}"
        )
    return found


def _passage(value: dict[str, Any], where: str) -> Passage:
    title, text = (_string(value, name, where, default="") for name in ("title", "text"))
    if not (title.strip() or text.strip()):
        raise ConfigurationError(f"{where} has neither `title` nor `text`")
    metadata = value.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ConfigurationError(f"{where} must have an object as `metadata`, if any")
    return Passage(title, text, metadata)


def _query(value: dict[str, Any], where: str) -> str:
    return _string(value, "text", where)


def _read_qrels(
    path: Path, queries: Mapping[str, str], corpus: Mapping[str, Passage]
) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    lines = _lines(path)
    for where, header in islice(lines, 1):
        if _is_grade(header.rpartition("\t")[2]):  # else the first judgement would be lost
            raise ConfigurationError(f"{where} must be a header: query-id, corpus-id, score")
    for where, line in lines:
        columns = line.split("\t")
        if len(columns) != 3 or not _is_grade(columns[2]):
            raise ConfigurationError(
                f"{where} must be query-id, corpus-id and a whole number, tabs between them"
            )
        query_id, document_id, grade = columns[0], columns[1], int(columns[2])
        if query_id not in queries:
            raise ConfigurationError(f"{where} names an unknown query: {query_id!r}")
        if corpus and document_id not in corpus:
            raise ConfigurationError(f"{where} names an unknown document: {document_id!r}")
        if found.setdefault(query_id, {}).setdefault(document_id, grade) != grade:
            raise ConfigurationError(f"{where} grades a pair anew: {query_id!r}, {document_id!r}")
    return found


def _is_grade(column: str) -> bool:
    return column.strip().removeprefix("-").isdecimal()
