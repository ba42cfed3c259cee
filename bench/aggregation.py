"""The aggregation that the margin report begins with, beside DuckDB's: the same rows, the same sums, two threads each.

A process of its own: `python -m bench.aggregation FOLDER`, JSON; the folder is one of bench.margin.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final, TypeVar

import duckdb
import polars as pl

from bench.margin import USAGE_FILE, month
from metering.core.costs import summed
from metering.core.effective import slices, with_slice
from metering.frames.frame import SUM
from metering.frames.usage import SUMS

#: Turns, each of both: the median counts.
ROUNDS: Final = 3
_SUMS_FILE: Final = "sums.parquet"
_KEY: Final = ("slice_start", "series_id")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Aggregated:
    """Seconds that the sums by day and series took, ours and DuckDB's, and how many rows became how many."""

    rows: int
    groups: int
    seconds: float
    duckdb_seconds: float


def compared(folder: Path) -> Aggregated:
    """Sum the rollups of `folder` by UTC day and series, both in memory; what differs is an assert."""
    rows = pl.read_parquet(folder / USAGE_FILE)
    days = slices(month())
    with duckdb.connect(config={"threads": pl.thread_pool_size()}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("CREATE TABLE usage AS SELECT * FROM read_parquet(?)", [str(folder / USAGE_FILE)])
        sums = ", ".join(f"sum({name}) AS {name}" for name in SUMS)
        query = (
            f"CREATE OR REPLACE TABLE sums AS SELECT date_trunc('day', quarter_start) AS slice_start, "
            f"series_id, {sums} FROM usage GROUP BY ALL"
        )
        ours, theirs = [], []
        for _ in range(ROUNDS):
            seconds, found = _timed(lambda: summed(with_slice(rows, days, at="quarter_start")))
            ours.append(seconds)
            theirs.append(_timed(lambda: connection.execute(query))[0])
        # a HUGEINT would leave DuckDB as a float
        told = ", ".join(f"{name}::BIGINT AS {name}" for name in SUMS)
        query = f"SELECT epoch_us(slice_start) AS slice_start, series_id, {told} FROM sums"
        connection.execute(f"COPY ({query}) TO '{folder / _SUMS_FILE}' (FORMAT parquet)")
    wanted = pl.read_parquet(folder / _SUMS_FILE).with_columns(pl.col(*SUMS).cast(SUM)).sort(_KEY)
    found = found.with_columns(pl.col("slice_start").to_physical()).select(wanted.columns).sort(_KEY)
    assert found.equals(wanted), "both sum the same rows"
    return Aggregated(rows.height, found.height, median(ours), median(theirs))


def _timed(work: Callable[[], _T]) -> tuple[float, _T]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


if __name__ == "__main__":
    print(json.dumps(asdict(compared(Path(sys.argv[1])))))
