"""Rerating: recorded usage under two catalogs, for a file of differences, and for a plan before it is applied."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

import polars as pl
from sqlalchemy import Connection

from metering.catalog import CatalogObjects, Plan, result
from metering.catalog import books as books_of
from metering.core import revenue
from metering.core.rerating import RERATED, by_customer, compared, differing, moved
from metering.delivery import columns
from metering.delivery.exports import WRITERS, save
from metering.delivery.report import Provenance, Report, as_total, instant, select
from metering.errors import BadInput
from metering.frames.books import Books
from metering.periods import Period, month_start
from metering.settings import Settings
from metering.store.books import latest_revision, read_books
from metering.store.rollups import first_usage_at
from workers.reports import known, margin_of

Progress = Callable[[str], None]
_FORMS: Final = ("csv", "parquet")


@dataclass(frozen=True)
class Rerated:
    """What a period's charges and costs are under `to_revision` and were under `from_revision`.

    lines: core.rerating.RERATED of the complete part of the period, where anything differs. customers: of all lines,
    by customer.
    """

    provenance: Provenance
    from_revision: int
    to_revision: int
    currency: str
    lines: pl.DataFrame
    customers: pl.DataFrame

    def report(self) -> Report:
        """Every line that differs; each row names both revisions."""
        rows = self.lines.with_columns(
            pl.lit(self.from_revision, dtype=pl.Int64).alias("from_revision"),
            pl.lit(self.to_revision, dtype=pl.Int64).alias("to_revision"),
        )
        return self._laid_out("rerate", rows)

    def by_customer(self) -> Report:
        """All that each customer with a difference comes to under both, the rest as one row, and the total."""
        rows = self.lines
        if rows.height:
            rows = moved(self.customers, self.lines)
            who = pl.coalesce("customer", pl.format("({})", pl.col("line").str.replace("_", " ")))
            rows = rows.with_columns(who.alias("customer")).drop("line")
        return self._laid_out("rerate", rows)

    def _laid_out(self, name: str, rows: pl.DataFrame) -> Report:
        declared = [column.name for column in columns.RERATED if column.name in rows.columns]
        rows = rows.select(declared)
        money = [column.name for column in columns.RERATED if column.kind == "money"]
        flags = ["charge_unrated", "cost_unrated"]
        total = rows.select(pl.col(money).sum(), pl.col(flags).any(), pl.lit(self.currency).alias("currency"))
        return Report(
            name=name,
            title=f"What changes from catalog revision {self.from_revision} to {self.to_revision}",
            columns=columns.in_currency(select(columns.RERATED, declared), self.currency),
            rows=rows,
            total=as_total(total, rows),
            provenance=self.provenance,
            empty="nothing changes: every charge and every cost of recorded usage stays as it is",
        )

    def save(self, folder: Path) -> list[Path]:
        """Write every line as CSV and Parquet; the names say the period and both revisions.

        The same lines give the same bytes. If the process dies in the middle, the first file may be new and the
        second old, each whole.
        """
        period = self.provenance.period.name.replace("..", "-to-").replace(":", "")
        name = f"rerate-{period}-revision-{self.from_revision}-to-{self.to_revision}"
        report = self.report()
        for form in _FORMS:
            save(folder / f"{name}.{form}", lambda path, form=form: WRITERS[form](report, path))  # type: ignore[misc]
        return [folder / f"{name}.{form}" for form in _FORMS]


def rerate(
    connection: Connection,
    settings: Settings,
    period: Period,
    from_revision: int | None,
    as_of: int | None = None,
    *,
    progress: Progress,
) -> Rerated:
    """Compare the catalog in force (as of a watermark, or live) with an earlier revision, None: the one before it.

    Bills are those known now on both sides: what differs is the catalog alone.
    """
    provenance, now = known(connection, settings, period, as_of)
    newest = provenance.catalog_revision
    chosen = newest - 1 if from_revision is None else from_revision
    if not 1 <= chosen < newest:
        there = (
            f"revisions 1 to {newest - 1} can be compared with it"
            if newest > 1
            else "there is none before it"
        )
        raise BadInput(f"--from-revision {chosen}: the catalog in force is revision {newest}; {there}")
    before = replace(read_books(connection, chosen), bill_lines=now.bill_lines)
    found = _compared(connection, settings, provenance, before, now, progress)
    return Rerated(provenance, chosen, newest, settings.reporting_currency, *found)


def impact(
    connection: Connection, settings: Settings, applied: CatalogObjects, made: Plan, *, progress: Progress
) -> Rerated | None:
    """What a plan would change of recorded usage, the same code as the reports; None: nothing of it is backdated.

    From the first instant that it affects, or from where the periods and counters of contracts that hold it begin,
    but not before the month of the first recorded usage, until the input is complete.
    """
    since = min(
        [
            *(change.affects_since for change in made.changes if change.affects_since is not None),
            *(instant for _, instant in made.side_effects),
        ],
        default=None,
    )
    if since is None:
        return None
    first = first_usage_at(connection)
    asked = Period("recorded usage", since, made.ends_at)
    provenance, before = known(connection, settings, asked, None)
    before = replace(read_books(connection, latest_revision(connection)), bill_lines=before.bill_lines)
    after = replace(books_of(result(applied, made), made.base_revision + 1), bill_lines=before.bill_lines)
    cut = provenance.cut
    found = RERATED.empty(), by_customer(RERATED.empty())
    if first is not None and cut.minutes:
        start = month_start(max(first, _reach(since, provenance, (before, after))).date())
        cut = Period(f"{instant(start)}..{instant(cut.until)}", start, max(start, cut.until))
        provenance = replace(provenance, period=cut, cut=cut)
        found = _compared(connection, settings, provenance, before, after, progress)
    return Rerated(
        provenance, made.base_revision, made.base_revision + 1, settings.reporting_currency, *found
    )


def _reach(since: datetime, provenance: Provenance, catalogs: tuple[Books, Books]) -> datetime:
    """Where periods, tranches and counters begin that touch what is affected: their lines may move too."""
    span = replace(provenance.cut, start=since)
    begins: list[datetime] = [
        begin
        for books in catalogs
        for begin in revenue.reach(books, span, provenance.complete_until)["effective_from"]
    ]
    return min([since, *begins])


def _compared(
    connection: Connection,
    settings: Settings,
    provenance: Provenance,
    before: Books,
    now: Books,
    progress: Progress,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The lines of the cut that differ, and all by customer, month by month: lines of months simply add up."""
    parts, customers = [RERATED.empty()], [by_customer(RERATED.empty())]
    months = list(provenance.cut.months())
    for number, month in enumerate(months, 1):
        progress(f"rating {month.start:%Y-%m} under both catalogs: month {number} of {len(months)}")
        part = replace(provenance, period=month, cut=month)
        now_lines, before_lines = (
            margin_of(connection, settings, books, part).lines for books in (now, before)
        )
        lines = compared(now_lines, before_lines)
        parts.append(differing(lines))
        customers.append(by_customer(lines))
    progress("")
    return RERATED.conform(pl.concat(parts)), pl.concat(customers)
