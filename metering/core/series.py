"""Series: rows that repeat text dimensions become rows of numbers beside one short table of them."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import polars as pl

from metering.frames.usage import DIMENSIONS, USAGE, Identified


def known_usage(usage: pl.DataFrame | Identified) -> Identified:
    """Usage (frames.USAGE, or that by series already) by series."""
    return (
        usage if isinstance(usage, Identified) else identify(usage.select(*USAGE.columns), list(DIMENSIONS))
    )


def united(parts: Sequence[Identified]) -> Identified:
    """Rows of the same columns and dimensions, each with ids of its own, under ids of them all."""
    dims = [name for name in parts[0].series.columns if name != "series_id"]
    series = _ordered(pl.concat([part.series.select(dims) for part in parts]).unique(), dims)
    rows = []
    for part in parts:
        old = part.series.rename({"series_id": "_old"})
        found = old.join(series, on=dims, nulls_equal=True, validate="1:1").select("_old", "series_id")
        ids = np.zeros(int(found["_old"].max() or 0) + 1, np.uint32)  # type: ignore[arg-type]  # integers
        ids[found["_old"].to_numpy()] = found["series_id"].to_numpy()
        told = part.rows.with_columns(pl.Series("series_id", ids[part.rows["series_id"].to_numpy()]))
        rows.append(told.select(parts[0].rows.columns))
    return Identified(series, pl.concat(rows, how="vertical_relaxed"))


def identify(frame: pl.DataFrame, dimensions: Sequence[str]) -> Identified:
    """Replace the dimensions of `frame` by a series_id; rows keep their order. Linear, text hashed once a column."""
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
