"""Folding: ledger rows in, sums out: per quarter hour and series; per minute and pool, pool and customer, and holder.

A row counts its requests (usage one, a compensating row takes one away, an adjustment none) and its meters,
on the minute and the quarter hour in which it ended: an instant on an edge begins its own. Sums are exact
and add up in any order and grouping: the fold of two halves, added, is the fold of the whole. Nothing but
ledger rows and their series is looked at, so that a rebuild gives what the live fold gave.
"""

from typing import Final

import polars as pl

from metering.frames.frame import INSTANT, Frame
from metering.meters import FURTHER_METERS, METERS

#: Rows of one fold: below this, sums of 32-bit meters cannot leave 64 bits.
ROWS_MAX: Final = 2**32

_BIGINTS: Final = {"requests": pl.Int64, **dict.fromkeys(METERS, pl.Int64)}
#: Ledger rows that count: usage, what takes usage back (-1 request), and adjustments (0 requests).
FOLDABLE: Final = Frame(
    "FOLDABLE",
    {
        "occurred_at": INSTANT,
        "series_id": pl.Int32,
        "project_id": pl.Int32,  # 0: not said
        "seat_id": pl.Int32,
        "requests": pl.Int32,
        **dict.fromkeys(METERS, pl.Int32),
    },
)
#: What a fold has to know of a series to tell which pool's minutes its rows belong to.
SERIES_POOLS: Final = Frame(
    "SERIES_POOLS",
    {
        "series_id": pl.Int32,
        "pool": pl.String,  # null: meant for no pool
        "ran_on": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "context_breakpoint": pl.Int32,
        "counts_for": pl.String,
    },
    key=("series_id",),
    nullable=frozenset({"pool"}),
)
QUARTER_SUMS: Final = Frame(
    "QUARTER_SUMS",
    {"quarter_start": INSTANT, "series_id": pl.Int32, **_BIGINTS},
    key=("quarter_start", "series_id"),
)
MINUTE_SUMS: Final = Frame(
    "MINUTE_SUMS",
    {
        "minute": INSTANT,
        "pool": pl.String,
        "ran_on": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "context_breakpoint": pl.Int32,
        **_BIGINTS,
    },
    key=("minute", "pool", "ran_on", "model_served", "tier_served", "region", "context_breakpoint"),
)
#: The minutes of every customer in a pool: those of its series. A sum over customers is one of MINUTE_SUMS.
CUSTOMER_MINUTE_SUMS: Final = Frame(
    "CUSTOMER_MINUTE_SUMS",
    {"minute": INSTANT, "series_id": pl.Int32, **_BIGINTS},
    key=("minute", "series_id"),
)
#: The minutes of every series by who held the limits that it counts in, whatever pool it was meant for.
LIMIT_SUMS: Final = Frame(
    "LIMIT_SUMS",
    {"minute": INSTANT, "series_id": pl.Int32, "project_id": pl.Int32, "seat_id": pl.Int32, **_BIGINTS},
    key=("minute", "series_id", "project_id", "seat_id"),
)


def fold(
    rows: pl.DataFrame, series: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Fold FOLDABLE rows with the SERIES_POOLS of all their series.

    Returns (QUARTER_SUMS, MINUTE_SUMS, CUSTOMER_MINUTE_SUMS, LIMIT_SUMS). Minutes of pools hold the rows whose
    series is meant for a pool and counts for cost: a charge that was taken back leaves what the pool burned.
    LIMIT_SUMS hold all rows: limits take what counts for charge of them, quotas of providers what counts for cost.
    A row whose series is missing is an assert.
    """
    rows, series = FOLDABLE.conform(rows), SERIES_POOLS.conform(series)
    assert rows.height < ROWS_MAX, f"{rows.height} rows in one fold; fold fewer batches at once"
    unknown = rows.join(series, on="series_id", how="anti")
    assert unknown.is_empty(), f"no series {unknown['series_id'][0]} among those given"
    # what no row has is 0 without being summed
    counted = [name for name in _BIGINTS if name not in FURTHER_METERS or (rows[name] != 0).any()]
    none = [pl.lit(0, dtype=pl.Int64).alias(name) for name in _BIGINTS if name not in counted]
    sums = [pl.col(name).sum() for name in counted]
    # per minute, series and holder first: all results are small sums of it
    held = (
        rows.with_columns(
            pl.col("occurred_at").dt.truncate("1m").alias("minute"),
            *(pl.col(name).cast(pl.Int64) for name in counted),
        )
        .group_by(LIMIT_SUMS.key)
        .agg(sums)
        .with_columns(none)
    )
    minutes = held.group_by("minute", "series_id").agg(sums).with_columns(none)
    quarters = (
        minutes.with_columns(pl.col("minute").dt.truncate("15m").alias("quarter_start"))
        .group_by("quarter_start", "series_id")
        .agg(sums)
        .with_columns(none)
    )
    burned = series.filter(
        pl.col("pool").is_not_null() & pl.col("counts_for").is_in(["charge_and_cost", "cost"])
    )
    customers = CUSTOMER_MINUTE_SUMS.conform(minutes.join(burned, on="series_id", how="semi"))
    pools = (
        customers.join(burned, on="series_id", how="inner", validate="m:1")
        .group_by(MINUTE_SUMS.key)
        .agg(sums)
        .with_columns(none)
    )
    return QUARTER_SUMS.conform(quarters), MINUTE_SUMS.conform(pools), customers, LIMIT_SUMS.conform(held)
