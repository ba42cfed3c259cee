"""By meter: what usage cost at each place, and what charges that are a ratio of it are made of."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Final

import polars as pl

from metering.core.agreed import charged_on_cost
from metering.core.allocation import served_costs
from metering.core.burn import weigh
from metering.core.costs import Part, Supply
from metering.core.effective import edges, slices, with_slice
from metering.core.flows import carve_outs, in_pool
from metering.core.rating import on_demand_costs
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.meters import METERS
from metering.money import split_largest_remainder, to_quanta
from metering.results.charges import CHARGED_ON_COST

#: What a cost is of: what was served.
SERVED: Final = ("customer", "provider", "model_served", "tier_served", "region", "context_breakpoint")
#: Where usage ran that no pool carried the cost of.
ON_DEMAND: Final = "on_demand"


def pool_cost_by_meter(
    part: Part, made: Supply, books: Books, only: pl.DataFrame | None = None
) -> pl.DataFrame:
    """What each series cost in its pool, by meter: series_id, meter, currency, quantity, amount in quanta.

    only: slice_start and series_id of what is asked for; None: everything.
    """
    first, last = pl.lit(part.cut["slice_start"].min()), pl.lit(part.cut["slice_until"].max())
    costs = made.pool_cost.filter(pl.col("quarter_start").is_between(first, last, closed="left"))
    minutes = made.capacity.utilization.filter(pl.col("minute").is_between(first, last, closed="left"))
    series = part.known.series.filter(
        in_pool(pl.col("ran_on"), pl.col("counts_for")) & pl.col("pool").is_not_null()
    )
    series = series.filter(~pl.col("pool").is_in(carve_outs(books).implode()))
    bought = minutes.select("pool", pl.col("minute").dt.truncate("15m").alias("quarter_start")).unique()
    rows = (
        part.known.rows.join(series.select("series_id", "pool"), on="series_id", validate="m:1")
        .join(bought, on=["pool", "quarter_start"], how="semi")
        .select("quarter_start", "slice_start", "series_id", "pool", *METERS)
    )
    grid = minutes.select("pool", "dimension").unique()
    tables = books.burndown.join(grid, on=["pool", "dimension"], how="semi"), books.multipliers
    weighed, _ = weigh(rows, series, *tables, at="quarter_start")
    served = served_costs(
        weighed.join(series.select("series_id", "pool"), on="series_id", validate="m:1"), costs, minutes
    )
    if only is not None:
        here = ["slice_start", "series_id"]
        served = with_slice(served, part.cut, at="quarter_start").join(only, on=here, how="semi")
        rows = rows.join(only, on=here, how="semi")
    rows = rows.drop("slice_start")
    served = (
        served.group_by("series_id", "dimension", "currency")
        .agg(pl.col("cost").sum())
        .with_row_index("_group")
    )
    burned = _burn_by_meter(rows, series, *tables, made, books)
    split = split_largest_remainder(
        served.join(burned, on=["series_id", "dimension"]),
        group=["_group"],
        total="cost",
        weight="burn",
        tie_break=["meter"],
        into="amount",
    )
    quantities = rows.group_by("series_id").agg(pl.col(METERS).cast(SUM).sum())
    quantities = quantities.unpivot(
        METERS, index="series_id", variable_name="meter", value_name="quantity"
    ).filter(pl.col("quantity") != 0)
    amounts = split.group_by("series_id", "meter", "currency").agg(pl.col("amount").sum())
    # a meter that burns nothing costs nothing, and goes on to be counted where it ran
    found = quantities.join(amounts, on=["series_id", "meter"], how="full", coalesce=True)
    own = series.join(books.pools.select("pool", pl.col("currency").alias("_own")), on="pool", how="left")
    return (
        found.join(own.select("series_id", "_own"), on="series_id", how="left", validate="m:1")
        .with_columns(
            pl.coalesce("currency", "_own").alias("currency"),
            pl.col("quantity", "amount").fill_null(0),
        )
        .filter(pl.col("currency").is_not_null())
        .select("series_id", "meter", "currency", "quantity", "amount")
    )


def _burn_by_meter(
    rows: pl.DataFrame,
    series: pl.DataFrame,
    burndown: pl.DataFrame,
    multipliers: pl.DataFrame,
    made: Supply,
    books: Books,
) -> pl.DataFrame:
    """Burn of each series, dimension and meter: what `weigh` says of each meter alone."""
    cut = slices(made.period, edges([books.burndown, books.multipliers]))
    sums = (
        with_slice(rows, cut, at="quarter_start")
        .group_by("slice_start", "series_id")
        .agg(pl.col(METERS).cast(SUM).sum())
    )
    found = []
    for meter in METERS:
        alone = sums.filter(pl.col(meter) != 0).with_columns(
            pl.lit(0, dtype=SUM).alias(other) for other in METERS if other != meter
        )
        weighed, _ = weigh(alone, series, burndown, multipliers, at="slice_start")
        found.append(
            weighed.group_by("series_id", "dimension")
            .agg(pl.col("burn").sum())
            .with_columns(pl.lit(meter).alias("meter"))
        )
    return pl.concat(found).filter(pl.col("burn") != 0)


def in_proportion(total: int, weights: Sequence[int]) -> list[int]:
    """A total by weights of any sign, by cumulated floors: the parts sum to it; all of it is the last's, if they sum
    to 0."""
    whole = sum(weights)
    reached = [*accumulate(weights[:-1], initial=0)]
    upto = [total * weight // whole if whole else 0 for weight in reached] + [total]
    return [after - before for before, after in pairwise(upto)]


def on_cost_by_meter(part: Part, made: Supply, books: Books) -> Iterator[pl.DataFrame]:
    """Charges that are a ratio of cost, by what was served and its meters, in proportion to their cost."""
    if not (books.percentages["of"] == "cost").any():
        return
    charged = charged_on_cost(part, books)
    by = ["series_id", "cost_currency"]
    for (currency,), of_cost in charged.of_cost.group_by("currency", maintain_order=True):
        only = of_cost.select("slice_start", "series_id").unique()
        rated, _ = on_demand_costs(
            part.sliced.rename({"quarter_start": "slice_start"})
            .join(only, on=["slice_start", "series_id"], how="semi")
            .rename({"slice_start": "quarter_start"}),
            books,
        )
        bought = rated.group_by("series_id", "meter", "currency").agg(
            pl.col("quantity").sum(), to_quanta(pl.col("amount")).sum().alias("amount")
        )
        places = pl.concat(
            [
                bought.with_columns(pl.lit(ON_DEMAND).alias("place")),
                pool_cost_by_meter(part, made, books, only).join(
                    part.known.series.select("series_id", pl.col("pool").alias("place")),
                    on="series_id",
                    validate="m:1",
                ),
            ],
            how="diagonal",
        ).rename({"currency": "cost_currency", "amount": "cost"})
        gross = {row[:2]: row[2] for row in of_cost.group_by(by).agg(pl.col("gross").sum()).iter_rows()}
        net = dict(
            charged.lines.filter(pl.col("currency") == currency)
            .group_by("series_id")
            .agg((pl.col("gross") - pl.col("discount")).sum())
            .iter_rows()
        )
        rows = []
        for (series_id,), group in places.sort("series_id", "cost_currency", "place", "meter").group_by(
            "series_id", maintain_order=True
        ):
            parts_of_gross: list[int] = []
            for (cost_currency,), cells in group.group_by("cost_currency", maintain_order=True):
                parts_of_gross += in_proportion(
                    gross.get((series_id, cost_currency), 0), cells["cost"].to_list()
                )
            amounts = in_proportion(net.get(series_id, 0), parts_of_gross)
            rows.append(
                group.with_columns(
                    pl.Series("gross", parts_of_gross, dtype=SUM), pl.Series("amount", amounts, dtype=SUM)
                )
            )
        if rows:
            told = pl.concat(rows).join(
                part.known.series.select("series_id", "product", *SERVED), on="series_id", validate="m:1"
            )
            yield (
                told.group_by(*(name for name in CHARGED_ON_COST.key if name != "currency"))
                .agg(pl.col("quantity", "cost", "gross", "amount").sum())
                .with_columns(pl.lit(currency).alias("currency"))
                .select(*CHARGED_ON_COST.columns)
            )
