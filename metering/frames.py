"""Declared frames: what each table in memory holds, by name, type, key and law; and the books made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from metering.errors import FrameBroken
from metering.meters import FURTHER_METERS, METERS
from metering.money import MONEY

INSTANT: Final = pl.Datetime("us", "UTC")
#: Sums of quantities: Int64 would wrap silently.
SUM: Final = pl.Int128


@dataclass(frozen=True)
class Frame:
    """The declaration of a frame: columns with types, which may be null, the key, and laws on every row.

    >>> FRAME.conform(frame)   # every function of the core ends on this promise
    """

    name: str
    columns: Mapping[str, pl.DataType | type[pl.DataType]]
    key: tuple[str, ...] = ()
    nullable: frozenset[str] = frozenset()
    laws: Mapping[str, pl.Expr] = field(default_factory=dict)

    def empty(self) -> pl.DataFrame:
        """A frame of this shape without rows."""
        return pl.DataFrame(schema=dict(self.columns))

    def conform(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return `frame` with the declared columns in order, sorted by the key, or raise FrameBroken by name."""
        missing = [name for name in self.columns if name not in frame.columns]
        if missing:
            raise FrameBroken(f"{self.name}: column {missing[0]} is missing; it has {frame.columns}")
        frame = frame.select(list(self.columns))
        schema = frame.schema
        for name, dtype in self.columns.items():
            if schema[name] != dtype:
                raise FrameBroken(f"{self.name}.{name}: is {schema[name]}, declared {dtype}")
            if name not in self.nullable and frame[name].null_count():
                row = frame.filter(pl.col(name).is_null()).row(0, named=True)
                raise FrameBroken(f"{self.name}.{name}: is null in {row}; it is not declared nullable")
        if self.key:
            twice = _repeats(frame, self.key)
            if twice is None:
                frame = frame.sort(self.key, nulls_last=False)
                twice = _repeats(frame, self.key)
            assert twice is not None, f"{self.name}: is not sorted by {self.key} after a sort"
            if len(twice):
                row = frame.row(twice[0], named=True)
                raise FrameBroken(f"{self.name}: the key {self.key} occurs twice: {row}")
        for law, holds in self.laws.items():
            if not frame.select(holds.all()).item():
                broken = frame.filter(~holds)
                raise FrameBroken(f"{self.name}: '{law}' does not hold for {broken.row(0, named=True)}")
        return frame


def _repeats(frame: pl.DataFrame, key: Sequence[str]) -> pl.Series | None:
    """The rows whose key is that of the row above; None where a key is less than the one above. Nulls first.

    Each column is compared only in the rows that the columns before it left tied, which costs a fraction of
    sorting or hashing whole keys.
    """
    tied = pl.int_range(1, frame.height, eager=True)
    above, below = pl.col("above"), pl.col("below")
    for name in key:
        pairs = pl.DataFrame({"above": frame[name].gather(tied - 1), "below": frame[name].gather(tied)})
        less = (below < above).fill_null(below.is_null() & above.is_not_null())
        if pairs.select(less.any()).item():
            return None
        tied = tied.filter(pairs.select(below.eq_missing(above)).to_series())
    return tied


#: The dimensions that price, cost or capacity depend on, in the order of the series digest.
DIMENSIONS: Final = {
    "customer": pl.String,
    "product": pl.String,
    "tier_sold": pl.String,
    "provider": pl.String,
    "model_served": pl.String,
    "tier_served": pl.String,
    "region": pl.String,
    "pool": pl.String,  # null: the request was meant for no pool
    "ran_on": pl.String,  # pool | overflow | on_demand
    "counts_for": pl.String,  # charge_and_cost | cost | charge
    "context_breakpoint": pl.Int32,
}
SUMS: Final = {"requests": SUM, **dict.fromkeys(METERS, SUM)}


@dataclass(frozen=True)
class Identified:
    """`series`: series_id and the dimensions, ids ascending in the order of the dimensions (nulls first).

    `rows`: the other columns and series_id. The order of two ids never depends on which other series are there,
    so a tie broken by series_id is broken alike in every period. Sums are SUM, or of 64 bits where each fits.
    """

    series: pl.DataFrame
    rows: pl.DataFrame

    def told(self, declared: Frame) -> pl.DataFrame:
        """The rows with their dimensions as text, in the columns of `declared`."""
        named = self.rows.join(self.series, on="series_id", how="left", validate="m:1", maintain_order="left")
        return named.select(pl.col(name).cast(dtype) for name, dtype in declared.columns.items())


#: Usage per quarter hour and series: what money is computed from.
USAGE: Final = Frame(
    "USAGE",
    {"quarter_start": INSTANT, **DIMENSIONS, **SUMS},
    key=("quarter_start", *DIMENSIONS),
    nullable=frozenset({"pool"}),
)
#: Usage per quarter hour by what ran, over all customers: what suppliers served.
SERVED: Final = Frame(
    "SERVED",
    {
        "quarter_start": INSTANT,
        "provider": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "ran_on": pl.String,
        "counts_for": pl.String,
        "context_breakpoint": pl.Int32,
        **SUMS,
    },
    key=(
        *("quarter_start", "provider", "model_served", "tier_served", "region", "ran_on", "counts_for"),
        "context_breakpoint",
    ),
)
#: Usage per minute of requests meant for a pool: what capacity is computed from.
POOL_USAGE: Final = Frame(
    "POOL_USAGE",
    {
        "minute": INSTANT,
        "pool": pl.String,
        "ran_on": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "context_breakpoint": pl.Int32,
        **SUMS,
    },
    key=("minute", "pool", "ran_on", "model_served", "tier_served", "region", "context_breakpoint"),
)
#: Usage per minute, pool and customer: what entitlements, coincident peaks and causes of spill come from.
POOL_CUSTOMER_USAGE: Final = Frame(
    "POOL_CUSTOMER_USAGE",
    {
        "minute": INSTANT,
        "pool": pl.String,
        "ran_on": pl.String,
        "customer": pl.String,
        "provider": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "context_breakpoint": pl.Int32,
        **SUMS,
    },
    key=(
        *("minute", "pool", "ran_on", "customer", "provider", "model_served", "tier_served", "region"),
        "context_breakpoint",
    ),
)

#: Usage per minute of what ran on demand, overflow included: what a provider's quota counts.
ON_DEMAND_USAGE: Final = Frame(
    "ON_DEMAND_USAGE",
    {
        "minute": INSTANT,
        "provider": pl.String,
        "model_served": pl.String,
        "region": pl.String,
        **SUMS,
    },
    key=("minute", "provider", "model_served", "region"),
)

#: Usage per minute of what counts for charge, by who used it: what limits are counted in. A charge that was taken
#: back gives room back.
LIMIT_USAGE: Final = Frame(
    "LIMIT_USAGE",
    {
        "minute": INSTANT,
        "customer": pl.String,
        "product": pl.String,
        "project": pl.String,  # '' where not said
        "seat": pl.String,
        **SUMS,
    },
    key=("minute", "customer", "product", "project", "seat"),
)
#: The same by series: what a holder's use was made of, and where it ran.
HELD_USAGE: Final = Frame(
    "HELD_USAGE",
    {
        "minute": INSTANT,
        **DIMENSIONS,
        "project": pl.String,  # '' where not said
        "seat": pl.String,
        **SUMS,
    },
    key=("minute", *DIMENSIONS, "project", "seat"),
    nullable=frozenset({"pool"}),
)
#: Usage per quarter hour, series and project, every attempt: by what amounts are attributed to projects.
PROJECT_USAGE: Final = Frame(
    "PROJECT_USAGE",
    {"quarter_start": INSTANT, **DIMENSIONS, "project": pl.String, **SUMS},  # '' where not said
    key=("quarter_start", *DIMENSIONS, "project"),
    nullable=frozenset({"pool"}),
)
#: Requests that were turned away by a limit, once each: the first such refusal of every customer and request_id.
LIMIT_REFUSED: Final = Frame(
    "LIMIT_REFUSED",
    {
        "occurred_at": INSTANT,
        "customer": pl.String,
        "request_id": pl.String,
        "product": pl.String,  # null: not said
        "project": pl.String,
        "seat": pl.String,
        "estimated_input_tokens": pl.Int32,
        "estimated_output_tokens": pl.Int32,
    },
    key=("customer", "request_id"),
    nullable=frozenset({"product", "project", "seat", "estimated_input_tokens", "estimated_output_tokens"}),
)

# ---- books: what the catalog says, as of one revision -------------------------------------------------

_SPAN: Final = {"effective_from": INSTANT, "effective_until": INSTANT}
_SPAN_LAW: Final = {
    "ends after it starts": pl.col("effective_until").is_null()
    | (pl.col("effective_until") > pl.col("effective_from"))
}
#: A price book is what a customer pays, a cost book what we pay on demand: one shape, `rate` serves both.
#: `unit_price` is per ONE unit (price per million / 1e6, exact at 12 places). `region` '*' is any region.
PRICES: Final = Frame(
    "PRICES",
    {
        "book": pl.String,
        "item": pl.String,  # price book: the product; cost book: the model served
        "tier": pl.String,
        "region": pl.String,
        "context_breakpoint": pl.Int32,  # every standard breakpoint has its row
        "meter": pl.String,
        **_SPAN,
        "unit_price": MONEY,
        "currency": pl.String,
    },
    key=("book", "item", "tier", "region", "context_breakpoint", "meter", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={**_SPAN_LAW, "price is not negative": pl.col("unit_price") >= 0},
)
CUSTOMERS: Final = Frame(
    "CUSTOMERS",
    {"customer": pl.String, **_SPAN, "name": pl.String, "kind": pl.String, "segment": pl.String},
    key=("customer", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws=_SPAN_LAW,
)
MODELS: Final = Frame(
    "MODELS",
    {"model": pl.String, "provider": pl.String, "name": pl.String, "cost_book": pl.String},
    key=("provider", "model"),
    nullable=frozenset({"cost_book"}),
)
CONTRACTS: Final = Frame(
    "CONTRACTS",
    {
        "customer": pl.String,
        **_SPAN,
        "contract": pl.String,
        "price_book": pl.String,
        "margin_floor_ratio": MONEY,
        "floor_basis": pl.String,
    },
    key=("customer", "effective_from"),
    nullable=frozenset({"effective_until", "margin_floor_ratio"}),
    laws=_SPAN_LAW,
)
#: Fees do not depend on usage and are earned evenly over the days that they cover. month: from the contract's
#: anchor day to the next, in its zone; year: from a day of the fee's beginning to the next; span: its own.
FEES: Final = Frame(
    "FEES",
    {
        "customer": pl.String,
        "contract": pl.String,
        "fee": pl.String,
        **_SPAN,
        "kind": pl.String,  # plan | seat | reservation
        "amount": MONEY,  # of one
        "quantity": pl.Int64,  # how many: seats
        "per": pl.String,  # month | year | span
        "currency": pl.String,
    },
    key=("customer", "contract", "fee", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={
        **_SPAN_LAW,
        "quantity is not negative": pl.col("quantity") >= 0,
        "a fee for a span has an end": (pl.col("per") != "span") | pl.col("effective_until").is_not_null(),
    },
)
#: Units of a pool as a step function of time; one row per pool, dimension and step. Contracted burn per minute
#: = units x unit_burn_per_minute. `fee_share_ratio` is the dimension's part of the pool's fees (the shares of
#: a pool's dimensions sum to 1).
CAPACITY_STEPS: Final = Frame(
    "CAPACITY_STEPS",
    {
        "pool": pl.String,
        "dimension": pl.String,
        **_SPAN,
        "units": pl.Int64,
        "unit_burn_per_minute": pl.Int64,
        "fee_share_ratio": MONEY,
    },
    key=("pool", "dimension", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={**_SPAN_LAW, "units are not negative": pl.col("units") >= 0},
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
        **_SPAN,
        "weight": pl.Int64,
        "denominator": pl.Int64,
    },
    key=("pool", "dimension", "model", "context_breakpoint", "meter", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={
        **_SPAN_LAW,
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
        **_SPAN,
        "amount": MONEY,
        "per": pl.String,  # month | span | unit_hour | unit_day | unit_month
        "currency": pl.String,
    },
    key=("pool", "fee", "dimension", "effective_from"),
    nullable=frozenset({"dimension", "effective_until"}),
    laws={
        **_SPAN_LAW,
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
        **_SPAN,
        "numerator": pl.Int64,
        "denominator": pl.Int64,
    },
    key=("pool", "dimension", "by", "value", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={**_SPAN_LAW, "multiplier": (pl.col("numerator") >= 0) & (pl.col("denominator") > 0)},
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
        **_SPAN,
        "units": pl.Int64,
    },
    key=("pool", "dimension", "kind", "name", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={**_SPAN_LAW, "units are positive": pl.col("units") > 0},
)
#: Units of a pool promised to a customer in every minute: x unit_burn_per_minute = burn per minute.
ENTITLEMENTS: Final = Frame(
    "ENTITLEMENTS",
    {
        "customer": pl.String,
        "contract": pl.String,
        "pool": pl.String,
        "dimension": pl.String,
        **_SPAN,
        "units": MONEY,  # may be a part of a unit
        "stated": pl.String,  # what the contract says, where it speaks another unit
    },
    key=("customer", "contract", "pool", "dimension", "effective_from"),
    nullable=frozenset({"effective_until", "stated"}),
    laws={**_SPAN_LAW, "units are not negative": pl.col("units") >= 0},
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
        **_SPAN,
        "per_minute": pl.Int64,
    },
    key=("quota", "dimension", "model", "region", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={**_SPAN_LAW, "some of it may be used": pl.col("per_minute") > 0},
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
        **_SPAN,  # of the tranche
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
    laws=_SPAN_LAW,
)
#: One unit of `currency` is `rate` units of `into`. month_average: over the month that holds effective_from.
EXCHANGE_RATES: Final = Frame(
    "EXCHANGE_RATES",
    {"currency": pl.String, "into": pl.String, "kind": pl.String, **_SPAN, "rate": MONEY},
    key=("currency", "into", "kind", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={**_SPAN_LAW, "rate is positive": pl.col("rate") > 0},
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

# ---- terms: what was agreed with customers, beyond unit prices and fees ---------------------------------

#: What a contract says once. A contract without a row: no plan, whole UTC months, no minimum, no maximum.
#: Its periods begin at midnight of `zone` on `anchor_day` (in a shorter month on its last day) and are
#: `period_months` long. `currency` is that of its price book.
CONTRACT_TERMS: Final = Frame(
    "CONTRACT_TERMS",
    {
        "customer": pl.String,
        "contract": pl.String,
        **_SPAN,
        "plan": pl.String,
        "currency": pl.String,
        "anchor_day": pl.Int64,  # 1..31
        "zone": pl.String,  # IANA
        "period_months": pl.Int64,
        "minimum": MONEY,  # net charges per period, at least
        "maximum": MONEY,  # net charges per period, at most
    },
    key=("customer", "effective_from"),
    nullable=frozenset({"effective_until", "plan", "minimum", "maximum"}),
    laws=_SPAN_LAW,
)
#: Prices that depend on how much was used, or on the hour. In its hours a rule goes before a unit price of the
#: same cell, and a rule of hours before one of '*'. Its counter is (contract, item, meters): all tiers, regions
#: and contexts of the item count on it.
PRICE_RULES: Final = Frame(
    "PRICE_RULES",
    {
        "book": pl.String,
        "item": pl.String,  # the product
        "tier": pl.String,
        "region": pl.String,  # '*': any
        "context_breakpoint": pl.Int32,  # every standard breakpoint has its row
        "hours": pl.String,  # of PRICE_HOURS; '*': always
        "meters": pl.String,  # sorted, joined by ','
        **_SPAN,
        "rule": pl.String,  # its rows in PRICE_TIERS
        "model": pl.String,  # unit | graduated | volume | package_started | package_full
        "free_units": pl.Int64,  # of the counter, before the first tier
        "reset": pl.String,  # period (of the contract) | day | month | year (of its zone) | never
        "currency": pl.String,
    },
    key=("book", "item", "tier", "region", "context_breakpoint", "hours", "meters", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={**_SPAN_LAW, "free units are not negative": pl.col("free_units") >= 0},
)
#: The tiers of a rule, which touch from 0 on. unit: one open tier. package_*: one open tier, whose flat_amount
#: is the price of `package_units`.
PRICE_TIERS: Final = Frame(
    "PRICE_TIERS",
    {
        "rule": pl.String,
        "tier": pl.Int64,  # 1, 2, ...
        "from_units": pl.Int64,  # exclusive: the quantity up_to belongs to the tier below
        "up_to": pl.Int64,  # inclusive; null: open
        "unit_price": MONEY,  # per ONE unit
        "flat_amount": MONEY,
        "package_units": pl.Int64,  # null where not a package
    },
    key=("rule", "tier"),
    nullable=frozenset({"up_to", "package_units"}),
)
#: Hours of a week in which a price holds, in local time of `zone`, on quarter hours.
PRICE_HOURS: Final = Frame(
    "PRICE_HOURS",
    {
        "book": pl.String,
        "hours": pl.String,
        "zone": pl.String,
        "weekday": pl.Int64,  # 1 Monday .. 7 Sunday
        "from_minute": pl.Int64,  # of the day
        "until_minute": pl.Int64,  # at most 1440
    },
    key=("book", "hours", "weekday", "from_minute"),
)
#: A charge that is a ratio of another charge or of our cost (cost-plus), quarter hour by quarter hour.
PERCENTAGES: Final = Frame(
    "PERCENTAGES",
    {
        "book": pl.String,
        "charge": pl.String,  # its name
        **_SPAN,
        "ratio": MONEY,
        "of": pl.String,  # charge (gross) | cost (usage basis)
        "item": pl.String,  # the product whose charge or cost it is; null: of all products
        "currency": pl.String,
    },
    key=("book", "charge", "item", "effective_from"),
    nullable=frozenset({"effective_until", "item"}),
    laws=_SPAN_LAW,
)
DISCOUNTS: Final = Frame(
    "DISCOUNTS",
    {
        "customer": pl.String,
        "contract": pl.String,
        "discount": pl.String,
        **_SPAN,
        "kind": pl.String,  # line (of an item) | contract (of all) | fixed (an amount per period)
        "item": pl.String,  # of a line discount: the product
        "ratio": MONEY,  # 0..1
        "amount": MONEY,  # of a fixed discount, per period of the contract
    },
    key=("customer", "contract", "discount", "item", "effective_from"),
    nullable=frozenset({"effective_until", "item", "ratio", "amount"}),
    laws={
        **_SPAN_LAW,
        "at most the whole is taken off": pl.col("ratio").is_null() | pl.col("ratio").is_between(0, 1),
    },
)
#: Tranches of what customers committed to us: net charges in money, or units of some meters.
CUSTOMER_COMMITMENTS: Final = Frame(
    "CUSTOMER_COMMITMENTS",
    {
        "customer": pl.String,
        "contract": pl.String,
        "commitment": pl.String,
        **_SPAN,  # of the tranche
        "amount": MONEY,  # null: committed in units
        "units": pl.Int64,  # null: committed in money
        "meters": pl.String,  # of units: which count, joined by ','
        "currency": pl.String,
        "items": pl.List(pl.String),  # the products that draw it down; empty: all
        "paid": pl.String,  # ahead (drawn before credits) | in_arrears
        "shortfall_rule": pl.String,  # true_up | roll_over | forfeit
        "shortfall_ratio": MONEY,  # 1: take-or-pay
        "roll_over_cap_ratio": MONEY,  # of the tranche's amount; null: no cap
        "roll_over_until": INSTANT,  # null: the end of the last tranche
        "overage_book": pl.String,  # null: the contract's own
    },
    key=("customer", "contract", "commitment", "effective_from"),
    nullable=frozenset(
        {"amount", "units", "meters", "roll_over_cap_ratio", "roll_over_until", "overage_book"}
    ),
    laws=_SPAN_LAW,
)
CREDIT_GRANTS: Final = Frame(
    "CREDIT_GRANTS",
    {
        "customer": pl.String,
        "contract": pl.String,
        "credit": pl.String,
        "kind": pl.String,  # promotional (reduces revenue) | prepaid (does not)
        **_SPAN,
        "amount": MONEY,
        "currency": pl.String,
        "items": pl.List(pl.String),  # the products that it pays; empty: all
    },
    key=("customer", "contract", "credit"),
    nullable=frozenset({"effective_until"}),
    laws={**_SPAN_LAW, "amount is positive": pl.col("amount") > 0},
)
#: The most weighted quantity that each holder may use of a group of products in one window.
LIMITS: Final = Frame(
    "LIMITS",
    {
        "customer": pl.String,
        "contract": pl.String,
        "plan": pl.String,  # that says so; null: the contract's own
        "limit": pl.String,
        "holder": pl.String,  # customer | project | seat: each one of the customer
        **_SPAN,
        "items": pl.List(pl.String),  # products that count; empty: all
        "window": pl.String,  # minute | anchored | fixed
        "window_minutes": pl.Int64,
        "anchor_at": INSTANT,  # of fixed windows: when one begins
        "quantity": pl.Int64,  # the limit, in weighted units
    },
    key=("customer", "contract", "limit", "effective_from"),
    nullable=frozenset({"effective_until", "plan", "anchor_at"}),
    laws={
        **_SPAN_LAW,
        "window": pl.col("window_minutes") > 0,
        "quantity is positive": pl.col("quantity") > 0,
    },
)
#: Weighted quantity = sum of weight x meter / denominator, one denominator per limit. A meter without a row
#: counts nothing; `requests` may be weighed too.
LIMIT_WEIGHTS: Final = Frame(
    "LIMIT_WEIGHTS",
    {
        "contract": pl.String,
        "limit": pl.String,
        "meter": pl.String,
        "weight": pl.Int64,
        "denominator": pl.Int64,
    },
    key=("contract", "limit", "meter"),
    laws={"weight": (pl.col("weight") >= 0) & (pl.col("denominator") > 0)},
)


@dataclass(frozen=True)
class Books:
    """Everything the catalog says as of one revision, as frames. What ended keeps its rows, cut at its end.

    `bill_lines` is what suppliers billed as of the same point of knowledge.
    """

    catalog_revision: int
    customers: pl.DataFrame = field(default_factory=CUSTOMERS.empty)
    models: pl.DataFrame = field(default_factory=MODELS.empty)
    contracts: pl.DataFrame = field(default_factory=CONTRACTS.empty)
    fees: pl.DataFrame = field(default_factory=FEES.empty)
    price_books: pl.DataFrame = field(default_factory=PRICES.empty)
    cost_books: pl.DataFrame = field(default_factory=PRICES.empty)
    capacity_steps: pl.DataFrame = field(default_factory=CAPACITY_STEPS.empty)
    burndown: pl.DataFrame = field(default_factory=BURNDOWN.empty)
    pools: pl.DataFrame = field(default_factory=POOLS.empty)
    capacity_fees: pl.DataFrame = field(default_factory=CAPACITY_FEES.empty)
    multipliers: pl.DataFrame = field(default_factory=MULTIPLIERS.empty)
    set_aside: pl.DataFrame = field(default_factory=SET_ASIDE.empty)
    entitlements: pl.DataFrame = field(default_factory=ENTITLEMENTS.empty)
    supplier_commitments: pl.DataFrame = field(default_factory=SUPPLIER_COMMITMENTS.empty)
    quotas: pl.DataFrame = field(default_factory=QUOTAS.empty)
    quota_weights: pl.DataFrame = field(default_factory=QUOTA_WEIGHTS.empty)
    exchange_rates: pl.DataFrame = field(default_factory=EXCHANGE_RATES.empty)
    bill_lines: pl.DataFrame = field(default_factory=BILL_LINES.empty)
    contract_terms: pl.DataFrame = field(default_factory=CONTRACT_TERMS.empty)
    price_rules: pl.DataFrame = field(default_factory=PRICE_RULES.empty)
    price_tiers: pl.DataFrame = field(default_factory=PRICE_TIERS.empty)
    price_hours: pl.DataFrame = field(default_factory=PRICE_HOURS.empty)
    percentages: pl.DataFrame = field(default_factory=PERCENTAGES.empty)
    discounts: pl.DataFrame = field(default_factory=DISCOUNTS.empty)
    commitments: pl.DataFrame = field(default_factory=CUSTOMER_COMMITMENTS.empty)
    credit_grants: pl.DataFrame = field(default_factory=CREDIT_GRANTS.empty)
    limits: pl.DataFrame = field(default_factory=LIMITS.empty)
    limit_weights: pl.DataFrame = field(default_factory=LIMIT_WEIGHTS.empty)


#: Requests that were turned away, once each: the first refusal of every customer and request_id.
REFUSED_REQUESTS: Final = Frame(
    "REFUSED_REQUESTS",
    {
        "occurred_at": INSTANT,
        "customer": pl.String,
        "request_id": pl.String,
        "pool": pl.String,
        "model": pl.String,
        "tier_sold": pl.String,
        "region": pl.String,
        "estimated_input_tokens": pl.Int32,
        "estimated_output_tokens": pl.Int32,
    },
    key=("customer", "request_id"),
    nullable=frozenset({"model", "tier_sold", "region", "estimated_input_tokens", "estimated_output_tokens"}),
)

# ---- events, between the decoder and the ledger -------------------------------------------------------

#: One row per event as the producer sent it: counts by the producer's convention.
REPORTED_EVENTS: Final = Frame(
    "REPORTED_EVENTS",
    {
        "record": pl.Int32,  # index of the record within the poll
        "index": pl.Int32,  # index of the event within its record
        "event_id": pl.String,
        "source": pl.String,
        "occurred_at": INSTANT,
        "customer": pl.String,
        "request_id": pl.String,
        "attempt": pl.Int16,
        "product": pl.String,
        "tier_sold": pl.String,
        "provider": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "pool": pl.String,
        "ran_on": pl.String,
        "billable": pl.Boolean,
        "nonbillable_reason": pl.String,
        "project": pl.String,
        "seat": pl.String,
        "usage_convention": pl.String,
        "usage_source": pl.String,
        "duration_ms": pl.Int32,
        "input_tokens": pl.Int64,
        "cache_read_tokens": pl.Int64,
        "cache_write_5m_tokens": pl.Int64,
        "cache_write_1h_tokens": pl.Int64,
        "total_output_tokens": pl.Int64,
        "reported_reasoning_tokens": pl.Int64,
        "accelerator_ms": pl.Int64,
        **dict.fromkeys(FURTHER_METERS, pl.Int64),
        "context_tokens": pl.Int64,  # the largest input of one sampling; null: all of the input is one
    },
    key=("record", "index"),
    nullable=frozenset({"pool", "nonbillable_reason", "project", "seat", "duration_ms", "context_tokens"}),
)
#: One row per acceptable event, counts as disjoint meters.
EVENTS: Final = Frame(
    "EVENTS",
    {
        "record": pl.Int32,
        "index": pl.Int32,
        "event_id": pl.String,
        "source": pl.String,
        "occurred_at": INSTANT,
        **DIMENSIONS,
        "request_id": pl.String,
        "attempt": pl.Int16,
        "nonbillable_reason": pl.String,
        "project": pl.String,
        "seat": pl.String,
        "usage_source": pl.String,
        "duration_ms": pl.Int32,
        **dict.fromkeys(METERS, pl.Int32),
    },
    key=("record", "index"),
    nullable=frozenset({"pool", "nonbillable_reason", "project", "seat", "duration_ms"}),
    laws={"meters are not negative": pl.min_horizontal([pl.col(meter) for meter in METERS]) >= 0},
)
#: One row per acceptable event that is no usage; what its kind does not have is null.
NOTICES: Final = Frame(
    "NOTICES",
    {
        "record": pl.Int32,
        "index": pl.Int32,
        "event_id": pl.String,
        "source": pl.String,
        "occurred_at": INSTANT,
        "kind": pl.String,  # void | refused | heartbeat
        "reason": pl.String,  # void: free, may be null; refused: customer_limit | pool_full
        "target_source": pl.String,  # void: the event that it takes back
        "target_id": pl.String,
        "side": pl.String,  # charge | both
        "customer": pl.String,  # refused, from here on
        "request_id": pl.String,
        "attempt": pl.Int16,
        "product": pl.String,
        "tier_sold": pl.String,
        "provider": pl.String,  # null: not chosen yet
        "model": pl.String,
        "region": pl.String,
        "pool": pl.String,
        "project": pl.String,
        "seat": pl.String,
        "estimated_input_tokens": pl.Int32,
        "estimated_output_tokens": pl.Int32,
        "sequence": pl.Int64,  # heartbeat
        "complete_until": INSTANT,
    },
    key=("record", "index"),
    nullable=frozenset(
        {
            *("reason", "target_source", "target_id", "side", "customer", "request_id", "attempt", "product"),
            *("tier_sold", "provider", "model", "region", "pool", "project", "seat", "sequence"),
            *("estimated_input_tokens", "estimated_output_tokens", "complete_until"),
        }
    ),
)
#: One row per record or event that cannot be accepted. `index` -1: the whole record.
REJECTS: Final = Frame(
    "REJECTS",
    {
        "record": pl.Int32,
        "index": pl.Int32,
        "code": pl.String,
        "field": pl.String,  # the first offending field
        "detail": pl.String,  # what is wrong and what would be right; never the value of an unknown field
        "source": pl.String,
        "event_id": pl.String,
        "payload": pl.Binary,  # the bytes of the event, or of the whole record
    },
    key=("record", "index"),
    nullable=frozenset({"field", "source", "event_id"}),
)
