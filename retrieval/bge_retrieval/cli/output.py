"""Tables, verdicts and JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bge_client.cli import plain

from ..verdict import Verdict

FILE_WIDTH = 1_000  # wide enough for one line per row
NOT_PASSED = 7  # exit code


def print_json(report: Mapping[str, object]) -> None:
    """Print an object as one line of JSON."""
    click.echo(json.dumps(report, ensure_ascii=False, default=str))


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str]) -> None:
    """Print columns. Those named in `left` align left, the others right.

    A terminal wraps long cells and shows the head in bold. A file has one plain line per row.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in head:
        table.add_column(name, justify="left" if name in left else "right")
    for row in rows:
        # In a plain string, brackets would be markup.
        table.add_row(*(Text(plain(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)


def print_verdict(verdict: Verdict) -> None:
    click.echo(f"\n{verdict.outcome.upper()}: {verdict.sentence}")


def exit_unless_passed(verdicts: Iterable[Verdict]) -> None:
    """Exit with `NOT_PASSED` unless all verdicts are `pass`."""
    if any(verdict.outcome != "pass" for verdict in verdicts):
        click.get_current_context().exit(NOT_PASSED)
