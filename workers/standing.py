"""Where customers stand: usage since their contracts need it is read, the core charges it, and reports are laid out."""

from typing import Final

import polars as pl
from sqlalchemy import Connection

from metering.core.costs import pools_by_customer
from metering.core.revenue import Charged, charged, reach, spans_of
from metering.core.shares import customer_shares
from metering.core.standing import BALANCES, CONTRACT_STANDING, balances, contract_standing
from metering.delivery import columns
from metering.delivery.report import Provenance, Report, as_total, counted, instant, select
from metering.delivery.tables import money
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.usage import USAGE
from metering.money import MONEY
from metering.periods import DAY, Period
from metering.results.capacity import CAPACITY_CUSTOMERS
from metering.settings import Settings
from metering.store.rollups import read_usage_of
from workers.reports import capacity_report, known

#: What stands in no total: they pay nothing, or not yet.
PAYING: Final = "paying"
_EMPTY: Final = "nothing of the period is complete yet"


def read_reached(connection: Connection, reached: pl.DataFrame, as_of: int | None) -> pl.DataFrame:
    """frames.USAGE of customers, each over its own span (core.revenue.REACH)."""
    spans = reached.group_by("effective_from", "effective_until").agg(pl.col("customer").sort())
    parts = [
        read_usage_of(connection, start, until, as_of, customers).told(USAGE)
        for start, until, customers in spans.sort("effective_from", "effective_until").iter_rows()
    ]
    return pl.concat([USAGE.empty(), *parts])


def contracts_report(
    connection: Connection,
    settings: Settings,
    period: Period,
    as_of: int | None = None,
    customer: str | None = None,
) -> Report:
    """What customers agreed to and how far it is fulfilled at the cut of the period.

    `connection` is one snapshot. BadInput for a customer that the catalog does not know.
    """
    provenance, books = known(connection, settings, period, as_of)
    _refuse_unknown(customer, books)
    cut = provenance.cut
    rows = CONTRACT_STANDING.empty()
    if cut.minutes:
        made = charged_of(connection, settings, books, provenance, None, everyone=False)
        used = _entitled(connection, settings, provenance, books, as_of)
        rows = contract_standing(made, used, books, cut.start, cut.until, settings.run_rate_days)
    if customer is not None:
        rows = rows.filter(pl.col("customer") == customer)
    declared = [column.name for column in columns.CONTRACTS]
    rows = rows.select(declared)
    promised = rows.filter(pl.col("committed").is_not_null())
    notes = _short(rows, settings)
    if 0 < promised.height < rows.height:
        others = counted(rows.height - promised.height, "contract")
        notes.append(f"{others} without a commitment or an entitlement not shown: --format csv has all")
    return Report(
        name="contracts",
        title=f"Contracts of customers at {instant(cut.until)}",
        columns=select(columns.CONTRACTS, declared),
        rows=rows,
        total=rows.clear(),
        provenance=provenance,
        notes=tuple(notes),
        empty=_EMPTY if not cut.minutes else "no contract is in force",
        shown=promised if promised.height else None,
        null_texts={"plan": "-", "name": "-", "paid": "-", "measure": "-"},
    )


def balances_report(
    connection: Connection,
    settings: Settings,
    period: Period,
    as_of: int | None = None,
    customer: str | None = None,
) -> Report:
    """What customers have left of what they committed to, prepaid or were granted, and what is not billed yet.

    As of the cut of the period. The total is of paying customers, in the reporting currency alone.
    """
    provenance, books = known(connection, settings, period, as_of)
    _refuse_unknown(customer, books)
    cut = provenance.cut
    rows = BALANCES.empty()
    if cut.minutes:
        made = charged_of(connection, settings, books, provenance, None, everyone=True)
        rows = balances(made, books, cut.until, settings.run_rate_days, settings.expiring_days)
    if customer is not None:
        rows = rows.filter(pl.col("customer") == customer)
    declared = [column.name for column in columns.BALANCES]
    rows = rows.select(declared)
    paying = rows.filter((pl.col("kind") == PAYING) & (pl.col("currency") == settings.reporting_currency))
    summed = [name for name, dtype in BALANCES.columns.items() if dtype == MONEY]
    total = paying.select(pl.lit(PAYING).alias("kind"), pl.lit(settings.reporting_currency).alias("currency"),
                          *(pl.col(name).sum() for name in summed)).head(1)  # fmt: skip
    return Report(
        name="balances",
        title=f"Balances of customers at {instant(cut.until)}",
        columns=select(columns.BALANCES, declared),
        rows=rows,
        total=as_total(total, rows),
        provenance=provenance,
        notes=tuple(_lost(rows, paying, settings)),
        empty=_EMPTY if not cut.minutes else "no contract is in force",
    )


def charged_of(
    connection: Connection,
    settings: Settings,
    books: Books,
    provenance: Provenance,
    customer: str | None,
    *,
    everyone: bool,
) -> Charged:
    """Charges up to the cut: of the period, and of the days that run rates are taken from. customer: None: of all."""
    cut = provenance.cut
    start = min(cut.start, cut.until - settings.run_rate_days * DAY)
    period = Period(cut.name, start, cut.until)
    spans = spans_of(books, period, cut.until, everyone=everyone)
    reached = reach(books, period, cut.until, everyone=everyone)
    if customer is not None:
        spans, reached = (rows.filter(pl.col("customer") == customer) for rows in (spans, reached))
    return charged(read_reached(connection, reached, provenance.watermark_id), books, spans)


def _entitled(
    connection: Connection, settings: Settings, provenance: Provenance, books: Books, as_of: int | None
) -> pl.DataFrame:
    """results.CAPACITY_CUSTOMERS of pools in which somebody is entitled to units."""
    pools = pools_by_customer(books)
    if not pools:
        return CAPACITY_CUSTOMERS.empty()
    used = capacity_report(connection, settings, provenance.period, as_of, by="customer")
    assert used.customer_usage is not None, "usage by customer was asked for"
    return customer_shares(used.customer_usage, used.books, used.computed)


def _refuse_unknown(customer: str | None, books: Books) -> None:
    names = books.customers["customer"].unique().sort().to_list()
    if customer is not None and customer not in names:
        there = f"there are {', '.join(names[:20])}" if names else "the catalog has none"
        raise BadInput(f"--customer '{customer}': no such customer; {there}")


def _short(rows: pl.DataFrame, settings: Settings) -> list[str]:
    notes = []
    short = rows.filter((pl.col("shortfall_projected") > 0) & (pl.col("state") == "open"))
    for row in short.iter_rows(named=True):
        fee = "" if row["shortfall_fee"] is None else f", which costs {money(row['shortfall_fee'])}"
        if row["paid"] == "ahead":
            fee = ", paid ahead and lost"
        notes.append(
            f"{row['customer']}, {row['name']} until {instant(row['effective_until'])}: at the present rate "
            f"{money(row['shortfall_projected'])} {row['measure']} short{fee}"
        )
    if rows.filter(pl.col("run_rate_per_day").is_not_null()).height:
        notes.append(
            f"run rates are those of the last {settings.run_rate_days} days (METERING_RUN_RATE_DAYS), or of as many as "
            "have usage"
        )
    return notes


def _lost(rows: pl.DataFrame, paying: pl.DataFrame, settings: Settings) -> list[str]:
    notes = []
    for row in rows.filter(pl.col("expiring") > 0).iter_rows(named=True):
        notes.append(
            f"{row['customer']}: {money(row['expiring'])} {row['currency']} expire within {settings.expiring_days} days, "
            f"the first at {instant(row['expires_at'])}; {money(row['expected_lost'])} of it will not be used at the "
            "present rate"
        )
    if paying.height < rows.height and paying.height:
        notes.append(
            f"the total is of paying customers in {settings.reporting_currency}: trial, free, internal and research "
            "customers, and other currencies, are in their own rows alone"
        )
    return notes
