"""Random small worlds for properties: a catalog with gaps and edges, and usage that meets them."""

from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from random import Random

import polars as pl
from hypothesis import strategies as st

from metering.frames.books import EXCHANGE_RATES, PRICES, Books
from metering.frames.frame import Frame
from metering.frames.supply import (
    BILL_LINES,
    BURNDOWN,
    CAPACITY_FEES,
    CAPACITY_STEPS,
    ENTITLEMENTS,
    MODELS,
    POOLS,
)
from metering.frames.terms import CONTRACTS, CUSTOMERS, FEES
from metering.frames.usage import POOL_CUSTOMER_USAGE, POOL_USAGE, USAGE
from metering.meters import METERS
from metering.periods import MINUTE, QUARTER, Period
from tests.text_tables import instant

#: A span over a day's and a month's edge, with steps, prices and contracts that change inside it.
START = instant("2026-02-28 22:00")
QUARTERS = 12
PERIOD = Period("world", START, START + QUARTERS * QUARTER)


@dataclass(frozen=True)
class World:
    usage: pl.DataFrame
    pool_usage: pl.DataFrame
    books: Books
    pool_customer_usage: pl.DataFrame


def _frame(frame: Frame, rows: list[dict[str, object]]) -> pl.DataFrame:
    return frame.conform(pl.DataFrame(rows, schema=dict(frame.columns)))


def _spans(dice: Random) -> list[tuple[datetime, datetime | None]]:
    """One or two spans that do not overlap, perhaps with a gap, perhaps open."""
    edges = sorted(dice.sample(range(QUARTERS + 1), 3))
    first, second, third = (START + QUARTER * edge for edge in edges)
    early = instant("2026-01-01")
    return dice.choice(
        [
            [(early, None)],
            [(early, None)],
            [(early, None)],
            [(early, second), (second, None)],
            [(first, second), (third, None)],
            [(early, first)],
        ]
    )


def _price(dice: Random) -> Decimal:
    return Decimal(dice.randint(0, 40_000_000)).scaleb(-12)


def _fee(dice: Random) -> Decimal:
    odd = [Decimal("0.000000000007"), Decimal(0), Decimal(31_000_000)]
    return dice.choice([*odd, *(Decimal(dice.randint(0, 1_000_000)).scaleb(-2) for _ in range(4))])


def _prices(dice: Random, book: str, items: list[str], currency: str) -> list[dict[str, object]]:
    rows = []
    for item in items:
        for region in dice.choice([["*"], ["*", "west"], ["west"]]):
            for since, until in _spans(dice):
                meters = dice.choice([METERS[:6], METERS, METERS[:5]])
                rows += [
                    {
                        "book": book,
                        "item": item,
                        "tier": "standard",
                        "region": region,
                        "context_breakpoint": breakpoint_,
                        "meter": meter,
                        "effective_from": since,
                        "effective_until": until,
                        "unit_price": _price(dice),
                        "currency": currency,
                    }
                    for meter in meters
                    for breakpoint_ in (0, 200_000)
                ]
    return rows


def _books(dice: Random) -> Books:
    dated = {"effective_from": None, "effective_until": None}
    customers, contracts, fees = [], [], []
    for customer in ("a", "b", "c"):
        for since, until in _spans(dice):
            kind = dice.choice(["paying", "trial", "internal"])
            span = {**dated, "effective_from": since, "effective_until": until}
            customers.append(
                {"customer": customer, **span, "name": customer, "kind": kind, "segment": kind[:1]}
            )
        for since, until in _spans(dice):
            span = {"effective_from": since, "effective_until": until}
            book = dice.choice(["gold", "gold", "gold", "euro", "lost"])
            floor = dice.choice([None, Decimal("0.2"), Decimal(0)])
            contracts.append(
                {
                    "customer": customer,
                    **span,
                    "contract": f"c-{customer}",
                    "price_book": book,
                    "margin_floor_ratio": floor,
                    "floor_basis": "usage",
                }
            )
            fees.append(
                {
                    "customer": customer,
                    "contract": f"c-{customer}",
                    "fee": "plan",
                    **span,
                    "kind": "plan",
                    "amount": _fee(dice),
                    "quantity": dice.choice([1, 1, 3]),
                    "per": dice.choice(["month", "month", "year", *(["span"] if until else [])]),
                    "currency": dice.choice(["USD", "USD", "EUR"]),
                }
            )
    pools, steps, capacity_fees, burndown = [], [], [], []
    for pool, dimensions in (("p1", ("all",)), ("p2", ("input", "output"))):
        shares = dice.choice(
            [(Decimal("0.333333333333"), Decimal("0.666666666667")), (Decimal(1), Decimal(0))]
        )
        currency = dice.choice(["USD", "USD", "CHF"])
        pools.append(
            {
                "pool": pool,
                "supplier": "s",
                "unit": "u",
                "currency": currency,
                "idle_policy": "none",
                "recognition": "as_billed",
                "on_demand_book": None,
                "window_seconds": 60,
                "units_min": 0,
                "units_sold_in": 1,
                "lead_time_days": None,
                "term_from": START,
                "term_until": None,
                "renewal_months": None,
                "notice_days": None,
            }
        )
        for since, until in _spans(dice):
            units = dice.randint(0, 3)
            capacity_fees.append(
                {
                    "pool": pool,
                    "fee": "step",
                    "dimension": None,
                    "effective_from": since,
                    "effective_until": until,
                    "amount": _fee(dice),
                    "per": "month",
                    "currency": currency,
                }
            )
            steps += [
                {
                    "pool": pool,
                    "dimension": dimension,
                    "effective_from": since,
                    "effective_until": until,
                    "units": units,
                    "unit_burn_per_minute": dice.choice([1, 7, 1_000, 10**6]),
                    "fee_share_ratio": shares[place] if len(dimensions) == 2 else Decimal(1),
                }
                for place, dimension in enumerate(dimensions)
            ]
        for dimension in dimensions:
            denominator = dice.choice([1, 3, 10])
            for model in ("m1", "m2"):
                for since, until in _spans(dice):
                    meters = dice.choice([METERS[6:], METERS, METERS[:6], METERS[:5], ()])
                    burndown += [
                        {
                            "pool": pool,
                            "dimension": dimension,
                            "model": model,
                            "context_breakpoint": breakpoint_,
                            "meter": meter,
                            "effective_from": since,
                            "effective_until": until,
                            "weight": dice.randint(0, 3),
                            "denominator": denominator,
                        }
                        for meter in meters
                        for breakpoint_ in (0, 200_000)
                    ]
    models = [
        {"model": "m1", "provider": "own", "name": "M1", "cost_book": None},
        {"model": "m1", "provider": "far", "name": "M1", "cost_book": "far"},
        {"model": "m2", "provider": "far", "name": "M2", "cost_book": "lost"},
    ]
    prices = _prices(dice, "gold", ["m1", "m2"], "USD") + _prices(dice, "euro", ["m1"], "EUR")
    return Books(
        1,
        customers=_frame(CUSTOMERS, customers),
        models=_frame(MODELS, models),
        contracts=_frame(CONTRACTS, contracts),
        fees=_frame(FEES, fees),
        price_books=_frame(PRICES, prices),
        cost_books=_frame(PRICES, _prices(dice, "far", ["m1"], "USD")),
        pools=_frame(POOLS, pools),
        capacity_steps=_frame(CAPACITY_STEPS, steps),
        capacity_fees=_frame(CAPACITY_FEES, capacity_fees),
        burndown=_frame(BURNDOWN, burndown),
    )


def _minute(dice: Random) -> int:
    """Half of the events share a few minutes, so that series compete for the same quarter hour."""
    return dice.choice([dice.randrange(QUARTERS * 15), dice.choice([16, 17, 100])])


def _quantity(dice: Random) -> int:
    return dice.choice([0, 0, dice.randint(0, 50), dice.randint(0, 2_000), dice.randint(0, 2**40)])


@st.composite
def worlds(draw: st.DrawFn, events_max: int = 40) -> World:
    """Usage is drawn by the minute; quarter hours and pool minutes are its sums, as the fold makes them."""
    dice = Random(draw(st.integers(0, 2**32)))  # a seed: worlds are large, and uniform draws meet more
    books = _books(dice)
    rows = []
    for _ in range(draw(st.sampled_from([events_max, 5, 0]))):
        ran_on = dice.choice(["pool", "pool", "overflow", "on_demand"])
        pool = dice.choice(["p1", "p1", "p2", "p2", "p9"]) if ran_on != "on_demand" else None
        rows.append(
            {
                "minute": START + _minute(dice) * MINUTE,
                "customer": dice.choice(["a", "a", "b", "b", "c", "z"]),
                "product": dice.choice(["m1", "m2"]),
                "tier_sold": dice.choice(["standard", "standard", "batch"]),
                "provider": dice.choice(["own", "far"]),
                "model_served": dice.choice(["m1", "m1", "m1", "m2", "m9"]),
                "tier_served": "standard",
                "region": dice.choice(["west", "east"]),
                "pool": pool,
                "ran_on": ran_on,
                "counts_for": dice.choice(["charge_and_cost", "charge_and_cost", "cost", "charge"]),
                "context_breakpoint": dice.choice([0, 200_000]),
                "requests": dice.randint(1, 3),
                **{meter: _quantity(dice) for meter in METERS},
            }
        )
    for row in rows:
        if row["counts_for"] == "charge":
            row.update({name: -row[name] for name in ("requests", *METERS)})
    raw = pl.DataFrame(
        rows, schema={"minute": USAGE.columns["quarter_start"], **dict(list(USAGE.columns.items())[1:])}
    )
    sums = ("requests", *METERS)
    key = [name for name in USAGE.columns if name not in sums and name != "quarter_start"]
    usage = raw.group_by(pl.col("minute").dt.truncate("15m").alias("quarter_start"), *key).agg(
        pl.col(sums).sum()
    )
    pools = raw.filter(pl.col("pool").is_not_null() & (pl.col("counts_for") != "charge"))
    by_pool, by_customer = (
        frame.conform(
            pools.group_by([name for name in frame.columns if name not in sums]).agg(pl.col(sums).sum())
        )
        for frame in (POOL_USAGE, POOL_CUSTOMER_USAGE)
    )
    return World(USAGE.conform(usage), by_pool, books, by_customer)


@st.composite
def supplied(draw: st.DrawFn) -> World:
    """A world whose pools carry their idle in every way: policies, entitlements, units set aside, bills."""
    world = draw(worlds())
    dice = Random(draw(st.integers(0, 2**32)))
    spans = [(instant("2026-01-01"), None), (START + QUARTER, START + 9 * QUARTER)]
    dimensions = {"p1": ("all",), "p2": ("input", "output")}
    # a quarter hour may burn more than was bought, and less
    units = pl.col("units") * dice.choice([1, 2**20, 2**36])
    entitlements = [
        {
            "customer": customer,
            "contract": "c",
            "pool": pool,
            "dimension": dimension,
            "effective_from": since,
            "effective_until": until,
            "units": Decimal(dice.randint(0, 3 * 2**20)).scaleb(dice.choice([-6, 0])),
            "stated": None,
        }
        for pool in dice.choice([["p1"], ["p1", "p2"], []])
        for dimension in dimensions[pool]
        for customer in ("a", "b", "quiet")
        for since, until in (dice.choice(spans),)
    ]
    bills = [
        {
            "supplier": "s",
            "document": f"d{number}",
            "line": "1",
            "category": category,
            "object_kind": "pool",
            "object": dice.choice(["p1", "p2"]),
            "amount": Decimal(dice.randint(-(10**9), 10**9)).scaleb(-dice.choice([2, 12])),
            "currency": dice.choice(["USD", "USD", "EUR"]),
            "service_from": START + QUARTER * dice.randint(-9, 5),
            "service_until": START + QUARTER * dice.randint(6, 20),
            "posted_month": START.date(),
            "description": None,
        }
        for number, category in enumerate(dice.choices(["charge", "credit", "true_up"], k=dice.randint(0, 3)))
    ]
    terms = [pl.lit(dice.choice(["none", "burn", "entitlement"])).alias("idle_policy")]
    terms.append(
        pl.lit(dice.choice(["as_billed", "straight_line_days", "capacity_hours"])).alias("recognition")
    )
    books = replace(
        world.books,
        pools=world.books.pools.with_columns(terms),
        capacity_steps=world.books.capacity_steps.with_columns(units.alias("units")),
        entitlements=_frame(ENTITLEMENTS, entitlements),
        bill_lines=_frame(BILL_LINES, bills),
        exchange_rates=_frame(
            EXCHANGE_RATES,
            [
                {
                    "currency": "CHF",
                    "into": "USD",
                    "kind": kind,
                    "effective_from": START - 900 * QUARTER,
                    "effective_until": None,
                    "rate": Decimal(dice.randint(1, 2 * 10**12)).scaleb(-12),
                }
                for kind in dice.choice([["month_average"], ["month_average", "contract"], []])
            ],
        ),
    )
    return replace(world, books=books)
