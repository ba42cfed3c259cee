"""Recognition: what of a supplier's fees and bills belongs to each quarter hour, by the contract's schedule."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from math import gcd, lcm
from typing import Any, Final

import polars as pl

from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM
from metering.money import AMOUNT_MAX, decimal_to_quanta, refuse_beyond
from metering.periods import QUARTER, Period, month_start, next_month_start
from metering.results.costs import RECOGNISED

Row = dict[str, Any]

_ONE: Final = 10**12
_DAY: Final = 96
#: Quarter hours into which months of every length divide.
_EVERY_MONTH: Final = lcm(28, 29, 30, 31) * _DAY
_PER_UNIT: Final = {"unit_hour": 4, "unit_day": _DAY, "unit_month": _EVERY_MONTH}
#: Products must stay within Int128.
_PRODUCT_MAX: Final = 2**126


@dataclass(frozen=True)
class _Piece:
    """A span in which an amount accrues evenly: E(t) = floor(amount x (begun + pace x (t - start)) / whole).

    amount in quanta, t and start in quarter hours. No dimension: each quarter hour is split over them.
    """

    pool: str
    dimension: str | None
    currency: str
    amount: int
    start: datetime
    until: datetime
    begun: int
    pace: int
    whole: int


def recognised(books: Books, period: Period) -> pl.DataFrame:
    """Recognised cost of the pools per pool, dimension, quarter hour of the period and currency: RECOGNISED.

    Always the floor of what has accrued so far, E: a quarter hour gets E(end) - E(start), so any partition of
    time adds up exactly. Of a fee with span [a, b), amount A:

        month               as billed: E(t) = floor(A x elapsed / the month), in each calendar month
        span                as billed: evenly over [a, the earlier of b and the end of a's month)
        unit_hour, _day, _month
                            A x unit-time / (an hour | a day | the month), with the units in force, always
        straight_line_days  month and span fees: T x elapsed / (b - a), T being all of them over [a, b)
        capacity_hours      month and span fees: T x unit-time so far / unit-time of [a, b), by dimension;
                            a dimension without units: straight line

    A fee without an end is as billed. What is not of one dimension is split over the pool's by cumulated
    fee_share_ratio: the amount of a fee per unit and of capacity_hours, else each quarter hour's.

    A credit or true-up is spread evenly over its service span. So is what a charge differs from what the
    contract bills in the quarter hours of its service span that no charge of the same pool and currency
    before it covers (before: service_from, supplier, document, line); a fee for a span is billed in its first
    quarter hour. Where billing equals the contract nothing changes. `estimated`: no charge in that currency covers
    the quarter hour. A negative cost is a credit larger than its quarter hour.
    """
    _refuse_out_of_range(books)
    shares = _shares(books)
    steps = _steps(books)
    pieces: list[_Piece] = []
    schedules = dict(books.pools.select("pool", "recognition").iter_rows())
    fees = books.capacity_fees.to_dicts()
    for fee in fees:
        schedule = schedules.get(fee["pool"], "as_billed")
        pieces += _scheduled(fee, schedule, shares, steps, period.until)
    covered: list[Row] = []
    for pool, currency, lines in _billed(books):
        own = [fee for fee in fees if (fee["pool"], fee["currency"]) == (pool, currency)]
        taken: list[tuple[datetime, datetime]] = []
        for line in lines:
            amount = decimal_to_quanta(line["amount"])
            span = (line["service_from"], line["service_until"])
            if line["category"] == "charge":
                # lines come in order of their starts: what is covered of this one is its beginning
                start = max(span[0], taken[-1][1]) if taken else span[0]
                if start < span[1]:
                    taken.append((start, span[1]))
                    amount -= sum(_due(fee, shares, steps, start, span[1]) for fee in own)
            pieces.append(_Piece(pool, None, currency, amount, *span, 0, 1, _quarters(*span)))
        covered += [
            {"pool": pool, "currency": currency, "_start": start, "_until": until} for start, until in taken
        ]
    return _by_quarter(pieces, covered, shares, period)


def _refuse_out_of_range(books: Books) -> None:
    fees = refuse_beyond(books.capacity_fees, "amount", AMOUNT_MAX, "correct the capacity contract")
    refuse_beyond(books.bill_lines, "amount", AMOUNT_MAX, "correct the bill")
    odd = fees.filter(pl.col("amount") < 0)
    if odd.height:
        raise BadInput(
            f"amount is negative in the fee {odd.row(0, named=True)}; correct the capacity contract"
        )
    odd = books.capacity_steps.filter(~pl.col("fee_share_ratio").is_between(0, 1))
    if odd.height:
        raise BadInput(f"fee_share_ratio is out of range in {odd.row(0, named=True)}; correct it")


def _shares(books: Books) -> dict[str, list[tuple[str | None, int, int]]]:
    """Per pool its dimensions in order, each with its part [lower, upper) of 10**12."""
    rows = books.capacity_steps.sort("effective_from").unique(["pool", "dimension"], keep="first")
    shares: dict[str, list[tuple[str | None, int, int]]] = {}
    for pool, dimension, ratio in (
        rows.sort("pool", "dimension").select("pool", "dimension", "fee_share_ratio").iter_rows()
    ):
        before = shares.setdefault(pool, [])
        lower = before[-1][2] if before else 0
        before.append((dimension, lower, lower + decimal_to_quanta(ratio)))
    for pool in {*books.capacity_fees["pool"], *books.bill_lines["object"].drop_nulls()} - shares.keys():
        shares[pool] = [("all", 0, _ONE)]
    return shares


def _steps(books: Books) -> dict[tuple[str, str | None], list[Row]]:
    steps: dict[tuple[str, str | None], list[Row]] = {}
    for step in books.capacity_steps.sort("effective_from").iter_rows(named=True):
        steps.setdefault((step["pool"], step["dimension"]), []).append(step)
    return steps


def _billed(books: Books) -> Iterator[tuple[str, str, list[Row]]]:
    lines = books.bill_lines.filter((pl.col("object_kind") == "pool") & pl.col("object").is_not_null())
    lines = lines.sort("object", "currency", "service_from", "supplier", "document", "line")
    for (pool, currency), rows in lines.group_by("object", "currency", maintain_order=True):
        yield str(pool), str(currency), rows.to_dicts()


def _quarters(start: datetime, until: datetime) -> int:
    return (until - start) // QUARTER


def _months(start: datetime, until: datetime) -> Iterator[tuple[datetime, datetime, datetime, int]]:
    """The calendar months of a span: from, until (within the span), month's start, its quarter hours."""
    while start < until:
        month, after = month_start(start.date()), next_month_start(start.date())
        yield start, min(after, until), month, _quarters(month, after)
        start = after


def _scheduled(
    fee: Row,
    schedule: str,
    shares: dict[str, list[tuple[str | None, int, int]]],
    steps: dict[tuple[str, str | None], list[Row]],
    until: datetime,
) -> Iterator[_Piece]:
    """The pieces of a fee up to `until` at least, by the schedule."""
    about = (fee["pool"], fee["dimension"], fee["currency"])
    amount = decimal_to_quanta(fee["amount"])
    start, end = fee["effective_from"], fee["effective_until"]
    if fee["per"] in _PER_UNIT:
        for dimension, part in _parts(fee, amount, shares):
            for a, b, begun, pace in _unit_time(fee, steps.get((fee["pool"], dimension), []), end or until):
                yield _Piece(
                    fee["pool"], dimension, fee["currency"], part, a, b, begun, pace, _PER_UNIT[fee["per"]]
                )
    elif end is None or schedule == "as_billed":
        if fee["per"] == "span":
            end = min(end, next_month_start(start.date()))
            yield _Piece(*about, amount, start, end, 0, 1, _quarters(start, end))
        else:
            for a, b, month, whole in _months(start, end or until):
                yield _Piece(*about, amount, a, b, _quarters(month, a), 1, whole)
    else:
        total = amount if fee["per"] == "span" else _monthly(amount, start, end)
        if schedule == "straight_line_days":
            yield _Piece(*about, total, start, end, 0, 1, _quarters(start, end))
            return
        for dimension, part in _parts(fee, total, shares):
            pieces = list(
                _unit_time({**fee, "per": "unit_hour"}, steps.get((fee["pool"], dimension), []), end)
            )
            whole = sum(pace * _quarters(a, b) for a, b, _, pace in pieces)
            if whole:
                for a, b, begun, pace in pieces:
                    yield _Piece(fee["pool"], dimension, fee["currency"], part, a, b, begun, pace, whole)
            else:
                yield _Piece(
                    fee["pool"], dimension, fee["currency"], part, start, end, 0, 1, _quarters(start, end)
                )


def _parts(
    fee: Row, amount: int, shares: dict[str, list[tuple[str | None, int, int]]]
) -> Iterator[tuple[str | None, int]]:
    """The amount by dimension: of the fee's own, or of all by share."""
    if fee["dimension"] is not None:
        yield fee["dimension"], amount
    else:
        for dimension, lower, upper in shares[fee["pool"]]:
            yield dimension, amount * upper // _ONE - amount * lower // _ONE


def _unit_time(fee: Row, steps: list[Row], end: datetime) -> Iterator[tuple[datetime, datetime, int, int]]:
    """Spans of one pace from the fee's start on: from, until, unit-time before, unit-time per quarter hour.

    Unit-time is units x quarter hours; of a fee per unit and month x (every month / this month).
    """
    begun = 0
    for step in steps:
        start = max(fee["effective_from"], step["effective_from"])
        until = min(end, step["effective_until"] or end)
        for a, b, _, month in (
            _months(start, until) if fee["per"] == "unit_month" else ((start, until, start, 0),)
        ):
            if a < b:
                pace = step["units"] * (_EVERY_MONTH // month if month else 1)
                yield a, b, begun, pace
                begun += pace * _quarters(a, b)


def _monthly(amount: int, start: datetime, until: datetime) -> int:
    """What a monthly amount bills in a span, in quanta."""
    return sum(
        amount * _quarters(month, b) // whole - amount * _quarters(month, a) // whole
        for a, b, month, whole in _months(start, until)
    )


def _due(
    fee: Row,
    shares: dict[str, list[tuple[str | None, int, int]]],
    steps: dict[tuple[str, str | None], list[Row]],
    start: datetime,
    until: datetime,
) -> int:
    """What the contract bills for a fee in [start, until), in quanta."""
    first, last = fee["effective_from"], fee["effective_until"] or until
    a, b = max(first, start), min(last, until)
    amount = decimal_to_quanta(fee["amount"])
    if a >= b:
        return 0
    if fee["per"] == "span":
        return amount if first >= start else 0
    if fee["per"] == "month":
        return _monthly(amount, a, b)
    due = 0
    for piece in _scheduled(fee, "as_billed", shares, steps, until):
        low, high = max(piece.start, a), min(piece.until, b)
        if low < high:
            due += _accrued(piece, high) - _accrued(piece, low)
    return due


def _accrued(piece: _Piece, at: datetime) -> int:
    return piece.amount * (piece.begun + piece.pace * _quarters(piece.start, at)) // piece.whole


def _by_quarter(
    pieces: list[_Piece],
    covered: list[Row],
    shares: dict[str, list[tuple[str | None, int, int]]],
    period: Period,
) -> pl.DataFrame:
    rows = []
    for piece in pieces:
        start, until = max(piece.start, period.start), min(piece.until, period.until)
        if start >= until:
            continue
        begun = piece.begun + piece.pace * _quarters(piece.start, start)
        pace, whole = piece.pace, piece.whole
        common = gcd(begun, pace, whole)
        begun, pace, whole = begun // common, pace // common, whole // common
        if abs(piece.amount) * (begun + pace * _quarters(start, until)) >= _PRODUCT_MAX:
            raise BadInput(
                f"the cost of pool '{piece.pool}' from {start} cannot be recognised exactly: "
                f"{Decimal(piece.amount).scaleb(-12)} {piece.currency} over that many units; use a larger unit"
            )
        for dimension, lower, upper in (
            shares[piece.pool] if piece.dimension is None else ((piece.dimension, 0, _ONE),)
        ):
            rows.append(
                (
                    piece.pool,
                    dimension,
                    piece.currency,
                    start,
                    until,
                    piece.amount,
                    begun,
                    pace,
                    whole,
                    lower,
                    upper,
                )
            )
    numbers = dict.fromkeys(("amount", "begun", "pace", "whole", "lower", "upper"), SUM)
    table = pl.DataFrame(
        rows,
        schema={
            **dict.fromkeys(("pool", "dimension", "currency"), pl.String),
            **dict.fromkeys(("start", "until"), INSTANT),
            **numbers,
        },
        orient="row",
    )
    elapsed = ((pl.col("quarter_start") - pl.col("start")).dt.total_minutes() // 15).cast(SUM)
    accrued = pl.col("amount") * (pl.col("begun") + pl.col("pace") * pl.col("elapsed")) // pl.col("whole")
    after = pl.col("amount") * (pl.col("begun") + pl.col("pace") * (pl.col("elapsed") + 1)) // pl.col("whole")
    one = pl.lit(_ONE, dtype=SUM)
    costs = (
        _each_quarter(table)
        .with_columns(elapsed.alias("elapsed"))
        .with_columns((after - accrued).alias("_cost"))
        .with_columns(
            (pl.col("_cost") * pl.col("upper") // one - pl.col("_cost") * pl.col("lower") // one).alias(
                "cost"
            )
        )
        .group_by("pool", "dimension", "quarter_start", "currency")
        .agg(pl.col("cost").sum())
    )
    spans = pl.DataFrame(
        [row for row in covered if row["_start"] < period.until and row["_until"] > period.start],
        schema={"pool": pl.String, "currency": pl.String, "_start": INSTANT, "_until": INSTANT},
    )
    billed = _each_quarter(
        spans.select(
            "pool",
            "currency",
            pl.max_horizontal("_start", pl.lit(period.start, dtype=INSTANT)).alias("start"),
            pl.min_horizontal("_until", pl.lit(period.until, dtype=INSTANT)).alias("until"),
        )
    ).select("pool", "currency", "quarter_start", pl.lit(value=False).alias("estimated"))
    return RECOGNISED.conform(
        costs.join(billed, on=["pool", "currency", "quarter_start"], how="left", validate="m:1").with_columns(
            pl.col("estimated").fill_null(value=True)
        )
    )


def _each_quarter(rows: pl.DataFrame) -> pl.DataFrame:
    """A row for every quarter hour of [start, until), both within the period."""
    every = pl.datetime_ranges("start", "until", interval="15m", closed="left").alias("quarter_start")
    return rows.with_columns(every).explode("quarter_start", empty_as_null=False)
