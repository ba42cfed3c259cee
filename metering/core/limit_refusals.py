"""Requests that limits turned away: each counted once, in the window of its customer that is used most."""

from typing import Final

import polars as pl

from metering.core.limit_cells import (
    clock_start,
    limits_in,
    minutes_of,
    numbered_cells,
    under_limits,
    weight_column,
)
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.money import ratio
from metering.periods import Period


def refusals_by_cell(
    refused: pl.DataFrame, books: Books, period: Period, cells: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Every refusal with each cell that it may be of: number, cell, minute, what it weighs; and all cells."""
    limits = limits_in(books, period)
    rows = refused.select(
        pl.int_range(pl.len()).alias("_refusal"),
        minutes_of("occurred_at").alias("minute"),
        "customer",
        pl.col("product", "project", "seat").fill_null(""),
        pl.col("estimated_input_tokens", "estimated_output_tokens").cast(SUM),
    )
    held = under_limits(rows, limits)
    cells = numbered_cells(held, limits, cells)
    tokens = [pl.col(f"estimated_{side}_tokens").fill_null(0) for side in ("input", "output")]
    weighed = [
        pl.col(weight_column(meter)).cast(SUM)
        for meter in ("uncached_input_tokens", "output_tokens", "requests")
    ]
    said = pl.any_horizontal(pl.col("estimated_input_tokens", "estimated_output_tokens").is_not_null())
    found = (
        held.join(cells, on=["_limit", "held_by"], suffix="_limit", validate="m:1")
        .filter(pl.col("minute").is_between("_since", "_until", closed="left"))
        .select(
            "_refusal",
            "cell",
            "minute",
            (~said).cast(pl.Int64).alias("refused_unestimated"),
            (tokens[0] + tokens[1]).alias("refused_tokens"),
            (tokens[0] * weighed[0] + tokens[1] * weighed[1] + weighed[2]).alias("refused"),
        )
    )
    return found, cells


def turned_away(refusals: pl.DataFrame, used: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    """Refusals by cell and start of their window: each in the one that is used most of its quantity."""
    rows = refusals.join(
        cells.select("cell", "full", "window", "window_minutes", "_anchor", "limit", "contract"),
        on="cell",
        validate="m:1",
    ).with_columns(pl.when(pl.col("window") != "anchored").then(clock_start()).alias("_clock"))
    used = used.join(refusals.select("cell").unique(), on="cell", how="semi")
    opened = used.select("cell", pl.col("start").alias("_open")).sort("_open")
    rows = (
        rows.sort("minute")
        .join_asof(
            opened, left_on="minute", right_on="_open", by="cell", strategy="backward", check_sortedness=False
        )
        .with_columns(
            pl.when(pl.col("_open") + pl.col("window_minutes") > pl.col("minute"))
            .then("_open")
            .alias("_open")
        )
        .with_columns(pl.coalesce("_clock", "_open", "minute").alias("start"))
        .join(used, on=["cell", "start"], how="left", validate="m:1")
        .with_columns(
            ratio(pl.col("used").fill_null(pl.lit(0, dtype=SUM)), pl.col("full")).alias("_fullness")
        )
        .sort(
            "_refusal",
            "_fullness",
            "window_minutes",
            "contract",
            "limit",
            descending=[False, True, False, False, False],
        )
        .unique("_refusal", keep="first", maintain_order=True)
    )
    return rows.group_by("cell", "start").agg(
        pl.len().cast(pl.Int64).alias("refused_requests"),
        pl.col("refused_unestimated", "refused_tokens", "refused").sum(),
        pl.col("minute").min().alias("refused_at"),
    )


def unlimited_refusals(refused: pl.DataFrame, books: Books, period: Period) -> pl.DataFrame:
    """Refusals within the period by customers whom no limit in force then turns away: customer, requests."""
    inside = refused.filter(pl.col("occurred_at").is_between(period.start, period.until, closed="left"))
    found, _ = refusals_by_cell(inside, books, period, numbered_cells(_NOBODY, limits_in(books, period)))
    under = inside.with_row_index("_refusal").join(
        found.select(pl.col("_refusal").cast(pl.UInt32)), on="_refusal", how="anti"
    )
    return under.group_by("customer").agg(pl.len().cast(pl.Int64).alias("requests")).sort("customer")


_NOBODY: Final = pl.DataFrame(schema={"_limit": pl.UInt32, "held_by": pl.String})
