"""Deciles: the customers of a plan in tenths by what they cost, so that a flat plan shows who pays for whom."""

from typing import Final

import polars as pl

from metering.frames.frame import SUM
from metering.money import from_quanta, ratio, to_quanta
from metering.results.margin import PLAN_DECILES

_TENTHS: Final = 10
_FLAGS: Final = ("charge_unrated", "cost_unrated", "estimated")


def plan_deciles(lines: pl.DataFrame) -> pl.DataFrame:
    """The customers of every plan by what they cost, on the usage basis: PLAN_DECILES.

    lines: results.MARGIN_LINES of a period; those of no plan are ignored. Of a plan with n customers the one at
    place r by cost (0: the most; ties by name) is in decile floor(10 x r / n) + 1, so sizes differ by at most one;
    with n < 10 each customer has a row of its own, numbered from 1. The rows of a plan sum to its row of
    `margin --by plan`, exactly. Who changed plans is a customer of each, with what it used and paid under it.
    A customer loses money where its own revenue - cost < 0.
    """
    amounts = ("revenue", "cost")
    place = pl.int_range(pl.len(), dtype=pl.Int64).over("plan")
    count = pl.len().cast(pl.Int64).over("plan")
    customers = (
        lines.filter(pl.col("plan").is_not_null())
        .with_columns(to_quanta(pl.col(name)).alias(name) for name in amounts)
        .group_by("plan", "customer")
        .agg(pl.col(amounts).sum(), pl.col(_FLAGS).any(), pl.col("currency").first())
        .sort("plan", "cost", "customer", descending=[False, True, False])
        .with_columns(
            (pl.when(count < _TENTHS).then(place).otherwise(place * _TENTHS // count) + 1).alias("decile")
        )
    )
    rows = (
        customers.group_by("plan", "decile")
        .agg(
            pl.when(pl.len() == 1).then(pl.col("customer").first()).alias("customer"),
            pl.len().cast(pl.Int64).alias("customers"),
            pl.col("cost").min().alias("least_cost"),
            pl.col("cost").max().alias("most_cost"),
            pl.col(amounts).sum(),
            (pl.col("revenue") < pl.col("cost")).sum().cast(pl.Int64).alias("losing"),
            pl.col(_FLAGS).any(),
            pl.col("currency").first(),
        )
        .with_columns((pl.col("revenue") - pl.col("cost")).alias("margin"))
    )
    return PLAN_DECILES.conform(
        rows.with_columns(
            ratio(pl.col("cost"), pl.col("cost").sum().over("plan")).alias("cost_share_ratio"),
            ratio(pl.col("margin"), pl.col("revenue")).alias("margin_ratio"),
            ratio(pl.col("losing").cast(SUM), pl.col("customers").cast(SUM)).alias("losing_ratio"),
        ).with_columns(
            from_quanta(pl.col(name)).alias(name) for name in (*amounts, "least_cost", "most_cost", "margin")
        )
    )
