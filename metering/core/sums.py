"""Sums: integers added up by place, exactly, in 64 bits where no sum can leave them."""

import numpy as np
import numpy.typing as npt
import polars as pl

from metering.frames.frame import SUM

#: The largest sum that surely fits 64 bits, though it was guessed at in floats.
_SURELY: float = 2.0**62


def largest(values: pl.Series) -> int:
    """The largest magnitude of integers of any width; 0 where there are none."""
    return max(int(values.max() or 0), -int(values.min() or 0))  # type: ignore[arg-type]  # integers


def sums_at(place: npt.NDArray[np.int64], values: pl.Series, places: int) -> pl.Series:
    """The sum of the integers (SUM or of 64 bits, no nulls) at each place from 0 on, as SUM; 0 where there are none."""
    most = largest(values)
    # a meter that nobody used takes no time
    if most == 0:
        return pl.zeros(places, dtype=SUM, eager=True).alias(values.name)
    if most * len(values) < 2**63 or _about(place, values, places) < _SURELY:
        narrow = np.zeros(places, np.int64)
        at = 0
        # chunk by chunk: in one piece they would all be copied first
        for chunk in values.get_chunks():
            np.add.at(narrow, place[at : at + len(chunk)], chunk.cast(pl.Int64).to_numpy())
            at += len(chunk)
        return pl.Series(values.name, narrow).cast(SUM)
    wide = (
        pl.DataFrame({"place": place, "value": values.cast(SUM)}).group_by("place").agg(pl.col("value").sum())
    )
    every = pl.DataFrame({"place": pl.int_range(places, eager=True)})
    sums = every.join(wide, on="place", how="left", validate="1:1", maintain_order="left")
    return sums["value"].fill_null(0).alias(values.name)


def _about(place: npt.NDArray[np.int64], values: pl.Series, places: int) -> float:
    """The largest sum of magnitudes at one place, roughly."""
    about = np.bincount(place, np.abs(values.cast(pl.Float64).to_numpy()), places)
    return float(about.max(initial=0))
