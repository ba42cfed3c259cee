"""Rollups: what the fold reads and adds, and the usage that reports read back from them.

A rollup row belongs to an *interval*, the span between two watermarks; the fold adds to the open one. As of
watermark W a sum runs over the intervals up to W, live over all of them. Everything here works inside the
caller's transaction and commits nothing.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import psycopg
from psycopg import sql
from sqlalchemy import Connection, text

from metering.errors import WrongWorld
from metering.frames.frame import INSTANT, SUM, Frame
from metering.frames.usage import (
    DIMENSIONS,
    HELD_USAGE,
    LIMIT_USAGE,
    ON_DEMAND_USAGE,
    POOL_CUSTOMER_USAGE,
    POOL_USAGE,
    PROJECT_USAGE,
    SERVED,
    SUMS,
    USAGE,
    Identified,
)
from metering.meters import FURTHER_METERS, METERS
from metering.periods import MINUTE, QUARTER
from metering.store.archives import read_batches
from metering.store.ledger_rows import Rows, copy_out, copy_stream, row_dtype
from metering.store.postgres import driver
from metering.store.tables import HAS_FURTHER

Driver = psycopg.Connection[Any]

_FOLDABLE: Final = {
    "occurred_at": "instant",
    "series_id": "int4",
    "project_id": "int4",
    "seat_id": "int4",
    "source_id": "int4",
    "event_type": "int2",
    **dict.fromkeys(METERS, "int4"),
}
#: Ledger rows that count: usage, adjustments, and what takes either back.
COUNTS: Final = "(event_type IN (1, 6) OR source_id < 0)"
#: Requests that such a row counts.
REQUESTS: Final = "CASE WHEN event_type = 6 THEN 0 WHEN source_id < 0 THEN -1 ELSE 1 END"
_SERIES_POOLS: Final = ("series_id", *POOL_USAGE.key[1:], "counts_for")
_POOL_KEY: Final = POOL_USAGE.key
#: What tells the rows of a rollup apart, beside their interval.
KEYS: Final = {
    "usage_quarters": ("quarter_start", "series_id"),
    "pool_minutes": _POOL_KEY,
    "pool_customer_minutes": ("minute", "series_id"),
    "limit_minutes": ("minute", "series_id", "project_id", "seat_id"),
}
_STAGES: Final = {
    "usage_quarters": "folded_quarters",
    "pool_minutes": "folded_minutes",
    "pool_customer_minutes": "folded_customers",
    "limit_minutes": "folded_holders",
}


@dataclass(frozen=True)
class Unfolded:
    """A committed batch that no rollup holds yet."""

    batch_id: int
    intake_id: int
    sequence: int
    accepted: int


def unfolded(connection: Connection, batches_max: int) -> list[Unfolded]:
    """The next batches to fold: of every intake in sequence order, without gaps, at most `batches_max`.

    Across intakes in the order in which they were committed, so that what is taken back is folded before what
    takes it back. Raises WrongWorld when a batch is missing between two others: the ledger was tampered with.
    """
    rows = connection.execute(
        text(
            "SELECT b.batch_id, p.intake_id, b.sequence, b.accepted, "
            "coalesce(f.next_sequence, 0) AS expected "
            "FROM stream_positions p LEFT JOIN fold_positions f USING (intake_id) "
            # a clock that was set back must not bring a batch before the one ahead of it in its intake
            "CROSS JOIN LATERAL (SELECT batch_id, sequence, accepted, "
            "max(committed_at) OVER (ORDER BY sequence) AS committed_at FROM "
            "(SELECT * FROM ingest_batches i "
            "WHERE i.intake_id = p.intake_id AND i.sequence >= coalesce(f.next_sequence, 0) "
            "ORDER BY i.sequence LIMIT :most) next) b "
            "ORDER BY b.committed_at, p.intake_id, b.sequence LIMIT :most"
        ),
        {"most": batches_max},
    ).all()
    expected: dict[int, int] = {}
    for row in rows:
        if row.sequence != expected.setdefault(row.intake_id, row.expected):
            raise WrongWorld(
                f"intake {row.intake_id}: batch {expected[row.intake_id]} is missing, the next one there is "
                f"{row.sequence}; nothing was folded. Run `metering verify` and find out who removed it"
            )
        expected[row.intake_id] += 1
    return [Unfolded(row.batch_id, row.intake_id, row.sequence, row.accepted) for row in rows]


def read_foldable(connection: Connection, batch_ids: list[int]) -> pl.DataFrame:
    """The ledger rows of the batches that count, usage, compensations and adjustments: FOLDABLE of the core."""
    pieces = list(read_batches(connection, batch_ids, _FOLDABLE, COUNTS).values())
    frame = _frame(pieces, _FOLDABLE)
    return frame.select(
        *("occurred_at", "series_id", "project_id", "seat_id"),
        pl.sql_expr(REQUESTS).cast(pl.Int32).alias("requests"),
        *METERS,
    )


def read_series_pools(connection: Connection, series_ids: list[int]) -> pl.DataFrame:
    """What the core's fold has to know of each series (SERIES_POOLS). Raises WrongWorld if one is missing."""
    return _read_series(connection, series_ids).select(_SERIES_POOLS)


def open_interval(connection: Connection) -> int:
    """The interval to which the fold adds: one more than the last watermark."""
    last: int = connection.execute(text("SELECT coalesce(max(watermark_id), 0) FROM watermarks")).scalar_one()
    return last + 1


def add_sums(
    connection: Connection, interval_id: int, sums: Sequence[pl.DataFrame], beside: str = ""
) -> None:
    """Add the QUARTER_SUMS, MINUTE_SUMS, CUSTOMER_MINUTE_SUMS and LIMIT_SUMS of a fold to the rows of an interval.

    A sum beyond 64 bits is an error. `beside`: what stands before the names of the tables, where it is not to
    the rollups themselves.
    """
    for rollup, rows in zip(KEYS, sums, strict=True):
        if not rows.is_empty():
            _add(connection, beside + rollup, _STAGES[rollup], KEYS[rollup], interval_id, rows)
    if not beside:
        # every row that a fold adds is of a quarter hour of usage
        quarters = sums[0]["quarter_start"].unique().sort().to_list()
        connection.execute(
            text(
                "INSERT INTO rollup_marks (quarter_start, changes) "
                "SELECT *, 1 FROM unnest(CAST(:quarters AS timestamptz[])) "
                "ON CONFLICT (quarter_start) DO UPDATE SET changes = rollup_marks.changes + 1"
            ),
            {"quarters": quarters},
        )


def mark_rebuilt(connection: Connection) -> None:
    """Note that any quarter hour may have changed, in the caller's transaction."""
    connection.execute(
        text(
            "INSERT INTO rollup_marks (quarter_start, changes) VALUES ('-infinity', 1) "
            "ON CONFLICT (quarter_start) DO UPDATE SET changes = rollup_marks.changes + 1"
        )
    )


@dataclass(frozen=True)
class Marks:
    """How often rollups were rebuilt, and of each quarter hour how often a fold added to it.

    Equal marks of a span, read in two snapshots: its rollups are the same in both, row by row. A rollup that is
    changed by hand has no mark.
    """

    rebuilt: int
    changes: Mapping[datetime, int]

    def within(self, start: datetime, until: datetime) -> "Marks":
        """The marks of a part of the span."""
        return Marks(self.rebuilt, {at: count for at, count in self.changes.items() if start <= at < until})


def read_marks(connection: Connection, start: datetime, until: datetime) -> Marks:
    """The marks of the quarter hours in [start, until)."""
    rebuilt = connection.execute(
        text("SELECT changes FROM rollup_marks WHERE quarter_start = '-infinity'")
    ).scalar_one_or_none()
    rows = connection.execute(
        text(
            "SELECT quarter_start, changes FROM rollup_marks "
            "WHERE quarter_start >= :start AND quarter_start < :until"
        ),
        {"start": start, "until": until},
    )
    return Marks(rebuilt or 0, {row.quarter_start: row.changes for row in rows})


def _add(
    connection: Connection,
    table: str,
    stage: str,
    key: tuple[str, ...],
    interval_id: int,
    sums: pl.DataFrame,
) -> None:
    columns = ", ".join((*key, *SUMS))
    connection.exec_driver_sql(
        f"CREATE TEMPORARY TABLE IF NOT EXISTS {stage} ON COMMIT DELETE ROWS AS "
        f"SELECT {columns} FROM {table} WITH NO DATA"
    )
    # what is left out of the stage is null there: a further meter that sums to 0 is in no rollup
    told = [name for name in SUMS if name not in FURTHER_METERS or (sums[name] != 0).any()]
    csv = sums.select(
        *key, *(pl.when(pl.col(name) != 0).then(name) if name in FURTHER_METERS else name for name in told)
    ).write_csv(include_header=False, quote_style="non_numeric", datetime_format="%Y-%m-%dT%H:%M:%SZ")
    with (
        driver(connection).cursor() as cursor,
        cursor.copy(f"COPY {stage} ({', '.join((*key, *told))}) FROM STDIN (FORMAT csv)") as copy,
    ):
        copy.write(csv)
    added = ", ".join(
        f"{name} = nullif(coalesce({table}.{name}, 0) + coalesce(excluded.{name}, 0), 0)"
        if name in FURTHER_METERS
        else f"{name} = {table}.{name} + excluded.{name}"
        for name in SUMS
    )
    connection.exec_driver_sql(
        f"INSERT INTO {table} ({columns}, interval_id) SELECT {columns}, {interval_id} FROM {stage} "
        f"ON CONFLICT ({', '.join(key)}, interval_id) DO UPDATE SET {added}"
    )
    connection.exec_driver_sql(f"DELETE FROM {stage}")


def advance_fold(connection: Connection, batches: list[Unfolded]) -> None:
    """Note that the batches are in the rollups: what `unfolded` returned, from the same transaction."""
    ends = {
        batch.intake_id: batch.sequence + 1 for batch in sorted(batches, key=lambda batch: batch.sequence)
    }
    for intake_id, next_sequence in sorted(ends.items()):
        connection.execute(
            text(
                "INSERT INTO fold_positions (intake_id, next_sequence) VALUES (:intake, :next) "
                "ON CONFLICT (intake_id) DO UPDATE SET next_sequence = excluded.next_sequence"
            ),
            {"intake": intake_id, "next": next_sequence},
        )


def read_usage(
    connection: Connection,
    start: datetime,
    until: datetime,
    as_of: int | None,
    pools: Sequence[str] | None = None,
    customers: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Usage per quarter hour and series dimensions in [start, until): a USAGE frame.

    `as_of`: a watermark, or None for all that is folded in the snapshot of `connection`. `pools`: only
    requests meant for these; `customers`: only theirs; None for all.
    """
    raw = driver(connection)
    where = _span("quarter_start", start, until, as_of, raw) + _meant_for(pools, raw) + _of(customers, raw)
    return _read_series_sums(connection, "usage_quarters", where, USAGE, QUARTER).told(USAGE)


def read_usage_by_series(
    connection: Connection,
    start: datetime,
    until: datetime,
    as_of: int | None,
    pools: Sequence[str] | None = None,
    quarters: Sequence[datetime] | None = None,
) -> Identified:
    """As `read_usage`, with text once per series: a fraction of the memory where there is much usage.

    `quarters`: only these quarter hours; None for all.
    """
    raw = driver(connection)
    where = _span("quarter_start", start, until, as_of, raw) + _meant_for(pools, raw)
    where += _at(quarters, raw)
    return _read_series_sums(connection, "usage_quarters", where, USAGE, QUARTER)


def first_usage_at(connection: Connection) -> datetime | None:
    """The first quarter hour with usage, all that is folded included; None without any."""
    found: datetime | None = connection.execute(
        text("SELECT min(quarter_start) FROM usage_quarters")
    ).scalar_one()
    return found


def read_usage_of(
    connection: Connection, start: datetime, until: datetime, as_of: int | None, customers: Sequence[str]
) -> Identified:
    """As `read_usage_by_series`, of some customers: their series are few, and found first."""
    found = connection.execute(
        text("SELECT series_id FROM series WHERE customer = ANY(:customers)"), {"customers": list(customers)}
    )
    ids = [int(row.series_id) for row in found]
    raw = driver(connection)
    mine = sql.SQL(" AND series_id = ANY({})").format(sql.Literal(ids)).as_string(raw)
    where = _span("quarter_start", start, until, as_of, raw) + mine
    return _read_series_sums(connection, "usage_quarters", where, USAGE, QUARTER)


def read_pool_customer_usage(
    connection: Connection,
    start: datetime,
    until: datetime,
    as_of: int | None,
    pools: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Usage per minute, pool and customer in [start, until): POOL_CUSTOMER_USAGE; `as_of` as above.

    `pools`: only requests meant for these; None for those of every pool. Raises WrongWorld while the rollup
    lacks what was folded before the database had it.
    """
    if says := unfilled(connection).get("pool_customer_minutes"):
        raise WrongWorld(f"pool_customer_minutes {says}")
    raw = driver(connection)
    where = _span("minute", start, until, as_of, raw) + _meant_for(pools, raw)
    found = _read_series_sums(connection, "pool_customer_minutes", where, POOL_CUSTOMER_USAGE, MINUTE)
    return found.told(POOL_CUSTOMER_USAGE)


def read_limit_usage(
    connection: Connection,
    start: datetime,
    until: datetime,
    as_of: int | None,
    customers: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Usage per minute, customer, product, project and seat that counts for charge, in [start, until): LIMIT_USAGE.

    `as_of` as above; `customers`: only theirs, None for all. Rows of one key may be split. Raises WrongWorld while
    the rollup lacks what was folded before the database had it.
    """
    usage = _read_held(connection, start, until, as_of, ("charge_and_cost", "charge"), customers)
    return usage.select(*LIMIT_USAGE.columns)


def read_held_usage(
    connection: Connection, start: datetime, until: datetime, as_of: int | None, customers: Sequence[str]
) -> pl.DataFrame:
    """Usage per minute, series, project and seat of billable events of some customers: HELD_USAGE.

    `as_of` as above. Rows of one key may be split; raises WrongWorld as above.
    """
    usage = _read_held(connection, start, until, as_of, ("charge_and_cost",), customers)
    return usage.select(*HELD_USAGE.columns)


def _read_held(
    connection: Connection,
    start: datetime,
    until: datetime,
    as_of: int | None,
    counts_for: Sequence[str],
    customers: Sequence[str] | None,
) -> pl.DataFrame:
    raw = driver(connection)
    counted = sql.SQL("series_id IN (SELECT series_id FROM series WHERE counts_for = ANY({})").format(
        sql.Literal(list(counts_for))
    )
    if customers is not None:
        counted += sql.SQL(" AND customer = ANY({})").format(sql.Literal(list(customers)))
    counts = counted.as_string(raw)
    rows, series = _read_minutes(connection, f"{_span('minute', start, until, as_of, raw)} AND {counts})")
    for table, column in (("projects", "project"), ("seats", "seat")):
        named = _names(connection, table, column, rows[f"{column}_id"].unique().to_list())
        rows = rows.join(named, on=f"{column}_id", how="left", validate="m:1", maintain_order="left")
    return rows.join(series, on="series_id", how="left", validate="m:1", maintain_order="left")


def read_project_usage(
    connection: Connection, start: datetime, until: datetime, as_of: int | None
) -> pl.DataFrame:
    """Usage per quarter hour, series and project, every attempt, in [start, until): PROJECT_USAGE.

    `as_of` as above. Rows of one key may be split; raises WrongWorld as above.
    """
    if says := unfilled(connection).get("limit_minutes"):
        raise WrongWorld(f"limit_minutes {says}")
    raw = driver(connection)
    where = _span("minute", start, until, as_of, raw)
    told = _occurring(connection, "limit_minutes", where)
    kinds = {
        "quarter_start": "instant",
        "series_id": "int4",
        "project_id": "int4",
        **dict.fromkeys(told, "int8"),
    }
    sums = ", ".join(f"sum({_sum(name)})::bigint" for name in told)
    query = (
        "SELECT date_bin('15 minutes', minute, '2000-01-01T00:00Z'), series_id, project_id, "
        f"{sums} FROM limit_minutes WHERE {where} GROUP BY 1, 2, 3"
    )
    rows = _frame(list(copy_out(raw, query, kinds)), kinds)
    series = _read_series(connection, rows["series_id"].unique().to_list())
    named = _names(connection, "projects", "project", rows["project_id"].unique().to_list())
    rows = rows.with_columns(pl.col(*told).cast(SUM), *_zeros(told))
    rows = rows.join(named, on="project_id", how="left", validate="m:1")
    return rows.join(series, on="series_id", how="left", validate="m:1").select(*PROJECT_USAGE.columns)


def read_on_demand_usage(
    connection: Connection, start: datetime, until: datetime, as_of: int | None
) -> pl.DataFrame:
    """Usage per minute of what ran on demand and counts for cost, in [start, until): ON_DEMAND_USAGE.

    `as_of` as above. Raises WrongWorld while the rollup lacks what was folded before the database had it.
    """
    where = (
        f"{_span('minute', start, until, as_of, driver(connection))} AND series_id IN (SELECT series_id FROM series "
        "WHERE counts_for IN ('charge_and_cost', 'cost') AND ran_on IN ('overflow', 'on_demand'))"
    )
    rows, series = _read_minutes(connection, where)
    by = ON_DEMAND_USAGE.key
    return ON_DEMAND_USAGE.conform(
        rows.join(series, on="series_id", validate="m:1")
        .group_by(by)
        .agg(pl.col(name).sum() for name in SUMS)
    )


def _read_minutes(connection: Connection, where: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of limit_minutes with their sums as SUM, and the series of them."""
    if says := unfilled(connection).get("limit_minutes"):
        raise WrongWorld(f"limit_minutes {says}")
    ids = ("series_id", "project_id", "seat_id")
    told = _occurring(connection, "limit_minutes", where)
    kinds = {"minute": "instant", **dict.fromkeys(ids, "int4"), **dict.fromkeys(told, "int8")}
    query = f"SELECT {', '.join(map(_sum, kinds))} FROM limit_minutes WHERE {where} ORDER BY minute"
    rows = _frame(list(copy_out(driver(connection), query, kinds)), kinds)
    series = _read_series(connection, rows["series_id"].unique().to_list())
    return rows.with_columns(pl.col(*told).cast(SUM), *_zeros(told)), series


def _names(connection: Connection, table: str, column: str, ids: list[int]) -> pl.DataFrame:
    """The texts that small integers stand for, '' for 0: column_id, column."""
    found = connection.execute(
        text(f"SELECT {column}_id, {column} FROM {table} WHERE {column}_id = ANY(:ids)"), {"ids": ids}
    ).all()
    said = {0: "", **dict(tuple(row) for row in found)}
    if missing := set(ids) - said.keys():
        raise WrongWorld(
            f"{table}: rows point at {min(missing)}, which does not exist. Run `metering verify`"
        )
    schema = {f"{column}_id": pl.Int32, column: pl.String}
    return pl.DataFrame(list(said.items()), schema=schema, orient="row")


def _meant_for(pools: Sequence[str] | None, raw: Driver) -> str:
    if pools is None:
        return ""
    meant = sql.SQL(" AND series_id IN (SELECT series_id FROM series WHERE pool = ANY({}))")
    return meant.format(sql.Literal(list(pools))).as_string(raw)


def _at(quarters: Sequence[datetime] | None, raw: Driver) -> str:
    if quarters is None:
        return ""
    return sql.SQL(" AND quarter_start = ANY({})").format(sql.Literal(list(quarters))).as_string(raw)


def _of(customers: Sequence[str] | None, raw: Driver) -> str:
    if customers is None:
        return ""
    own = sql.SQL(" AND series_id IN (SELECT series_id FROM series WHERE customer = ANY({}))")
    return own.format(sql.Literal(list(customers))).as_string(raw)


def unfilled(connection: Connection) -> dict[str, str]:
    """The rollups that lack what was folded before the database had them; with what is the matter, in words."""
    marked = connection.execute(text("SELECT rollup FROM unfilled_rollups ORDER BY 1")).scalars()
    return dict.fromkeys(
        marked,
        "came with an upgrade and lacks what was folded before it; run `metering rebuild rollups`, "
        "which fills it beside the workers",
    )


def _read_series_sums(
    connection: Connection, rollup: str, where: str, declared: Frame, bucket: timedelta
) -> Identified:
    """The rows of a rollup as `declared`, whose key is the start of a bucket and columns of series, in that order."""
    start_of, *named_by = declared.key
    told = _occurring(connection, rollup, where)
    kinds = {start_of: "instant", "series_id": "int4", **dict.fromkeys(told, "int8")}
    query = f"SELECT {', '.join(_sum(name) for name in kinds)} FROM {rollup} WHERE {where}"
    pieces = list(copy_out(driver(connection), query, kinds))

    def column(name: str) -> npt.NDArray[Any]:
        return np.concatenate([np.empty(0, row_dtype(kinds)[name]), *(piece[name] for piece in pieces)])

    starts, ids = column(start_of), column("series_id")
    known, positions = np.unique(ids, return_inverse=True)
    series = _read_series(connection, known.tolist()).sort("series_id")
    dimensions = series.select(named_by).unique().sort(named_by, nulls_last=False).with_row_index("series_id")
    ranks = (
        series.select(named_by)
        .join(dimensions, on=named_by, nulls_equal=True, validate="m:1", maintain_order="left")["series_id"]
        .to_numpy()
    )
    # one number for bucket and dimensions: several intervals of a series, and several series of the same
    # dimensions, are one row; the order of the numbers is that of the key
    keys = starts // (bucket // timedelta(microseconds=1)) * (len(dimensions) + 1) + ranks[positions]
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    edges = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1))
    sums = {name: _group_sums(column(name)[order], edges) for name in told}
    pieces.clear()
    first = order[edges]
    rows = pl.DataFrame(
        {
            start_of: pl.Series(starts[first]).cast(INSTANT),
            "series_id": ranks[positions[first]].astype(np.uint32),
            **sums,
        }
    )
    zero = pl.lit(0, dtype=pl.Int64)
    absent = [zero.alias(name) for name in SUMS if name not in told]
    return Identified(dimensions, rows.with_columns(absent).select(start_of, "series_id", *SUMS))


def _occurring(connection: Connection, rollup: str, where: str) -> list[str]:
    """The sums that rows of a rollup have: further meters only if some row among them has one."""
    counted = ", ".join(f"count({name}) > 0" for name in FURTHER_METERS)
    found = (
        driver(connection)
        .execute(f"SELECT {counted} FROM {rollup} WHERE {HAS_FURTHER} AND {where}".encode())
        .fetchone()
    )
    occurs = dict(zip(FURTHER_METERS, found or (), strict=True))
    return [name for name in SUMS if occurs.get(name, True)]


def _sum(name: str) -> str:
    return f"coalesce({name}, 0)" if name in FURTHER_METERS else name


def _zeros(told: Container[str]) -> list[pl.Expr]:
    """What is not told is 0, in a column that takes no room."""
    return [pl.lit(0, dtype=SUM).alias(name) for name in SUMS if name not in told]


def _group_sums(values: npt.NDArray[np.int64], edges: npt.NDArray[np.intp]) -> pl.Series:
    """Exact sums of the groups that begin at `edges`: of 64 bits where they fit, else SUM."""
    if not len(values):
        return pl.Series([], dtype=pl.Int64)
    largest = max(int(values.max()), -int(values.min()))
    most = int(np.diff(edges, append=len(values)).max())
    if largest * most < 2**63:
        return pl.Series(np.add.reduceat(values, edges) if most > 1 else values)
    groups = np.repeat(np.arange(len(edges)), np.diff(edges, append=len(values)))
    wide = pl.DataFrame({"group": groups, "value": values})
    return wide.group_by("group").agg(pl.col("value").cast(SUM).sum()).sort("group")["value"]


def read_pool_usage(
    connection: Connection,
    start: datetime,
    until: datetime,
    as_of: int | None,
    pools: Sequence[str] | None = None,
    quarters: Sequence[datetime] | None = None,
) -> pl.DataFrame:
    """Usage per minute of requests meant for a pool, in [start, until): POOL_USAGE; the others as above."""
    raw = driver(connection)
    where = _span("minute", start, until, as_of, raw)
    if quarters is not None:
        inside = sql.SQL(" AND date_bin('15 minutes', minute, '2000-01-01T00:00Z') = ANY({})")
        where += inside.format(sql.Literal(list(quarters))).as_string(raw)
    if pools is not None:
        where += sql.SQL(" AND pool = ANY({})").format(sql.Literal(list(pools))).as_string(raw)
    told = _occurring(connection, "pool_minutes", where)
    columns = ", ".join((*_POOL_KEY[1:], *map(_sum, told)))
    query = (
        f"SELECT (extract(epoch FROM minute) * 1000000)::bigint, {columns} FROM pool_minutes WHERE {where}"
    )
    texts = ", ".join(name for name in _POOL_KEY if POOL_USAGE.columns[name] == pl.String)
    # CSV quotes every text, so that '' is not taken for a missing one
    stream = b"".join(copy_stream(raw, query, f"FORMAT csv, FORCE_QUOTE ({texts})"))
    schema = {
        name: pl.Int64() if name == "minute" or name in SUMS else POOL_USAGE.columns[name]
        for name in (*_POOL_KEY, *told)
    }
    minutes = pl.read_csv(stream, has_header=False, schema=schema) if stream else pl.DataFrame(schema=schema)
    return POOL_USAGE.conform(
        minutes.with_columns(pl.col("minute").cast(INSTANT))
        .group_by(_POOL_KEY)
        .agg(pl.col(name).cast(SUMS[name]).sum() for name in told)
        .with_columns(_zeros(told))
    )


def read_served(
    connection: Connection,
    start: datetime,
    until: datetime,
    as_of: int | None,
    provider: str | None = None,
) -> pl.DataFrame:
    """Usage per quarter hour by what ran, over all customers, in [start, until): SERVED; `as_of` as above.

    `provider`: of that one alone.
    """
    raw = driver(connection)
    where = _span("quarter_start", start, until, as_of, raw)
    if provider is not None:
        where += sql.SQL(" AND provider = {}").format(sql.Literal(provider)).as_string(raw)
    by = SERVED.key[1:]
    query = (
        f"SELECT (extract(epoch FROM quarter_start) * 1000000)::bigint, {', '.join(by)}, "
        f"{', '.join(f'coalesce(sum({name}), 0)::bigint' for name in SUMS)} "
        "FROM usage_quarters JOIN series USING (series_id) "
        f"WHERE {where} GROUP BY quarter_start, {', '.join(by)}"
    )
    texts = ", ".join(name for name in by if SERVED.columns[name] == pl.String)
    stream = b"".join(copy_stream(raw, query, f"FORMAT csv, FORCE_QUOTE ({texts})"))
    schema = {
        name: pl.Int64() if name == "quarter_start" or name in SUMS else dtype
        for name, dtype in SERVED.columns.items()
    }
    rows = pl.read_csv(stream, has_header=False, schema=schema) if stream else pl.DataFrame(schema=schema)
    return SERVED.conform(
        rows.with_columns(
            pl.col("quarter_start").cast(INSTANT), *(pl.col(name).cast(SUMS[name]) for name in SUMS)
        )
    )


def _span(column: str, start: datetime, until: datetime, as_of: int | None, raw: Driver) -> str:
    parts = [
        sql.SQL("{} >= {}").format(sql.Identifier(column), sql.Literal(start)),
        sql.SQL("{} < {}").format(sql.Identifier(column), sql.Literal(until)),
    ]
    if as_of is not None:
        parts.append(sql.SQL("interval_id <= {}").format(sql.Literal(as_of)))
    return sql.SQL(" AND ").join(parts).as_string(raw)


def _read_series(connection: Connection, series_ids: list[int]) -> pl.DataFrame:
    columns = ("series_id", *DIMENSIONS)
    found = connection.execute(
        text(f"SELECT {', '.join(columns)} FROM series WHERE series_id = ANY(:ids)"), {"ids": series_ids}
    ).all()
    if missing := set(series_ids) - {row.series_id for row in found}:
        raise WrongWorld(
            f"rows point at series {min(missing)}, which does not exist: series are written before the rows "
            "that need them and never removed. Run `metering verify` and find out who removed it"
        )
    return pl.DataFrame(
        [tuple(row) for row in found], schema={"series_id": pl.Int32, **DIMENSIONS}, orient="row"
    )


def _frame(pieces: list[Rows], columns: Mapping[str, str]) -> pl.DataFrame:
    """Numpy rows as a frame, column by column, so that never all of them exist twice."""
    pieces = pieces or [np.empty(0, row_dtype(columns))]
    native = row_dtype(columns)
    frame = pl.DataFrame(
        {
            name: np.concatenate([piece[name] for piece in pieces], dtype=native[name], casting="equiv")
            for name in columns
        }
    )
    pieces.clear()
    return frame.with_columns(
        pl.col(name).cast(INSTANT) for name, kind in columns.items() if kind == "instant"
    )
