"""Declared frames of cost: what is recognised, and which series carries it."""

from typing import Final

import polars as pl

from metering.frames.frame import INSTANT, SUM, Frame
from metering.money import MONEY

#: Recognised cost per pool, dimension and quarter hour, in the currency of the bill. `estimated`: no bill
#: covers the quarter hour yet. Negative where credits exceed what was charged.
RECOGNISED: Final = Frame(
    "RECOGNISED",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "quarter_start": INSTANT,
        "currency": pl.String,
        "cost": SUM,  # count of money.QUANTUM
        "estimated": pl.Boolean,
    },
    key=("pool", "dimension", "quarter_start", "currency"),
)
#: Where every unit of cost went, in the currency it is billed in. Sums over any rows:
#: usage basis = cost_pool + cost_on_demand; loaded basis = that + idle_share; by cause = usage + cause_shift.
#: idle_share moves idle from its pool's own line to those who carry it, cause_shift the spill premium from
#: those who spilled to those who took more than they were entitled to: each sums to 0 over a pool.
COSTS: Final = Frame(
    "COSTS",
    {
        "day": pl.Date,
        "line": pl.String,  # usage | idle | undelivered | carved_out
        "supplier": pl.String,  # of the pool; on demand: the provider; null: unknown
        "currency": pl.String,
        "customer": pl.String,  # null: nobody's
        "kind": pl.String,
        "segment": pl.String,
        "product": pl.String,
        "tier_sold": pl.String,
        "provider": pl.String,
        "model_served": pl.String,
        "pool": pl.String,
        "ran_on": pl.String,
        "cost_pool": MONEY,
        "cost_on_demand": MONEY,  # overflow included
        "idle_share": MONEY,
        "cause_shift": MONEY,
        "on_demand_price": MONEY,  # what the same usage costs on demand; null where no price exists
        "estimated": pl.Boolean,
    },
    key=(
        *("day", "line", "supplier", "currency", "customer", "kind", "segment", "product", "tier_sold"),
        *("provider", "model_served", "pool", "ran_on"),
    ),
    nullable=frozenset(
        {"supplier", "customer", "kind", "segment", "product", "tier_sold", "provider", "model_served"}
        | {"pool", "ran_on", "on_demand_price"}
    ),
)
#: Recognised cost of a pool and dimension per quarter hour: what became of the capacity that it paid for.
POOL_COST: Final = Frame(
    "POOL_COST",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "quarter_start": INSTANT,
        "currency": pl.String,
        "recognised_cost": MONEY,
        "undelivered_cost": MONEY,
        "carved_out_cost": MONEY,
        "served_cost": MONEY,
        "idle_cost": MONEY,
        "estimated": pl.Boolean,
    },
    key=("pool", "dimension", "quarter_start", "currency"),
    laws={
        "recognised = undelivered + carved out + served + idle": pl.col("recognised_cost")
        == pl.col("undelivered_cost")
        + pl.col("carved_out_cost")
        + pl.col("served_cost")
        + pl.col("idle_cost"),
    },
)
#: Served cost per series: parts of a quarter hour's served_cost that sum to it exactly.
SERVED_COST: Final = Frame(
    "SERVED_COST",
    {
        "quarter_start": INSTANT,
        "series_id": pl.UInt32,  # of the table of series beside it
        "pool": pl.String,
        "dimension": pl.String,
        "cost": SUM,  # count of money.QUANTUM
        "currency": pl.String,
        "estimated": pl.Boolean,
    },
)
#: What a unit of a pool's capacity cost at full rate: recognised / contracted (burn numerators).
FULL_RATES: Final = Frame(
    "FULL_RATES",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "currency": pl.String,
        "recognised": SUM,  # count of money.QUANTUM
        "contracted": SUM,
        "denominator": pl.Int64,
    },
    key=("pool", "dimension", "currency"),
)
