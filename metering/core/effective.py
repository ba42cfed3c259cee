"""What is in force when: dated rows looked up at an instant; slices of time in which nothing changes."""

from collections.abc import Iterable, Sequence
from datetime import datetime

import polars as pl

from metering.frames.frame import INSTANT
from metering.periods import DAY, Period


def in_force(rows: pl.DataFrame, dated: pl.DataFrame, *, at: str, by: Sequence[str]) -> pl.DataFrame:
    """Give every row the columns of the `dated` row in force at its instant `at`, null where none is.

    In force: effective_from <= at < effective_until (null: for ever); both have the columns `by`. The spans
    of one `by` do not overlap (the catalog refuses that); if they did, the latest beginning would decide.
    Rows come back in no particular order, without effective_from and effective_until.
    """
    given = [name for name in dated.columns if name not in {*by, "effective_from", "effective_until"}]
    dated = dated.sort("effective_from")
    rows = rows.sort(at)
    found = rows.join_asof(
        dated, left_on=at, right_on="effective_from", by=list(by), strategy="backward", check_sortedness=False
    )
    ended = pl.col("effective_until") <= pl.col(at)
    return found.with_columns(
        pl.when(ended.fill_null(value=False)).then(None).otherwise(pl.col(name)).alias(name) for name in given
    ).drop("effective_from", "effective_until", strict=False)


def edges(frames: Iterable[pl.DataFrame]) -> list[datetime]:
    """All instants at which a row of the dated frames begins or ends, ascending."""
    found: set[datetime] = set()
    for frame in frames:
        for column in ("effective_from", "effective_until"):
            found.update(frame[column].drop_nulls().unique())
    return sorted(found)


def slices(period: Period, at: Iterable[datetime] = ()) -> pl.DataFrame:
    """The period cut at every UTC midnight and at every instant of `at`: slice_start, slice_until, ascending.

    Within a slice no book changes, so quantities may be summed before they are priced. No slice spans two
    days. An empty period has no slice.
    """
    if period.until <= period.start:
        return pl.DataFrame(schema={"slice_start": INSTANT, "slice_until": INSTANT})
    cuts = {period.start, *(edge for edge in at if period.start < edge < period.until)}
    midnight = period.start.replace(hour=0, minute=0, second=0, microsecond=0) + DAY
    while midnight < period.until:
        cuts.add(midnight)
        midnight += DAY
    starts = sorted(cuts)
    return pl.DataFrame(
        {"slice_start": starts, "slice_until": [*starts[1:], period.until]},
        schema={"slice_start": INSTANT, "slice_until": INSTANT},
    )


def with_slice(rows: pl.DataFrame, cut: pl.DataFrame, *, at: str) -> pl.DataFrame:
    """Give every row the slice_start of the slice that holds its instant `at` (all lie in the cut)."""
    starts = cut["slice_start"].sort()
    # what lies before the first slice is of none
    held = pl.concat([starts.clear().extend_constant(None, 1), starts])
    place = starts.to_physical().search_sorted(rows[at].to_physical(), side="right")
    # a join would copy every column
    return rows.with_columns(held.gather(place).alias("slice_start"))
