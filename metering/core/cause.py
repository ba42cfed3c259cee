"""Cause: what spill cost above the pool's own cost, moved to those who took more than they were entitled to."""

from typing import Final

import polars as pl

from metering.core.allocation import quarters
from metering.core.rating import on_demand_costs
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM
from metering.money import multiply_divide, split_largest_remainder, to_quanta

_BY: Final = ("pool", "dimension", "quarter_start")
_MINUTE: Final = ("minute", "pool", "customer")


def cause_shift(
    usage: pl.DataFrame,
    entitled: pl.DataFrame,
    burned: pl.DataFrame,
    recognised: pl.DataFrame,
    utilization: pl.DataFrame,
    books: Books,
) -> pl.DataFrame:
    """The spill premium, from those who spilled to those above their entitlement in that minute.

    usage: frames.POOL_CUSTOMER_USAGE; entitled and burned: of core.entitlement; recognised:
    results.RECOGNISED; utilization: results.UTILIZATION, all of pools with entitlements, in whose own
    currency it is computed. Per minute, with R recognised and C contracted of the quarter hour:

        value of x      = floor(R x x / C), summed over the dimensions, where R and C are above 0
        premium_i       = cost of i's overflow - value of its spill
        excess_i        = value of max(0, burn_i + spill_i - entitlement_i)

    The sum of the premiums is split by excess, largest remainder first, ties by customer; each who spilled
    gives its own. Without an excess they stay, and so does the premium of overflow of which a part has no
    price, or that is bought in another currency. Sums to 0. Returns minute, customer, pool, currency, quanta.
    """
    spilled = usage.filter(pl.col("ran_on") == "overflow").rename({"minute": "quarter_start"})
    if spilled.is_empty():
        return _NOTHING
    spilled = spilled.join(
        utilization.select("pool", pl.col("minute").alias("quarter_start")).unique(),
        on=["pool", "quarter_start"],
        how="semi",
    )
    bought, unpriced = on_demand_costs(spilled.with_columns(pl.lit("cost").alias("counts_for")), books)
    pools = books.pools.select("pool", pl.col("currency").alias("_own"))
    cost = (
        bought.rename({"quarter_start": "minute"})
        .join(pools, on="pool", how="left", validate="m:1")
        .group_by(_MINUTE)
        .agg(
            to_quanta(pl.col("amount")).sum().alias("_cost"),
            (pl.col("currency") == pl.col("_own")).all().alias("_in_own"),
        )
        .filter(pl.col("_in_own").fill_null(value=False))
        .join(unpriced.rename({"quarter_start": "minute"}), on=list(_MINUTE), how="anti")
    )
    rate = (
        recognised.join(pools, on="pool", validate="m:1")
        .filter((pl.col("currency") == pl.col("_own")) & (pl.col("cost") > 0))
        .join(quarters(utilization).select(*_BY, "contracted"), on=list(_BY), validate="1:1")
        .filter(pl.col("contracted") > 0)
        .select(*_BY, "cost", "contracted")
    )
    taken = (
        burned.join(cost.select("minute", "pool").unique(), on=["minute", "pool"], how="semi")
        .with_columns(pl.col("minute").dt.truncate("15m").alias("quarter_start"))
        .join(rate, on=list(_BY), validate="m:1")
        .join(entitled, on=[*_BY, "customer"], how="left", validate="m:1")
    )
    zero = pl.lit(0, dtype=SUM)
    above = pl.col("burn") + pl.col("spill") - pl.col("entitlement").fill_null(zero)
    valued = taken.group_by(_MINUTE).agg(
        _value(pl.col("spill")).sum().alias("_spill"),
        _value(pl.max_horizontal(above, zero)).sum().alias("_excess"),
    )
    at = ["minute", "pool"]
    given = (
        cost.join(valued.select(*_MINUTE, "_spill"), on=list(_MINUTE), how="left", validate="1:1")
        .with_columns((pl.col("_cost") - pl.col("_spill").fill_null(zero)).alias("_premium"))
        .join(valued.filter(pl.col("_excess") > 0).select(at).unique(), on=at, how="semi")
    )
    totals = given.group_by(at).agg(pl.col("_premium").sum()).with_row_index("_group")
    received = split_largest_remainder(
        valued.filter(pl.col("_excess") > 0).join(totals, on=at, validate="m:1"),
        group=["_group"],
        total="_premium",
        weight="_excess",
        tie_break=["customer"],
        into="quanta",
    )
    moved = pl.concat(
        [
            received.select(*_MINUTE, "quanta"),
            given.select(*_MINUTE, (pl.lit(0, dtype=SUM) - pl.col("_premium")).alias("quanta")),
        ]
    )
    return (
        moved.group_by(_MINUTE)
        .agg(pl.col("quanta").sum())
        .filter(pl.col("quanta") != 0)
        .join(pools.rename({"_own": "currency"}), on="pool", validate="m:1")
    )


_NOTHING: Final = pl.DataFrame(
    schema={
        "minute": INSTANT,
        "pool": pl.String,
        "customer": pl.String,
        "quanta": SUM,
        "currency": pl.String,
    }
)


def _value(burn: pl.Expr) -> pl.Expr:
    """floor(cost x burn / contracted), burn possibly above contracted."""
    whole, contracted = burn // pl.col("contracted"), pl.col("contracted")
    return pl.col("cost") * whole + multiply_divide(pl.col("cost"), burn % contracted, contracted)[0]
