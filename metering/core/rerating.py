"""Rerating: the same usage under two catalogs, and what differs, line by line; never a journal of differences."""

from collections.abc import Sequence
from typing import Final

import polars as pl

from metering.frames.frame import Frame
from metering.money import MONEY
from metering.results.margin import LINE_KEY

#: What a line is about, whatever a catalog says of its customer.
RERATED_KEY: Final = ("day", "customer", "line", "product", "tier_sold", "provider", "model_served", "pool")
#: What is compared: usage-basis cost, and with it the idle that is carried.
RERATED_AMOUNTS: Final = ("charge", "fee", "revenue", "cost", "cost_loaded")
_CHANGES: Final = [f"{name}_change" for name in RERATED_AMOUNTS]
_FLAGS: Final = ("charge_unrated", "cost_unrated")
#: Lines that differ, with what they were, what they are, and change = now - before, all in one currency.
RERATED: Final = Frame(
    "RERATED",
    {
        **{name: LINE_KEY[name] for name in RERATED_KEY},
        **{f"{name}_{what}": MONEY for name in RERATED_AMOUNTS for what in ("before", "now", "change")},
        **dict.fromkeys(_FLAGS, pl.Boolean),  # of the line now: a part has no price, or no cost
        "currency": pl.String,
    },
    key=RERATED_KEY,
    nullable=frozenset(RERATED_KEY) - {"day", "line"},
    laws={
        f"{name}_change = {name}_now - {name}_before": pl.col(f"{name}_change")
        == pl.col(f"{name}_now") - pl.col(f"{name}_before")
        for name in RERATED_AMOUNTS
    },
)


def compared(now: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    """RERATED of results.MARGIN_LINES of the same usage under two catalogs, in one currency: every line.

    Kind, segment and whatever else a catalog says of a customer are summed over.
    """
    key = list(RERATED_KEY)
    nothing = pl.lit(0, dtype=MONEY)
    sides = []
    for lines, own, other in ((now, "now", "before"), (before, "before", "now")):
        sides.append(
            lines.select(
                *key,
                *(pl.col(name).alias(f"{name}_{own}") for name in RERATED_AMOUNTS),
                *(nothing.alias(f"{name}_{other}") for name in RERATED_AMOUNTS),
                *(pl.col(name) & (own == "now") for name in _FLAGS),
                "currency",
            )
        )
    return RERATED.conform(_sums(pl.concat(sides, how="diagonal"), key))


def differing(lines: pl.DataFrame) -> pl.DataFrame:
    """The lines of RERATED on which anything changes; of a catalog compared with itself none."""
    return lines.filter(pl.any_horizontal(pl.col(name) != 0 for name in _CHANGES))


def _sums(lines: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    sides = [f"{name}_{what}" for name in RERATED_AMOUNTS for what in ("before", "now")]
    return (
        lines.group_by(by)
        .agg(pl.col(sides).sum(), pl.col(_FLAGS).any(), pl.col("currency").first())
        .with_columns(
            (pl.col(f"{name}_now") - pl.col(f"{name}_before")).alias(f"{name}_change")
            for name in RERATED_AMOUNTS
        )
    )


def by_customer(lines: pl.DataFrame) -> pl.DataFrame:
    """RERATED lines summed by customer and, where they have none, by line: all that they come to."""
    key = ["customer", "line"]
    return _sums(lines.with_columns(pl.when(pl.col("customer").is_null()).then("line").alias("line")), key)


def moved(lines: pl.DataFrame, changed: pl.DataFrame) -> pl.DataFrame:
    """Rows of `by_customer` of those on whose lines (`changed`) anything changes, the most moved first; last, of all
    others together, customer null and line `unchanged`."""
    key = ["customer", "line"]
    who = by_customer(changed).select(*key, pl.lit(value=True).alias("_changed"))
    told = lines.join(who, on=key, how="left", nulls_equal=True, validate="m:1")
    rest = pl.col("_changed").is_null()
    told = told.with_columns(
        pl.when(~rest).then("customer").alias("customer"),
        pl.when(rest).then(pl.lit("unchanged")).otherwise(pl.col("line")).alias("line"),
    )
    size = pl.col("revenue_change").abs() + pl.col("cost_change").abs()
    return _sums(told, key).sort(
        [pl.col("line").eq_missing(pl.lit("unchanged")), size, *key],
        descending=[False, True, False, False],
        nulls_last=True,
    )
