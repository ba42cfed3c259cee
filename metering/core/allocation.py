"""Allocation: a pool's recognised cost by the quarter hour goes to what became of its capacity."""

from typing import Final

import polars as pl

from metering.core.series import identify
from metering.errors import BadInput, WrongWorld
from metering.frames.frame import SUM
from metering.money import from_quanta, multiply_divide, split_largest_remainder, to_quanta
from metering.results.costs import POOL_COST, SERVED_COST

_BY: Final = ("pool", "dimension", "quarter_start")
#: What becomes of contracted capacity, in the order in which ties are broken.
PARTS: Final = ("undelivered", "carved_out", "served", "idle")


def quarters(utilization: pl.DataFrame) -> pl.DataFrame:
    """results.UTILIZATION summed to quarter hours: pool, dimension, quarter_start, quantities."""
    return utilization.group_by(
        "pool", "dimension", pl.col("minute").dt.truncate("15m").alias("quarter_start")
    ).agg(pl.col("contracted", *PARTS, "burn").sum())


def by_part(recognised: pl.DataFrame, utilization: pl.DataFrame) -> pl.DataFrame:
    """Split the recognised cost of every quarter hour over the capacity's parts: results.POOL_COST.

    recognised: results.RECOGNISED; utilization: results.UTILIZATION of the same period. By
    contracted = undelivered + carved_out + served + idle, sums of the quarter hour's minutes; largest
    remainder first, ties in that order. A negative cost is split as its opposite. Nothing contracted: all idle.
    """
    one, zero = pl.lit(1, dtype=SUM), pl.lit(0, dtype=SUM)
    rows = recognised.join(quarters(utilization), on=list(_BY), how="left", validate="m:1").with_columns(
        pl.col("contracted", *PARTS).fill_null(zero)
    )
    nothing = pl.col("contracted") == 0
    rows = rows.with_columns(
        pl.when(nothing).then(one).otherwise(pl.col("idle")).alias("idle"),
        pl.when(nothing).then(one).otherwise(pl.col("contracted")).alias("contracted"),
    )
    split = {
        part: multiply_divide(pl.col("cost").abs(), pl.col(part), pl.col("contracted")) for part in PARTS
    }
    rows = rows.with_columns(
        expression.alias(f"_{name}_{part}")
        for part, both in split.items()
        for name, expression in zip(("floor", "rest"), both, strict=True)
    )
    left = pl.col("cost").abs() - pl.sum_horizontal(pl.col(f"_floor_{part}") for part in PARTS)

    def place(index: int, part: str) -> pl.Expr:
        """How many parts come before this one, by remainder."""
        rest = pl.col(f"_rest_{part}")
        return pl.sum_horizontal(
            (pl.col(f"_rest_{other}") >= rest) if at < index else (pl.col(f"_rest_{other}") > rest)
            for at, other in enumerate(PARTS)
            if at != index
        ).cast(SUM)

    sign = pl.col("cost").sign()
    costs = rows.select(
        *_BY,
        "currency",
        from_quanta(pl.col("cost")).alias("recognised_cost"),
        *(
            from_quanta(sign * (pl.col(f"_floor_{part}") + (place(index, part) < left).cast(SUM))).alias(
                f"{part}_cost"
            )
            for index, part in enumerate(PARTS)
        ),
        "estimated",
    )
    return POOL_COST.conform(costs)


def served_costs(burned: pl.DataFrame, costs: pl.DataFrame, utilization: pl.DataFrame) -> pl.DataFrame:
    """Split what a pool served in a quarter hour over the series by their burn in it: results.SERVED_COST.

    burned: quarter_start, series_id, pool, dimension, burn of usage that ran in the pool; series_ids ascend
    in the order of their dimensions. costs: results.POOL_COST. Largest remainder first, ties by series_id. Burn
    and results.UTILIZATION come from one ledger: where they disagree, WrongWorld. So a pool's served cost
    never exceeds its capacity's, sums close to the last quantum, and the cost of a quarter hour does not
    depend on the period that was asked for. (A unit cost is never formed or multiplied.)
    """
    by = list(_BY)
    placed = identify(burned.select(*by, pl.col("series_id").alias("_served_to"), "burn"), by)
    places = placed.series.rename({"series_id": "_place"})
    burned = placed.rows.select(
        pl.col("series_id").alias("_place"), pl.col("_served_to").alias("series_id"), "burn"
    )
    if not _each_once(burned):
        burned = burned.group_by("_place", "series_id").agg(pl.col("burn").sum())
    burned = burned.filter(pl.col("burn") != 0)
    _refuse_disagreement(burned, places, quarters(utilization))
    served = costs.select(*by, "currency", "estimated", to_quanta(pl.col("served_cost")).alias("_served"))
    served = places.join(served, on=by).with_row_index("_group")
    parts = split_largest_remainder(
        burned.join(served.select("_place", "_group", "_served"), on="_place"),
        group=["_group"],
        total="_served",
        weight="burn",
        tie_break=["series_id"],
        into="cost",
    )
    named = parts.select("_group", "series_id", "cost").join(served, on="_group", validate="m:1")
    return SERVED_COST.conform(named)


def _each_once(burned: pl.DataFrame) -> bool:
    """Whether the rows surely name each place and series once: they ascend, as rollups are read."""
    place, series = burned["_place"].to_numpy(), burned["series_id"].to_numpy()
    further = (place[1:] > place[:-1]) | ((place[1:] == place[:-1]) & (series[1:] > series[:-1]))
    return bool(further.all())


def _refuse_disagreement(burned: pl.DataFrame, places: pl.DataFrame, quarters: pl.DataFrame) -> None:
    by = list(_BY)
    sums = burned.group_by("_place").agg(pl.col("burn").sum().alias("by_series"))
    sums = sums.join(places, on="_place", validate="1:1").drop("_place")
    odd = (
        quarters.select(*by, pl.col("burn").alias("by_minute"))
        .join(sums, on=by, how="full", coalesce=True)
        .filter(pl.col("by_minute").fill_null(0) != pl.col("by_series").fill_null(0))
        .sort(by)
    )
    if odd.height:
        raise WrongWorld(
            f"usage by quarter hour and pool usage by minute disagree in {odd.row(0, named=True)}; "
            "run `metering verify`, then rebuild the rollups"
        )
    negative = burned.filter(pl.col("burn") < 0).join(places, on="_place", validate="m:1").drop("_place")
    if negative.height:
        raise BadInput(
            f"burn is negative in {negative.sort(*by, 'series_id').row(0, named=True)}: a compensating entry "
            "outweighs its target; run `metering verify`"
        )
