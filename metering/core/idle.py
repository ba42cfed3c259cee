"""Idle: the cost of capacity that nobody used, carried by the pool's customers as the pool's policy says."""

from datetime import timedelta
from typing import Final

import polars as pl

from metering.core.burn import weigh
from metering.core.series import identify
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.frames.usage import Identified
from metering.meters import METERS
from metering.money import multiply_divide, split_largest_remainder, to_quanta
from metering.periods import MINUTE, QUARTER

#: Places of the fraction of each minute's unused entitlement that is held, in bits.
_HELD_BITS: Final = 40
_BY: Final = ("pool", "dimension", "quarter_start")
_CELL: Final = ("pool", "dimension")
_HOLDER: Final = (*_CELL, "customer")


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
    # millions of rows are told apart by numbers: to join them on texts takes several times as long
    of_cells = identify(utilization.select(*_CELL, "minute", "idle"), _CELL)
    of_holders = identify(entitled, _HOLDER)
    of_users = identify(burned.select(*_HOLDER, "minute", "burn"), _HOLDER)
    cells = of_cells.series.rename({"series_id": "_cell"})
    holders = of_holders.series.rename({"series_id": "_holder"}).join(
        cells, on=list(_CELL), validate="m:1", maintain_order="left"
    )
    users = of_users.series.join(holders, on=list(_HOLDER), validate="1:1").select(
        "series_id", "_holder", "_cell"
    )
    promised = of_holders.rows.rename({"series_id": "_holder"}).join(
        holders.select("_holder", "_cell"), on="_holder", validate="m:1"
    )
    promised = promised.select(
        "_holder",
        "entitlement",
        _numbered("_holder", "quarter_start", QUARTER).alias("_of_holder"),
        _numbered("_cell", "quarter_start", QUARTER).alias("_quarter"),
    )
    minutes = (
        of_cells.rows.rename({"series_id": "_cell"})
        .select(
            "idle",
            _numbered("_cell", "minute", MINUTE).alias("_minute"),
            _numbered("_cell", "minute", QUARTER).alias("_quarter"),
        )
        .join(
            promised.group_by("_quarter").agg(pl.col("entitlement").sum().alias("_promised")),
            on="_quarter",
            validate="m:1",
        )
    )
    used = (
        of_users.rows.join(users, on="series_id", validate="m:1")
        .select(
            "burn",
            _numbered("_cell", "minute", MINUTE).alias("_minute"),
            _numbered("_holder", "minute", QUARTER).alias("_of_holder"),
        )
        .join(promised.select("_of_holder", "entitlement"), on="_of_holder", validate="m:1")
        .select("_minute", "_of_holder", pl.min_horizontal("burn", "entitlement").alias("_used"))
        .filter(pl.col("_used") > 0)
    )
    zero = pl.lit(0, dtype=SUM)
    used_in = used.group_by("_minute").agg(pl.col("_used").sum().alias("_used_in"))
    minutes = (
        minutes.join(used_in, on="_minute", how="left", validate="1:1")
        .with_columns((pl.col("_promised") - pl.col("_used_in").fill_null(zero)).alias("_unused"))
        .with_columns(pl.min_horizontal("idle", "_unused").alias("_held"))
        .with_columns(
            pl.when(pl.col("_unused") > 0)
            .then(pl.col("_held") * pl.lit(2**_HELD_BITS, dtype=SUM) // pl.col("_unused"))
            .otherwise(zero)
            .alias("_fraction")
        )
    )
    quarters = minutes.group_by("_quarter").agg(pl.col("idle", "_held", "_fraction").sum())
    not_unused = (
        used.join(minutes.select("_minute", "_fraction"), on="_minute", validate="m:1")
        .select("_of_holder", (pl.col("_fraction") * pl.col("_used")).alias("_taken"))
        .group_by("_of_holder")
        .agg(pl.col("_taken").sum())
    )
    held = (
        costs.select(*_BY, "currency", "estimated", to_quanta(pl.col("idle_cost")).alias("_cost"))
        .join(cells, on=list(_CELL), validate="m:1")
        .with_columns(_numbered("_cell", "quarter_start", QUARTER).alias("_quarter"))
        .join(quarters.filter(pl.col("_held") > 0), on="_quarter", validate="m:1")
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
        promised.join(held.select("_quarter", "_group", "_fraction", "_total"), on="_quarter")
        .join(not_unused, on="_of_holder", how="left", validate="m:1")
        .select(
            "_holder",
            "_group",
            "_total",
            (pl.col("_fraction") * pl.col("entitlement") - pl.col("_taken").fill_null(zero)).alias("_weight"),
        )
        .filter(pl.col("_weight") > 0)
    )
    # holders of a cell are numbered in the order of customers
    parts = split_largest_remainder(
        weights, group=["_group"], total="_total", weight="_weight", tie_break=["_holder"], into="quanta"
    )
    return (
        parts.select("_holder", "_group", "quanta")
        .join(held.select("_group", "quarter_start", "currency", "estimated"), on="_group", validate="m:1")
        .join(holders.select("_holder", "customer", "pool"), on="_holder", validate="m:1")
        .group_by("quarter_start", "customer", "pool", "currency")
        .agg(pl.col("quanta").sum(), pl.col("estimated").any())
    )


def _numbered(name: str, at: str, every: timedelta) -> pl.Expr:
    """One number for a number and the whole minute, or quarter hour, of an instant."""
    place = pl.col(at).to_physical() // (every // timedelta(microseconds=1))
    return pl.col(name).cast(pl.Int64) * 2**32 + place
