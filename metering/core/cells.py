"""Cells: what a period's revenue and cost were made of, per customer, in the currency that it was agreed in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

import polars as pl

from metering.core.agreed import charged_on_cost
from metering.core.allocation import served_costs
from metering.core.burn import weigh
from metering.core.costs import Part, Supply, by_parts
from metering.core.effective import edges, in_force, slices, with_slice
from metering.core.fees import fees_earned
from metering.core.flows import carve_outs, in_pool
from metering.core.rating import charges, on_demand_costs
from metering.core.revenue import Earned, under_terms
from metering.frames import SUM, Books, Identified
from metering.meters import METERS, TOKEN_METERS
from metering.money import split_largest_remainder, to_quanta
from metering.results import CELLS, CHARGED_ON_COST, FULL_RATES, USED_BY

_SOLD: Final = ("customer", "product", "tier_sold", "region", "context_breakpoint")
_SERVED: Final = ("customer", "provider", "model_served", "tier_served", "region", "context_breakpoint")
#: Where usage ran that no pool carried the cost of.
ON_DEMAND: Final = "on_demand"


@dataclass(frozen=True)
class Cells:
    """cells: results.CELLS; on_cost: results.CHARGED_ON_COST; full: results.FULL_RATES; used: results.USED_BY."""

    cells: pl.DataFrame
    on_cost: pl.DataFrame
    full: pl.DataFrame
    used: pl.DataFrame


def cells(
    usage: pl.DataFrame | Identified,
    made: Supply,
    books: Books,
    earned: Earned | None = None,
    *,
    loaded: bool = False,
) -> Cells:
    """Everything that the margin of a period is made of, summed to cells of one price.

    usage: frames.USAGE of at least the period of `made`. A charge is a cell of what was sold and one meter; a
    cost one of what was served, one meter and where it ran: what a pool served in a quarter hour goes to series
    by burn (core.allocation) and within a series to its meters by theirs, largest remainder first. Capacity that
    nobody used is a cell of its pool and dimension. What has no price or cost has a quantity and no amount: it
    is in no cell. Cells of one currency, with charges that are a ratio of cost, which stand apart, sum to the
    margin lines' amounts in it, exactly. loaded: also idle that customers carry, and its opposite of nobody.
    earned: what contracts under terms earned in the period (core.revenue): then their cells are gross at the prices in
    force, net after all discounts, in proportion to gross, and top-ups, credits and the rest of their waterfall.
    """
    found = [CELLS.empty()]
    used = [USED_BY.empty()]
    on_cost = [CHARGED_ON_COST.empty()]

    def of_part(part: Part) -> Cells:
        served = pl.col("counts_for").is_in(["charge_and_cost", "cost"])
        tokens = pl.sum_horizontal(pl.col(meter).cast(SUM) for meter in TOKEN_METERS).cast(SUM)
        by_customer = (
            part.sliced.filter(served)
            .group_by("customer")
            .agg(tokens.sum().alias("tokens"), pl.col("requests").sum().cast(SUM))
        )
        of = [_charges(part, books, earned), *_costs(part, made, books), _fees(part, books)]
        of += [_carried(part)] if loaded else []
        return Cells(
            pl.concat(of),
            pl.concat([CHARGED_ON_COST.empty(), *_on_cost(part, made, books)]),
            FULL_RATES.empty(),
            by_customer,
        )

    for part in by_parts(usage, made, books, of_part):
        found.append(part.cells)
        on_cost.append(part.on_cost)
        used.append(part.used)
    found.append(_unused(made))
    if earned is not None:
        found += _earned(earned)
    key = list(CELLS.key)
    summed = pl.concat(found).group_by(key).agg(pl.col("quantity", "gross", "amount").sum())
    by_customer = pl.concat(used).group_by("customer").agg(pl.col("tokens", "requests").sum())
    charged = pl.concat(on_cost).group_by(CHARGED_ON_COST.key)
    return Cells(
        CELLS.conform(summed),
        CHARGED_ON_COST.conform(charged.agg(pl.col("quantity", "cost", "gross", "amount").sum())),
        _full_rates(made),
        USED_BY.conform(by_customer),
    )


def _cell(rows: pl.DataFrame, of: str, **named: pl.Expr) -> pl.DataFrame:
    """Rows in the shape of results.CELLS; what is not named is null, the quantity 0 and gross the amount."""
    rows = rows.with_columns(pl.lit(of).alias("of"), *(each.alias(name) for name, each in named.items()))
    if "gross" not in rows.columns:
        rows = rows.with_columns(pl.col("amount").alias("gross"))
    if "quantity" not in rows.columns:
        rows = rows.with_columns(pl.lit(0, dtype=SUM).alias("quantity"))
    return rows.select(
        pl.col(name).cast(dtype) if name in rows.columns else pl.lit(None, dtype=dtype).alias(name)
        for name, dtype in CELLS.columns.items()
    )


#: Columns of results.WATERFALL that are cells of their own: revenue adds them, a promotional credit is taken off.
_OTHER: Final = {
    "top_up": 1,
    "overage_premium": 1,
    "shortfall": 1,
    "breakage": 1,
    "promotional_credit": -1,
}


def _earned(earned: Earned) -> Iterator[pl.DataFrame]:
    """Charges of contracts under terms, by meter, and the rest of what they earned."""
    usage = earned.lines.filter(pl.col("series_id").is_not_null())
    nets = {
        row[:2]: row[2]
        for row in usage.group_by("series_id", "currency").agg(pl.col("net").sum()).iter_rows()
    }
    priced = (
        earned.priced.group_by("series_id", "currency", "meter")
        .agg(pl.col("quantity", "gross").sum())
        .sort("series_id", "currency", "meter")
    )
    rows = []
    for (series_id, currency), group in priced.group_by("series_id", "currency", maintain_order=True):
        parts_of_gross = group["gross"].to_list()
        amounts = in_proportion(nets.get((series_id, currency), 0), parts_of_gross)
        for (meter, quantity), gross, amount in zip(
            group.select("meter", "quantity").iter_rows(), parts_of_gross, amounts, strict=True
        ):
            rows.append((series_id, currency, meter, quantity, gross, amount))
    schema = {"series_id": pl.UInt32, "currency": pl.String, "meter": pl.String}
    schema |= dict.fromkeys(("quantity", "gross", "amount"), SUM)
    found = pl.DataFrame(rows, schema=schema, orient="row").join(
        earned.series, on="series_id", validate="m:1"
    )
    sums = found.group_by(*_SOLD, "meter", "currency").agg(pl.col("quantity", "gross", "amount").sum())
    yield _cell(sums, "charge", item=pl.col("product"), tier=pl.col("tier_sold"))
    for name, sign in _OTHER.items():
        rest = (
            earned.lines.filter(pl.col(name) != 0)
            .group_by("customer", "item", "currency")
            .agg((pl.col(name).sum() * sign).cast(SUM).alias("amount"))
        )
        yield _cell(rest, name)


def in_proportion(total: int, weights: Sequence[int]) -> list[int]:
    """A total by weights of any sign, by cumulated floors: the parts sum to it; all of it is the last's, if they sum
    to 0."""
    whole = sum(weights)
    reached = [*accumulate(weights[:-1], initial=0)]
    upto = [total * weight // whole if whole else 0 for weight in reached] + [total]
    return [after - before for before, after in pairwise(upto)]


def _on_cost(part: Part, made: Supply, books: Books) -> Iterator[pl.DataFrame]:
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
                part.known.series.select("series_id", "product", *_SERVED), on="series_id", validate="m:1"
            )
            yield (
                told.group_by(*(name for name in CHARGED_ON_COST.key if name != "currency"))
                .agg(pl.col("quantity", "cost", "gross", "amount").sum())
                .with_columns(pl.lit(currency).alias("currency"))
                .select(*CHARGED_ON_COST.columns)
            )


def _carried(part: Part) -> pl.DataFrame:
    """Idle that series and customers carry, and its opposite of the pool, which nobody carries then."""
    of_series = part.known.series.select(
        "series_id", pl.col("customer").alias("_customer"), pl.col("pool").alias("_pool")
    )
    rows = part.flows.filter(pl.col("into") == "idle_share").join(
        of_series, on="series_id", how="left", validate="m:1"
    )
    rows = rows.with_columns(
        pl.coalesce("customer", "_customer").alias("customer"), pl.coalesce("pool", "_pool").alias("place")
    )
    return _cell(
        rows.group_by("customer", "place", "currency").agg(pl.col("quanta").sum().alias("amount")), "carried"
    )


def _charges(part: Part, books: Books, earned: Earned | None) -> pl.DataFrame:
    usage = part.sliced
    if earned is not None:
        # a slice ends where a contract does
        bound = books.contracts.select("customer", "contract", "effective_from", "effective_until")
        usage = in_force(usage, bound, at="quarter_start", by=["customer"])
        mine = pl.col("contract").is_in(under_terms(books)["contract"].implode())
        usage = usage.filter(~mine.fill_null(value=False)).drop("contract")
    rated, _ = charges(usage, books)
    rows = rated.group_by(*_SOLD, "meter", "currency").agg(
        pl.col("quantity").sum(), to_quanta(pl.col("amount")).sum().alias("amount")
    )
    return _cell(rows, "charge", item=pl.col("product"), tier=pl.col("tier_sold"))


def _fees(part: Part, books: Books) -> pl.DataFrame:
    rows = (
        fees_earned(books.fees, books.contract_terms, part.cut)
        .group_by("customer", "fee", "currency")
        .agg(to_quanta(pl.col("amount")).sum().alias("amount"))
    )
    return _cell(rows, "fee", item=pl.col("fee"))


def _costs(part: Part, made: Supply, books: Books) -> Iterator[pl.DataFrame]:
    bought, _ = on_demand_costs(part.sliced, books)
    rows = bought.group_by(*_SERVED, "meter", "currency").agg(
        pl.col("quantity").sum(), to_quanta(pl.col("amount")).sum().alias("amount")
    )
    yield _cell(
        rows,
        "cost",
        item=pl.col("model_served"),
        tier=pl.col("tier_served"),
        place=pl.lit(ON_DEMAND),
    )
    by_series = pool_cost_by_meter(part, made, books)
    rows = (
        by_series.join(part.known.series, on="series_id", validate="m:1")
        .group_by(*_SERVED, "pool", "meter", "currency")
        .agg(pl.col("quantity", "amount").sum())
    )
    yield _cell(rows, "cost", item=pl.col("model_served"), tier=pl.col("tier_served"), place=pl.col("pool"))


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


def _unused(made: Supply) -> pl.DataFrame:
    """What nobody used: undelivered, carved out, idle, in burn and in cost."""
    here = ["pool", "dimension"]
    unused = pl.col("undelivered") + pl.col("carved_out") + pl.col("idle")
    quantities = made.capacity.utilization.group_by(here).agg(unused.sum().alias("quantity"))
    amount = pl.sum_horizontal(
        to_quanta(pl.col(f"{part}_cost")) for part in ("undelivered", "carved_out", "idle")
    )
    rows = (
        made.pool_cost.group_by(*here, "currency")
        .agg(amount.sum().cast(SUM).alias("amount"))
        .join(quantities, on=here, how="left", validate="m:1")
        .with_columns(pl.col("quantity").fill_null(0))
    )
    return _cell(rows, "unused", place=pl.col("pool"), meter=pl.col("dimension"))


def _full_rates(made: Supply) -> pl.DataFrame:
    here = ["pool", "dimension"]
    bought = made.capacity.utilization.group_by(here).agg(pl.col("contracted").sum())
    rows = (
        made.pool_cost.group_by(*here, "currency")
        .agg(to_quanta(pl.col("recognised_cost")).sum().alias("recognised"))
        .join(bought, on=here, how="left", validate="m:1")
        .with_columns(pl.col("contracted").fill_null(0))
    )
    denominators = made.capacity.utilization.group_by(here).agg(pl.col("denominator").first())
    return FULL_RATES.conform(
        rows.join(denominators, on=here, how="left", validate="m:1").with_columns(
            pl.col("denominator").fill_null(1)
        )
    )
