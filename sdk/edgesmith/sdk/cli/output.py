"""What commands print: tables and progress for people on stderr, one JSON object on stdout."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

console = Console(stderr=True, highlight=False)


def emit_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    click.echo(text.decode())


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Collection[str] = (),
    header: bool = True,
) -> None:
    """Print a table on stdout; numbers, and the columns named in ``right``, stand to the right.

    On a terminal long cells fold; in a pipe each row keeps to one line.
    """
    view = Table(box=None, pad_edge=False, show_header=header)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        view.add_column(column, justify="right" if numeric or column in right else "left", overflow="fold")
    for row in rows:
        view.add_row(*(f"{v:.3f}" if isinstance(v, float) else printable(str(v)) for v in row))
    if title:  # not the table's own: that one would fold it to the table's width
        click.secho(printable(title), bold=True)
    # Markup is off: a shape such as [1, 3] is text.
    width = None if sys.stdout.isatty() else 1000
    out = Console(highlight=False, markup=False, width=width)
    with out.capture() as captured:
        out.print(view)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def printable(text: str) -> str:
    """The text with control characters written out: what a file says cannot drive the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def progress(unit: str) -> Progress:
    """A progress display on stderr, with the rate in ``unit`` a second; silent where nobody looks."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} " + unit + "/s"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
