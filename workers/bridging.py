"""The bridge between two periods: both are read in one snapshot, the core says what moved, and it is laid out."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

import polars as pl
from sqlalchemy import Connection

from metering.core.bridge import Told, bridge
from metering.core.cells import cells
from metering.core.costs import usage_basis
from metering.core.exchange import rates
from metering.core.margin import margin
from metering.delivery import columns
from metering.delivery.report import Provenance, Report, choose_by, select
from metering.delivery.tables import money
from metering.errors import BadInput
from metering.frames.books import Books
from metering.periods import DAY, Period
from metering.settings import Settings
from workers.reports import known, recorded, unrated_notes

BRIDGE_BY: Final = ("term", "customer")
#: Bases of cost: usage, or loaded with the idle that customers carry.
BASES: Final = ("usage", "loaded")
_SUMS: Final = ("revenue", "cost", "margin")
#: What a term is called where people read it.
NAMES: Final = {
    "fee": "fees",
    "fx": "exchange rates",
    "top_up": "top-ups to minimums",
    "promotional_credit": "promotional credits",
}
_MOVERS: Final = 3
#: What the term of an end is called: this and its period.
_END: Final = "margin of "
#: What is less is 0.00 in a table.
_HALF_A_CENT: Final = Decimal("0.005")


@dataclass(frozen=True)
class _Read:
    provenance: Provenance
    told: Told
    unrated: pl.DataFrame


def bridge_report(
    connection: Connection,
    settings: Settings,
    old: Period,
    new: Period,
    as_of: int | None = None,
    *,
    by: str | None = None,
    segment: str | None = None,
    customer: str | None = None,
    basis: str = "usage",
) -> Report:
    """What moved the margin from one period to the other, of the company, a segment or a customer.

    `connection` is one snapshot; both periods are read as of one point of knowledge, with one catalog revision.
    A segment is those customers that are in it at the end of the new period (of the old, if they left before).
    """
    about = choose_by(by, BRIDGE_BY, ("term",), "bridge")
    if segment is not None and customer is not None:
        raise BadInput("--segment and --customer: give one of them, or none for the company")
    if basis not in BASES:
        raise BadInput(
            f"--basis '{basis}' is no basis of cost that a bridge can stand on; give {' or '.join(BASES)}"
        )
    currency = settings.reporting_currency
    loaded = basis == "loaded"
    was, books = _read(connection, settings, old, as_of, loaded=loaded)
    now, _ = _read(connection, settings, new, as_of, loaded=loaded)
    chosen = _chosen(books, was, now, segment, customer)
    parts = bridge(was.told, now.told, currency)
    ends = {name: each.told.totals for name, each in (("old", was), ("new", now))}
    if chosen is not None:
        parts = parts.filter(pl.col("customer").is_in(chosen))
        ends = {name: each.filter(pl.col("customer").is_in(chosen)) for name, each in ends.items()}
    whose = customer or (f"segment {segment}" if segment else "the company")
    rows = _by_customer(parts) if about == ("customer",) else _by_term(parts, ends, old.name, new.name)
    if about not in (("customer",), ("term",)):
        raise BadInput("--by: give term, or customer (each customer's terms)")
    rows = rows.with_columns(pl.lit(currency).alias("currency"))
    laid_out = columns.in_currency(select(columns.BRIDGE, rows.columns), currency)
    return Report(
        name="bridge",
        title=f"What moved the {'loaded margin' if loaded else 'margin'} of {whose} from {old.name} to {new.name}",
        columns=laid_out,
        rows=rows,
        total=rows.clear(),
        provenance=now.provenance,
        notes=tuple(_notes(parts, was, now, currency)),
        empty="neither period has usage, fees or capacity in its complete part",
        shown=_as_shown(rows),
    )


def _as_shown(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that a table shows: not those of which every amount is less than half a cent, but for the two ends."""
    something = pl.any_horizontal(pl.col(name).abs() >= _HALF_A_CENT for name in _SUMS)
    return rows.filter(something | pl.col("term").str.starts_with(_END))


def _read(
    connection: Connection, settings: Settings, period: Period, as_of: int | None, *, loaded: bool
) -> tuple[_Read, Books]:
    provenance, books = known(connection, settings, period, as_of)
    if not loaded:
        books = usage_basis(books)
    usage = recorded(connection, books, provenance)
    computed = margin(
        usage.usage,
        usage.pool_usage,
        books,
        provenance.cut,
        settings.reporting_currency,
        pool_customer_usage=usage.pool_customer_usage,
        terms_usage=usage.terms_usage,
        complete_until=provenance.complete_until,
    )
    cost = pl.col("cost_loaded" if loaded else "cost").sum().alias("cost")
    totals = computed.lines.group_by("customer").agg(pl.col("revenue").sum(), cost)
    found = cells(usage.usage, computed.supply, books, computed.earned, loaded=loaded)
    end = provenance.cut.until - DAY if provenance.cut.minutes else provenance.cut.start
    currencies = pl.concat([found.cells["currency"], found.on_cost["currency"]]).unique().to_list()
    at = _rates(books, currencies, end, settings.reporting_currency)
    return _Read(provenance, Told(found, totals, at), computed.unrated), books


def _rates(books: Books, currencies: list[str], end: datetime, into: str) -> dict[str, int]:
    asked = pl.DataFrame(
        {"day": [end.date()] * len(currencies), "currency": currencies},
        schema={"day": pl.Date, "currency": pl.String},
    )
    found = rates(asked, books.exchange_rates, into)
    return {
        row["currency"]: int(row["month_average"])
        for row in found.iter_rows(named=True)
        if row["month_average"] is not None
    }


def _chosen(
    books: Books, was: _Read, now: _Read, segment: str | None, customer: str | None
) -> list[str] | None:
    """The customers asked for; None: all of the company. BadInput names what there is."""
    both = pl.concat([was.told.totals, now.told.totals])["customer"].drop_nulls().unique().sort().to_list()
    if customer is not None:
        if customer not in both:
            raise BadInput(
                f"--customer '{customer}': has neither revenue nor cost in these periods; there are {_some(both)}"
            )
        return [customer]
    if segment is None:
        return None
    found: dict[str, str] = {}
    for one in (was, now):
        until = one.provenance.cut.until
        dated = books.customers.filter(pl.col("effective_from") < until).sort("effective_from")
        found |= dict(dated.select("customer", "segment").rows())
    segments = sorted({found[name] for name in both if name in found})
    if segment not in segments:
        raise BadInput(
            f"--segment '{segment}': no customer of these periods is in it; there are {_some(segments)}"
        )
    return [name for name in both if found.get(name) == segment]


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "none"


def _by_term(parts: pl.DataFrame, ends: dict[str, pl.DataFrame], old: str, new: str) -> pl.DataFrame:
    terms = parts.group_by("place", "term").agg(pl.col(_SUMS).sum()).sort("place")
    whole = {
        name: each.select(pl.col("revenue", "cost").sum()).with_columns(
            (pl.col("revenue") - pl.col("cost")).alias("margin")
        )
        for name, each in ends.items()
    }
    if not parts.height and not any(each.height for each in ends.values()):
        return terms.select("term", *_SUMS).clear()
    return pl.concat(
        [
            whole["old"].select(pl.lit(f"{_END}{old}").alias("term"), *_SUMS),
            terms.select(_named().alias("term"), *_SUMS),
            whole["new"].select(pl.lit(f"{_END}{new}").alias("term"), *_SUMS),
        ]
    )


def _by_customer(parts: pl.DataFrame) -> pl.DataFrame:
    return parts.sort("customer", "place", nulls_last=True).select("customer", _named().alias("term"), *_SUMS)


def _named() -> pl.Expr:
    return pl.col("term").replace(NAMES).str.replace_all("_", " ")


def _notes(parts: pl.DataFrame, was: _Read, now: _Read, currency: str) -> list[str]:
    notes = []
    movers = (
        parts.filter(pl.col("margin") != 0)
        .sort(pl.col("margin").abs(), "customer", "place", descending=[True, False, False], nulls_last=True)
        .head(_MOVERS)
    )
    if movers.height:
        told = [
            f"{_whose(row['customer'])}, {NAMES.get(row['term'], row['term']).replace('_', ' ')} "
            f"{_signed(row['margin'])}"
            for row in movers.iter_rows(named=True)
        ]
        change = Decimal(parts["margin"].sum())
        notes.append(f"margin moved by {_signed(change)} {currency}; what moved it most: {'; '.join(told)}")
    for each in (was, now):
        if not each.provenance.whole:
            notes.append(f"{each.provenance.period.name}: {each.provenance.extent()}")
        notes += [f"{each.provenance.period.name}: {note}" for note in unrated_notes(each.unrated)]
    asked = [each.provenance.cut.minutes for each in (was, now)]
    if asked[0] != asked[1]:
        days = [f"{minutes / 1440:.1f}" for minutes in asked]
        notes.append(
            f"{days[0]} days are compared with {days[1]}: volume, fees and utilization hold that difference too"
        )
    return notes


def _whose(customer: str | None) -> str:
    return customer if customer is not None else "capacity that nobody used"


def _signed(amount: Decimal) -> str:
    return f"{'+' if amount > 0 else ''}{money(amount)}"
