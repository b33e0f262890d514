"""Tables on stdout: the first column aligns left, the others right."""

from __future__ import annotations

from collections.abc import Sequence

import click

Row = Sequence[str]


def print_table(head: Row, rows: Sequence[Row]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        first, *others = row
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        click.echo("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())
