"""Everything that the catalog says as of one revision, and the frames that both sides share."""

from dataclasses import dataclass, field
from typing import Final

import polars as pl

from metering.frames.frame import SPAN, SPAN_LAW, Frame
from metering.frames.supply import (
    BILL_LINES,
    BURNDOWN,
    CAPACITY_FEES,
    CAPACITY_STEPS,
    ENTITLEMENTS,
    MODELS,
    MULTIPLIERS,
    POOLS,
    QUOTA_WEIGHTS,
    QUOTAS,
    SET_ASIDE,
    SUPPLIER_COMMITMENTS,
)
from metering.frames.terms import (
    CONTRACT_TERMS,
    CONTRACTS,
    CREDIT_GRANTS,
    CUSTOMER_COMMITMENTS,
    CUSTOMERS,
    DISCOUNTS,
    FEES,
    LIMIT_WEIGHTS,
    LIMITS,
    PERCENTAGES,
    PRICE_HOURS,
    PRICE_RULES,
    PRICE_TIERS,
)
from metering.money import MONEY

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
        **SPAN,
        "unit_price": MONEY,
        "currency": pl.String,
    },
    key=("book", "item", "tier", "region", "context_breakpoint", "meter", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={**SPAN_LAW, "price is not negative": pl.col("unit_price") >= 0},
)
#: One unit of `currency` is `rate` units of `into`. month_average: over the month that holds effective_from.
EXCHANGE_RATES: Final = Frame(
    "EXCHANGE_RATES",
    {"currency": pl.String, "into": pl.String, "kind": pl.String, **SPAN, "rate": MONEY},
    key=("currency", "into", "kind", "effective_from"),
    nullable=frozenset({"effective_until"}),
    laws={**SPAN_LAW, "rate is positive": pl.col("rate") > 0},
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
