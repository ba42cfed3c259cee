"""Flows: every amount, and every quantity whose amount is not known, on its way to a margin line."""

from collections.abc import Mapping
from typing import Final

import polars as pl

from metering.core.allocation import allocate
from metering.core.capacity import weigh
from metering.core.effective import with_slice
from metering.core.series import Identified
from metering.frames import INSTANT, SUM, Books
from metering.meters import METERS
from metering.money import to_quanta
from metering.periods import Period

#: One amount, or one quantity whose amount is not known (`reason`), on its way to a line.
FLOW: Final[Mapping[str, pl.DataType | type[pl.DataType]]] = {
    "slice_start": INSTANT,
    "line": pl.String,
    "series_id": pl.UInt32,
    "customer": pl.String,
    "pool": pl.String,
    "side": pl.String,
    "into": pl.String,  # the column of the line
    "quanta": SUM,
    "currency": pl.String,
    "meter": pl.String,
    "quantity": SUM,
    "reason": pl.String,
}


def flow(rows: pl.DataFrame, **constants: str) -> pl.DataFrame:
    """`rows` in the shape of FLOW: the constants added, what is absent null."""
    rows = rows.with_columns(pl.lit(value).alias(name) for name, value in constants.items())
    return rows.select(
        pl.col(name) if name in rows.columns else pl.lit(None, dtype=dtype).alias(name)
        for name, dtype in FLOW.items()
    )


def amounts(rated: pl.DataFrame, into: str) -> pl.DataFrame:
    """Rated lines (results.RATED with series_id) summed per slice, series and currency."""
    sums = (
        rated.with_columns(to_quanta(pl.col("amount")).alias("quanta"))
        .group_by(pl.col("quarter_start").alias("slice_start"), "series_id", "currency")
        .agg(pl.col("quanta").sum())
    )
    return flow(sums, line="usage", side="charge" if into == "charge" else "cost", into=into)


def gaps(unrated: pl.DataFrame, side: str) -> pl.DataFrame:
    """Unrated lines (results.UNPRICED with series_id): a quantity and a reason, no amount."""
    lines = unrated.rename({"quarter_start": "slice_start"}).select(
        "slice_start", "series_id", "meter", "quantity", "reason"
    )
    return flow(lines, line="usage", side=side)


def pool_flows(
    known: Identified, utilization: pl.DataFrame, books: Books, period: Period, cut: pl.DataFrame
) -> list[pl.DataFrame]:
    """Served cost by series, idle cost by pool, and usage that ran in a pool but has no cost there."""
    series = known.series.filter(
        (pl.col("ran_on") == "pool") & pl.col("counts_for").is_in(["charge_and_cost", "cost"])
    ).with_columns(pl.col("pool").fill_null(""))
    rows = known.rows.drop("requests").join(
        series.select("series_id", "pool"), on="series_id", validate="m:1"
    )
    grid = utilization.select("pool", "dimension").unique()
    quarters = utilization.select("pool", pl.col("minute").dt.truncate("15m").alias("quarter_start")).unique()
    contracted = rows.join(quarters, on=["pool", "quarter_start"], how="semi")
    outside = rows.join(quarters, on=["pool", "quarter_start"], how="anti")
    weighed, unweighed = weigh(
        contracted.select("quarter_start", "series_id", *METERS),
        series.select("series_id", "pool", "model_served", "context_breakpoint", "region", "tier_served"),
        books.burndown.join(grid, on=["pool", "dimension"], how="semi"),
        books.multipliers,
        at="quarter_start",
    )
    served, cost = allocate(
        weighed.join(series.select("series_id", "pool"), on="series_id", validate="m:1"),
        books,
        utilization,
        period,
    )
    served = with_slice(served, cut, at="quarter_start")
    served = served.group_by("slice_start", "series_id", "currency").agg(pl.col("cost").sum().alias("quanta"))
    idle = (
        with_slice(cost, cut, at="quarter_start")
        .group_by("slice_start", "pool", "currency")
        .agg(to_quanta(pl.col("idle_cost")).sum().alias("quanta"))
    )
    nowhere = outside.unpivot(
        METERS, index=["slice_start", "series_id"], variable_name="meter", value_name="quantity"
    )
    lost = [
        (nowhere, "unknown_pool"),
        (with_slice(unweighed, cut, at="quarter_start"), "no_weight"),
    ]
    return [
        flow(served, line="usage", side="cost", into="cost_pool"),
        flow(idle, line="idle", side="cost", into="cost_pool"),
        *(
            flow(
                gap.group_by("slice_start", "series_id", "meter")
                .agg(pl.col("quantity").sum())
                .filter(pl.col("quantity") != 0),
                line="usage",
                side="cost",
                reason=reason,
            )
            for gap, reason in lost
        ),
    ]
