"""Sums of the archived days, beside the ledger: what `verify` compares with batches and rollups."""

from collections.abc import Sequence
from typing import Final

import polars as pl
from sqlalchemy import Connection

from metering.errors import WrongWorld
from metering.frames.usage import SUMS
from metering.meters import METERS
from metering.store import archives
from metering.store.archives import Archive
from metering.store.postgres import driver
from metering.store.rollups import COUNTS, REQUESTS

_MINUTES: Final = ("batch_id", "minute", "series_id", "project_id", "seat_id", *SUMS)
#: Temporary tables of `postgres.reading`, which `stage` fills.
SCRATCH: Final = (
    "CREATE TEMPORARY TABLE archived_batches ("
    "batch_id bigint NOT NULL, source_id integer NOT NULL, rows bigint NOT NULL); "
    "CREATE TEMPORARY TABLE archived_minutes (batch_id bigint NOT NULL, minute timestamptz NOT NULL, "
    f"series_id integer NOT NULL, project_id integer NOT NULL, seat_id integer NOT NULL, "
    f"{', '.join(f'{name} bigint NOT NULL' for name in SUMS)})"
)


def stage(connection: Connection, archived: Sequence[Archive]) -> str | None:
    """Count and sum the rows of every archive into SCRATCH; what is wrong with the first that cannot be read."""
    try:
        for archive in archived:
            rows = archives.scan(archive)
            counts = (
                rows.group_by("batch_id", pl.col("source_id").abs())
                .agg(pl.len().cast(pl.Int64).alias("rows"))
                .collect()
            )
            if counts["rows"].sum() != archive.rows:
                return f"{archive} holds {counts['rows'].sum():,} rows, {archive.rows:,} were written"
            minutes = (
                rows.filter(pl.sql_expr(COUNTS))
                .select(
                    "batch_id",
                    pl.col("occurred_at").dt.truncate("1m").alias("minute"),
                    *("series_id", "project_id", "seat_id"),
                    pl.sql_expr(REQUESTS).cast(pl.Int64).alias("requests"),
                    *(pl.col(meter).cast(pl.Int64) for meter in METERS),
                )
                .group_by("batch_id", "minute", "series_id", "project_id", "seat_id")
                .sum()
                .collect()
            )
            _copy(connection, "archived_batches", counts.select("batch_id", "source_id", "rows"))
            _copy(connection, "archived_minutes", minutes.select(_MINUTES))
    except WrongWorld as error:
        return str(error)
    return None


def _copy(connection: Connection, table: str, frame: pl.DataFrame) -> None:
    with (
        driver(connection).cursor() as cursor,
        cursor.copy(f"COPY {table} ({', '.join(frame.columns)}) FROM STDIN (FORMAT csv)") as copy,
    ):
        copy.write(frame.write_csv(include_header=False, datetime_format="%Y-%m-%dT%H:%M:%SZ"))
