"""Lists of what is kept, as the commands print them: a table on a terminal, tab-separated in a pipe, or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import typer

from metering.errors import BadInput

FORMATS: Final = ("auto", "table", "tsv", "json")
FormatOption: Final = typer.Option(
    "auto", "--format", metavar="|".join(FORMATS), help="auto: a table on a terminal, else tab-separated."
)


def show(rows: Sequence[Mapping[str, Any]], form: str, *, empty: str) -> None:
    """Print rows that have the same names; `empty` says on stderr that there is none."""
    if form not in FORMATS:
        raise BadInput(f"--format '{form}' is not one of {', '.join(FORMATS)}")
    if form == "json":
        typer.echo(json.dumps([_plain(row) for row in rows], ensure_ascii=False, indent=1))
    elif not rows:
        typer.echo(empty, err=True)
    elif form == "table" or (form == "auto" and sys.stdout.isatty()):
        _table(rows)
    else:
        typer.echo("\t".join(rows[0]))
        for row in rows:
            typer.echo("\t".join(as_text(value) for value in row.values()))


def show_one(facts: Mapping[str, Any], form: str) -> None:
    """Print one thing, a fact a line."""
    if form not in FORMATS:
        raise BadInput(f"--format '{form}' is not one of {', '.join(FORMATS)}")
    if form == "json":
        typer.echo(json.dumps(_plain(facts), ensure_ascii=False, indent=1))
        return
    wide = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:{wide}}  {as_text(value)}" if form != "tsv" else f"{name}\t{as_text(value)}")


def as_text(value: object) -> str:
    """A value on one line that any terminal can hold; nothing is an empty text."""
    from metering.delivery.tables import printable

    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%S.%fZ}"
    return printable(value.hex() if isinstance(value, bytes) else str(value))


def instant_option(text: str | None, option: str) -> datetime | None:
    """A day or an instant as an option gives it, UTC where it has no zone."""
    from datetime import UTC

    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(
            f"{option} '{text}': give a day or a time, such as 2026-11-21 or 2026-11-21T14:00Z"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _table(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption="times are UTC", caption_justify="left")
    for name, value in rows[0].items():
        table.add_column(
            name.replace("_", " "), justify="right" if isinstance(value, int | Decimal) else "left"
        )
    for row in rows:
        table.add_row(
            *(
                Text(f"{value:%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else as_text(value))
                for value in row.values()
            )
        )
    console = Console()
    Console(width=None if console.is_terminal else 200).print(table)


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        # an amount is a text: a number would be read as a float
        name: as_text(value) if isinstance(value, datetime | date | UUID | bytes | Decimal) else value
        for name, value in facts.items()
    }
