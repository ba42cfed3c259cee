"""Allocation: a pool's recognised cost by the quarter hour, split over what it served; the rest is idle."""

import polars as pl

from metering.core.fees import earned_between
from metering.errors import BadInput, WrongWorld
from metering.frames import INSTANT, SUM, Books
from metering.money import (
    AMOUNT_MAX,
    from_quanta,
    multiply_divide,
    refuse_beyond,
    split_largest_remainder,
    to_quanta,
)
from metering.periods import QUARTER, Period
from metering.results import POOL_COST, SERVED_COST

_ONE = pl.lit(10**12, dtype=SUM)


def recognised(books: Books, period: Period) -> pl.DataFrame:
    """Recognised cost per pool, dimension and quarter hour of the period: `cost`, a count of money.QUANTUM.

    A month's fee is recognised evenly by time: R_q = E(q_end) - E(q_start), E(t) = floor(amount x minutes
    elapsed / minutes of the month), so any partition of time adds up. R_q is split over the dimensions in
    force by cumulated fee_share_ratio, so that they sum to R_q exactly.
    """
    fees = refuse_beyond(books.capacity_fees, "amount", AMOUNT_MAX, "correct the capacity contract")
    odd = fees.filter((pl.col("amount") < 0) | (pl.col("per") != "month"))
    if odd.height:
        raise BadInput(f"amount or per is out of range in {odd.row(0, named=True)}; correct it")
    steps = books.capacity_steps
    odd = steps.filter(~pl.col("fee_share_ratio").is_between(0, 1))
    if odd.height:
        raise BadInput(f"fee_share_ratio is out of range in {odd.row(0, named=True)}; correct it")
    upper = to_quanta(
        pl.col("fee_share_ratio").cum_sum().over("pool", "effective_from", order_by="dimension")
    )
    shares = steps.with_columns(upper.alias("_upper")).with_columns(
        (pl.col("_upper") - to_quanta(pl.col("fee_share_ratio"))).alias("_lower")
    )
    quarters = pl.DataFrame(
        {"quarter_start": pl.datetime_range(period.start, period.until, QUARTER, closed="left", eager=True)},
        schema={"quarter_start": INSTANT},
    )
    cost = earned_between(to_quanta(pl.col("amount")), pl.col("quarter_start"), pl.col("quarter_end"))

    def within(rows: pl.DataFrame) -> pl.DataFrame:
        start, until = pl.col("quarter_start"), pl.col("effective_until")
        held = rows.join(quarters, how="cross").filter(
            (start >= pl.col("effective_from")) & (until.is_null() | (start < until))
        )
        return held.drop("effective_from", "effective_until")

    charged = within(fees.select("pool", "effective_from", "effective_until", "amount", "currency"))
    return (
        within(shares.select("pool", "dimension", "effective_from", "effective_until", "_lower", "_upper"))
        .join(charged, on=["pool", "quarter_start"], how="inner")
        .with_columns((pl.col("quarter_start") + pl.lit(QUARTER)).alias("quarter_end"))
        .with_columns(cost.alias("_cost"))
        .group_by("pool", "dimension", "quarter_start", "currency")
        .agg(
            (pl.col("_cost") * pl.col("_upper") // _ONE - pl.col("_cost") * pl.col("_lower") // _ONE)
            .sum()
            .alias("cost")
        )
    )


def allocate(
    burned: pl.DataFrame, books: Books, utilization: pl.DataFrame, period: Period
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split the recognised cost of each pool, dimension and quarter hour: (served cost by series, pool cost).

    burned: quarter_start, series_id, pool, dimension, burn of usage that ran in the pool; series_ids ascend
    in the order of their dimensions. utilization: results.UTILIZATION of the period. Both come from one
    ledger: where they disagree, WrongWorld. Per quarter hour, with R recognised:

        served_cost = floor(R x served / contracted)       served, contracted: sums of the minutes
        idle_cost   = R - served_cost
        served_cost is split over the series by burn, largest remainder first, ties by series_id

    so a pool's served cost never exceeds its capacity's, sums close to the last quantum, and the cost of a
    quarter hour does not depend on the period that was asked for. (unit cost is never formed or multiplied.)
    """
    by = ["pool", "dimension", "quarter_start"]
    quarters = utilization.group_by(
        "pool", "dimension", pl.col("minute").dt.truncate("15m").alias("quarter_start")
    ).agg(pl.col("contracted", "served", "burn").sum())
    burned = burned.group_by(*by, "series_id").agg(pl.col("burn").sum()).filter(pl.col("burn") != 0)
    _refuse_disagreement(burned, quarters)
    zero = pl.lit(0, dtype=SUM)
    served, _ = multiply_divide(
        pl.col("cost"), pl.col("served"), pl.max_horizontal("contracted", pl.lit(1, dtype=SUM))
    )
    costs = (
        recognised(books, period)
        .join(quarters, on=by, how="left", validate="1:1")
        .with_columns(pl.col("contracted", "served").fill_null(zero))
        .with_columns(served.alias("_served"))
        .with_row_index("_group")
    )
    parts = burned.join(costs.select(*by, "_group", "_served", "currency"), on=by, validate="m:1")
    parts = split_largest_remainder(
        parts, group=["_group"], total="_served", weight="burn", tie_break=["series_id"], into="cost"
    )
    pool_cost = costs.select(
        *by,
        from_quanta(pl.col("cost")).alias("recognised_cost"),
        from_quanta(pl.col("_served")).alias("served_cost"),
        from_quanta(pl.col("cost") - pl.col("_served")).alias("idle_cost"),
        "currency",
    )
    return SERVED_COST.conform(parts), POOL_COST.conform(pool_cost)


def _refuse_disagreement(burned: pl.DataFrame, quarters: pl.DataFrame) -> None:
    by = ["pool", "dimension", "quarter_start"]
    sums = burned.group_by(by).agg(pl.col("burn").sum().alias("by_series"))
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
    negative = burned.filter(pl.col("burn") < 0)
    if negative.height:
        raise BadInput(
            f"burn is negative in {negative.sort(*by, 'series_id').row(0, named=True)}: a compensating entry "
            "outweighs its target; run `metering verify`"
        )
