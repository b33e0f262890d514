"""The steps of one partition, without a scheduler: parse the rows, collect the vectors, write.

rows ─ parse ─▶ Documents ─ tokenise and embed, elsewhere ─▶ collect ─▶ Result ─ write ─▶ Entry
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from bge_client import BGEError, ValidationError, strict_json

from ..documents import Document, parse_document
from .folder import OutputFolder
from .manifest import Entry, Manifest
from .output import Vectors, parquet, pooled, table
from .sources import Part, Row

MIN_FAILURES = 10  # texts that all fail are no accident: the device or the endpoint is at fault


@dataclass
class Documents:
    """The parsed rows of a partition, and the dead letters of those that are no documents.

    The lists belong together. `file` names the file of the rows' numbers, if there is one.
    """

    partition: int
    rows: int = 0
    file: str | None = None
    numbers: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    payloads: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    dead_letters: list[dict[str, Any]] = field(default_factory=list)

    def add_dead_letter(self, number: int, id: str | None, reason: str) -> None:
        letter: dict[str, Any] = {"row": number, "id": id, "reason": reason}
        self.dead_letters.append(letter if self.file is None else {"file": self.file, **letter})


@dataclass(frozen=True)
class Computed:
    """The vectors of a partition's texts, or the error of a text, in order.

    `tokens` are those of each text, if they are known, and `total_tokens` those of all.
    """

    vectors: Sequence[Vectors | Exception]
    tokens: Sequence[int | None]
    truncated: Sequence[bool]
    total_tokens: int
    seconds: float
    fingerprint: str
    device: str
    actor: str


@dataclass(frozen=True)
class Result:
    """A partition's rows to write, its dead letters, and an entry without the file's checksum."""

    rows: pa.Table
    dead_letters: list[dict[str, Any]]
    entry: Entry


def parse(partition: int, part: Part, rows: Sequence[Row], fields: Sequence[str]) -> Documents:
    """Parse the rows. One that is no document becomes a dead letter; a blank line is no row."""
    documents = Documents(partition, file=part.get("file"))
    for row in rows:
        if isinstance(row.value, bytes) and not row.value.strip():
            continue
        documents.rows += 1
        try:
            document = _document(row, fields)
        except ValidationError as error:
            id = None if row.id is None else str(row.id)
            documents.add_dead_letter(row.number, id, str(error))
            continue
        documents.numbers.append(row.number)
        documents.ids.append(str(document.id))
        payload = json.dumps(document.payload, ensure_ascii=False, separators=(",", ":"))
        documents.payloads.append(payload)
        documents.texts.append(document.text)
    return documents


def _document(row: Row, fields: Sequence[str]) -> Document:
    """Raises ValidationError: the row is no document. The message quotes no text."""
    value: object = row.value
    if isinstance(value, bytes):
        try:
            value = strict_json.loads(value.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValidationError(f"the line is not UTF-8: {error.reason}") from None
        except ValueError as error:
            raise ValidationError(f"the line is not JSON: {error}") from None
    document = parse_document(value, fields, "the document")
    return document if row.id is None else document._replace(id=row.id)


def collect(manifest: Manifest, documents: Documents, computed: Computed) -> Result:
    """Put vectors and documents together. A text that failed becomes a dead letter.

    Raises:
        BGEError: all of at least `MIN_FAILURES` texts failed.
    """
    failures = [vectors for vectors in computed.vectors if isinstance(vectors, Exception)]
    if len(failures) == len(computed.vectors) >= MIN_FAILURES:
        raise BGEError(
            f"all {len(failures)} texts of partition {documents.partition} failed, the first with "
            f"{reason(failures[0])}"
        )
    kept, vectors = [], []
    for index, result in enumerate(computed.vectors):
        if isinstance(result, Exception):
            number, id = documents.numbers[index], documents.ids[index]
            documents.add_dead_letter(number, id, reason(result))
        else:
            kept.append(index)
            vectors.append(result)
    truncated = [computed.truncated[index] for index in kept]
    rows = table(
        manifest,
        [documents.ids[index] for index in kept],
        [documents.payloads[index] for index in kept],
        vectors,
        [computed.tokens[index] for index in kept],
        truncated,
    )
    entry = Entry(
        partition=documents.partition,
        rows=documents.rows,
        written=len(kept),
        failed=len(documents.dead_letters),
        truncated=sum(truncated),
        tokens=computed.total_tokens,
        seconds=round(computed.seconds, 3),
        fingerprint=computed.fingerprint,
        device=computed.device,
        actor=computed.actor,
        sha256="",
        bytes=0,
    )
    letters = sorted(documents.dead_letters, key=lambda letter: letter["row"])
    return Result(rows, letters, entry)


def reason(error: Exception) -> str:
    """Return the type and message of an error. An error of the engine has its type in `str`."""
    name = type(error).__name__
    return f"{name}: {str(error).removeprefix(f'{name}: ')}"


def write(folder: OutputFolder, manifest: Manifest, result: Result) -> Entry:
    """Write the files of a partition, and then its entry."""
    factor = manifest.options.colbert_pool
    rows = pooled(result.rows, factor) if manifest.options.colbert and factor > 1 else result.rows
    data, number = parquet(rows), result.entry.partition
    folder.write_vectors(number, data)
    folder.write_dead_letters(number, result.dead_letters)
    sha256 = hashlib.sha256(data).hexdigest()
    entry = replace(result.entry, sha256=sha256, bytes=len(data))
    folder.write_entry(entry)
    return entry
