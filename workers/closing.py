"""Closure and obligations: what is known is read, the core closes it to the bills, and reports are laid out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from typing import Final

import polars as pl
from sqlalchemy import Connection

from metering.core import closure as core
from metering.core.closure import FORFEITED
from metering.core.costs import costs
from metering.core.exchange import rates
from metering.core.obligations import OBLIGATIONS, committed_since, forfeited, forfeits, obligations
from metering.delivery import columns
from metering.delivery.report import Column, Provenance, Report, instant, select
from metering.delivery.tables import money
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.usage import USAGE
from metering.money import ratio as exact_ratio
from metering.money import to_quanta
from metering.periods import Period
from metering.settings import Settings
from metering.store.rollups import read_served
from workers.reports import known, recorded

#: The parts of a closure, by what `--by` calls them.
PARTS: Final = ("term", "document", "capture", "missing")
#: What is said of more objects than these is a number.
_NAMED_MAX: Final = 5


def closure_report(
    connection: Connection,
    settings: Settings,
    period: Period,
    as_of: int | None = None,
    supplier: str | None = None,
) -> "ClosureReport":
    """Read usage and bills of the period up to its cut and close its costs to the bills.

    `connection` is one snapshot. BadInput for a supplier that neither catalog nor bills know.
    """
    provenance, books = known(connection, settings, period, as_of)
    if supplier is not None:
        _refuse_unknown(supplier, books)
    read = recorded(connection, books, provenance)
    cut = provenance.cut
    made = costs(
        read.usage,
        read.pool_usage,
        books,
        cut,
        pool_customer_usage=read.pool_customer_usage,
        complete_until=provenance.complete_until,
    )
    rated, unrated = core.rate_on_demand(read.usage.told(USAGE), books, core.billing_slices(books, cut))
    lost = FORFEITED.empty()
    if forfeits(books, cut):
        served = read_served(connection, committed_since(books, cut.until, 0), cut.until, as_of)
        lost = forfeited(served, books, cut)
    closed = core.closure(
        made.lines, made.supply.recognised, rated, unrated, books, cut, period, forfeited=lost
    )
    return ClosureReport(provenance, books, settings.reporting_currency, closed, supplier, made.lines)


def _refuse_unknown(supplier: str, books: Books) -> None:
    billing = (books.pools, books.bill_lines, books.supplier_commitments)
    suppliers = sorted(
        {*books.models["provider"], *(name for frame in billing for name in frame["supplier"])}
    )
    if supplier not in suppliers:
        raise BadInput(
            f"--supplier '{supplier}' is not known; the catalog and the bills name {', '.join(suppliers) or 'none'}"
        )


@dataclass(frozen=True)
class ClosureReport:
    """The closure of a period: every part of it is a report of its own. `supplier`: of that one alone.

    costs: results.COSTS of the same period, what the terms were summed from.
    """

    provenance: Provenance
    books: Books
    currency: str
    computed: core.Closure
    supplier: str | None
    costs: pl.DataFrame

    def by(self, part: str | None = None) -> Report:
        """The terms (default), the documents, what was captured, or what is missing."""
        if part is not None and part not in PARTS:
            raise BadInput(f"--by '{part}' is not a part of a closure; give one of {', '.join(PARTS)}")
        return {
            "term": self._terms,
            "document": self._documents,
            "capture": self._capture,
            "missing": self._missing,
        }[part or "term"]()

    def all(self) -> list[Report]:
        """What a reader at a terminal wants: the terms, and documents and capture rates where there are bills."""
        documents, capture = self.by("document"), self.by("capture")
        shown = [self.by()]
        if (documents.rows["what"] == "document").any():
            shown.append(replace(documents, notes=()))
        if capture.rows.height:
            shown.append(replace(capture, notes=()))
        return shown

    def _of(self, frame: pl.DataFrame) -> pl.DataFrame:
        return frame if self.supplier is None else frame.filter(pl.col("supplier") == self.supplier)

    def _report(
        self,
        name: str,
        title: str,
        catalogue: Sequence[Column],
        rows: pl.DataFrame,
        empty: str,
        notes: Sequence[str] = (),
        *,
        nulls: Mapping[str, str] | None = None,
    ) -> Report:
        declared = [column.name for column in catalogue]
        rows = rows.select(declared)
        return Report(
            name=name,
            title=title,
            columns=select(catalogue, declared),
            rows=rows,
            total=rows.clear(),
            provenance=self.provenance,
            notes=tuple(notes),
            empty=empty,
            null_texts=nulls or {},
        )

    @cached_property
    def _closed(self) -> pl.DataFrame:
        made = core.read_as(self.computed, self.books.exchange_rates, self.currency, self.provenance.period)
        return self._of(made)

    def _terms(self) -> Report:
        rows = self._closed
        laid_out = columns.in_currency(columns.CLOSURE, self.currency)
        if (rows["currency"] == self.currency).all():
            # nothing is translated: what would be said twice is in files alone
            laid_out = tuple(
                replace(column, rank=9) if column.name.endswith("_translated") else column
                for column in laid_out
            )
        return self._report(
            "closure",
            "Closure: cost by supplier, up to the bill",
            laid_out,
            rows,
            "no cost and no bill in the complete part of the period",
            [*self._unexplained(), *self._captured(), *self._estimates(), *self._rates(), *self._months()],
            nulls={"kind": "", "supplier": "(unknown)"},
        )

    def _documents(self) -> Report:
        return self._report(
            "closure_documents",
            "Documents: billed and recognised",
            columns.DOCUMENTS,
            self._of(self.computed.documents),
            "no document was posted in the period or is for its time",
            self._months(),
            nulls={"document": "", "posted_month": ""},
        )

    def _capture(self) -> Report:
        return self._report(
            "closure_capture",
            "On-demand usage as rated and as billed, by service span",
            columns.CAPTURE,
            self._of(self.computed.capture),
            "no bill for on-demand usage covers the complete part of the period",
            self._captured(),
        )

    def _missing(self) -> Report:
        return self._report(
            "closure_missing",
            "What is not billed, or has no cost",
            columns.MISSING,
            self._of(self.computed.missing),
            "everything is billed and has a cost",
            self._estimates(),
        )

    def _unexplained(self) -> list[str]:
        rows = self._closed.filter(pl.col("term") == "unexplained")
        return [
            f"{supplier or 'unknown supplier'}: {money(amount)} {currency} of the recognised cost is in no term: "
            "please report this"
            for supplier, currency, amount in rows.select("supplier", "currency", "usage").iter_rows()
        ]

    def _captured(self) -> list[str]:
        """Rated, billed, variance and capture rate of each supplier's on-demand usage."""
        rows = (
            self._of(self.computed.capture)
            .group_by("supplier", "currency")
            .agg(pl.col("rated", "billed", "variance").sum())
            .with_columns(
                exact_ratio(to_quanta(pl.col("rated")), to_quanta(pl.col("billed"))).alias("capture")
            )
            .sort("supplier", "currency")
        )
        return [
            f"{supplier}: on-demand usage rated {money(rated)}, billed {money(billed)} {currency}: "
            f"variance {money(variance)}, capture rate {'-' if share is None else f'{share * 100:.2f} %'}"
            for supplier, currency, rated, billed, variance, share in rows.iter_rows()
        ]

    def _estimates(self) -> list[str]:
        notes = []
        missing = self._of(self.computed.missing)
        for reason, says in _SAYS.items():
            rows = missing.filter(pl.col("reason") == reason)
            for (supplier,), of in sorted(rows.partition_by("supplier", as_dict=True).items(), key=str):
                notes.append(f"{supplier or 'unknown supplier'}: {says}: {_objects(of)}")
        return notes

    def _rates(self) -> list[str]:
        """The rates that amounts were translated at, by month, and the currencies that have none."""
        used = self._of(self.computed.terms).filter(pl.col("currency") != self.currency)
        if used.is_empty():
            return []
        found = rates(used.select("day", "currency"), self.books.exchange_rates, self.currency)
        months = (
            found.with_columns(pl.col("day").dt.truncate("1mo").alias("month"))
            .group_by("currency", "month", "month_average")
            .agg(pl.col("rate_estimated").any())
            .sort("currency", "month")
        )
        notes = []
        for currency, month, rate, estimated in months.iter_rows():
            if rate is None:
                notes.append(f"no rate of {currency} in {self.currency} for {_month(month)}: not translated")
            else:
                said = f"1 {currency} = {_plain(rate)} {self.currency} in {_month(month)}"
                notes.append(said + (", the last average before it (estimated)" if estimated else ""))
        return notes

    def _months(self) -> list[str]:
        if core.whole_months(self.provenance.period):
            return []
        return [
            "documents are posted to months: what was billed is compared only over whole months (--period 2026-10)"
        ]


_SAYS: Final = {
    "not_billed": "not billed yet, estimated",
    "other_currency": "billed in another currency than its cost book, not compared",
    "no_cost_book": "no cost book, so no cost",
    "no_cost": "no cost in its cost book",
}


def _objects(rows: pl.DataFrame) -> str:
    """pool-a 1,200.00 USD, model-b 300 output_tokens; and so many more."""
    told = []
    for row in rows.sort("object", "currency", "meter").iter_rows(named=True):
        amount = (
            f"{row['quantity']:,} {row['meter']}" if row["amount"] is None
            else f"{money(row['amount'])} {row['currency']}"
        )  # fmt: skip
        told.append(f"{row['object']} {amount}")
    more = len(told) - _NAMED_MAX
    return ", ".join(told[:_NAMED_MAX]) + (f" and {more} more: --by missing" if more > 0 else "")


def _month(first: date) -> str:
    return f"{first:%Y-%m}"


def _plain(quanta: int) -> str:
    whole, part = divmod(quanta, 10**12)
    return f"{whole}.{part:012}".rstrip("0").rstrip(".")


def obligations_report(
    connection: Connection,
    settings: Settings,
    period: Period,
    as_of: int | None = None,
    supplier: str | None = None,
) -> Report:
    """What is committed to suppliers as of the cut of the period: drawn, projected, short, still to be paid."""
    provenance, books = known(connection, settings, period, as_of)
    if supplier is not None:
        _refuse_unknown(supplier, books)
    until = provenance.cut.until
    since = committed_since(books, until, settings.run_rate_days)
    rows = OBLIGATIONS.empty()
    if provenance.cut.minutes:
        served = read_served(connection, since, until, as_of)
        rows = obligations(served, books, until, settings.run_rate_days)
    if supplier is not None:
        rows = rows.filter(pl.col("supplier") == supplier)
    declared = [column.name for column in columns.OBLIGATIONS]
    rows = rows.select(declared)
    return Report(
        name="obligations",
        title=f"Obligations to suppliers at {instant(until)}",
        columns=select(columns.OBLIGATIONS, declared),
        rows=rows,
        total=rows.clear(),
        provenance=provenance,
        notes=tuple(_warnings(rows, settings)),
        empty="nothing of the period is complete yet"
        if not provenance.cut.minutes
        else "nothing is committed to a supplier, and no pool was bought",
    )


def _warnings(rows: pl.DataFrame, settings: Settings) -> list[str]:
    notes = []
    short = rows.filter((pl.col("shortfall") > 0) & (pl.col("state") != "ended"))
    for row in short.iter_rows(named=True):
        cost = "" if row["shortfall_cost"] is None else f", which costs {money(row['shortfall_cost'])}"
        notes.append(
            f"{row['obligation']} until {instant(row['effective_until'])}: at the present rate "
            f"{money(row['shortfall'])} {row['measure']} short{cost}"
        )
    uncounted = rows.filter((pl.col("kind") != "pool") & pl.col("drawn").is_null())["obligation"]
    if not uncounted.is_empty():
        notes.append(
            f"{', '.join(sorted(set(uncounted)))}: committed in a unit that the ledger does not count"
        )
    if rows.filter(pl.col("run_rate_per_day").is_not_null()).height:
        notes.append(
            f"run rates are those of the last {settings.run_rate_days} days (METERING_RUN_RATE_DAYS), or of as many as "
            "have usage; capacity goes on by its contracts"
        )
    return notes
