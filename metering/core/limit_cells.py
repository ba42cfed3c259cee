"""Who is under which limits: limits of a period, numbered, with those who hold them; times in whole minutes."""

from datetime import datetime, timedelta
from typing import Final

import polars as pl

from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM
from metering.frames.usage import SUMS
from metering.periods import MINUTE, Period

_MICROSECONDS: Final = MINUTE // timedelta(microseconds=1)
#: Whose use it is, and of what: what decides under which limits it is.
WHO: Final = ("customer", "product", "project", "seat")


def limits_touching(limits: pl.DataFrame, period: Period) -> pl.DataFrame:
    """The limits that are in force somewhere in a period."""
    return limits.filter(
        (pl.col("effective_from") < period.until)
        & (pl.col("effective_until").is_null() | (pl.col("effective_until") > period.start))
    )


def as_instant(number: str | pl.Expr) -> pl.Expr:
    """The instant at which a minute begins that is counted since 1970."""
    column = pl.col(number) if isinstance(number, str) else number
    return (column * _MICROSECONDS).cast(INSTANT)


def minute_number(at: datetime) -> int:
    """Whole minutes since 1970."""
    return int(at.timestamp()) // 60


def limits_in(books: Books, period: Period) -> pl.DataFrame:
    """The limits that touch a period, numbered, with their weights by meter and their spans in minutes."""
    numbered = limits_touching(books.limits, period).with_row_index("_limit")
    weights = books.limit_weights.group_by("contract", "limit").agg(
        pl.col("denominator").first(),
        *(
            pl.col("weight").filter(pl.col("meter") == meter).sum().alias(weight_column(meter))
            for meter in SUMS
        ),
    )
    return numbered.join(weights, on=["contract", "limit"], validate="m:1").with_columns(
        minutes_of("effective_from").alias("_since"),
        minutes_of("effective_until").fill_null(2**40).alias("_until"),
        minutes_of("anchor_at").alias("_anchor"),
        (pl.col("quantity").cast(SUM) * pl.col("denominator").cast(SUM)).alias("full"),
    )


def minutes_of(column: str) -> pl.Expr:
    """Instants as whole minutes since 1970, rounded down."""
    return pl.col(column).to_physical() // _MICROSECONDS


def weight_column(meter: str) -> str:
    """The column of `limits_in` with what a unit of a meter weighs."""
    return f"weight_{meter}"


def under_limits(who: pl.DataFrame, limits: pl.DataFrame) -> pl.DataFrame:
    """Pairs of (customer, product, project, seat) and the limits that it is under, with who holds each."""
    items = limits.select("_limit", "customer", "items").explode("items", empty_as_null=True)
    some = who.join(
        items.filter(pl.col("items").is_not_null()),
        left_on=["customer", "product"],
        right_on=["customer", "items"],
    )
    every = who.join(items.filter(pl.col("items").is_null()).drop("items"), on="customer")
    holder = pl.col("holder")
    held_by = pl.when(holder == "customer").then("customer").when(holder == "project").then("project")
    return (
        pl.concat([some.select(every.columns), every])
        .join(limits.select("_limit", "holder"), on="_limit", validate="m:1")
        .with_columns(held_by.otherwise("seat").alias("held_by"))
        .filter(pl.col("held_by") != "")
        .drop("holder")
    )


def numbered_cells(
    held: pl.DataFrame, limits: pl.DataFrame, cells: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Limits and their holders, numbered: those given first, as they are."""
    found = held.select("_limit", "held_by").unique().sort("_limit", "held_by")
    if cells is not None:
        known = cells.select("_limit", "held_by")
        found = pl.concat(
            [known, found.join(known, on=["_limit", "held_by"], how="anti").sort("_limit", "held_by")]
        )
    return found.with_row_index("cell").join(
        limits, on="_limit", how="left", validate="m:1", maintain_order="left"
    )


def clock_start() -> pl.Expr:
    """The minute in which the window of a minute begins, of windows that follow the clock or an anchor."""
    since = pl.col("minute") - pl.col("_anchor").fill_null(0)
    return pl.col("minute") - since % pl.col("window_minutes")
