"""Entitlement: what of a pool was promised to each customer, and what each of them burned, by the minute."""

from typing import Final

import polars as pl

from metering.core.burn import burn_by_series, weights_in
from metering.core.series import where
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM
from metering.periods import QUARTER

_QUANTA: Final = pl.lit(10**12, dtype=SUM)
#: Shape of `entitled`: burn per minute that a customer is entitled to, in each quarter hour.
ENTITLED: Final = {
    "pool": pl.String,
    "dimension": pl.String,
    "quarter_start": INSTANT,
    "customer": pl.String,
    "entitlement": SUM,
}


def entitled(books: Books, utilization: pl.DataFrame) -> pl.DataFrame:
    """Numerators of burn per minute promised to each customer, per quarter hour in which capacity is contracted.

    Of one entitlement: floor(units x unit_burn_per_minute x denominator); those of a customer add up.
    utilization: results.UTILIZATION, whose denominators count. Columns of ENTITLED.
    """
    grid = utilization.group_by("pool", "dimension").agg(
        pl.col("denominator").first().cast(SUM),
        pl.col("minute").min().alias("_first"),
        (pl.col("minute").max().dt.truncate("15m") + pl.lit(QUARTER)).alias("_last"),
    )
    promised = books.entitlements.select(
        *("customer", "pool", "dimension", "effective_from", "effective_until"),
        pl.col("units").to_physical().alias("_units"),
    )
    steps = books.capacity_steps.select(
        *("pool", "dimension", "unit_burn_per_minute"),
        pl.col("effective_from").alias("_from"),
        pl.col("effective_until").alias("_until"),
    )
    spans = (
        promised.join(steps, on=["pool", "dimension"])
        .join(grid, on=["pool", "dimension"], validate="m:1")
        .with_columns(
            pl.max_horizontal("effective_from", "_from", "_first").alias("_start"),
            pl.min_horizontal("effective_until", "_until", "_last").alias("_end"),
            (pl.col("_units") * pl.col("unit_burn_per_minute").cast(SUM) * pl.col("denominator") // _QUANTA)
            .cast(SUM)
            .alias("entitlement"),
        )
        .filter(pl.col("_start") < pl.col("_end"))
    )
    every = pl.datetime_ranges("_start", "_end", interval="15m", closed="left").alias("quarter_start")
    return (
        spans.select("pool", "dimension", "customer", "entitlement", every)
        .explode("quarter_start", empty_as_null=False)
        .group_by("pool", "dimension", "quarter_start", "customer")
        .agg(pl.col("entitlement").sum())
        .select(*ENTITLED)
    )


def burned_by_customer(usage: pl.DataFrame, books: Books, utilization: pl.DataFrame) -> pl.DataFrame:
    """Burn and spill (numerators) per minute, pool, dimension and customer.

    usage: frames.POOL_CUSTOMER_USAGE; utilization: results.UTILIZATION of pools or carve-outs:
    minutes outside of it are ignored.
    """
    at = ["pool", "minute"]
    inside = utilization.select(at).unique().with_columns(pl.lit(value=True).alias("_inside"))
    found = usage.select(at).join(inside, on=at, how="left", validate="m:1", maintain_order="left")["_inside"]
    usage = where(usage, found.is_not_null()).drop("provider", "requests")
    series, weighed, _ = burn_by_series(usage, *weights_in(books), more=["customer"])
    # by the number of a customer in a pool: to group by texts takes several times as long
    holders = series.select("pool", "customer").unique().with_row_index("_holder")
    numbered = series.select("series_id", "pool", "customer", "ran_on").join(
        holders, on=["pool", "customer"], validate="m:1"
    )
    nothing = pl.lit(0, dtype=SUM)
    spilled = pl.col("ran_on") == "overflow"
    return (
        weighed.join(numbered.select("series_id", "_holder", "ran_on"), on="series_id", validate="m:1")
        .select(
            "minute",
            "dimension",
            "_holder",
            pl.when(spilled).then(nothing).otherwise(pl.col("burn")).alias("burn"),
            pl.when(spilled).then(pl.col("burn")).otherwise(nothing).alias("spill"),
        )
        .group_by("minute", "_holder", "dimension")
        .agg(pl.col("burn", "spill").sum())
        .join(holders, on="_holder", validate="m:1")
        .select("minute", "pool", "dimension", "customer", "burn", "spill")
    )
