"""Cells: what a period's revenue and cost were made of, per customer, in the currency that it was agreed in."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import polars as pl

from metering.core.cost_by_meter import ON_DEMAND, SERVED, in_proportion, on_cost_by_meter, pool_cost_by_meter
from metering.core.costs import Part, Supply, by_parts
from metering.core.effective import in_force
from metering.core.fees import fees_earned
from metering.core.rating import charges, on_demand_costs
from metering.core.revenue import Earned, under_terms
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.frames.usage import Identified
from metering.meters import TOKEN_METERS
from metering.money import to_quanta
from metering.results.charges import CHARGED_ON_COST
from metering.results.costs import FULL_RATES
from metering.results.margin import CELLS, USED_BY

_SOLD: Final = ("customer", "product", "tier_sold", "region", "context_breakpoint")


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
            pl.concat([CHARGED_ON_COST.empty(), *on_cost_by_meter(part, made, books)]),
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
    rows = bought.group_by(*SERVED, "meter", "currency").agg(
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
        .group_by(*SERVED, "pool", "meter", "currency")
        .agg(pl.col("quantity", "amount").sum())
    )
    yield _cell(rows, "cost", item=pl.col("model_served"), tier=pl.col("tier_served"), place=pl.col("pool"))


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
