"""Random small supply worlds from a seed: pools of every form over the edge of a month, and usage that meets them."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from itertools import pairwise
from random import Random
from typing import Any

import polars as pl

from metering.core.commitments import ELIGIBLE, TRANCHES
from metering.frames.books import EXCHANGE_RATES, PRICES, Books
from metering.frames.frame import Frame
from metering.frames.supply import (
    BILL_LINES,
    BURNDOWN,
    CAPACITY_FEES,
    CAPACITY_STEPS,
    ENTITLEMENTS,
    MODELS,
    MULTIPLIERS,
    POOLS,
    SET_ASIDE,
)
from metering.frames.terms import CUSTOMERS
from metering.frames.usage import POOL_CUSTOMER_USAGE, POOL_USAGE, SUMS, USAGE
from metering.meters import METERS
from metering.periods import MINUTE, QUARTER, Period
from tests.oracle.supply import Book
from tests.text_tables import instant

Row = dict[str, Any]

#: The last hours of one month and the first of the next.
START = instant("2026-02-28 20:00")
QUARTERS = 28
UNTIL = START + QUARTERS * QUARTER
CUSTOMERS_KNOWN = ("a", "b", "c")


@dataclass(frozen=True)
class World:
    seed: int
    usage: pl.DataFrame
    pool_usage: pl.DataFrame
    customer_usage: pl.DataFrame
    books: Books
    period: Period
    complete_until: datetime

    @cached_property
    def plain(self) -> Book:
        return plain(self.books)


def plain(books: Books) -> Book:
    """The books as the oracle reads them."""
    return Book(
        **{
            field.name: getattr(books, field.name).to_dicts()
            for field in fields(books)
            if field.name != "catalog_revision"
        }
    )


def world(seed: int) -> World:
    dice = Random(seed)
    books = _books(dice)
    names = [*books.pools["pool"], *books.pools["pool"], *_carve_outs(books), "p9"]
    events = [_event(dice, names) for _ in range(len(names) * dice.choice([0, 2, 10, 20, 20]))]
    usage, pool_usage, customer_usage = usage_of(events)
    start = START + QUARTER * dice.choice([0, 0, 0, dice.randrange(QUARTERS)])
    until = dice.choice([UNTIL, UNTIL, start + QUARTER * dice.randint(1, int((UNTIL - start) / QUARTER))])
    known = dice.choice([UNTIL, until, until + dice.randint(0, int((UNTIL - until) / MINUTE)) * MINUTE])
    return World(seed, usage, pool_usage, customer_usage, books, Period("world", start, until), known)


def usage_of(events: Iterable[Row]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Events with a minute and all columns of USAGE, as the fold sums them: by quarter hour and by minute."""
    instants = {"minute": USAGE.columns["quarter_start"]}
    raw = pl.DataFrame(list(events), schema={**instants, **dict(list(USAGE.columns.items())[1:])})
    sums = list(SUMS)
    key = [name for name in USAGE.columns if name not in (*sums, "quarter_start")]
    quarter = pl.col("minute").dt.truncate("15m").alias("quarter_start")
    meant = raw.filter(pl.col("pool").is_not_null() & (pl.col("counts_for") != "charge"))

    def minutes(frame: Frame) -> pl.DataFrame:
        by = [name for name in frame.columns if name not in sums]
        return frame.conform(meant.group_by(by).agg(pl.col(sums).sum()))

    return (
        USAGE.conform(raw.group_by(quarter, *key).agg(pl.col(sums).sum())),
        minutes(POOL_USAGE),
        minutes(POOL_CUSTOMER_USAGE),
    )


def _frame(frame: Frame, rows: list[Row]) -> pl.DataFrame:
    return frame.conform(pl.DataFrame(rows, schema=dict(frame.columns)))


def _event(dice: Random, names: list[str]) -> Row:
    ran_on = dice.choice(["pool"] * 5 + ["overflow"] * 3 + ["on_demand"])
    on = START + QUARTER * dice.choice([6, 17, dice.randrange(QUARTERS)])
    counted = dice.choice(["charge_and_cost", "charge_and_cost", "charge_and_cost", "cost", "charge"])
    sign = -1 if counted == "charge" else 1
    some = dice.choice([METERS, METERS[:1], METERS[:1], METERS[:1], METERS[4:5]])
    return {
        "minute": on + MINUTE * dice.choice([0, 0, 1, dice.randrange(15)]),
        "customer": dice.choice(["a", "a", "b", "b", "c", "z"]),
        "product": dice.choice(["m1", "m2"]),
        "tier_sold": "standard",
        "provider": dice.choice(["own", "far", "far"]),
        "model_served": dice.choice(["m1"] * 4 + ["m2"] * 3 + ["m9"]),
        "tier_served": dice.choice(["standard", "standard", "batch"]),
        "region": dice.choice(["west", "east"]),
        "pool": dice.choice(names) if ran_on != "on_demand" or dice.random() < 0.2 else None,
        "ran_on": ran_on,
        "counts_for": counted,
        "context_breakpoint": dice.choice([0, 0, 200_000]),
        "requests": sign,
        **{meter: sign * _quantity(dice) if meter in some else 0 for meter in METERS},
    }


def _quantity(dice: Random) -> int:
    return dice.choice([1, 1, 1, *(dice.randint(0, most) for most in (50, 50, 2_000, 2_000, 200_000)), 2**40])


def _carve_outs(books: Books) -> list[str]:
    names: list[str] = books.set_aside.filter(pl.col("kind") == "carve_out")["name"].unique().sort().to_list()
    return names


def _money(dice: Random) -> Decimal:
    odd = [Decimal("0.000000000007"), Decimal(0), Decimal(31_000_000), Decimal("100.03")]
    return dice.choice([*odd, *(Decimal(dice.randint(0, 1_000_000)).scaleb(-2) for _ in range(6))])


def spans(dice: Random) -> list[tuple[datetime, datetime | None]]:
    """One or two spans that do not overlap, perhaps with a gap, perhaps open."""
    first, second, third = (START + QUARTER * at for at in sorted(dice.sample(range(QUARTERS + 1), 3)))
    return dice.choice(
        [
            [(START, None)],
            [(START, None)],
            [(START - 7 * QUARTER, UNTIL)],
            [(START, second), (second, None)],
            [(START, first), (first, None)] if first > START else [(START, third)],
            [(first, second), (third, None)],
        ]
    )


def _within(dice: Random, span: tuple[datetime, datetime | None], step: timedelta) -> Row:
    start, until = (
        span[0],
        span[1] or (UNTIL if span[0] < UNTIL else span[0] + timedelta(days=70)) + 3 * QUARTER,
    )
    length = int((until - start) / step)
    first = dice.choice([0, dice.randrange(length)])
    last = dice.choice([length, dice.randint(first + 1, length)])
    return {"effective_from": start + step * first, "effective_until": start + step * last}


def _dated(span: tuple[datetime, datetime | None]) -> Row:
    return {"effective_from": span[0], "effective_until": span[1]}


def _books(dice: Random) -> Books:
    """A catalog. Half of the pools stand in one currency, so that fees, bills and overflow meet."""
    rows: dict[str, list[Row]] = {
        name: []
        for name in (
            "pools",
            "steps",
            "fees",
            "burndown",
            "multipliers",
            "set_aside",
            "entitlements",
            "bills",
        )
    }
    for number in range(dice.choice([1, 4, 8, 8])):
        _pool(dice, f"p{number}", rows)
    _bills(dice, rows)
    models = [
        {"model": "m1", "provider": "own", "name": "M1", "cost_book": None},
        {"model": "m1", "provider": "far", "name": "M1", "cost_book": "far"},
        {"model": "m2", "provider": "far", "name": "M2", "cost_book": dice.choice(["lost", "far"])},
        {"model": "m2", "provider": "own", "name": "M2", "cost_book": "far"},
    ]
    customers = [
        {"customer": customer, **_dated(span), "name": customer, "kind": kind, "segment": "big"}
        for customer in CUSTOMERS_KNOWN
        for span, kind in zip(
            dice.choice([[(START, None)], spans(dice)]), ("paying", "research"), strict=False
        )
    ]
    return Books(
        1,
        customers=_frame(CUSTOMERS, customers),
        models=_frame(MODELS, models),
        cost_books=_frame(PRICES, _prices(dice)),
        pools=_frame(POOLS, rows["pools"]),
        capacity_steps=_frame(CAPACITY_STEPS, rows["steps"]),
        capacity_fees=_frame(CAPACITY_FEES, rows["fees"]),
        burndown=_frame(BURNDOWN, rows["burndown"]),
        multipliers=_frame(MULTIPLIERS, rows["multipliers"]),
        set_aside=_frame(SET_ASIDE, rows["set_aside"]),
        entitlements=_frame(ENTITLEMENTS, rows["entitlements"]),
        bill_lines=_frame(BILL_LINES, rows["bills"]),
        exchange_rates=_frame(EXCHANGE_RATES, _rates(dice)),
    )


def _pool(
    dice: Random,
    pool: str,
    rows: dict[str, list[Row]],
    terms: list[tuple[datetime, datetime | None]] | None = None,
) -> None:
    dimensions = dice.choice([("all",), ("input", "output")])
    shares = dice.choice(
        [
            (Decimal("0.333333333333"), Decimal("0.666666666667")),
            (Decimal(1), Decimal(0)),
            (Decimal("0.25"), Decimal("0.75")),
        ]
    )
    terms = terms or spans(dice)
    rows["pools"].append(
        {
            "pool": pool,
            "supplier": dice.choice(["s", "far"]),
            "unit": "u",
            "currency": dice.choice(["USD", "USD", "EUR"]),
            "idle_policy": dice.choice(["none", "burn", "entitlement", "entitlement"]),
            "recognition": dice.choice(["as_billed", "straight_line_days", "capacity_hours"]),
            "on_demand_book": dice.choice([None, None, "far"]),
            "window_seconds": 60,
            "units_min": 0,
            "units_sold_in": 1,
            "lead_time_days": None,
            "term_from": terms[0][0],
            "term_until": terms[-1][1],
            "renewal_months": None,
            "notice_days": None,
        }
    )
    burns = [dice.choice([1, 7, 1_000, 10**6]) for _ in dimensions]
    for span in terms:
        for place, dimension in enumerate(dimensions):
            units = dice.choice([0, 1, 3, 3, 40])
            rows["steps"].append(
                {
                    "pool": pool,
                    "dimension": dimension,
                    **_dated(span),
                    "units": units,
                    "unit_burn_per_minute": burns[place],
                    "fee_share_ratio": shares[place] if len(dimensions) == 2 else Decimal(1),
                }
            )
            for kind, name in (("carve_out", f"lab-{pool}"), ("undelivered", "late")):
                if units > 1 and dice.random() < 0.5:
                    aside = {"pool": pool, "dimension": dimension, "kind": kind, "name": name}
                    some = _within(dice, span, MINUTE)
                    rows["set_aside"].append({**aside, **some, "units": dice.randint(1, units // 2)})
    _fees(dice, pool, dimensions, terms, rows)
    for dimension in dimensions:
        _weights(dice, pool, dimension, rows)
        for customer in CUSTOMERS_KNOWN:
            for span in dice.choice([[], spans(dice), [(START, None)]]):
                rows["entitlements"].append(
                    {
                        "customer": customer,
                        "contract": "c",
                        "pool": pool,
                        "dimension": dimension,
                        **_dated(span),
                        "units": dice.choice(
                            [Decimal(0), Decimal("0.333333"), Decimal(1), Decimal("2.5"), Decimal(30)]
                        ),
                        "stated": None,
                    }
                )


def _fees(
    dice: Random,
    pool: str,
    dimensions: tuple[str, ...],
    terms: list[tuple[datetime, datetime | None]],
    rows: dict[str, list[Row]],
) -> None:
    chosen = dice.sample(["month", "span", "unit_hour", "unit_day", "unit_month", "step"], dice.randint(1, 3))
    currency = rows["pools"][-1]["currency"]
    for name in chosen:
        per = "month" if name == "step" else name
        for span in terms if name == "step" else [dice.choice(terms)]:
            some = _dated(span) if dice.random() < 0.6 else _within(dice, span, QUARTER)
            if dice.random() < 0.2:
                some["effective_from"] -= 30 * QUARTER  # paid before there is capacity
            if per == "span" and some["effective_until"] is None:
                some["effective_until"] = (
                    max(UNTIL, some["effective_from"] + QUARTER) + dice.choice([0, 1, 4000]) * QUARTER
                )
            while any(
                (row["pool"], row["fee"], row["effective_from"]) == (pool, name, some["effective_from"])
                for row in rows["fees"]
            ):
                some["effective_from"] -= QUARTER  # two steps that begin together would be one fee twice
            rows["fees"].append(
                {
                    "pool": pool,
                    "fee": name,
                    **some,
                    "per": per,
                    "amount": _money(dice),
                    "dimension": dice.choice([None, None, dice.choice(dimensions)]),
                    "currency": dice.choice([currency, currency, currency, "EUR"]),
                }
            )


def _weights(dice: Random, pool: str, dimension: str, rows: dict[str, list[Row]]) -> None:
    denominator = dice.choice([1, 3, 10])
    named = {"pool": pool, "dimension": dimension}
    for model in ("m1", "m2"):
        for span in spans(dice):
            meters = dice.choice([METERS[6:], METERS, METERS, METERS[:6], METERS[:5], METERS[:1]])
            rows["burndown"] += [
                {
                    **named,
                    "model": model,
                    "context_breakpoint": edge,
                    "meter": meter,
                    **_dated(span),
                    "weight": dice.randint(0, 3),
                    "denominator": denominator,
                }
                for meter in meters
                for edge in (0, 200_000)
            ]
    for by, value in (("region", "west"), ("tier", "batch")):
        if dice.random() < 0.4:
            stacked = dice.choice([1, 2, 10])
            rows["multipliers"] += [
                {
                    **named,
                    "by": by,
                    "value": value,
                    **_dated(span),
                    "numerator": dice.choice([0, 1, 11]),
                    "denominator": stacked,
                }
                for span in spans(dice)
            ]


def _bills(dice: Random, rows: dict[str, list[Row]]) -> None:
    suppliers = {row["pool"]: row["supplier"] for row in rows["pools"]}
    for number in range(dice.choice([0, 1, 4, 8])):
        kind = dice.choice(["pool", "pool", "pool", "on_demand", "on_demand", "commitment", "overhead"])
        pool = dice.choice(list(suppliers))
        first = dice.choice([0, 0, dice.randrange(QUARTERS), -200])
        last = dice.choice([QUARTERS, first + dice.randint(1, 20), 3000])
        category = dice.choice(["charge", "charge", "charge", "credit", "true_up"])
        amount = _money(dice)
        rows["bills"].append(
            {
                "supplier": suppliers[pool] if kind == "pool" else dice.choice(["s", "far", "far", "own"]),
                "document": dice.choice(["d1", "d2"]),
                "line": f"{number}",
                "category": category,
                "object_kind": kind,
                "object": {
                    "pool": pool,
                    "on_demand": dice.choice(["m1", "m2", None]),
                    "commitment": "spend",
                }.get(kind),
                "amount": -amount if category == "credit" else amount,
                "currency": dice.choice(["USD", "USD", "EUR"]),
                "service_from": START + QUARTER * first,
                "service_until": START + QUARTER * max(last, first + 1),
                "posted_month": dice.choice([date(2026, 2, 1), date(2026, 3, 1)]),
                "description": None,
            }
        )


def _prices(dice: Random) -> list[Row]:
    rows: list[Row] = []
    for item in ("m1", "m2"):
        tiers = dice.choice([("standard", "batch"), ("standard", "batch"), ("standard",)])
        meters = dice.choice([METERS, METERS[:6], METERS[:6], METERS[:6], METERS[:3]])
        currency = dice.choice(["USD", "USD", "EUR"])
        for tier in tiers:
            for region in dice.choice([("*",), ("*",), ("*", "west"), ("west",)]):
                for span in dice.choice([[(START, None)], [(START, None)], spans(dice)]):
                    rows += [
                        {
                            "book": "far",
                            "item": item,
                            "tier": tier,
                            "region": region,
                            **_dated(span),
                            "context_breakpoint": edge,
                            "meter": meter,
                            "currency": currency,
                            "unit_price": Decimal(dice.randint(0, 40_000_000)).scaleb(-12),
                        }
                        for meter in meters
                        for edge in (0, 200_000)
                    ]
    return rows


def _rates(dice: Random) -> list[Row]:
    """Averages of February and perhaps March, each until the next; perhaps a rate that was agreed."""
    averages = dice.choice([["2026-02-01", "2026-03-01"], ["2026-02-01"], ["2026-03-01"], []])
    given = [
        ("month_average", since, until, dice.choice(["1.083217", "1.1", "0.000000000001"]))
        for since, until in zip(averages, [*averages[1:], None], strict=False)
    ]
    given += dice.choice([[("contract", "2026-01-01", None, "1.05")], []])
    return [
        {
            "currency": "EUR",
            "into": "USD",
            "kind": kind,
            "effective_from": instant(since),
            "effective_until": instant(until) if until else None,
            "rate": Decimal(rate),
        }
        for kind, since, until, rate in given
    ]


def a_year(seed: int) -> Books:
    """One or two pools with ramps over months, fees of every form, and bills by the month."""
    dice = Random(seed)
    rows: dict[str, list[Row]] = {name: [] for name in ("pools", "steps", "fees", "bills")}
    first = [instant(f"2026-{month:02}-01") for month in range(1, 13)] + [instant("2027-01-01")]
    for pool in dice.sample(["p0", "p1"], dice.randint(1, 2)):
        edges = sorted(dice.sample([*first, instant("2026-02-11 06:15"), instant("2026-07-31 23:45")], 3))
        terms = [(edges[0], edges[1]), (edges[1], dice.choice([edges[2], None]))]
        unused: dict[str, list[Row]] = {
            name: [] for name in ("set_aside", "burndown", "multipliers", "entitlements")
        }
        _pool(dice, pool, {**rows, **unused}, terms)
        for _ in range(dice.choice([0, 1, 4])):
            since = dice.choice(first[:-1])
            rows["bills"].append(
                {
                    "supplier": "s",
                    "document": f"d{dice.randint(1, 2)}",
                    "line": str(len(rows["bills"])),
                    "object_kind": "pool",
                    "object": pool,
                    "description": None,
                    "posted_month": since.date(),
                    "category": dice.choice(["charge", "charge", "credit", "true_up"]),
                    "amount": _money(dice) * dice.choice([1, 1, -1]),
                    "currency": dice.choice(["USD", "EUR"]),
                    "service_from": since,
                    "service_until": dice.choice([at for at in first if at > since]),
                }
            )
    return Books(
        1,
        pools=_frame(POOLS, rows["pools"]),
        capacity_steps=_frame(CAPACITY_STEPS, rows["steps"]),
        capacity_fees=_frame(CAPACITY_FEES, rows["fees"]),
        bill_lines=_frame(BILL_LINES, rows["bills"]),
    )


def days_of_a_year(seed: int) -> list[Period]:
    """Spans of a few quarter hours, about edges and elsewhere."""
    dice = Random(seed)
    about = [instant(day) for day in ("2026-01-01", "2026-03-01", "2026-08-01", "2027-01-01", "2027-02-01")]
    starts = [dice.choice(about) - 4 * QUARTER, instant("2026-01-01") + dice.randrange(35_000) * QUARTER]
    return [Period("some", start, start + 8 * QUARTER) for start in starts]


def commitments(seed: int) -> tuple[pl.DataFrame, pl.DataFrame, datetime]:
    """Tranches of up to three commitments of two holders, what counts toward them, and how far time is."""
    dice = Random(seed)
    tranches, eligible = [], []
    for holder in ("h", "i"):
        for commitment in ("x", "y", "z")[: dice.randint(1, 3)]:
            edges = sorted(dice.sample(range(30), dice.randint(2, 4)))
            rule = dice.choice(["true_up", "roll_over", "roll_over", "forfeit"])
            for since, until in pairwise(edges):
                tranches.append(
                    {
                        "holder": holder,
                        "commitment": commitment,
                        "shortfall_rule": rule,
                        "effective_from": START + timedelta(days=since),
                        "effective_until": START + timedelta(days=until),
                        "committed": dice.choice([0, dice.randint(0, 100)]),
                        "draws": dice.choice([[], ["on_demand"], ["capacity"], ["capacity", "on_demand"]]),
                        "roll_over_max": dice.choice([None, dice.randint(0, 50)]),
                        "roll_over_until": dice.choice(
                            [None, START + timedelta(days=dice.randint(until, 40))]
                        ),
                    }
                )
        for day in dice.sample(range(40), 15):
            eligible += [
                {
                    "holder": holder,
                    "slice_start": START + timedelta(days=day),
                    "account": account,
                    "part": 0,
                    "amount": dice.randint(0, 30),
                }
                for account in dice.sample(["on_demand", "capacity"], dice.randint(1, 2))
            ]
    return _frame(TRANCHES, tranches), _frame(ELIGIBLE, eligible), START + timedelta(days=dice.randint(1, 45))
