"""A collection of any vectors → one of BGE vectors, in use throughout, nothing lost.

    passes over the source until one finds nothing to do → compared → alias swapped

The source is only ever read. A pass goes through it page by page, writes what is missing or
different in the target, and deletes there what the source no longer has; so it does not matter
where an earlier run was killed, nor that the source changes meanwhile. Points without a usable
text are copied too, with their payload and no vectors, and reported.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qdrant_client import models

from ..client import Client
from ..errors import ConfigurationError, FingerprintError, MigrationError
from .documents import Document, fault_of, text_at
from .filling import Filled, Progress, fill, is_current, quietly
from .schema import Binding, Schema
from .similarity import SAME, named, similarities
from .store import Payload, PointId, Store

log = logging.getLogger("bge_client")

PASSES = 20  # a source that changes faster than it is copied is not followed for ever
SAMPLE = 64  # points whose vectors are computed again before the swap


@dataclass
class MigrationReport(Filled):
    """What was done. `written` counts points, once for each time they were written.

    `without_text` says of points without vectors why; `late` names points of the source that
    changed between the last pass and the swap: they are not in the target.
    """

    source: str = ""
    target: str = ""
    points: int = 0
    passes: int = 0
    deleted: int = 0
    without_text: dict[PointId, str] = field(default_factory=dict)
    compared: int = 0
    alias: str | None = None
    late: list[PointId] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """What a migration would take, from a sample of the points; dollars of a worker's seconds."""

    points: int
    sampled: int
    without_text: int
    tokens: int
    seconds: float
    dollars: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Migration:
    """From `source`, a collection or an alias, to the collection `target`.

    With `alias`, the alias points to the target in the end (by default the alias that `source`
    is, if it is one); without, the target is filled and compared, no more.

    Raises:
        ConfigurationError: the source is missing, or source and target are one.
    """

    def __init__(
        self,
        store: Store,
        client: Client,
        source: str,
        target: str,
        *,
        alias: str | None = None,
        text_fields: Sequence[str] = ("text",),
        schema: Schema | None = None,
        max_length: int | None = None,
        progress: Progress = quietly,
    ) -> None:
        self._store, self._client, self._progress = store, client, progress
        self._schema = schema or Schema()
        self._fields, self._max_length = tuple(text_fields), max_length
        self._target = target
        aliases = store.aliases()
        self._alias = alias or (source if source in aliases else None)
        self._source = self._collection_of(source, aliases)
        self._indexed = store.info(self._source).payload_schema
        if target in aliases:
            raise ConfigurationError(f"the target `{target}` is an alias; name a new collection")
        if self._alias is not None and store.exists(self._alias) and self._alias not in aliases:
            raise ConfigurationError(
                f"`{self._alias}` is a collection, so it cannot be an alias. Say another --alias "
                "and let the application use that name"
            )

    def _collection_of(self, source: str, aliases: dict[str, str]) -> str:
        """Once swapped, the alias points to the target: then what it was made from."""
        resolved = aliases.get(source, source)
        if resolved != self._target:
            return resolved
        came_from = Binding.of(self._store, self._target).migrated_from
        if came_from is None or source == self._target:
            raise ConfigurationError(f"source and target are both `{self._target}`")
        if not self._store.exists(came_from):
            raise ConfigurationError(
                f"alias `{source}` points to `{self._target}` already, and `{came_from}`, which "
                "it was made from, is gone"
            )
        return came_from

    # ---------------------------------------------------------------------------- dry run

    def estimate(self, dollars_per_second: float, sample: int = 256) -> Estimate:
        """Embeds a random sample of the source, and writes nothing."""
        query = models.SampleQuery(sample=models.Sample.RANDOM)
        points = self._store.ask(
            "query_points",
            collection_name=self._source,
            query=query,
            limit=sample,
            with_payload=True,
        ).points
        texts = [text for point in points if (text := self._text(point.payload or {})[0])]
        self._client.embed("fingerprint")  # the cold start is not what is measured
        began, tokens = time.monotonic(), 0
        if texts:
            found = self._client.embed(
                texts, sparse=True, colbert=self._schema.colbert, max_length=self._max_length
            )
            tokens = found.usage.total_tokens
        elapsed = time.monotonic() - began
        total = self._store.count(self._source)
        scale = total / max(1, len(points))
        return Estimate(
            points=total,
            sampled=len(points),
            without_text=round(scale * (len(points) - len(texts))),
            tokens=round(scale * tokens),
            seconds=scale * elapsed,
            dollars=scale * elapsed * dollars_per_second,
        )

    # -------------------------------------------------------------------------------- run

    def run(self) -> MigrationReport:
        """Copy, compare, swap. Killed or failed at any moment: run it again.

        Raises:
            MigrationError: the copy is not what its source is; says which ids. Nothing is swapped.
            FingerprintError: the target holds another model's vectors.
            BGEError: see `errors.py`.
        """
        began = time.monotonic()
        report = MigrationReport(source=self._source, target=self._target)
        binding = self._prepare()
        if self._alias and self._store.aliases().get(self._alias) == self._target:
            report.alias, report.points = self._alias, self._store.count(self._target)
            return report  # what has changed since the swap belongs to the target
        self._pass_until_nothing_is_new(binding, report)
        self._compare(binding, report)
        if self._alias:
            self._store.point_alias(self._alias, self._target)
            report.alias = self._alias
            report.late = list(self._differing())
        report.seconds = time.monotonic() - began
        return report

    def _prepare(self) -> Binding:
        binding = Binding.probe(
            self._client,
            colbert=self._schema.colbert,
            max_length=self._max_length,
            text_fields=self._fields,
            migrated_from=self._source,
        )
        there = self._schema.ensure(self._store, self._target, binding)
        there.check_options(
            self._target,
            colbert=binding.colbert,
            text_fields=binding.text_fields,
            max_length=binding.max_length,
        )
        if there.migrated_from != self._source:
            raise ConfigurationError(
                f"collection `{self._target}` was not made from `{self._source}` but from "
                f"{there.migrated_from or 'documents'}; name a new one"
            )
        indexed = self._store.info(self._target).payload_schema
        for name, index in self._indexed.items():  # filters must be as fast as before
            if name not in indexed:
                self._store.ask(
                    "create_payload_index",
                    collection_name=self._target,
                    field_name=name,
                    field_schema=index.params or index.data_type,
                    wait=True,
                )
        return binding

    def _pass_until_nothing_is_new(self, binding: Binding, report: MigrationReport) -> None:
        for _ in range(PASSES):
            before = report.written + report.deleted
            report.passes += 1
            report.unchanged, report.without_text = 0, {}
            self._write_what_differs(binding, report)
            self._delete_what_is_gone(report)
            if report.written + report.deleted == before:
                return
            log.info("pass %d: %d written", report.passes, report.written + report.deleted - before)
        raise MigrationError(
            f"`{self._source}` still changes after {PASSES} passes. Stop what writes to it for a "
            "moment and run the same command again"
        )

    def _write_what_differs(self, binding: Binding, report: MigrationReport) -> None:
        fill(
            self._store,
            self._client,
            self._target,
            binding,
            self._with_text(report),
            report,
            self._progress,
        )

    def _with_text(self, report: MigrationReport) -> Iterator[Document]:
        """The source's points as documents; those without text are copied on the way."""
        for records in self._store.scroll(self._source):
            bare = []
            for record in records:
                payload = record.payload or {}
                text, fault = self._text(payload)
                if text is not None:
                    yield Document(record.id, text, payload)
                else:
                    report.without_text[record.id] = fault
                    bare.append(models.PointStruct(id=record.id, vector={}, payload=payload))
            self._copy_bare(bare, report)

    def _text(self, payload: Payload) -> tuple[str | None, str]:
        """A usable text, or why there is none."""
        text = text_at(payload, self._fields)
        if text is None:
            return None, f"no text at `{'`, `'.join(self._fields)}`"
        fault = fault_of(text)
        return (None, fault) if fault else (text, "")

    def _copy_bare(self, points: list[models.PointStruct], report: MigrationReport) -> None:
        if not points:
            return
        there = self._store.payloads(self._target, [point.id for point in points])
        new = [p for p in points if not is_current(there.get(p.id), p.payload or {})]
        report.unchanged += len(points) - len(new)
        if new:
            self._store.upsert(self._target, new)
            report.written += len(new)
        self._progress(len(points))

    def _delete_what_is_gone(self, report: MigrationReport) -> None:
        for records in self._store.scroll(self._target, with_payload=False):
            ids = [record.id for record in records]
            there = self._store.ask(
                "retrieve", collection_name=self._source, ids=ids, with_payload=False
            )
            gone = list(set(ids) - {record.id for record in there})
            if gone:
                self._store.delete(self._target, gone)
                report.deleted += len(gone)

    # ---------------------------------------------------------------------------- compare

    def _compare(self, binding: Binding, report: MigrationReport) -> None:
        """Ids and payloads were compared by the last pass, which found nothing to do."""
        source, target = self._store.count(self._source), self._store.count(self._target)
        if source != target:
            differing = named(list(self._differing()))
            raise MigrationError(
                f"`{self._source}` has {source} points, `{self._target}` {target}"
                f"{differing}. Nothing was swapped; run the same command again"
            )
        report.points = target
        sample = self._sample(report)
        report.compared = len(sample)
        wrong = [
            document.id
            for document, cosine in similarities(
                self._store, self._client, self._target, binding, sample
            )
            if not cosine >= SAME
        ]
        if wrong:
            raise MigrationError(
                f"of {len(sample)} points of `{self._target}` whose vectors were computed again, "
                f"{len(wrong)} differ{named(wrong)}. Nothing was swapped; delete these points "
                "and run the same command again"
            )

    def _sample(self, report: MigrationReport) -> list[Document]:
        """At random, among those with text: one reservoir over the whole source."""
        kept: list[Document] = []
        for seen, document in enumerate(self._documents(), 1):
            if len(kept) < SAMPLE:
                kept.append(document)
            elif (place := random.randrange(seen)) < SAMPLE:
                kept[place] = document
        return kept

    def _documents(self) -> Iterator[Document]:
        for records in self._store.scroll(self._source):
            for record in records:
                text, _ = self._text(record.payload or {})
                if text is not None:
                    yield Document(record.id, text, record.payload or {})

    def _differing(self) -> Iterator[PointId]:
        """Points of the source that the target lacks, or has with another payload."""
        for records in self._store.scroll(self._source):
            there = self._store.payloads(self._target, [record.id for record in records])
            for record in records:
                if not is_current(there.get(record.id), record.payload or {}):
                    yield record.id


# ----------------------------------------------------------------------- after the swap


def roll_back(store: Store, alias: str) -> str:
    """Point the alias back to what its collection was made from; returns that.

    Raises:
        ConfigurationError: there is no such alias, or nothing to go back to.
    """
    collection, source = _swapped(store, alias)
    if not store.exists(source):
        raise ConfigurationError(f"`{source}`, which `{collection}` was made from, is gone")
    store.point_alias(alias, source)
    return source


def drop_old(store: Store, alias: str) -> str:
    """Delete what the alias' collection was made from; returns its name.

    Raises:
        ConfigurationError: there is no such alias, nothing to delete, or it is still in use.
    """
    collection, source = _swapped(store, alias)
    used = [name for name, target in store.aliases().items() if target == source]
    if used:
        raise ConfigurationError(f"`{source}` is still in use by alias `{'`, `'.join(used)}`")
    if not store.exists(source):
        raise ConfigurationError(f"`{source}`, which `{collection}` was made from, is gone already")
    store.ask("delete_collection", collection_name=source)
    return source


def _swapped(store: Store, alias: str) -> tuple[str, str]:
    """The collection an alias points to, and what that was made from."""
    collection = store.aliases().get(alias)
    if collection is None:
        raise ConfigurationError(f"there is no alias `{alias}`")
    try:
        source = Binding.of(store, collection).migrated_from
    except FingerprintError:  # rolled back already, or never swapped
        source = None
    if source is None:
        raise ConfigurationError(
            f"alias `{alias}` points to `{collection}`, which was not made by a migration"
        )
    return collection, source
