"""Series: rows that repeat text dimensions become rows of numbers beside one short table of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import polars as pl


@dataclass(frozen=True)
class Identified:
    """`series`: series_id and the dimensions, ids ascending in the order of the dimensions (nulls first).

    `rows`: the other columns and series_id, in the order of the frame. The order of two ids never depends on
    which other series are there, so a tie broken by series_id is broken alike in every period.
    """

    series: pl.DataFrame
    rows: pl.DataFrame


def identify(frame: pl.DataFrame, dimensions: Sequence[str]) -> Identified:
    """Replace the dimensions of `frame` by a series_id. Linear in the rows, text hashed once per column."""
    dims = list(dimensions)
    others = frame.drop(dims)
    code, places = pl.zeros(frame.height, dtype=pl.Int64, eager=True).alias("_code"), 1
    for name in dims:
        values = frame[name]
        # many dimensions have but one value: those take no time
        if frame.height and values.eq_missing(values[0]).all():
            continue
        each = _codes(values)
        width = int(each.max() or 0) + 1  # type: ignore[arg-type]  # integers
        places *= width
        if places >= 2**63:
            series = _ordered(frame.select(dims).unique(), dims)
            found = frame.join(
                series, on=dims, how="left", nulls_equal=True, validate="m:1", maintain_order="left"
            )
            return Identified(series, found.drop(dims))
        code = code * width + each.cast(pl.Int64)
    different, number = numbered(code)
    row = np.empty(len(different), np.int64)
    row[number.to_numpy()] = np.arange(frame.height)
    series = _ordered(frame.select(dims)[row].with_row_index("_number"), dims)
    # a join would copy every column
    ids = series.sort("_number")["series_id"].gather(number)
    return Identified(series.drop("_number"), others.with_columns(_in_chunks(ids, others)))


def _in_chunks(values: pl.Series, frame: pl.DataFrame) -> pl.Series:
    """The values in chunks as the frame's: beside others, every filter would first copy all columns into one."""
    lengths = [len(chunk) for chunk in frame.to_series(0).get_chunks()] if frame.width else []
    if len(lengths) < 2:
        return values
    starts = [0, *accumulate(lengths)]
    return pl.concat(
        [values.slice(at, length) for at, length in zip(starts, lengths, strict=False)], rechunk=False
    )


def where(frame: pl.DataFrame, condition: pl.Expr | pl.Series) -> pl.DataFrame:
    """The rows that meet the condition; the frame itself where all do: a copy of it takes its memory again."""
    holds = frame.select(condition).to_series() if isinstance(condition, pl.Expr) else condition
    return frame if holds.all() else frame.filter(holds)


def numbered(codes: pl.Series) -> tuple[pl.Series, pl.Series]:
    """The different ones of `codes` (Int64, none negative), ascending, and for each code its place among them."""
    values = codes.to_numpy()
    most = int(values.max(initial=0))
    if most > 4 * len(values) + 1_000_000:
        found, places = np.unique(values, return_inverse=True)
        return pl.Series(found), pl.Series(places)
    # few for so many rows: a table of all that may be, in place of a sort
    met = np.zeros(most + 1, np.bool_)
    met[values] = True
    return pl.Series(np.flatnonzero(met)), pl.Series((np.cumsum(met) - 1)[values])


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
