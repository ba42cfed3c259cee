"""Agreed: revenue that terms of contracts make of usage and time, on its way to the margin lines."""

from typing import Final, NamedTuple

import polars as pl

from metering.core.costs import Part
from metering.core.effective import in_force, with_slice
from metering.core.exchange import rates, translate
from metering.core.flows import flow, gaps
from metering.core.pricing import ratios_in_force
from metering.core.revenue import Earned, under_terms
from metering.core.waterfall import discounted
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.frames.usage import DIMENSIONS
from metering.money import QUANTUM, multiply_floor

_SPAN: Final = ["effective_from", "effective_until"]
_DISCOUNTS: Final = ("line_discount", "contract_discount", "fixed_discount", "capped")
#: Columns of results.WATERFALL that are columns of a margin line too.
_OTHER: Final = ("top_up", "overage_premium", "shortfall", "breakage", "promotional_credit")
_ONE: Final = pl.lit(int(1 / QUANTUM), dtype=SUM)
_NO_PRICE: Final = ("no_price", "no_price_book")


class ChargedOnCost(NamedTuple):
    """Charges that are a ratio of cost, by slice_start and series_id, in quanta.

    of_cost: cost in its `cost_currency`, and gross in the `currency` charged. lines: gross and discount of both
    together. unrated: flows of what has no cost, or no rate.
    """

    of_cost: pl.DataFrame
    lines: pl.DataFrame
    unrated: list[pl.DataFrame]


def plain(usage: pl.DataFrame, books: Books) -> pl.DataFrame:
    """The usage (quarter_start, customer, ...) whose contract in force is not under terms, or that has none."""
    under = under_terms(books)
    if under.is_empty():
        return usage
    mine = usage["customer"].is_in(under["customer"].implode())
    looked_up = _bound(usage.filter(mine), books)
    theirs = looked_up["contract"].is_in(under["contract"].implode()).fill_null(value=False)
    return pl.concat([usage.filter(~mine), looked_up.filter(~theirs).select(usage.columns)])


def _bound(rows: pl.DataFrame, books: Books) -> pl.DataFrame:
    """Rows (quarter_start, customer, ...) with the contract in force and its price book, `_book`; null: none."""
    bound = books.contracts.select("customer", *_SPAN, "contract", pl.col("price_book").alias("_book"))
    return in_force(rows, bound, at="quarter_start", by=["customer"])


def earned_flows(earned: Earned, part: Part, books: Books) -> list[pl.DataFrame]:
    """What contracts under terms earned in a part, and what of their usage has no price: flows of its slices."""
    start, until = part.cut["slice_start"].min(), part.cut["slice_until"].max()
    here = pl.col("quarter_start").is_between(pl.lit(start), pl.lit(until), closed="left")
    same = earned.series.rename({"series_id": "earned_id"}).join(
        part.known.series, on=list(DIMENSIONS), nulls_equal=True, validate="1:1"
    )
    same = same.select("earned_id", "series_id")
    lines = with_slice(earned.lines.filter(here), part.cut, at="quarter_start")
    lines = lines.with_columns(pl.sum_horizontal(*_DISCOUNTS).cast(SUM).alias("discount"))
    amounts = (
        lines.rename({"series_id": "earned_id"})
        .join(same, on="earned_id", how="left", validate="m:1")
        .with_columns(
            # what ran names its series, and that its customer and product
            pl.when(pl.col("series_id").is_null()).then(pl.col(name)).alias(into)
            for name, into in (("customer", "customer"), ("contract", "contract"), ("item", "product"))
        )
        .group_by("slice_start", "line", "series_id", "customer", "contract", "product", "currency")
        .agg(pl.col("gross", "discount", *_OTHER).sum())
    )
    found = [
        flow(amounts.rename({into: "quanta"}).filter(pl.col("quanta") != 0), side="charge", into=into)
        for into in ("gross", "discount", *_OTHER)
    ]
    unpriced = earned.unrated.filter(here).join(
        earned.series.select("series_id", "customer", "product"), on="series_id", validate="m:1"
    )
    unpriced = _bound(unpriced, books).filter(
        pl.col("contract").is_in(under_terms(books)["contract"].implode())
    )
    unpriced = _not_at_cost(unpriced, books)
    unpriced = with_slice(unpriced, part.cut, at="quarter_start").drop("quarter_start")
    unpriced = (
        unpriced.rename({"slice_start": "quarter_start", "series_id": "earned_id"})
        .join(same, on="earned_id", validate="m:1")
        .group_by("quarter_start", "series_id", "meter", "reason")
        .agg(pl.col("quantity").sum())
    )
    return [*found, gaps(unpriced, "charge")]


def _of_cost(books: Books) -> pl.DataFrame:
    return books.percentages.filter(pl.col("of") == "cost")


def _not_at_cost(unpriced: pl.DataFrame, books: Books) -> pl.DataFrame:
    """Without what needs no price: a percentage of its cost is what it is charged."""
    ratios = _of_cost(books)
    if ratios.is_empty():
        return unpriced
    found = _ratios(unpriced, ratios)
    return found.filter(pl.col("_ratio").is_null() | ~pl.col("reason").is_in(_NO_PRICE)).select(
        unpriced.columns
    )


def _ratios(rows: pl.DataFrame, ratios: pl.DataFrame) -> pl.DataFrame:
    """Rows (quarter_start, _book, product) with the sum of ratios of cost in force, `_ratio`, and `_charged_in`."""
    asked = rows.select("quarter_start", pl.col("_book").alias("book"), pl.col("product").alias("item"))
    found = (
        ratios_in_force(asked, ratios)
        .group_by("quarter_start", pl.col("book").alias("_book"), pl.col("item").alias("product"))
        .agg(pl.col("ratio").sum().alias("_ratio"), pl.col("charged_in").first().alias("_charged_in"))
    )
    return rows.join(found, on=["quarter_start", "_book", "product"], how="left", validate="m:1")


def charged_on_cost(part: Part, books: Books) -> ChargedOnCost:
    """What is charged as a ratio of what usage cost us, on the usage basis, per slice and series.

    gross = floor(ratio x cost), a cost in another currency being translated at the month_average of the day; of
    their sum the line discount, then the contract's.
    """
    ratios = _of_cost(books)
    used = part.flows.filter((pl.col("line") == "usage") & pl.col("series_id").is_not_null())
    sold = part.known.series.select("series_id", "customer", "product")
    named = used.drop("customer", "product").join(sold, on="series_id", validate="m:1")
    named = named.rename({"slice_start": "quarter_start"}).drop("contract")
    known = books.customers.select("customer", *_SPAN, "kind")
    named = in_force(named.drop("kind", strict=False), known, at="quarter_start", by=["customer"])
    named = _bound(named.drop_nulls("kind"), books)
    named = _ratios(named, ratios).drop_nulls("_ratio")
    cost = pl.col("into").is_in(["cost_pool", "cost_on_demand"]) & pl.col("reason").is_null()
    by = ["quarter_start", "series_id", "customer", "contract", "product", "_ratio", "_charged_in"]
    costs = named.filter(cost).group_by(*by, "currency").agg(pl.col("quanta").sum())
    costs = costs.with_columns(pl.col("quarter_start").dt.date().alias("day"))
    found = [costs.clear().select("day", "currency", pl.lit("").alias("_charged_in"), _ONE.alias("rate"))]
    for (into,), rows in costs.group_by("_charged_in"):
        told = rates(rows, books.exchange_rates, str(into))
        found.append(
            told.select(
                "day", "currency", pl.lit(into).alias("_charged_in"), pl.col("month_average").alias("rate")
            )
        )
    costs = costs.join(pl.concat(found), on=["day", "currency", "_charged_in"], how="left", validate="m:1")
    costs = costs.with_columns(translate(pl.col("quanta"), pl.col("rate")).alias("_told"))
    amount, _ = multiply_floor(pl.col("_told").abs(), pl.col("_ratio"), _ONE)
    of_cost = (
        costs.drop_nulls("_told")
        .with_columns((amount * pl.col("_told").sign()).alias("gross"))
        .rename({"product": "item", "currency": "cost_currency", "quanta": "cost", "_charged_in": "currency"})
    )
    lines = discounted(of_cost, books).with_columns(
        (pl.col("line_discount") + pl.col("contract_discount")).alias("discount")
    )
    lines = lines.rename({"quarter_start": "slice_start"}).drop("customer", "contract", "line")
    untold = costs.filter(pl.col("rate").is_null()).with_columns(
        multiply_floor(pl.col("quanta").abs(), pl.col("_ratio"), _ONE)[0].alias("quanta")
    )
    open_ = named.filter((pl.col("side") == "cost") & pl.col("reason").is_not_null())
    return ChargedOnCost(
        of_cost.select(
            pl.col("quarter_start").alias("slice_start"),
            *("series_id", "cost_currency", "cost", "currency", "gross"),
        ),
        lines,
        [
            flow(
                untold.select(
                    pl.col("quarter_start").alias("slice_start"), "series_id", "quanta", "currency"
                ),
                line="usage",
                side="charge",
                reason="no_exchange_rate",
            ),
            flow(
                open_.select(
                    pl.col("quarter_start").alias("slice_start"), "series_id", "meter", "quantity", "reason"
                ),
                line="usage",
                side="charge",
            ),
        ],
    )


def cost_plus(part: Part, books: Books) -> list[pl.DataFrame]:
    """Charges that are a ratio of cost: flows of gross and of its discounts.

    What has no cost, or no rate, has no charge either.
    """
    if _of_cost(books).is_empty():
        return []
    made = charged_on_cost(part, books)
    charged = [
        flow(made.lines.with_columns(pl.col(into).alias("quanta")), line="usage", side="charge", into=into)
        for into in ("gross", "discount")
    ]
    return [*charged, *made.unrated]
