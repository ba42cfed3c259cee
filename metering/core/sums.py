"""Sums: integers added up by place, exactly, in 64 bits where no sum can leave them."""

import numpy as np
import numpy.typing as npt
import polars as pl

from metering.frames import SUM

#: The largest sum that surely fits 64 bits, though it was guessed at in floats.
_SURELY: float = 2.0**62


def sums_at(place: npt.NDArray[np.int64], values: pl.Series, places: int) -> pl.Series:
    """The sum of the integers (SUM or of 64 bits, no nulls) at each place from 0 on, as SUM; 0 where there are none."""
    about = np.bincount(place, np.abs(values.cast(pl.Float64).to_numpy()), places)
    if about.max(initial=0) < _SURELY:
        narrow = np.zeros(places, np.int64)
        np.add.at(narrow, place, values.cast(pl.Int64).to_numpy())
        return pl.Series(values.name, narrow).cast(SUM)
    wide = (
        pl.DataFrame({"place": place, "value": values.cast(SUM)}).group_by("place").agg(pl.col("value").sum())
    )
    every = pl.DataFrame({"place": pl.int_range(places, eager=True)})
    sums = every.join(wide, on="place", how="left", validate="1:1", maintain_order="left")
    return sums["value"].fill_null(0).alias(values.name)
