"""The finished report: one redacted JSON file, and the table of all of them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bge_client.redaction import redact

from ..errors import BuilderError
from .record import FORMAT, Record

COLUMNS = (
    *("date", "card", "ran", "golden values", "fp16 against fp32", "clients", "lone query, p50"),
    *("tokens/s", "cold start"),
)
NO_REPORT = "No field report yet: nothing here has run on RunPod or with the real weights."


def write_report(record: Record, folder: Path, dollars: float) -> str:
    """Write `<date>-<card>.json`, again into the file that this run has written before.

    Returns the name of the file in `folder`. Those of other runs stay.
    """
    date = time.strftime("%Y-%m-%d", time.gmtime(record.started))
    content = {
        "format": FORMAT,
        "date": date,
        "card": record.card,
        "subject": record.subject,
        "estimated_dollars": round(dollars, 2),
        "leases": [asdict(lease) for lease in record.leases],
        "results": record.results,
    }
    text = redact(json.dumps(content, ensure_ascii=False, indent=1))
    folder.mkdir(parents=True, exist_ok=True)
    name = record.report or free_name(folder, date, record.card)
    (folder / name).write_text(f"{text}\n", "utf-8")
    return name


def free_name(folder: Path, date: str, card: str) -> str:
    stem = f"{date}-" + re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    name, number = f"{stem}.json", 1
    while (folder / name).exists():
        number += 1
        name = f"{stem}-{number}.json"
    return name


def status_table(folder: Path) -> str:
    """Return a Markdown table with a row for each report, newest first, or `NO_REPORT`.

    Raises BuilderError: a file is not a report.
    """
    rows = [row(path) for path in sorted(folder.glob("*.json"), reverse=True)]
    if not rows:
        return NO_REPORT
    return "\n".join([f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|", *rows])


def row(path: Path) -> str:
    try:
        report = json.loads(path.read_text("utf-8"))
        results = report["results"]
        cells = [
            report["date"],
            str(report["card"]),
            ", ".join(dict.fromkeys(name.partition(":")[0] for name in results)),
            verdict(results, "golden values"),
            verdict(results, "parity"),
            verdict(results, "clients"),
            numbers(results, "lone query", "p50_ms", "ms"),
            numbers(results, "throughput", "tokens_per_second", ""),
            cold_starts(results),
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BuilderError(f"`{path}` is not a field report") from None
    return f"| {' | '.join(cells)} |"


def of_title(results: dict[str, Any], title: str) -> Iterator[dict[str, Any]]:
    for name, result in results.items():
        if name.partition(": ")[2] == title:
            yield result


def verdict(results: dict[str, Any], title: str) -> str:
    agree = [bool(result.get("agree")) for result in of_title(results, title)]
    return ("agree" if all(agree) else "**disagree**") if agree else "not run"


def numbers(results: dict[str, Any], title: str, field: str, unit: str) -> str:
    values = (result.get(field) for result in of_title(results, title))
    known = [f"{value:,} {unit}".strip() for value in values if value is not None]
    return ", ".join(known) or "not run"


def cold_starts(results: dict[str, Any]) -> str:
    """Return the range of cold starts with FlashBoot."""
    seconds = [
        start["seconds"]
        for result in of_title(results, "cold starts")
        for start in result.get("FLASHBOOT", [])
    ]
    return f"{min(seconds):.1f} to {max(seconds):.1f} s" if seconds else "not run"
