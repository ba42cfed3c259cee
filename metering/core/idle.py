"""Idle: the cost of capacity that nobody used, carried by the pool's customers as the pool's policy says."""

from typing import Final

import polars as pl

from metering.core.capacity import weigh
from metering.core.series import Identified
from metering.frames import SUM, Books
from metering.meters import METERS
from metering.money import multiply_divide, split_largest_remainder, to_quanta

#: Places of the fraction of each minute's unused entitlement that is held, in bits.
_HELD_BITS: Final = 40
_BY: Final = ("pool", "dimension", "quarter_start")


def carried_by_burn(
    known: Identified, costs: pl.DataFrame, utilization: pl.DataFrame, books: Books
) -> pl.DataFrame:
    """Idle cost of whole UTC months, split over series and quarter hours by their burn in the pool.

    known: usage that ran in pools of the policy `burn`, by quarter_start, of the whole months so far; costs:
    results.POOL_COST and utilization: results.UTILIZATION of the same pools and time. Per pool, dimension,
    currency and month; largest remainder first, ties by quarter hour, then series. A month without burn
    leaves its idle where it is. Returns quarter_start, series_id, pool, currency, quanta, estimated.
    """
    grid = utilization.select("pool", "dimension").unique()
    contracted = utilization.select(
        "pool", pl.col("minute").dt.truncate("15m").alias("quarter_start")
    ).unique()
    series = known.series.with_columns(pl.col("pool").fill_null(""))
    rows = known.rows.join(series.select("series_id", "pool"), on="series_id", validate="m:1")
    weighed, _ = weigh(
        rows.join(contracted, on=["pool", "quarter_start"], how="semi").select(
            "quarter_start", "series_id", *METERS
        ),
        series,
        books.burndown.join(grid, on=["pool", "dimension"], how="semi"),
        books.multipliers,
        at="quarter_start",
    )
    month = pl.col("quarter_start").dt.truncate("1mo").alias("_month")
    burned = (
        weighed.group_by("quarter_start", "series_id", "dimension")
        .agg(pl.col("burn").sum())
        .filter(pl.col("burn") > 0)
        .join(series.select("series_id", "pool"), on="series_id", validate="m:1")
        .with_columns(month)
    )
    idle = (
        costs.with_columns(month, to_quanta(pl.col("idle_cost")).alias("_idle"))
        .group_by("pool", "dimension", "_month", "currency")
        .agg(pl.col("_idle").sum(), pl.col("estimated").any())
        .with_row_index("_group")
    )
    parts = split_largest_remainder(
        burned.join(idle, on=["pool", "dimension", "_month"]),
        group=["_group"],
        total="_idle",
        weight="burn",
        tie_break=["quarter_start", "series_id"],
        into="quanta",
    )
    return parts.group_by("quarter_start", "series_id", "pool", "currency").agg(
        pl.col("quanta").sum(), pl.col("estimated").any()
    )


def carried_by_entitlement(
    entitled: pl.DataFrame, burned: pl.DataFrame, costs: pl.DataFrame, utilization: pl.DataFrame
) -> pl.DataFrame:
    """Idle cost carried by customers whose entitlement stood idle, per quarter hour; nobody carries the rest.

    entitled and burned: of core.entitlement; costs: results.POOL_COST, utilization: results.UTILIZATION, all
    of pools of the policy `entitlement`. Per minute and dimension, in numerators of burn:

        unused_i = max(0, entitlement_i - burn_i)      held = min(idle, sum of unused)
        weight_i = floor(held x 2**40 / sum of unused) x unused_i, summed over the quarter hour

    floor(idle cost x held / idle) of the quarter hour is split by weight, largest remainder first, ties by
    customer. So nobody carries more than its own unused part at the pool's unit cost, to the last quantum.
    Returns quarter_start, customer, pool, currency, quanta, estimated.
    """
    by = list(_BY)
    zero = pl.lit(0, dtype=SUM)
    promised = entitled.group_by(by).agg(pl.col("entitlement").sum().alias("_promised"))
    minutes = utilization.select(
        "pool", "dimension", "minute", "idle", pl.col("minute").dt.truncate("15m").alias("quarter_start")
    ).join(promised, on=by, validate="m:1")
    used = (
        burned.with_columns(pl.col("minute").dt.truncate("15m").alias("quarter_start"))
        .join(entitled, on=[*by, "customer"], validate="m:1")
        .with_columns(pl.min_horizontal("burn", "entitlement").alias("_used"))
        .filter(pl.col("_used") > 0)
    )
    used_in = used.group_by("pool", "dimension", "minute").agg(pl.col("_used").sum().alias("_used_in"))
    unused = pl.col("_promised") - pl.col("_used_in").fill_null(zero)
    minutes = (
        minutes.join(used_in, on=["pool", "dimension", "minute"], how="left", validate="1:1")
        .with_columns(unused.alias("_unused"))
        .with_columns(pl.min_horizontal("idle", "_unused").alias("_held"))
        .with_columns(
            pl.when(pl.col("_unused") > 0)
            .then(pl.col("_held") * pl.lit(2**_HELD_BITS, dtype=SUM) // pl.col("_unused"))
            .otherwise(zero)
            .alias("_fraction")
        )
    )
    quarters = minutes.group_by(by).agg(pl.col("idle", "_held", "_fraction").sum())
    not_unused = (
        used.join(
            minutes.select("pool", "dimension", "minute", "_fraction"),
            on=["pool", "dimension", "minute"],
            validate="m:1",
        )
        .group_by(*by, "customer")
        .agg((pl.col("_fraction") * pl.col("_used")).sum().alias("_taken"))
    )
    held = (
        quarters.filter(pl.col("_held") > 0)
        .join(
            costs.select(*by, "currency", "estimated", to_quanta(pl.col("idle_cost")).alias("_cost")),
            on=by,
            validate="1:m",
        )
        .with_columns(
            (
                multiply_divide(pl.col("_cost").abs(), pl.col("_held"), pl.col("idle"))[0]
                * pl.col("_cost").sign()
            ).alias("_total")
        )
        .filter(pl.col("_total") != 0)
        .with_row_index("_group")
    )
    weights = (
        entitled.join(held.select(*by, "_group", "_fraction", "_total", "currency", "estimated"), on=by)
        .join(not_unused, on=[*by, "customer"], how="left", validate="m:1")
        .with_columns(
            (pl.col("_fraction") * pl.col("entitlement") - pl.col("_taken").fill_null(zero)).alias("_weight")
        )
        .filter(pl.col("_weight") > 0)
    )
    parts = split_largest_remainder(
        weights,
        group=["_group"],
        total="_total",
        weight="_weight",
        tie_break=["customer"],
        into="quanta",
    )
    return parts.group_by("quarter_start", "customer", "pool", "currency").agg(
        pl.col("quanta").sum(), pl.col("estimated").any()
    )
