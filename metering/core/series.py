"""Series: rows that repeat text dimensions become rows of numbers beside one short table of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import polars as pl


@dataclass(frozen=True)
class Identified:
    """`series`: series_id and the dimensions, ids ascending in the order of the dimensions (nulls first).

    `rows`: the other columns and series_id. The order of two ids never depends on which other series are
    there, so a tie broken by series_id is broken alike in every period.
    """

    series: pl.DataFrame
    rows: pl.DataFrame


def identify(frame: pl.DataFrame, dimensions: Sequence[str]) -> Identified:
    """Replace the dimensions of `frame` by a series_id. Linear in the rows, text hashed once per column."""
    dims = list(dimensions)
    codes = [_codes(frame[name]) for name in dims]
    radix = [int(each.max() or 0) + 1 for each in codes]  # type: ignore[arg-type]  # integers
    others = frame.drop(dims)
    if prod(radix) >= 2**63:
        series = _ordered(frame.select(dims).unique(), dims)
        found = frame.join(series, on=dims, how="left", nulls_equal=True, validate="m:1")
        return Identified(series, found.drop(dims))
    code = pl.zeros(frame.height, dtype=pl.Int64, eager=True).alias("_code")
    for each, width in zip(codes, radix, strict=True):
        # many dimensions have but one value: those take no time
        if width > 1:
            code = code * width + each.cast(pl.Int64)
    first = code.to_frame().with_row_index("_row").group_by("_code").agg(pl.col("_row").first())
    series = _ordered(frame.select(dims)[first["_row"]].with_columns(first["_code"]), dims)
    # a join would copy every column
    by_code = series.sort("_code")
    ids = by_code["series_id"].gather(by_code["_code"].search_sorted(code))
    return Identified(series.drop("_code"), others.with_columns(ids))


def _codes(values: pl.Series) -> pl.Series:
    """Small integers from 0 on, alike where the values are; null is a value."""
    if values.dtype == pl.String:
        found = values.cast(pl.Categorical(pl.Categories.random())).to_physical()
    else:
        found = values.cast(pl.Int64) - values.cast(pl.Int64).min()
    codes = (found + 1).fill_null(0)
    return codes - codes.min()


def _ordered(series: pl.DataFrame, dims: list[str]) -> pl.DataFrame:
    return series.sort(dims, nulls_last=False).with_row_index("series_id")
