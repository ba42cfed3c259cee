"""The page for the person on call: one screen that says what is current, what is stuck, and what is open."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, TextIO
from uuid import UUID

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from metering.delivery.report import Column, duration, instant
from metering.delivery.tables import RIGHT, bar, cell, printable

State = Literal["good", "watch", "bad"]
_DOTS: dict[State, tuple[str, str]] = {
    "good": ("●", "green"),
    "watch": ("●", "yellow"),
    "bad": ("●", "bold red"),
}


#: Columns of a bar of use, and what a text that comes last has at least.
_BAR: Final = 10
_LAST_MIN: Final = 20


@dataclass(frozen=True)
class Fact:
    """One line of the page: what it is about, what it says, how it is, and its values for machines."""

    name: str
    says: str
    state: State
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A small table of the page. `bars`: columns with a bar of use; `bad`: columns that are red when not 0.

    On the page it has at most `rows_max` rows; in JSON all of them.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Mapping[str, Any]]
    empty: str
    bars: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    rows_max: int = 20


@dataclass(frozen=True)
class NowPage:
    """Everything on the page, read at one instant."""

    at: datetime
    database: str
    topic: str
    facts: tuple[Fact, ...]
    sections: tuple[Section, ...]


def ago(at: datetime, then: datetime) -> str:
    """How long ago, in words: `12 s ago`, `3 h 5 min ago`; `in 20 s` for what lies ahead."""
    span = at - then
    ahead = span < timedelta(0)
    span = abs(span)
    words = f"{int(span.total_seconds())} s" if span < timedelta(minutes=2) else duration(span)
    return f"in {words}" if ahead else f"{words} ago"


def seconds_instant(at: datetime) -> str:
    """An instant to the second, which is what a person on call reads."""
    return instant(at.replace(microsecond=0))


def render(page: NowPage, width: int) -> RenderableType:
    """The whole page as one renderable, for a screen of `width` columns."""
    head = Text.assemble(
        ("now ", "bold"),
        (seconds_instant(page.at), "bold"),
        (f"  ·  database {page.database}  ·  topic {page.topic}", "dim"),
    )
    facts = Table.grid(padding=(0, 1))
    facts.add_column(no_wrap=True)
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for fact in page.facts:
        dot, style = _DOTS[fact.state]
        facts.add_row(
            Text(dot, style=style),
            Text(fact.name, style="bold"),
            Text(printable(fact.says), style="red" if fact.state == "bad" else ""),
        )
    parts: list[RenderableType] = [head, facts]
    for section in page.sections:
        parts.append(Text(""))
        if section.rows:
            parts += [Text(section.title, style="bold"), _table(section, width)]
            if len(section.rows) > section.rows_max:
                parts.append(
                    Text(f"  and {len(section.rows) - section.rows_max} more: --format json", style="dim")
                )
        else:
            parts.append(Text.assemble((section.title, "bold"), (f"  {section.empty}", "dim")))
    return Group(*parts)


def _table(section: Section, width: int) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True, padding=(0, 1), show_edge=False)
    rows = section.rows[: section.rows_max]
    columns = list(section.columns)
    cells = {one.name: [_cell(section, one, row[one.name]) for row in rows] for one in columns}
    last = columns[-1]

    def taken(column: Column) -> int:
        wide = max(len(_heading(column)), *(text.cell_len for text in cells[column.name]))
        if column is last and column.kind == "text":
            wide = min(wide, _LAST_MIN)
        return wide + 2 + (_BAR + 2 if column.name in section.bars else 0)

    while sum(map(taken, columns)) - 2 > width and any(column.rank for column in columns):
        columns.remove(max(reversed(columns), key=lambda column: column.rank))
    # only what comes last may be cut at the edge of the screen
    left = width - sum(taken(column) for column in columns if column is not last)
    for text in cells[last.name]:
        text.truncate(max(left, 10), overflow="ellipsis")
    parts: list[list[Text]] = []
    for column in columns:
        right = column.kind in RIGHT
        table.add_column(
            _heading(column), justify="right" if right else "left", no_wrap=True, header_style="dim"
        )
        parts.append(cells[column.name])
        if column.name in section.bars:
            table.add_column("", no_wrap=True)
            parts.append(
                [Text("") if row[column.name] is None else bar(row[column.name], _BAR) for row in rows]
            )
    for line in zip(*parts, strict=True):
        table.add_row(*line)
    return table


def _heading(column: Column) -> str:
    return f"{column.heading} ({column.unit})" if column.unit else column.heading


def _cell(section: Section, column: Column, value: Any) -> Text:
    shown = Text(f"{value:%Y-%m-%dT%H:%M:%SZ}") if isinstance(value, datetime) else cell(column, value)
    if column.name in section.bad and value:
        shown.stylize("bold red")
    return shown


def show(page: NowPage, file: TextIO) -> None:
    """Print the page; where there is no terminal, wide enough for its lines."""
    console = Console(file=file)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(file=file, width=160)
    console.print(render(page, console.width), highlight=False)


def to_json(page: NowPage) -> str:
    """The page as one JSON object: instants ISO 8601 Z, decimals as strings."""
    facts = {fact.name.replace(" ", "_"): {"state": fact.state, **fact.values} for fact in page.facts}
    sections = {section.name: [dict(row) for row in section.rows] for section in page.sections}
    body = {
        "report": "now",
        "at": page.at,
        "database": page.database,
        "topic": page.topic,
        **facts,
        **sections,
    }
    return json.dumps(body, default=_plain, ensure_ascii=False, indent=1) + "\n"


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, date | Decimal | UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form here")
