"""Declared frames of what is bought: models, capacity contracts, quotas and the bills for them."""

from typing import Final

import polars as pl

from metering.frames.frame import INSTANT, SPAN, SPAN_LAW, Frame
from metering.money import MONEY

MODELS: Final = Frame(
    "MODELS",
    {"model": pl.String, "provider": pl.String, "name": pl.String, "cost_book": pl.String},
    key=("provider", "model"),
    nullable=frozenset({"cost_book"}),
)
#: Units of a pool as a step function of time; one row per pool, dimension and step. Contracted burn per minute
#: = units x unit_burn_per_minute. `fee_share_ratio` is the dimension's part of the pool's fees (the shares of
#: a pool's dimensions sum to 1).
CAPACITY_STEPS: Final = Frame(
    "CAPACITY_STEPS",
    {
        "pool": pl.String,
        "dimension": pl.String,
        **SPAN,
        "units": pl.Int64,
        "unit_burn_per_minute": pl.Int64,
        "fee_share_ratio": MONEY,
    },
    key=("pool", "dimension", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={**SPAN_LAW, "units are not negative": pl.col("units") >= 0},
)
#: Burn of one unit of a meter = weight / denominator, in the pool's burn units. One denominator per pool and
#: dimension over all versions. Every standard context breakpoint has its row.
BURNDOWN: Final = Frame(
    "BURNDOWN",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "model": pl.String,
        "context_breakpoint": pl.Int32,
        "meter": pl.String,
        **SPAN,
        "weight": pl.Int64,
        "denominator": pl.Int64,
    },
    key=("pool", "dimension", "model", "context_breakpoint", "meter", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={
        **SPAN_LAW,
        "weight is not negative": pl.col("weight") >= 0,
        "denominator": pl.col("denominator") > 0,
    },
)
#: Terms of each pool that hold over its whole life. `term_until` null: open.
POOLS: Final = Frame(
    "POOLS",
    {
        "pool": pl.String,
        "supplier": pl.String,
        "unit": pl.String,
        "currency": pl.String,
        "idle_policy": pl.String,  # none | burn | entitlement
        "recognition": pl.String,  # as_billed | straight_line_days | capacity_hours
        "on_demand_book": pl.String,  # null: the cost book of each model served
        "window_seconds": pl.Int64,  # the supplier's window; ours is the minute
        "units_min": pl.Int64,
        "units_sold_in": pl.Int64,  # units come in multiples of this
        "lead_time_days": pl.Int64,  # null: not said
        "term_from": INSTANT,
        "term_until": INSTANT,  # null: open
        "renewal_months": pl.Int64,  # null: it ends
        "notice_days": pl.Int64,
    },
    key=("pool",),
    nullable=frozenset({"on_demand_book", "lead_time_days", "term_until", "renewal_months", "notice_days"}),
)
#: What a pool costs. `amount` is per calendar month, for the whole span, or per unit and hour, day or month.
#: Without a dimension the fee is split over the dimensions by their fee_share_ratio.
CAPACITY_FEES: Final = Frame(
    "CAPACITY_FEES",
    {
        "pool": pl.String,
        "fee": pl.String,
        "dimension": pl.String,
        **SPAN,
        "amount": MONEY,
        "per": pl.String,  # month | span | unit_hour | unit_day | unit_month
        "currency": pl.String,
    },
    key=("pool", "fee", "dimension", "effective_from"),
    nullable=frozenset({"dimension", "effective_until"}),
    laws={
        **SPAN_LAW,
        "a fee for a span has an end": (pl.col("per") != "span") | pl.col("effective_until").is_not_null(),
    },
)
#: Stacked multipliers of a burndown table: burn = product over `by` of numerator / denominator x weighed sum.
#: A region or tier without a row has 1. One denominator per pool, dimension and `by`.
MULTIPLIERS: Final = Frame(
    "MULTIPLIERS",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "by": pl.String,  # region | tier (as served)
        "value": pl.String,
        **SPAN,
        "numerator": pl.Int64,
        "denominator": pl.Int64,
    },
    key=("pool", "dimension", "by", "value", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={**SPAN_LAW, "multiplier": (pl.col("numerator") >= 0) & (pl.col("denominator") > 0)},
)
#: Contracted units that customers cannot use: not delivered, or set aside for a named purpose. Spans fall on
#: whole minutes. Traffic on a carve-out names it as its pool.
SET_ASIDE: Final = Frame(
    "SET_ASIDE",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "kind": pl.String,  # carve_out | undelivered
        "name": pl.String,  # the carve-out; why it was not delivered
        **SPAN,
        "units": pl.Int64,
    },
    key=("pool", "dimension", "kind", "name", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={**SPAN_LAW, "units are positive": pl.col("units") > 0},
)
#: Units of a pool promised to a customer in every minute: x unit_burn_per_minute = burn per minute.
ENTITLEMENTS: Final = Frame(
    "ENTITLEMENTS",
    {
        "customer": pl.String,
        "contract": pl.String,
        "pool": pl.String,
        "dimension": pl.String,
        **SPAN,
        "units": MONEY,  # may be a part of a unit
        "stated": pl.String,  # what the contract says, where it speaks another unit
    },
    key=("customer", "contract", "pool", "dimension", "effective_from"),
    nullable=frozenset({"effective_until", "stated"}),
    laws={**SPAN_LAW, "units are not negative": pl.col("units") >= 0},
)
#: What a provider lets us use on demand in a minute: a rate limit that costs nothing and is no pool. What ran on
#: demand there counts, overflow included.
QUOTAS: Final = Frame(
    "QUOTAS",
    {
        "quota": pl.String,
        "provider": pl.String,
        "model": pl.String,  # served; '*': every one of the provider
        "region": pl.String,  # '*': every one
        "dimension": pl.String,
        **SPAN,
        "per_minute": pl.Int64,
    },
    key=("quota", "dimension", "model", "region", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={**SPAN_LAW, "some of it may be used": pl.col("per_minute") > 0},
)
#: What a unit of a meter counts in a quota: weight / denominator. A meter without a row counts nothing.
QUOTA_WEIGHTS: Final = Frame(
    "QUOTA_WEIGHTS",
    {
        "quota": pl.String,
        "dimension": pl.String,
        "meter": pl.String,  # or requests
        "weight": pl.Int64,
        "denominator": pl.Int64,
    },
    key=("quota", "dimension", "meter"),
    laws={"weight": (pl.col("weight") >= 0) & (pl.col("denominator") > 0)},
)
#: Tranches of what we committed to a supplier: money, or units of one unit.
SUPPLIER_COMMITMENTS: Final = Frame(
    "SUPPLIER_COMMITMENTS",
    {
        "supplier": pl.String,
        "commitment": pl.String,
        **SPAN,  # of the tranche
        "amount": MONEY,  # null: committed in units
        "units": pl.Int64,  # null: committed in money
        "unit": pl.String,
        "currency": pl.String,
        "draws": pl.String,  # on_demand | capacity | all: what counts toward it
        "shortfall_rule": pl.String,  # true_up | roll_over | forfeit
        "shortfall_ratio": MONEY,  # 1: take-or-pay
        "roll_over_cap_ratio": MONEY,  # of the tranche's amount; null: no cap
        "roll_over_until": INSTANT,  # when what rolled over expires; null: the end of the last tranche
    },
    key=("supplier", "commitment", "effective_from"),
    nullable=frozenset({"amount", "units", "unit", "roll_over_cap_ratio", "roll_over_until"}),
    laws=SPAN_LAW,
)
#: What suppliers invoiced, credited or trued up. The amounts of a document sum to its last revision; a change that
#: was posted to a later month is a line of its own there.
BILL_LINES: Final = Frame(
    "BILL_LINES",
    {
        "supplier": pl.String,
        "document": pl.String,
        "line": pl.String,
        "category": pl.String,  # charge | credit | true_up
        "object_kind": pl.String,  # pool | on_demand | commitment | overhead
        "object": pl.String,  # the pool, the model served, the commitment; null for overhead, and for
        # on-demand usage of all models
        "amount": MONEY,  # a credit is negative
        "currency": pl.String,
        "service_from": INSTANT,
        "service_until": INSTANT,
        "posted_month": pl.Date,  # first day of the month to which it was posted
        "description": pl.String,
    },
    key=("supplier", "document", "line"),
    nullable=frozenset({"object", "description"}),
    laws={"service ends after it starts": pl.col("service_until") > pl.col("service_from")},
)
