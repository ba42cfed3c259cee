"""Periods of contracts: months from an anchor day in a time zone, and the spans over which counters count."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo

import polars as pl

from metering.core.days import midnight
from metering.core.effective import in_force
from metering.frames.books import Books
from metering.frames.frame import INSTANT
from metering.money import MONEY

#: What holds of a contract that says nothing.
DEFAULTS: Final = {"anchor_day": 1, "zone": "UTC", "period_months": 1}
_SCHEDULE: Final = ("zone", "anchor_day", "period_months", "origin")


def period_edges(
    zone: str, anchor_day: int, months: int, origin: datetime, start: datetime, until: datetime
) -> list[datetime]:
    """When the periods that touch [start, until) begin, UTC, and when the last of them ends; [] of an empty span.

    A period begins at midnight of the zone on `anchor_day`, in a shorter month on its last day, and is `months`
    long, counted from the one that holds `origin`.
    """
    if until <= start:
        return []
    local = ZoneInfo(zone)
    first = _month_of(origin.astimezone(local).date(), anchor_day)
    turn = (_month_of(start.astimezone(local).date(), anchor_day) - first) // months
    edges: list[datetime] = []
    while not edges or edges[-1] < until:
        edges.append(midnight(anchored(first + turn * months, anchor_day), local))
        turn += 1
    return edges


def anchored(month: int, anchor_day: int) -> date:
    """The anchor day of a month (12 x year + month - 1), its last day where it has no such day."""
    year, place = divmod(month, 12)
    after = date(year + (place + 1) // 12, (place + 1) % 12 + 1, 1)
    last = (after - timedelta(days=1)).day
    return date(year, place + 1, min(anchor_day, last))


def _month_of(day: date, anchor_day: int) -> int:
    """The month whose anchored span holds the day."""
    month = 12 * day.year + day.month - 1
    return month if day >= anchored(month, anchor_day) else month - 1


def reset_edges(
    reset: str, terms: dict[str, object], origin: datetime, start: datetime, until: datetime
) -> list[datetime]:
    """As `period_edges`, for a counter: period (of the contract), day, month, year (of its zone), or never.

    terms: zone, anchor_day and period_months of the contract, which began at `origin`. never: one span, from
    the contract's beginning to `until`.
    """
    zone = str(terms["zone"])
    if until <= start:
        return []
    if reset == "never":
        return [min(origin, start), until]
    if reset == "day":
        return list(_days(ZoneInfo(zone), start, until))
    if reset == "period":
        months = int(str(terms["period_months"]))
        return period_edges(zone, int(str(terms["anchor_day"])), months, origin, start, until)
    january = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=1)
    return period_edges(zone, 1, {"month": 1, "year": 12}[reset], january, start, until)


def _days(zone: ZoneInfo, start: datetime, until: datetime) -> Iterator[datetime]:
    day = start.astimezone(zone).date()
    while (edge := midnight(day, zone)) < until:
        yield edge
        day += timedelta(days=1)
    yield edge


def terms_of_contracts(books: Books) -> pl.DataFrame:
    """frames.CONTRACT_TERMS of every contract: with what holds where nothing is said, and `origin`, its beginning.

    The currency of a contract without terms is that of its price book, null where that has no prices.
    """
    said = books.contract_terms.select(
        *("contract", "effective_from", "effective_until", "plan", "currency", "anchor_day", "zone"),
        *("period_months", "minimum", "maximum"),
    )
    paid_in = books.price_books.group_by(pl.col("book").alias("price_book")).agg(
        pl.col("currency").first().alias("_paid_in")
    )
    rows = books.contracts.rename({"effective_from": "_from", "effective_until": "_until"})
    rows = in_force(rows, said, at="_from", by=["contract"])
    return (
        rows.rename({"_from": "effective_from", "_until": "effective_until"})
        .join(paid_in, on="price_book", how="left", validate="m:1")
        .with_columns(
            pl.coalesce("currency", "_paid_in").alias("currency"),
            *(pl.col(name).fill_null(value) for name, value in DEFAULTS.items()),
            pl.col("effective_from").min().over("contract").alias("origin"),
        )
        .drop("_paid_in")
        .sort("contract", "effective_from")
    )


def contract_periods(books: Books, spans: pl.DataFrame, until: datetime) -> pl.DataFrame:
    """The periods of contracts as far as `spans` and the contracts cover them up to `until`.

    spans: contract, effective_from, effective_until. Rows: customer, contract, currency, zone, minimum, maximum
    (of a whole period), period_start, period_until, covered_from, covered_until; the covered parts do not
    overlap. Sorted by contract and covered_from.
    """
    at = pl.lit(until, dtype=INSTANT)
    wide = spans.select(
        "contract", pl.col("effective_from").alias("_since"), pl.col("effective_until").alias("_to")
    )
    rows = (
        terms_of_contracts(books)
        .join(wide, on="contract")
        .with_columns(
            pl.max_horizontal("effective_from", "_since").alias("covered_from"),
            pl.min_horizontal("effective_until", "_to", at).alias("covered_until"),
        )
        .filter(pl.col("covered_from") < pl.col("covered_until"))
    )
    schedules = rows.group_by(_SCHEDULE).agg(
        pl.col("covered_from").min().alias("start"), pl.col("covered_until").max().alias("until")
    )
    found = []
    for zone, anchor_day, months, origin, start, end in schedules.iter_rows():
        edges = period_edges(zone, anchor_day, months, origin, start, end)
        found += [(zone, anchor_day, months, origin, *pair) for pair in pairwise(edges)]
    schema = {name: rows.schema[name] for name in _SCHEDULE}
    known = pl.DataFrame(
        found, schema={**schema, "period_start": INSTANT, "period_until": INSTANT}, orient="row"
    )
    return (
        rows.join(known, on=list(_SCHEDULE))
        .with_columns(
            pl.max_horizontal("covered_from", "period_start").alias("covered_from"),
            pl.min_horizontal("covered_until", "period_until").alias("covered_until"),
        )
        .filter(pl.col("covered_from") < pl.col("covered_until"))
        .select(
            *("customer", "contract", "currency", "zone"),
            *(pl.col(name).cast(MONEY) for name in ("minimum", "maximum")),
            *("period_start", "period_until", "covered_from", "covered_until"),
        )
        .sort("contract", "covered_from")
    )
