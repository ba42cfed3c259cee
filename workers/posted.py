"""Margin by service or by posting: posted ties to the general ledger, service to economics."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Final

import polars as pl
from sqlalchemy import Connection

from metering.core.posting import posted
from metering.core.revenue import reach
from metering.core.summary import summarise
from metering.delivery.report import Column, Report
from metering.delivery.tables import money
from metering.errors import BadInput
from metering.periods import Period, month_start, next_month_start
from metering.results.margin import MARGIN_LINES
from metering.settings import Settings
from metering.store.periods import closes, learned, months_before
from workers.reports import PROJECT, MarginReport, chosen, known, margin_report

#: What a margin may be asked by beside its columns: when it was served, or when we learned of it.
SERVICE: Final = "service"
POSTED: Final = "posted"
_SERVICE_MONTH: Final = Column("service_month", "text", "service", "month", 0)
#: A floor is agreed for a customer's month of service, not for what is learned of it later.
_JUDGED: Final = ("floor_ratio", "floor_basis", "breach")
_SUMMED: Final = ("revenue", "cost", "margin")


def margin_by(
    connection: Connection, settings: Settings, period: Period, as_of: int | None, by: str | None
) -> Report:
    """The margin report by the words of `--by`, among which `posted` or `service` (the default) may stand."""
    words = [] if by is None else [word.strip() for word in by.split(",")]
    if SERVICE in words and POSTED in words:
        raise BadInput("--by names both service and posted; a report is by one of them")
    about = ",".join(word for word in words if word not in (SERVICE, POSTED)) or None
    if POSTED in words and PROJECT in words:
        raise BadInput("--by names both posted and project; projects are told by service: leave posted out")
    if POSTED in words:
        return read_posted(connection, settings, period, as_of).by(about)
    return margin_report(connection, settings, period, as_of, by=chosen(about)).by(about)


def read_posted(
    connection: Connection, settings: Settings, period: Period, as_of: int | None = None
) -> "PostedMargin":
    """What is posted to a calendar month: its own lines, and what was learned of earlier, closed months.

    A closed month stands as of the watermark at which it was closed, or as of `as_of` where that is earlier;
    an open one as of `as_of` (None: live). Months before the first that was closed were closed with it. Raises
    BadInput for a period that is no month.
    """
    month = period.start.date()
    if (period.start, period.until) != (month_start(month), next_month_start(month)):
        raise BadInput(f"posted is by calendar months; '{period.name}' is none: give --period 2026-10")
    closed = {one.month: one.watermark_id for one in closes(connection, as_of)}
    if closed:
        first = min(closed)
        for earlier in {*months_before(connection, first), *([month] if month < first else [])}:
            closed[earlier] = closed[first]
    at = closed.get(month, as_of)
    own = margin_report(connection, settings, period, at)
    before = closed.get((period.start - timedelta(days=1)).date().replace(day=1))
    late = []
    for earlier in sorted(one for one in closed if one < month):
        if (
            before is not None
            and before != at
            and _may_have_moved(connection, settings, span := _whole(earlier), before, at)
        ):
            now, then = (margin_report(connection, settings, span, w).computed.lines for w in (at, before))
            late.append((earlier, now, then))
    lines = posted(MARGIN_LINES, (month, own.computed.lines), late)
    service = own
    if month in closed and _may_have_moved(connection, settings, period, closed[month], as_of):
        service = margin_report(connection, settings, period, as_of)
    return PostedMargin(month, own, lines, service)


def _whole(month: date) -> Period:
    return Period(f"{month:%Y-%m}", month_start(month), next_month_start(month))


def _may_have_moved(
    connection: Connection, settings: Settings, month: Period, before: int, after: int | None
) -> bool:
    """Whether anything was learned between two points of knowledge that can move the lines of a month.

    Terms of contracts reach beyond it: what a counter or a commitment began with before, and what is spread over a
    contract's period, of which more is known as time passes, even without usage.
    """
    spans = []
    for at in (before, after):
        provenance, books = known(connection, settings, month, at)
        spans.append(reach(books, provenance.cut, provenance.complete_until))
    start = min([month.start, *spans[1]["effective_from"]])
    until = max([month.until, *spans[1]["effective_until"]])
    return not spans[0].equals(spans[1]) or learned(connection, start, until, before, after)


@dataclass(frozen=True)
class PostedMargin:
    """Lines posted to a month; `own`: of that month as it was closed, `service`: as it is known now."""

    month: date
    own: MarginReport
    lines: pl.DataFrame
    service: MarginReport

    def by(self, text: str | None = None) -> Report:
        """The posted margin by service month and the columns of `--by` (default customer)."""
        months = self.lines["service_month"].unique().sort().to_list()
        tables = {
            month: self._of(self.lines.filter(pl.col("service_month") == month), text) for month in months
        }
        whole = self._of(self.lines, text)
        kept = [column.name for column in whole.columns if column.name not in _JUDGED]
        rows = [
            table.rows.select(pl.lit(f"{month:%Y-%m}").alias("service_month"), *kept).with_columns(
                # of what was learned later the ratio says nothing: its revenue and its cost came apart
                pl.when(pl.lit(month == self.month)).then(pl.col("margin_ratio")).alias("margin_ratio")
            )
            for month, table in tables.items()
        ]
        empty = whole.rows.select(pl.lit("").alias("service_month"), *kept).clear()
        return replace(
            whole,
            title=f"Margin posted to {self.month:%Y-%m}, by service month and {', '.join(_about(whole))}",
            columns=(_SERVICE_MONTH, *(column for column in whole.columns if column.name not in _JUDGED)),
            rows=pl.concat([empty, *rows]),
            total=whole.total.select(pl.lit(None, dtype=pl.String).alias("service_month"), *kept),
            notes=(*self._differences(), *whole.notes),
            empty="nothing is posted to this month in its complete part",
            shown=None,
        )

    def _of(self, lines: pl.DataFrame, text: str | None) -> Report:
        """The margin table of some of the lines; over several months, of their sum."""
        computed = replace(self.own.computed, lines=lines.drop("service_month"))
        return replace(self.own, computed=computed).by(text)

    def _differences(self) -> list[str]:
        """Posted against service, a line for each month of service that differs."""
        notes = []
        for month in self.lines["service_month"].unique().sort().to_list():
            if month != self.month:
                of_month = self.lines.filter(pl.col("service_month") == month)
                notes.append(f"learned of {month:%Y-%m} and posted here: {self._told(of_month)}")
        if self.service is not self.own:
            changed = posted(
                MARGIN_LINES,
                (self.month, MARGIN_LINES.empty()),
                [(self.month, self.service.computed.lines, self.own.computed.lines)],
            )
            if changed.height:
                notes.append(
                    f"learned of {self.month:%Y-%m} after it was closed, posted later: {self._told(changed)}"
                )
        if notes:
            notes.append(f"{self.month:%Y-%m} by service: {self._told(self.service.computed.lines)}")
            notes.append(f"{self.month:%Y-%m} by posting: {self._told(self.lines)}")
        return notes

    def _told(self, lines: pl.DataFrame) -> str:
        sums = summarise(lines.select(list(MARGIN_LINES.columns)), [], self.own.books)
        amounts = sums.select(_SUMMED).row(0) if sums.height else (Decimal(0),) * len(_SUMMED)
        told = (f"{name} {money(amount)}" for name, amount in zip(_SUMMED, amounts, strict=True))
        return f"{', '.join(told)} {self.own.currency}"


def _about(report: Report) -> Sequence[str]:
    """What the report is by, from its title."""
    return report.title.removeprefix("Margin by ").split(", ")
