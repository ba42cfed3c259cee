"""Flows: every amount, and every quantity whose amount is not known, on its way to a margin line."""

from collections.abc import Mapping
from typing import Final

import polars as pl

from metering.core.allocation import served_costs
from metering.core.burn import carve_out_pools, weigh
from metering.core.effective import with_slice
from metering.core.rating import on_demand_price_sums
from metering.core.series import where
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM
from metering.frames.usage import Identified
from metering.meters import METERS
from metering.money import to_quanta

#: One amount, or one quantity whose amount is not known (`reason`), on its way to a line.
FLOW: Final[Mapping[str, pl.DataType | type[pl.DataType]]] = {
    "slice_start": INSTANT,
    "line": pl.String,
    "series_id": pl.UInt32,
    "customer": pl.String,
    "pool": pl.String,
    "contract": pl.String,  # null: that in force for the customer
    "product": pl.String,  # null: that of the series
    "side": pl.String,
    "into": pl.String,  # the column of the line
    "quanta": SUM,
    "currency": pl.String,
    "meter": pl.String,
    "quantity": SUM,
    "reason": pl.String,
    "estimated": pl.Boolean,
}
#: Amounts that say where cost went; sums over lines are the columns of results.COSTS.
COST_AMOUNTS: Final = ("cost_pool", "cost_on_demand", "idle_share", "cause_shift", "on_demand_price")
#: Of these something could not be priced on demand, so that no sum of on_demand_price means anything.
UNPRICED: Final = "unpriced"


def flow(rows: pl.DataFrame, **constants: str) -> pl.DataFrame:
    """`rows` in the shape of FLOW: the constants added, what is absent null."""
    rows = rows.with_columns(pl.lit(value).alias(name) for name, value in constants.items())
    return rows.select(
        pl.col(name) if name in rows.columns else pl.lit(None, dtype=dtype).alias(name)
        for name, dtype in FLOW.items()
    )


def amounts(sums: pl.DataFrame, into: str) -> pl.DataFrame:
    """Sums of what was rated (quarter_start, series_id, currency, quanta), one row of each, as flows."""
    sums = sums.rename({"quarter_start": "slice_start"})
    return flow(sums, line="usage", side="charge" if into == "gross" else "cost", into=into)


def gaps(unrated: pl.DataFrame, side: str) -> pl.DataFrame:
    """Unrated lines (results.UNPRICED with series_id): a quantity and a reason, no amount."""
    lines = unrated.rename({"quarter_start": "slice_start"}).select(
        "slice_start", "series_id", "meter", "quantity", "reason"
    )
    return flow(lines, line="usage", side=side)


def pool_flows(
    known: Identified, utilization: pl.DataFrame, costs: pl.DataFrame, books: Books, cut: pl.DataFrame
) -> list[pl.DataFrame]:
    """Served cost by series, what else became of a pool's cost, and usage of a pool that has no cost there.

    utilization: results.UTILIZATION; costs: results.POOL_COST. What ran on a carve-out has no cost here: the
    carve-out's line carries it.
    """
    series = known.series.filter(in_pool(pl.col("ran_on"), pl.col("counts_for"))).with_columns(
        pl.col("pool").fill_null("")
    )
    series = series.filter(~pl.col("pool").is_in(carve_outs(books).implode()))
    rows = known.rows.drop("requests").join(series, on="series_id", how="semi")
    grid = utilization.select("pool", "dimension").unique()
    quarters = utilization.select("pool", pl.col("minute").dt.truncate("15m").alias("quarter_start")).unique()
    met = rows.select("series_id", "quarter_start").join(
        series.select("series_id", "pool"), on="series_id", validate="m:1", maintain_order="left"
    )
    inside = met.join(
        quarters.with_columns(pl.lit(value=True).alias("_there")),
        on=["pool", "quarter_start"],
        how="left",
        validate="m:1",
        maintain_order="left",
    )["_there"].fill_null(value=False)
    contracted, outside = where(rows, inside), rows.filter(~inside)
    weighed, unweighed = weigh(
        contracted.select("quarter_start", "series_id", *METERS),
        series,
        books.burndown.join(grid, on=["pool", "dimension"], how="semi"),
        books.multipliers,
        at="quarter_start",
    )
    served = served_costs(
        weighed.join(series.select("series_id", "pool"), on="series_id", validate="m:1"), costs, utilization
    )
    served = with_slice(served, cut, at="quarter_start")
    served = served.group_by("slice_start", "series_id", "currency").agg(
        pl.col("cost").sum().alias("quanta"), pl.col("estimated").any()
    )
    sliced = with_slice(costs, cut, at="quarter_start")
    nowhere = outside.unpivot(
        METERS, index=["slice_start", "series_id"], variable_name="meter", value_name="quantity"
    ).with_columns(pl.col("quantity").cast(SUM))
    lost = [
        (nowhere, "unknown_pool"),
        (with_slice(unweighed, cut, at="quarter_start"), "no_weight"),
    ]
    return [
        flow(served, line="usage", side="cost", into="cost_pool"),
        *(
            flow(
                sliced.group_by("slice_start", "pool", "currency")
                .agg(
                    to_quanta(pl.col(f"{line}_cost")).sum().alias("quanta"),
                    pl.col("estimated").any(),
                )
                .filter((pl.lit(line) == "idle") | (pl.col("quanta") != 0)),
                line=line,
                side="cost",
                into="cost_pool",
            )
            for line in ("idle", "undelivered", "carved_out")
        ),
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


def in_pool(ran_on: pl.Expr, counts_for: pl.Expr) -> pl.Expr:
    """Usage that ran in its pool and that we pay for."""
    return (ran_on == "pool") & counts_for.is_in(["charge_and_cost", "cost"])


def carve_outs(books: Books) -> pl.Series:
    """The names of carve-outs: traffic on one names it as its pool."""
    return carve_out_pools(books.set_aside)["carve_out"]


def price_flows(sliced: pl.DataFrame, books: Books) -> list[pl.DataFrame]:
    """What usage that ran in pools costs on demand, and that it cannot be told."""
    terms = books.pools.select("pool", "on_demand_book", pl.col("currency").alias("_own"))
    served = sliced.filter(in_pool(pl.col("ran_on"), pl.col("counts_for"))).join(terms, on="pool")
    rated, unrated = on_demand_price_sums(served, books)
    own = served.select("quarter_start", "series_id", "_own")
    unpriced = unrated.join(own, on=["quarter_start", "series_id"], validate="m:1")
    unpriced = unpriced.group_by(
        pl.col("quarter_start").alias("slice_start"), "series_id", pl.col("_own").alias("currency")
    ).agg(pl.lit(1, dtype=SUM).alias("quanta"))
    return [
        amounts(rated, "on_demand_price"),
        flow(unpriced, line="usage", side="cost", into=UNPRICED),
    ]
