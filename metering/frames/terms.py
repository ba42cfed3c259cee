"""Declared frames of what is sold: customers, their contracts, and the terms that were agreed."""

from typing import Final

import polars as pl

from metering.frames.frame import INSTANT, SPAN, SPAN_LAW, Frame
from metering.money import MONEY

CUSTOMERS: Final = Frame(
    "CUSTOMERS",
    {"customer": pl.String, **SPAN, "name": pl.String, "kind": pl.String, "segment": pl.String},
    key=("customer", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws=SPAN_LAW,
)
CONTRACTS: Final = Frame(
    "CONTRACTS",
    {
        "customer": pl.String,
        **SPAN,
        "contract": pl.String,
        "price_book": pl.String,
        "margin_floor_ratio": MONEY,
        "floor_basis": pl.String,
    },
    key=("customer", "effective_from"),
    nullable=frozenset({"effective_until", "margin_floor_ratio"}),
    laws=SPAN_LAW,
)
#: Fees do not depend on usage and are earned evenly over the days that they cover. month: from the contract's
#: anchor day to the next, in its zone; year: from a day of the fee's beginning to the next; span: its own.
FEES: Final = Frame(
    "FEES",
    {
        "customer": pl.String,
        "contract": pl.String,
        "fee": pl.String,
        **SPAN,
        "kind": pl.String,  # plan | seat | reservation
        "amount": MONEY,  # of one
        "quantity": pl.Int64,  # how many: seats
        "per": pl.String,  # month | year | span
        "currency": pl.String,
    },
    key=("customer", "contract", "fee", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={
        **SPAN_LAW,
        "quantity is not negative": pl.col("quantity") >= 0,
        "a fee for a span has an end": (pl.col("per") != "span") | pl.col("effective_until").is_not_null(),
    },
)
#: What a contract says once. A contract without a row: no plan, whole UTC months, no minimum, no maximum.
#: Its periods begin at midnight of `zone` on `anchor_day` (in a shorter month on its last day) and are
#: `period_months` long. `currency` is that of its price book.
CONTRACT_TERMS: Final = Frame(
    "CONTRACT_TERMS",
    {
        "customer": pl.String,
        "contract": pl.String,
        **SPAN,
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
    laws=SPAN_LAW,
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
        **SPAN,
        "rule": pl.String,  # its rows in PRICE_TIERS
        "model": pl.String,  # unit | graduated | volume | package_started | package_full
        "free_units": pl.Int64,  # of the counter, before the first tier
        "reset": pl.String,  # period (of the contract) | day | month | year (of its zone) | never
        "currency": pl.String,
    },
    key=("book", "item", "tier", "region", "context_breakpoint", "hours", "meters", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={**SPAN_LAW, "free units are not negative": pl.col("free_units") >= 0},
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
        **SPAN,
        "ratio": MONEY,
        "of": pl.String,  # charge (gross) | cost (usage basis)
        "item": pl.String,  # the product whose charge or cost it is; null: of all products
        "currency": pl.String,
    },
    key=("book", "charge", "item", "effective_from"),
    nullable=frozenset({"effective_until", "item"}),
    laws=SPAN_LAW,
)
DISCOUNTS: Final = Frame(
    "DISCOUNTS",
    {
        "customer": pl.String,
        "contract": pl.String,
        "discount": pl.String,
        **SPAN,
        "kind": pl.String,  # line (of an item) | contract (of all) | fixed (an amount per period)
        "item": pl.String,  # of a line discount: the product
        "ratio": MONEY,  # 0..1
        "amount": MONEY,  # of a fixed discount, per period of the contract
    },
    key=("customer", "contract", "discount", "item", "effective_from"),
    nullable=frozenset({"effective_until", "item", "ratio", "amount"}),
    laws={
        **SPAN_LAW,
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
        **SPAN,  # of the tranche
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
    laws=SPAN_LAW,
)
CREDIT_GRANTS: Final = Frame(
    "CREDIT_GRANTS",
    {
        "customer": pl.String,
        "contract": pl.String,
        "credit": pl.String,
        "kind": pl.String,  # promotional (reduces revenue) | prepaid (does not)
        **SPAN,
        "amount": MONEY,
        "currency": pl.String,
        "items": pl.List(pl.String),  # the products that it pays; empty: all
    },
    key=("customer", "contract", "credit"),
    nullable=frozenset({"effective_until"}),
    laws={**SPAN_LAW, "amount is positive": pl.col("amount") > 0},
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
        **SPAN,
        "items": pl.List(pl.String),  # products that count; empty: all
        "window": pl.String,  # minute | anchored | fixed
        "window_minutes": pl.Int64,
        "anchor_at": INSTANT,  # of fixed windows: when one begins
        "quantity": pl.Int64,  # the limit, in weighted units
    },
    key=("customer", "contract", "limit", "effective_from"),
    nullable=frozenset({"effective_until", "plan", "anchor_at"}),
    laws={
        **SPAN_LAW,
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
