"""Declared frames of what a customer owes: fees, gross charges, and the waterfall down to revenue."""

from typing import Final

import polars as pl

from metering.frames.frame import INSTANT, SUM, Frame
from metering.money import MONEY

#: Fees earned, per slice of time (a UTC day, or less where a book changes within it).
FEES_EARNED: Final = Frame(
    "FEES_EARNED",
    {
        "customer": pl.String,
        "contract": pl.String,
        "fee": pl.String,
        "slice_start": INSTANT,
        "amount": MONEY,
        "currency": pl.String,
    },
    key=("customer", "contract", "fee", "slice_start", "currency"),
)
#: What usage costs a customer at the prices in force, before any discount. One row per series and meter.
GROSS: Final = Frame(
    "GROSS",
    {
        "quarter_start": INSTANT,
        "series_id": pl.UInt32,  # of the table of series beside it
        "customer": pl.String,
        "contract": pl.String,
        "item": pl.String,  # the product
        "meter": pl.String,  # a percentage of other charges: '% ' and its name
        "quantity": SUM,  # of a percentage: 0
        "gross": SUM,  # count of money.QUANTUM
        "currency": pl.String,
        "rule": pl.String,  # of frames.PRICE_RULES; null: a unit price of frames.PRICES
    },
    key=("quarter_start", "series_id", "meter"),
    nullable=frozenset({"rule"}),
)
#: How far a counter had counted when a quarter hour began, and what the quarter hour was charged by a rule.
COUNTED: Final = Frame(
    "COUNTED",
    {
        "contract": pl.String,
        "item": pl.String,
        "meters": pl.String,  # of the counter, sorted, joined by ','
        "quarter_start": INSTANT,
        "rule": pl.String,
        "counter_start": INSTANT,  # when the counter began to count
        "position": SUM,  # units counted before
        "counted": SUM,  # units of the counter in this quarter hour, over all its rules
        "total": SUM,  # units of the counter's span as far as it is known: a volume's tier is that of these
        "quantity": SUM,  # those of them that this rule prices
        "gross": SUM,  # count of money.QUANTUM
    },
    key=("contract", "item", "meters", "quarter_start", "rule"),
)
_TERMS_OF_CHARGES: Final = ("line_discount", "contract_discount", "fixed_discount", "capped")
#: The waterfall of charges, quarter hour by quarter hour: counts of money.QUANTUM, what is taken off positive.
#: Amount due = net + top_up - drawdown - promotional_credit - prepaid_credit + overage_premium + shortfall + fees.
WATERFALL: Final = Frame(
    "WATERFALL",
    {
        "quarter_start": INSTANT,
        "line": pl.String,  # usage | top_up (nothing to spread it over) | commitment | credit
        "series_id": pl.UInt32,  # null: of no series
        "customer": pl.String,
        "contract": pl.String,
        "item": pl.String,  # the product; null: of none
        "currency": pl.String,
        "gross": SUM,
        **dict.fromkeys(_TERMS_OF_CHARGES, SUM),
        "net": SUM,
        "top_up": SUM,  # to the minimum of the contract's period
        "drawdown": SUM,  # of commitments paid ahead
        "promotional_credit": SUM,
        "prepaid_credit": SUM,
        "overage_premium": SUM,  # what overage costs above (below: negative) the contract's own prices
        "shortfall": SUM,  # due of commitments in arrears, at the end of the tranche, or of what rolled over from it
        "breakage": SUM,  # paid ahead and never used: prepaid credit at its expiry, a commitment at its end
    },
    key=("quarter_start", "line", "series_id", "customer", "contract", "item", "currency"),
    nullable=frozenset({"series_id", "item"}),
    laws={
        "net = gross - discounts - capped": pl.col("net")
        == pl.col("gross") - pl.sum_horizontal(*_TERMS_OF_CHARGES),
    },
)
#: Charges that are a ratio of what the usage cost us (core.cells): sums of one thing sold, and served at one place.
CHARGED_ON_COST: Final = Frame(
    "CHARGED_ON_COST",
    {
        "customer": pl.String,
        "product": pl.String,
        "provider": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "context_breakpoint": pl.Int32,
        "meter": pl.String,
        "place": pl.String,  # the pool that served it, or on_demand
        "cost_currency": pl.String,
        "currency": pl.String,  # of the charge
        "quantity": SUM,
        "cost": SUM,  # in its currency, counts of money.QUANTUM as gross and amount
        "gross": SUM,
        "amount": SUM,  # less discounts
    },
    key=(
        *("customer", "product", "provider", "model_served", "tier_served", "region", "context_breakpoint"),
        *("meter", "place", "cost_currency", "currency"),
    ),
)
