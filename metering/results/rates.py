"""Declared frames of rated lines: quantity times the price in force."""

from collections.abc import Mapping
from typing import Final

import polars as pl

from metering.frames.frame import INSTANT, SUM, Frame
from metering.money import MONEY

Columns = Mapping[str, pl.DataType | type[pl.DataType]]
#: What `rate` looks a price up by. `quarter_start` is the instant whose price applies: the quarter hour of
#: the usage, or the start of a longer slice of time in which no book changes.
RATE_KEY: Final[Columns] = {
    "quarter_start": INSTANT,
    "book": pl.String,
    "item": pl.String,  # price book: the product sold; cost book: the model served
    "tier": pl.String,  # price book: the tier sold; cost book: the tier served
    "region": pl.String,
    "context_breakpoint": pl.Int32,
    "meter": pl.String,
    "quantity": SUM,  # units of the meter; negative in compensating entries
}
#: amount = quantity x unit_price, exactly. unit_price is in currency per one unit.
RATED: Final = Frame("RATED", {**RATE_KEY, "unit_price": MONEY, "amount": MONEY, "currency": pl.String})
#: Lines without a price: `reason` says what is missing. `book` is null where none could be named.
UNPRICED: Final = Frame("UNPRICED", {**RATE_KEY, "reason": pl.String}, nullable=frozenset({"book"}))
#: Everything that could not be priced or costed, per UTC day. Usage has a meter and a quantity. An amount
#: that is known, but in another currency than the report's, has its amount and currency: no_exchange_rate.
UNRATED: Final = Frame(
    "UNRATED",
    {
        "day": pl.Date,
        "side": pl.String,  # charge | fee | cost | capacity (the spill of overflow that no weight applies to)
        "reason": pl.String,  # see docs: unknown_customer, no_contract, no_price_book, no_price, ...
        "customer": pl.String,
        "product": pl.String,
        "tier_sold": pl.String,
        "provider": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "pool": pl.String,
        "ran_on": pl.String,
        "context_breakpoint": pl.Int32,
        "meter": pl.String,
        "quantity": SUM,
        "amount": MONEY,
        "currency": pl.String,
    },
    key=(
        *("day", "side", "reason", "customer", "product", "tier_sold", "provider", "model_served"),
        *("tier_served", "region", "pool", "ran_on", "context_breakpoint", "meter", "currency"),
    ),
    nullable=frozenset(
        {"customer", "product", "tier_sold", "provider", "model_served", "tier_served", "region", "pool"}
        | {"ran_on", "context_breakpoint", "meter", "quantity", "amount", "currency"}
    ),
    laws={"a quantity or an amount": pl.col("quantity").is_not_null() | pl.col("amount").is_not_null()},
)
