"""Adjustments: what has to be issued now, so that what was issued adds up to what is rated now."""

from collections.abc import Sequence

import polars as pl


def adjustment(
    rated_now: pl.DataFrame, issued: pl.DataFrame, *, by: Sequence[str], amounts: Sequence[str]
) -> pl.DataFrame:
    """Rated now less already issued, line by line; it may be negative.

    Both frames have the columns `by`, which name a line (null is a value), and `amounts` (Int128 or MONEY); any
    number of rows of a line are summed, so `issued` is simply all that was issued before. Lines on which nothing
    differs are left out: issuing an adjustment leaves none. Sorted by `by`.
    """
    now = rated_now.select(*by, *amounts)
    before = issued.select(
        *by, *((pl.lit(0, dtype=issued.schema[name]) - pl.col(name)).alias(name) for name in amounts)
    )
    return (
        pl.concat([now, before])
        .group_by(by)
        .agg(pl.col(amounts).sum())
        .filter(pl.any_horizontal(pl.col(name) != 0 for name in amounts))
        .sort(by, nulls_last=False)
    )
