"""Where the cost of pools comes from: quarter hour by quarter hour what was burned, served, idle and recognised."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import polars as pl

from metering.core.allocation import served_costs
from metering.core.burn import weigh
from metering.core.costs import Part
from metering.core.explain_words import money, units
from metering.core.flows import carve_outs, in_pool
from metering.core.margin import Margin
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.meters import METERS
from metering.money import to_quanta
from metering.tree import MONEY_PER, Node, grouped

#: A pool, dimension and model in a quarter hour: what was burned there, what the pool was then, what it cost.
POOL_ROWS: Final = pl.DataFrame(
    schema={
        "day": pl.Date,
        "quarter_start": pl.Datetime("us", "UTC"),
        "line": pl.String,
        "pool": pl.String,
        "dimension": pl.String,
        "model_served": pl.String,
        "currency": pl.String,
        "quanta": SUM,
        "burn": SUM,
        "pool_burn": SUM,
        "line_cost": SUM,
        "recognised": SUM,
        "part": SUM,
        "contracted": SUM,
        "denominator": pl.Int64,
        "estimated": pl.Boolean,
    }
)


def pool_tree(rows: pl.DataFrame, currency: str, *, daily: bool) -> Node:
    """POOL_ROWS of one currency by line, pool, dimension and model, then by day or quarter hour."""
    at = pl.col("day") if daily else pl.col("quarter_start")
    by = ["line", "pool", "dimension", "model_served", "at"]
    # what a pool was in a quarter hour is told once, however many series shared it
    whole = ("pool_burn", "line_cost", "recognised", "part", "contracted")
    quarters = (
        rows.with_columns(at.alias("at"))
        .group_by(*by, "quarter_start")
        .agg(
            pl.col("quanta", "burn").sum(),
            pl.col(*whole, "denominator").first(),
            pl.col("estimated").any(),
        )
    )

    def summed(by: list[str], rows: pl.DataFrame) -> pl.DataFrame:
        return rows.group_by(by).agg(
            pl.col("quanta", "burn", *whole, "quarters").sum(),
            pl.col("denominator").first(),
            pl.col("estimated").any(),
        )

    leaves = summed(by, quarters.with_columns(pl.lit(1).alias("quarters"))).sort(by)
    levels = [["line"]] if leaves["line"].n_unique() > 1 else []
    return grouped(
        "",
        leaves,
        [*levels, ["pool", "dimension"], ["model_served"]],
        _pool_leaf(currency),
        MONEY_PER,
        currency,
        each="days" if daily else "quarter hours",
        whole=lambda rows: _pool_said(summed(["line"], rows).row(0, named=True)),
    )


def _pool_leaf(currency: str) -> Callable[[Mapping[str, Any]], Node]:
    def leaf(row: Mapping[str, Any]) -> Node:
        by = row["denominator"] or 1
        name = f"{row['at']:%Y-%m-%d}" if not hasattr(row["at"], "hour") else f"{row['at']:%H:%M}"
        return Node(
            name,
            row["quanta"],
            MONEY_PER,
            currency,
            _pool_said(row),
            facts={
                "quarter_hours": row["quarters"],
                "burn": _burn(row["burn"], by),
                "pool_burn": _burn(row["pool_burn"], by),
                "capacity": _burn(row["part"], by),
                "contracted": _burn(row["contracted"], by),
                "cost_of_capacity": str(units(row["line_cost"])),
                "recognised_cost": str(units(row["recognised"])),
                "estimated": row["estimated"],
            },
        )

    return leaf


def served_rows(parts: Iterable[Part], made: Margin, books: Books) -> Iterator[pl.DataFrame]:
    """Shares of what pools served, by series and quarter hour: POOL_ROWS of the line `usage`, with dimensions."""
    for part in parts:
        series = part.burned.series.filter(
            in_pool(pl.col("ran_on"), pl.col("counts_for")) & pl.col("pool").is_not_null()
        )
        series = series.filter(~pl.col("pool").is_in(carve_outs(books).implode()))
        weighed, served, whole = shares(part, series, made, books)
        mine = part.known.series["series_id"].implode()
        yield (
            served.filter(pl.col("series_id").is_in(mine))
            .join(weighed, on=["quarter_start", "series_id", "dimension"], validate="m:1")
            .join(whole, on=["pool", "dimension", "quarter_start", "currency"], validate="m:1")
            .join(
                part.known.rows.select("quarter_start", "slice_start").unique(),
                on="quarter_start",
                validate="m:1",
            )
            .join(series.drop("pool"), on="series_id", validate="m:1")
            .rename({"cost": "quanta", "served": "part", "served_cost": "line_cost"})
        )


def unused_rows(made: Margin) -> Iterator[tuple[str, pl.DataFrame]]:
    """(line, POOL_ROWS) of what stands on lines of its own: idle, undelivered, carved out."""
    whole = pool_quarters(made)
    for line in ("idle", "undelivered", "carved_out"):
        yield (
            line,
            whole.with_columns(
                pl.col("quarter_start").alias("slice_start"),
                pl.lit(None, dtype=pl.String).alias("customer"),
                pl.col(f"{line}_cost").alias("quanta"),
                pl.col(f"{line}_cost").alias("line_cost"),
                pl.col(line).alias("part"),
                pl.lit(0, dtype=SUM).alias("burn"),
            ).filter((pl.col("quanta") != 0) | (pl.col("part") != 0)),
        )


def shares(
    part: Part, series: pl.DataFrame, made: Margin, books: Books
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Burn and served cost of series in a run of days, quarter hour by quarter hour, and what their pools were then.

    (weighed: quarter_start, series_id, dimension, burn; served: results.SERVED_COST; whole: as `pool_quarters`).
    """
    first, last = pl.lit(part.cut["slice_start"].min()), pl.lit(part.cut["slice_until"].max())
    minutes = made.capacity.utilization.filter(pl.col("minute").is_between(first, last, closed="left"))
    costs = made.supply.pool_cost.filter(pl.col("quarter_start").is_between(first, last, closed="left"))
    bought = minutes.select("pool", pl.col("minute").dt.truncate("15m").alias("quarter_start")).unique()
    rows = (
        part.burned.rows.join(series.select("series_id", "pool"), on="series_id", validate="m:1")
        .join(bought, on=["pool", "quarter_start"], how="semi")
        .select("quarter_start", "series_id", *METERS)
    )
    grid = minutes.select("pool", "dimension").unique()
    weighed, _ = weigh(
        rows,
        series,
        books.burndown.join(grid, on=["pool", "dimension"], how="semi"),
        books.multipliers,
        at="quarter_start",
    )
    weighed = weighed.group_by("quarter_start", "series_id", "dimension").agg(pl.col("burn").sum())
    served = served_costs(
        weighed.join(series.select("series_id", "pool"), on="series_id", validate="m:1"), costs, minutes
    )
    return weighed, served.drop("estimated"), pool_quarters(made)


def pool_quarters(made: Margin) -> pl.DataFrame:
    """Pools by quarter hour: capacity (numerators), and what became of the recognised cost, in quanta."""
    names = ("contracted", "undelivered", "carved_out", "served", "idle", "burn")
    capacity = made.capacity.utilization.group_by(
        "pool", "dimension", pl.col("minute").dt.truncate("15m").alias("quarter_start")
    ).agg(pl.col(*names).sum(), pl.col("denominator").first())
    cost = made.supply.pool_cost.select(
        "pool",
        "dimension",
        "quarter_start",
        "currency",
        "estimated",
        to_quanta(pl.col("recognised_cost")).alias("recognised"),
        *(
            to_quanta(pl.col(f"{name}_cost")).alias(f"{name}_cost")
            for name in ("served", "idle", "undelivered", "carved_out")
        ),
    )
    return (
        cost.join(capacity, on=["pool", "dimension", "quarter_start"], how="left", validate="m:1")
        .rename({"burn": "pool_burn"})
        .with_columns(pl.col(*names[:-1], "pool_burn").fill_null(0), pl.col("denominator").fill_null(1))
    )


def _pool_said(row: Mapping[str, Any]) -> str:
    """What pools served of what was contracted and recognised, in one quarter hour or in several."""
    by = row["denominator"] or 1
    alone = row["quarters"] == 1
    quarters = "the quarter hour" if alone else f"{row['quarters']:,} quarter hours, each split by itself"
    recognised = f"{money(row['recognised'])} recognised"
    state = " (estimated: not billed yet)" if row["estimated"] else ""
    capacity = f"{_burn(row['part'], by)} of {_burn(row['contracted'], by)} contracted"
    if row["line"] != "usage":
        return f"{capacity} {row['line'].replace('_', ' ')} in {quarters}, of {recognised}{state}"
    return (
        f"{_burn(row['burn'], by)} of {_burn(row['pool_burn'], by)} burned in {quarters}; served were "
        f"{capacity}: {money(row['line_cost'])} of {recognised}{state}"
    )


def _burn(numerator: int, denominator: int) -> str:
    whole, rest = divmod(numerator, denominator)
    return f"{whole:,}" if not rest else f"{numerator / denominator:,.3f}"
