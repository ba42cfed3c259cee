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
    codes = frame.select(
        (
            pl.col(name).cast(pl.Categorical(pl.Categories.random())).to_physical()
            if frame.schema[name] == pl.String
            else pl.col(name).cast(pl.Int64) - pl.col(name).cast(pl.Int64).min()
        )
        .cast(pl.Int64)
        .fill_null(-1)
        .add(1)
        .alias(name)
        for name in dims
    )
    radix = [int(codes[name].max() or 0) + 1 for name in dims]  # type: ignore[arg-type]  # Int64 codes
    others = frame.drop(dims)
    if prod(radix) >= 2**63:
        series = _ordered(frame.select(dims).unique(), dims)
        found = frame.join(series, on=dims, how="left", nulls_equal=True, validate="m:1")
        return Identified(series, found.drop(dims))
    code = pl.lit(0, dtype=pl.Int64)
    for name, width in zip(dims, radix, strict=True):
        code = code * width + pl.col(name)
    coded = codes.select(code.alias("_code"))
    first = coded.with_row_index("_row").group_by("_code").agg(pl.col("_row").first())
    series = _ordered(frame.select(dims)[first["_row"]].with_columns(first["_code"]), dims)
    ids = series.select("_code", "series_id")
    rows = others.with_columns(coded["_code"]).join(ids, on="_code", how="left", validate="m:1").drop("_code")
    return Identified(series.drop("_code"), rows)


def _ordered(series: pl.DataFrame, dims: list[str]) -> pl.DataFrame:
    return series.sort(dims, nulls_last=False).with_row_index("series_id")
