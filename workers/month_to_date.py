"""Month to date: the margin lines of a month that goes on, of which only the days that changed are computed anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import cached_property

import polars as pl
from sqlalchemy import Connection

from metering.core.costs import pools_by_burn, usage_basis
from metering.core.revenue import Earned, earned, reach
from metering.core.summary import summarise
from metering.delivery.report import Provenance
from metering.frames.books import Books
from metering.periods import DAY, Period, floor_to_quarter
from metering.results.margin import MARGIN_LINES
from metering.settings import Settings
from metering.store.rollups import Marks, read_marks
from workers.reports import known, margin_of, usage_of_terms


@dataclass(frozen=True)
class MonthMargin:
    """The margin lines of a month up to its cut, on the basis that floors ask for, in parts.

    anew: the runs of days that were computed for it; the others were remembered.
    """

    provenance: Provenance
    books: Books
    currency: str
    parts: Sequence[pl.DataFrame]
    anew: Sequence[Period]

    def lines(self) -> pl.DataFrame:
        """results.MARGIN_LINES."""
        return MARGIN_LINES.end_to_end(self.parts)

    @cached_property
    def summary(self) -> pl.DataFrame:
        """One row per customer (null: idle capacity), with floor and breach: results.margin_frame."""
        return summarise(self.lines(), ["customer"], self.books, self.provenance.cut.until)


@dataclass(frozen=True)
class _Day:
    """The lines of a day up to `until`, and what they stand on: its rollups, and what terms made of it."""

    until: datetime
    marks: Marks
    of_terms: pl.DataFrame
    unpriced: pl.DataFrame
    lines: pl.DataFrame

    def same(self, other: "_Day") -> bool:
        return (
            (self.until, self.marks) == (other.until, other.marks)
            and self.of_terms.equals(other.of_terms)
            and self.unpriced.equals(other.unpriced)
        )


@dataclass(frozen=True)
class _Month:
    """A month as it was computed last: known up to then, what usage it stands on, and its days."""

    known_until: datetime
    reached: Period
    marks: Marks
    days: Mapping[datetime, _Day]
    margin: MonthMargin


class MonthToDate:
    """The lines of the months that are judged, in memory: `margin` computes only those of days that changed.

    margin(month) = the sum of margin(day), exactly, given the same complete_until. While neither the cut nor a
    quarter hour of rollups up to it moved (rollups.read_marks), nor the catalog, posted bills or the reporting
    currency, a month is what it was. Else what contracts under terms earned is computed over the month, and a day
    is taken from memory when its quarter hours and what terms made of it are as they were. A month in which a
    pool's idle goes by burn (asked for by a loaded floor alone), or as of a watermark, is computed whole. Nothing
    is kept over a restart.
    """

    def __init__(self) -> None:
        self._revision: tuple[int, str] | None = None
        self._bill_lines = pl.DataFrame()
        self._months: dict[datetime, _Month] = {}

    def margin(
        self, connection: Connection, settings: Settings, period: Period, as_of: int | None
    ) -> MonthMargin:
        """The margin of a month up to its cut.

        `connection` is one snapshot; as_of None: live, the open interval included.
        """
        provenance, books = known(connection, settings, period, as_of)
        # what moves cost between customers is left out where no margin floor asks for it: sooner done
        if not (books.contracts["floor_basis"] == "loaded").any():
            books = usage_basis(books)
        currency = settings.reporting_currency
        if as_of is not None or pools_by_burn(books):
            whole = margin_of(connection, settings, books, provenance).lines
            return MonthMargin(provenance, books, currency, [whole], [provenance.cut])
        revision = (provenance.catalog_revision, currency)
        if revision != self._revision or not books.bill_lines.equals(self._bill_lines):
            self._revision, self._bill_lines, self._months = revision, books.bill_lines, {}
        month = self._month(connection, settings, books, provenance)
        self._months[period.start] = month
        return month.margin

    def forget(self, before: datetime) -> None:
        """Let go of the months before: nobody judges them any more."""
        self._months = {start: month for start, month in self._months.items() if start >= before}

    def _month(
        self, connection: Connection, settings: Settings, books: Books, provenance: Provenance
    ) -> _Month:
        cut = provenance.cut
        until = floor_to_quarter(provenance.complete_until or cut.until)
        last = self._months.get(provenance.period.start)
        if last is not None and (last.margin.provenance.cut, last.known_until) == (cut, until):
            marks = read_marks(connection, last.reached.start, last.reached.until)
            if marks == last.marks:
                return replace(last, margin=replace(last.margin, provenance=provenance, anew=()))
        reached = _reached(books, provenance)
        marks = read_marks(connection, reached.start, reached.until)
        usage = usage_of_terms(connection, books, provenance)
        made = earned(usage, books, cut, provenance.complete_until or cut.until)
        stands = _stands(cut, marks, made)
        kept = {} if last is None else last.days
        moved = [day for day in cut.runs(DAY) if not _stands_still(kept.get(day.start), stands[day.start])]
        found: dict[datetime, pl.DataFrame] = {}
        anew = _joined(moved)
        for run in anew:
            lines = margin_of(connection, settings, books, replace(provenance, cut=run), of_terms=made).lines
            by_day = {key[0]: rows for key, rows in lines.partition_by("day", as_dict=True).items()}
            for day in run.runs(DAY):
                found[day.start] = by_day.get(day.start.date(), MARGIN_LINES.empty())
        days = {
            start: replace(stand, lines=found[start]) if start in found else kept[start]
            for start, stand in stands.items()
        }
        parts = [day.lines for day in days.values()]
        margin = MonthMargin(provenance, books, settings.reporting_currency, parts, anew)
        return _Month(until, reached, marks, days, margin)


def _reached(books: Books, provenance: Provenance) -> Period:
    """The time whose usage decides the lines of a cut: the cut, and what counters and periods of terms reach into."""
    cut = provenance.cut
    needed = reach(books, cut, provenance.complete_until)
    if needed.is_empty():
        return cut
    start, until = needed.select(pl.col("effective_from").min(), pl.col("effective_until").max()).row(0)
    return Period(cut.name, min(start, cut.start), max(until, cut.until))


def _stands(cut: Period, marks: Marks, made: Earned) -> dict[datetime, _Day]:
    """What each day of the cut stands on, in order; its lines are still to come."""
    # numbers of series are of one computation alone
    named, unpriced = (
        _by_date(rows.join(made.series, on="series_id", how="left", suffix="_of_series").drop("series_id"))
        for rows in (made.lines, made.unrated)
    )
    nothing = pl.DataFrame()
    return {
        day.start: _Day(
            day.until,
            marks.within(day.start, day.until),
            named.get(day.start.date(), nothing),
            unpriced.get(day.start.date(), nothing),
            nothing,
        )
        for day in cut.runs(DAY)
    }


def _stands_still(before: _Day | None, now: _Day) -> bool:
    return before is not None and before.same(now)


def _joined(days: Sequence[Period]) -> list[Period]:
    """Days in order, those that follow each other as one."""
    runs: list[Period] = []
    for day in days:
        if runs and runs[-1].until == day.start:
            runs[-1] = replace(runs[-1], until=day.until)
        else:
            runs.append(day)
    return runs


def _by_date(rows: pl.DataFrame) -> dict[date, pl.DataFrame]:
    """Rows (quarter_start, ...) of each UTC day, in one order."""
    found = rows.sort(pl.all(), nulls_last=False).with_columns(
        pl.col("quarter_start").dt.date().alias("_day")
    )
    return {
        key[0]: group
        for key, group in found.partition_by("_day", as_dict=True).items()
        if isinstance(key[0], date)
    }
