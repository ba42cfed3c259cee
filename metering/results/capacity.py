"""Declared frames of capacity: what was burned and served of what was contracted, by the minute."""

from typing import Final

import polars as pl

from metering.frames.frame import INSTANT, SUM, Frame
from metering.money import RATIO
from metering.results.rates import Columns

#: Usage meant for a pool that no weight applies to. reason: unknown_pool (no capacity in force then) or
#: no_weight (the burndown table in force does not name the model, or not this token meter).
UNBURNED: Final = Frame(
    "UNBURNED",
    {
        "minute": INSTANT,
        "pool": pl.String,
        "ran_on": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "context_breakpoint": pl.Int32,
        "meter": pl.String,
        "quantity": SUM,  # units of the meter
        "reason": pl.String,
    },
    key=("minute", "pool", "ran_on", "model_served", "tier_served", "region", "context_breakpoint", "meter"),
)
_CAPACITY: Final[Columns] = {
    "contracted": SUM,  # units x burn per unit and minute
    "undelivered": SUM,  # contracted, not made available
    "carved_out": SUM,  # set aside for a named purpose
    "available": SUM,  # contracted - undelivered - carved_out
    "burn": SUM,  # of ran_on = pool
    "served": SUM,  # min(burn, available) of each minute
    "idle": SUM,  # available - served
    "overrun": SUM,  # burn - served: what landed on a minute above what it had
    "spill": SUM,  # pool-weighted burn of ran_on = overflow
}
_CAPACITY_LAWS: Final = {
    "contracted = undelivered + carved_out + served + idle": pl.col("contracted")
    == pl.col("undelivered") + pl.col("carved_out") + pl.col("served") + pl.col("idle"),
    "available = contracted - undelivered - carved_out": pl.col("available")
    == pl.col("contracted") - pl.col("undelivered") - pl.col("carved_out"),
    "burn = served + overrun": pl.col("burn") == pl.col("served") + pl.col("overrun"),
    "nothing is negative": pl.min_horizontal([pl.col(name) for name in _CAPACITY]) >= 0,
}
#: Every minute of the capacity in force, used or not. Quantities are numerators: / denominator = burn units.
UTILIZATION: Final = Frame(
    "UTILIZATION",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "minute": INSTANT,
        "denominator": pl.Int64,
        **_CAPACITY,
        "utilization_ratio": RATIO,  # burn / available, above 1 in an overrun; null where available is 0
    },
    key=("pool", "dimension", "minute"),
    nullable=frozenset({"utilization_ratio"}),
    laws={
        **_CAPACITY_LAWS,
        "served = min(burn, available)": pl.col("served") == pl.min_horizontal("burn", "available"),
    },
)
_SHARE: Final[Columns] = {
    "mean_ratio": RATIO,  # mean of the minutes' utilization_ratio
    "p50_ratio": RATIO,  # nearest rank on all minutes: the value at place ceil(p x minutes)
    "p95_ratio": RATIO,
    "p99_ratio": RATIO,
    "max_ratio": RATIO,
    "served_of_contracted_ratio": RATIO,  # of the sums: what finance asks
    "served_of_available_ratio": RATIO,  # of the sums: what operations asks
}
#: One row per pool and dimension. Sums are numerators over `denominator`.
CAPACITY_SUMMARY: Final = Frame(
    "CAPACITY_SUMMARY",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "minutes": pl.Int64,  # minutes of the period in which capacity was contracted
        "denominator": pl.Int64,
        **_CAPACITY,
        "modelled_spill": SUM,  # overrun of a pool whose events never say overflow; null where there is none
        **_SHARE,
        "tightest": pl.Boolean,  # of the pool's dimensions the one with the least room: it is the pool's figure
        "minutes_at_limit": pl.Int64,  # burn >= available (and not both 0)
        "minutes_at_limit_5m": pl.Int64,  # minutes of clock 5-minute windows whose sums are at the limit
        "minutes_at_limit_15m": pl.Int64,  # the same over quarter hours
        "longest_run_at_limit_minutes": pl.Int64,
        "pool_minutes_at_limit": pl.Int64,  # minutes in which any dimension of the pool was at its limit
    },
    key=("pool", "dimension"),
    nullable=frozenset({*_SHARE, "modelled_spill"}),
    laws=_CAPACITY_LAWS,
)
#: What each model burned of each pool and dimension, or carve-out. Sums are numerators over `denominator`.
CAPACITY_MODELS: Final = Frame(
    "CAPACITY_MODELS",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "model_served": pl.String,
        "requests": SUM,  # meant for the pool, those that overflowed included
        "denominator": pl.Int64,
        "burn": SUM,
        "burn_ratio": RATIO,  # of the burn of the pool and dimension
        "spill": SUM,
        "spill_ratio": RATIO,
    },
    key=("pool", "dimension", "model_served"),
    nullable=frozenset({"burn_ratio", "spill_ratio"}),
)
#: What each customer took of each pool and dimension, or carve-out, and of what it is entitled to. Demand is
#: burn + spill. Sums are numerators over `denominator`.
CAPACITY_CUSTOMERS: Final = Frame(
    "CAPACITY_CUSTOMERS",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "customer": pl.String,
        "denominator": pl.Int64,
        "burn": SUM,
        "burn_ratio": RATIO,  # of the burn of the pool and dimension
        "spill": SUM,
        "peak_minute": INSTANT,  # of the pool's highest demand, the first of equals; null without demand
        "peak_demand": SUM,  # the customer's in that minute
        "peak_ratio": RATIO,  # of the pool's demand in that minute
        "own_peak_minute": INSTANT,
        "own_peak_demand": SUM,
        "entitlement": SUM,  # over all minutes; null: entitled to nothing
        "entitlement_used": SUM,  # sum over minutes of min(burn, entitlement)
        "entitlement_used_ratio": RATIO,
    },
    key=("pool", "dimension", "customer"),
    nullable=frozenset(
        {"burn_ratio", "peak_minute", "peak_ratio", "own_peak_minute", "entitlement", "entitlement_used"}
        | {"entitlement_used_ratio"}
    ),
    laws={
        "no more is used than entitled to": pl.col("entitlement").is_null()
        | (pl.col("entitlement_used") <= pl.col("entitlement"))
    },
)
