"""Losses: who costs more than it earns, and of what the cost is made, so that the answer leads to its reason."""

from typing import Final

import polars as pl

from metering.frames.frame import SUM, Frame
from metering.money import MONEY, RATIO, from_quanta, ratio, to_quanta

#: Whose loss it is, and why: what it earned and what was given away, its attempts, and where its cost ran.
LOSSES: Final = Frame(
    "LOSSES",
    {
        "whose": pl.String,
        "revenue": MONEY,
        "discount": MONEY,
        "promotional_credit": MONEY,
        "cost": MONEY,
        "cost_pool": MONEY,
        "cost_on_demand": MONEY,
        "margin": MONEY,
        "requests": SUM,
        "unbilled_requests": SUM,  # retries, failures, refunds, internal use: they cost, and earn nothing
        "product": pl.String,  # that costs most
        "product_ratio": RATIO,  # its part of the cost
    },
    key=("whose",),
    nullable=frozenset({"product", "product_ratio"}),
    laws={
        "a loss": pl.col("margin") < 0,
        "margin = revenue - cost": pl.col("margin") == pl.col("revenue") - pl.col("cost"),
        "cost = cost_pool + cost_on_demand": pl.col("cost") == pl.col("cost_pool") + pl.col("cost_on_demand"),
    },
)
_AMOUNTS: Final = ("revenue", "discount", "promotional_credit", "cost", "cost_pool", "cost_on_demand")


def losses(lines: pl.DataFrame, by: str) -> pl.DataFrame:
    """Who of `by` (customer, plan, contract, segment) loses money on the usage basis: LOSSES.

    lines: results.MARGIN_LINES of a period. What is nobody's (unused capacity) is no loss of anybody. Customers that
    are not meant to pay (trial, free, internal, research, unknown) are left out by customer; a plan, contract or
    segment is judged with all who are in it, if somebody in it pays. Of products that cost the same the first by name
    is told.
    """
    of = pl.col(by).is_not_null() & pl.col("customer").is_not_null()
    if by == "customer":
        of &= pl.col("kind") == "paying"
    rows = lines.filter(of).with_columns(to_quanta(pl.col(name)).alias(name) for name in _AMOUNTS)
    sums = (
        rows.group_by(pl.col(by).alias("whose"))
        .agg(
            pl.col(_AMOUNTS).sum(),
            pl.col("requests").cast(SUM).sum(),
            (pl.col("requests") - pl.col("billable_requests")).cast(SUM).sum().alias("unbilled_requests"),
            (pl.col("kind") == "paying").any().alias("_pays"),
        )
        .with_columns((pl.col("revenue") - pl.col("cost")).alias("margin"))
        .filter(pl.col("_pays") & (pl.col("margin") < 0))
    )
    products = (
        rows.filter(pl.col("product").is_not_null())
        .group_by(pl.col(by).alias("whose"), "product")
        .agg(pl.col("cost").sum().alias("_cost"))
        .sort("_cost", "product", descending=[True, False])
        .unique("whose", keep="first", maintain_order=True)
    )
    return LOSSES.conform(
        sums.join(products, on="whose", how="left", validate="1:1").with_columns(
            ratio(pl.col("_cost"), pl.col("cost")).alias("product_ratio"),
            *(from_quanta(pl.col(name)).alias(name) for name in (*_AMOUNTS, "margin")),
        )
    )
