"""The margin summed by what a reader asks, and held against the floors of contracts."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

import polars as pl

from metering.core.costs import QUANTA_MAX, UNKNOWN
from metering.core.effective import in_force
from metering.core.lines import COUNTS, FLAGS, FLOWN, totals
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM
from metering.money import ratio, refuse_beyond, to_quanta
from metering.results.margin import MARGIN_BY, MARGIN_LINES, PROJECT_LINES, margin_frame

_SPAN: Final = ("effective_from", "effective_until")
#: A row by some of these with `customer` is all of a customer, so that its contract's floor applies.
_WHOLE_CUSTOMERS: Final = frozenset({"customer", "kind", "segment", "day"})
#: What a report says beneath its table tells these apart, whatever the table is by: whose loss it is, and of what.
_ALWAYS: Final = frozenset({"line", "customer", "kind", "product"})


def told_by(lines: pl.DataFrame, by: Collection[str]) -> pl.DataFrame:
    """Margin lines summed over all that neither `by` nor _ALWAYS names, null in their rows, the day that of the last.

    lines: results.MARGIN_LINES or PROJECT_LINES, or those of several periods that do not overlap, one after the
    other; the same frame comes back. Whatever is summed by columns that are still told is the same to the quantum.
    """
    shape = PROJECT_LINES if "project" in lines.columns else MARGIN_LINES
    kept = [name for name in shape.key if name in by or name in _ALWAYS]

    def summed(name: str) -> pl.Expr:
        column = pl.col(name)
        if name in kept:
            return column
        if name in shape.key:
            return column.max() if name == "day" else pl.lit(None, dtype=shape.columns[name]).alias(name)
        if shape.columns[name] == pl.Boolean:
            return column.any()
        if name == "currency":
            return column.first()
        if name in shape.nullable:
            return pl.when(column.null_count() == 0).then(column.sum()).alias(name)
        return column.sum()

    rows = lines.group_by(kept).agg(summed(name) for name in shape.columns if name not in kept)
    return shape.conform(rows)


def summarise(
    lines: pl.DataFrame, by: Sequence[str], books: Books, until: datetime | None = None
) -> pl.DataFrame:
    """Margin lines summed by some of results.MARGIN_BY, and project where they have it ([]: one row): margin_frame(by).

    Rows of any `by` sum to the company's row exactly. By customer, a row says who the customer is (name,
    kind, segment: as of the row's last day; of the line, where `by` asks for them), the margin floor of the
    contract in force then with its basis, and breach = margin < floor x revenue, or revenue <= 0 with cost > 0
    (on the loaded basis margin_loaded and cost_loaded), of paying customers with a floor; null where `by` cuts
    customers into parts (products, models, pools): the floor is agreed for the whole. No lines, no rows. An
    unknown or repeated `by` raises BadInput. `until`: the end of the period, already cut, if it lies within
    the last day: what begins later that day is not in force yet.
    """
    allowed = [*MARGIN_BY, *({"project"} & {*lines.columns})]
    for name in by:
        if name not in allowed:
            raise BadInput(f"--by {name}: margin has no such column; choose of {', '.join(allowed)}")
    if len(set(by)) != len(by):
        raise BadInput(f"--by {','.join(by)}: a column is named twice; name each once")
    flown = (*FLOWN, "fx_effect", "revenue_fx_effect")
    total = lines.with_columns(to_quanta(pl.col(name)).alias(name) for name in flown)
    groups = (
        total.with_columns(pl.lit(0).alias("_company"))
        .group_by("_company", *by)
        .agg(
            pl.col(*COUNTS, *flown).sum(),
            pl.col(FLAGS).any(),
            pl.col("on_demand_price").is_null().any().alias("_unpriced"),
            pl.col("fx_effect").is_null().any().alias("_no_contract_rate"),
            pl.col("currency").first(),
            pl.col("day").max().alias("_last_day"),
        )
        .with_columns(
            pl.when(~pl.col("_no_contract_rate")).then(pl.col(name)).alias(name)
            for name in ("fx_effect", "revenue_fx_effect")
        )
    )
    margins = (
        totals(groups)
        .with_columns(
            (pl.col("revenue") - pl.col("cost")).alias("margin"),
            (pl.col("revenue") - pl.col("cost_loaded")).alias("margin_loaded"),
        )
        .with_columns(
            ratio(to_quanta(pl.col("margin")), to_quanta(pl.col("revenue"))).alias("margin_ratio"),
        )
    )
    if "customer" in by:
        margins = _judged(_described(margins, by, books, until), by)
    return margin_frame(by).conform(margins)


def on_floor_basis(margins: pl.DataFrame) -> pl.DataFrame:
    """Margins by customer with cost, margin and margin_ratio on the basis of the customer's floor."""
    loaded = (pl.col("floor_basis") == "loaded").fill_null(value=False)
    return margins.with_columns(
        pl.when(loaded).then(pl.col(f"{name}_loaded")).otherwise(pl.col(name)).alias(name)
        for name in ("cost", "margin")
    ).with_columns(ratio(to_quanta(pl.col("margin")), to_quanta(pl.col("revenue"))).alias("margin_ratio"))


def _described(
    margins: pl.DataFrame, by: Sequence[str], books: Books, until: datetime | None
) -> pl.DataFrame:
    """Add name, kind and segment of the customer, and the floor of its contract, as of the row's last day."""
    floors = books.contracts.select(
        "customer", *_SPAN, pl.col("margin_floor_ratio").alias("floor_ratio"), "floor_basis"
    )
    said = _as_of_last_day(margins, books.customers, until)
    said = _as_of_last_day(said, floors, until)
    customer = pl.col("customer").is_not_null()
    return said.with_columns(
        pl.when(customer).then(pl.col(name).fill_null(UNKNOWN)).otherwise(pl.col(name)).alias(name)
        for name in ("kind", "segment")
        if name not in by
    )


def _as_of_last_day(rows: pl.DataFrame, dated: pl.DataFrame, until: datetime | None) -> pl.DataFrame:
    """What is in force at the end of the row's last day, or at `until`; what ended that day still counts."""
    dated = dated.select(name for name in dated.columns if name == "customer" or name not in rows.columns)
    day_end = (pl.col("effective_until") - pl.duration(microseconds=1)).dt.truncate("1d") + pl.duration(
        days=1
    )
    day_after = (pl.col("_last_day").cast(pl.Datetime("us")) + pl.duration(days=1)).dt.replace_time_zone(
        "UTC"
    )
    at = pl.min_horizontal(day_after, pl.lit(until, dtype=INSTANT)) - pl.duration(microseconds=1)
    found = in_force(
        rows.with_columns(at.alias("_at")),
        dated.with_columns(day_end.alias("effective_until")),
        at="_at",
        by=["customer"],
    )
    return found.drop("_at")


def _judged(margins: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Add breach, compared in integers: margin x 10**12 < floor in 10**-12 x revenue, all in quanta.

    breach_by_fx: it is none at the contract exchange rates, at which margin and revenue are theirs less fx_effect.
    """
    judged = ("breach", "breach_by_fx")
    if not set(by) <= _WHOLE_CUSTOMERS:
        return margins.with_columns(pl.lit(None, dtype=pl.Boolean).alias(name) for name in judged)
    loaded = pl.col("floor_basis") == "loaded"
    quanta = margins.select(
        "customer",
        "floor_ratio",
        pl.col("kind") == "paying",
        *(to_quanta(pl.col(name)).alias(name) for name in ("revenue", "fx_effect", "revenue_fx_effect")),
        *(
            to_quanta(pl.when(loaded).then(pl.col(f"{name}_loaded")).otherwise(pl.col(name))).alias(name)
            for name in ("margin", "cost")
        ),
    )
    refuse_beyond(quanta, "margin", QUANTA_MAX, "no floor can be applied to it exactly")
    refuse_beyond(quanta, "floor_ratio", 1, "a margin floor is a ratio of at most 1; correct the contract")
    said = pl.col("kind") & pl.col("floor_ratio").is_not_null()

    def below(margin: pl.Expr, revenue: pl.Expr, cost: pl.Expr) -> pl.Expr:
        short = margin * pl.lit(10**12, dtype=SUM) < to_quanta(pl.col("floor_ratio")) * revenue
        return said & (short | ((revenue <= 0) & (cost > 0)))

    margin, revenue, cost = pl.col("margin"), pl.col("revenue"), pl.col("cost")
    breach = below(margin, revenue, cost).fill_null(value=False)
    moved, earned_more = pl.col("fx_effect"), pl.col("revenue_fx_effect")
    otherwise = below(margin - moved, revenue - earned_more, cost - earned_more + moved)
    by_fx = breach & ~otherwise.fill_null(value=True)
    found = quanta.select(breach.alias("breach"), by_fx.alias("breach_by_fx"))
    return margins.with_columns(found[name] for name in judged)
