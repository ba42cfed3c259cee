"""Tables for people at a terminal: units in headings, figures to the right, losses in red, bars of use."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final, TextIO

import polars as pl
from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from metering.delivery import pictures
from metering.delivery.report import Column, Report, instant

#: Kinds of columns that stand to the right.
RIGHT: Final = ("count", "quantity", "burn", "money", "ratio")
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
#: Columns of money in which a negative amount is a loss.
_LOSSES: Final = ("margin", "margin_ratio")
#: A table that is not on a terminal is as wide as its content, up to this (or to COLUMNS, where that is set).
_WIDTH_MAX: Final = 160
_PROBE_WIDTH: Final = 2_000
#: Rows that a table shows; nobody reads more, and the files have all of them.
_ROWS_MAX: Final = 1_000


def printable(text: str) -> str:
    """Text from outside, safe on a terminal: control characters become visible escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def quantity(number: int) -> str:
    """Thousands separators: 1,234,567."""
    return f"{number:,}"


def money(amount: Decimal) -> str:
    """To the minor unit, half-even, with thousands separators; less than half of it never looks like zero."""
    cents = amount.quantize(Decimal("0.01"), rounding=ROUND_HALF_EVEN)
    if cents == 0 and amount != 0:
        return "<0.01" if amount > 0 else ">-0.01"
    return f"{cents:,f}"


def ratio(share: Decimal | float) -> str:
    """A ratio as people read it: 0.6514 -> 65.1 %."""
    percent = (Decimal(str(share)) * 100).quantize(Decimal("0.1"), rounding=ROUND_HALF_EVEN)
    return f"{percent:,f} %"


def bar(share: Decimal | float, width: int = 10) -> Text:
    """A bar of use: full at 1; red at the limit, yellow from 0.85."""
    portion = min(max(float(share), 0.0), 1.0)
    eighths = round(portion * width * 8)
    drawn = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
    style = "red" if share >= 1 else "yellow" if float(share) >= 0.85 else "green"
    return Text(drawn.ljust(width, "░" if width else ""), style=style)


def cell(column: Column, value: Any) -> Text:
    """One value as text: null is a dash, a loss is red."""
    if value is None:
        return Text("-", style="dim")
    if column.kind == "text":
        return Text(printable(value))
    if column.kind == "flag":
        return Text("yes", style="bold red") if value else Text("no", style="dim")
    if column.kind == "instant":
        return Text(instant(value) if isinstance(value, datetime) else str(value))
    if column.kind == "day":
        return Text(str(value))
    shown = {"money": money, "ratio": ratio}.get(column.kind, _whole)(value)
    return Text(shown, style="red" if column.name in _LOSSES and value < 0 else "")


def _whole(number: int | Decimal) -> str:
    """Quantities and burn to the whole unit; a fraction below one keeps three places."""
    if isinstance(number, Decimal) and 0 < abs(number) < 1:
        return f"{number.quantize(Decimal('0.001'), rounding=ROUND_HALF_EVEN):f}"
    return quantity(int(Decimal(number).quantize(Decimal(1), rounding=ROUND_HALF_EVEN)))


def _heading(column: Column) -> Text:
    return (
        Text(column.heading, style="bold")
        if not column.unit
        else Text.assemble((column.heading, "bold"), "\n", (column.unit, "dim"))
    )


@dataclass(frozen=True)
class _Laid:
    """A column laid out: the cells of its rows and of the total row, bars beside them where it has any."""

    column: Column
    cells: list[Text]
    bars: list[Text] | None

    def widest(self) -> "_Laid":
        """The same column with its widest cell alone: a table of these is as wide as the whole one."""
        return _Laid(
            self.column,
            [max(self.cells, key=lambda text: text.cell_len)],
            None if self.bars is None else [max(self.bars, key=lambda text: text.cell_len)],
        )


def _lay(report: Report, column: Column, rows: pl.DataFrame, *, first: bool, with_bar: bool) -> _Laid:
    values = rows[column.name].to_list()
    instead = report.null_texts.get(column.name)
    if column.kind == "instant" and all(value is None or _is_midnight(value) for value in values):
        # a column of days is half as wide
        values = [None if value is None else value.date() for value in values]
    cells = [
        Text(instead, style="dim") if value is None and instead is not None else cell(column, value)
        for value in values
    ]
    for value in report.total[column.name]:
        values.append(value)
        cells.append(Text("total" if first else "") if value is None else cell(column, value))
    bars = [Text("") if value is None else bar(value) for value in values] if with_bar else None
    return _Laid(column, cells, bars)


def _is_midnight(at: Any) -> bool:
    return isinstance(at, datetime) and at.time() == time()


def _draw(laid: Sequence[_Laid], totals: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=None, show_footer=False, pad_edge=False, collapse_padding=True)
    parts: list[list[Text]] = []
    for one in laid:
        right = one.column.kind in RIGHT
        heading = _heading(one.column)
        table.add_column(heading, justify="right" if right else "left", no_wrap=True, vertical="bottom")
        parts.append(one.cells)
        if one.bars is not None:
            table.add_column("", no_wrap=True)
            parts.append(one.bars)
    lines = list(zip(*parts, strict=True))
    for number, line in enumerate(lines):
        if number == len(lines) - totals:
            table.add_section()
            table.add_row(*line, style="bold")
        else:
            table.add_row(*line)
    return table


@dataclass(frozen=True)
class Fitted:
    """A report as a table that fits: how wide it is, and how many columns had to be left out."""

    table: Table
    width: int
    left_out: tuple[str, ...]


def fit(report: Report, width: int | None, bars: Sequence[str] = ()) -> Fitted:
    """Lay out a report for `width` columns (None: no limit), leaving out what its columns rank as least.

    A figure is never cut: a column is shown whole or not at all.
    """
    rows = (report.rows if report.shown is None else report.shown).head(_ROWS_MAX)
    shown = [
        _lay(report, column, rows, first=position == 0, with_bar=column.name in bars)
        for position, column in enumerate(report.columns)
        if column.rank < 9 and not _nothing_in(column, report)
    ]
    probe = Console(width=_PROBE_WIDTH, no_color=True)
    left_out: set[str] = set()
    while True:
        needed = Measurement.get(probe, probe.options, _draw([one.widest() for one in shown], 0)).maximum
        droppable = [one for one in shown if one.column.rank]
        if width is None or needed <= width or not droppable:
            missing = tuple(column.name for column in report.columns if column.name in left_out)
            return Fitted(_draw(shown, report.total.height), needed, missing)
        # the last of the largest rank goes first
        worst = max(reversed(droppable), key=lambda one: one.column.rank)
        group = worst.column.group
        gone = [one for one in shown if one is worst or (group and one.column.group == group)]
        shown = [one for one in shown if one not in gone]
        left_out.update(one.column.name for one in gone)


def _nothing_in(column: Column, report: Report) -> bool:
    """A column that need not be shown, and has no value in any row; or no warning in any."""
    values = report.rows[column.name]
    if column.unit == "unrated":
        return not values.any()
    return column.rank > 0 and values.null_count() == values.len()


def render(report: Report, width: int | None, bars: Sequence[str] = ()) -> tuple[RenderableType, int]:
    """Title, table, caption and notes of a report, and the width that the table needs."""
    parts: list[RenderableType] = [
        Text(report.title, style="bold"),
        Text(report.provenance.caption(), style="dim"),
    ]
    needed = 0
    if report.rows.height:
        fitted = fit(report, width, bars)
        parts.append(fitted.table)
        needed = max(needed, fitted.width)
        if report.rows.height > _ROWS_MAX:
            more = report.rows.height - _ROWS_MAX
            parts.append(Text(f"and {more:,} more rows: --format csv has them all", style="dim"))
        if fitted.left_out:
            parts.append(
                Text(
                    f"{len(fitted.left_out)} more in files or on a wider terminal: {', '.join(fitted.left_out)}",
                    style="dim",
                )
            )
    else:
        parts.append(Text(f"({report.empty})"))
    for note in report.notes:
        parts.append(Text(printable(note), style="yellow"))
    return Group(*parts), needed


def show(report: Report, file: TextIO, bars: Sequence[str] = ()) -> None:
    """Print a report: within the width of a terminal, else as wide as it needs."""
    console = Console(file=file)
    if console.is_terminal:
        body, _ = render(report, console.width, bars)
    else:
        body, needed = render(report, console.width if "COLUMNS" in os.environ else _WIDTH_MAX, bars)
        console = Console(file=file, width=console.width if "COLUMNS" in os.environ else max(needed, 100))
    console.print(body, highlight=False)
    if report.rows.height:
        pictures.show(report.pictures, file)
