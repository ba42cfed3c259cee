"""Partitions of the ledger by day, and the floor below which the ledger takes nothing."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from metering.errors import BadInput, Unavailable

_ATTEMPTS = 20


def key_floor(instant: datetime) -> UUID:
    """The least event key of an instant: its milliseconds in the first 48 bits, as in a UUIDv7."""
    return UUID(int=int(instant.timestamp() * 1000) << 80)


def _days(first: date, until: date) -> Iterator[date]:
    while first < until:
        yield first
        first += timedelta(days=1)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _existing(connection: Connection, parent: str) -> set[str]:
    found = connection.execute(
        text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = to_regclass(:parent)"),
        {"parent": parent},
    )
    return set(found.scalars())


def _attach(connection: Connection, parent: str, name: str, bounds: str) -> None:
    """Make a partition beside the table and attach it: the form that no COPY and no report waits for.

    Commits. Retries while a lock does not come; a table left by an attempt that died is attached now.
    """
    for attempt in range(_ATTEMPTS):
        try:
            connection.exec_driver_sql(
                f"CREATE TABLE IF NOT EXISTS {name} (LIKE {parent} INCLUDING ALL EXCLUDING IDENTITY)"
            )
            connection.exec_driver_sql(f"ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES {bounds}")
            connection.commit()
            return
        except DBAPIError as error:
            connection.rollback()
            sqlstate = getattr(error.orig, "sqlstate", None)
            if sqlstate == "42P17" or "is already a partition" in str(error.orig):
                return  # somebody else was faster
            if sqlstate not in ("55P03", "40P01", "42P07", "42710", "23505") or attempt == _ATTEMPTS - 1:
                raise
    raise Unavailable(f"partition {name} could not be attached: its locks did not come")


def ensure(connection: Connection, first: date, until: date) -> list[date]:
    """Make the ledger's partitions of the days [first, until); returns those that were missing.

    Lowers `ledger_floor` to `first` where it lies above it. Works as the owner; commits as it goes, so that
    a second run finishes what a first one began.
    """
    if until <= first:
        raise BadInput(f"{first}..{until} holds no day; give the first day and the day after the last")
    if (until - first).days > 3700:
        raise BadInput(
            f"{first}..{until} are {(until - first).days} days; make at most ten years of partitions at once"
        )
    existing = _existing(connection, "usage_events")
    connection.rollback()
    if "usage_events_unordered" not in existing:
        _attach(
            connection,
            "usage_events",
            "usage_events_unordered",
            f"FROM ('{UUID(int=1 << 127)}') TO (MAXVALUE)",
        )
    made = []
    for day in _days(first, until):
        name = f"usage_events_{day:%Y%m%d}"
        if name not in existing:
            low, high = key_floor(_midnight(day)), key_floor(_midnight(day + timedelta(days=1)))
            _attach(connection, "usage_events", name, f"FROM ('{low}') TO ('{high}')")
            made.append(day)
    connection.execute(
        text(
            "INSERT INTO ledger_floor (floor_at) VALUES (:floor) "
            "ON CONFLICT (only_row) DO UPDATE SET floor_at = least(ledger_floor.floor_at, excluded.floor_at)"
        ),
        {"floor": _midnight(first)},
    )
    connection.commit()
    return made


def ensure_rejects(connection: Connection, first: date, until: date) -> int:
    """Make the partitions of rejects and conflicts for the days [first, until); returns how many were missing."""
    made = 0
    for parent in ("rejects", "conflicts"):
        existing = _existing(connection, parent)
        connection.rollback()
        for day in _days(first, until):
            name = f"{parent}_{day:%Y%m%d}"
            if name not in existing:
                _attach(
                    connection,
                    parent,
                    name,
                    f"FROM ('{day} 00:00:00+00') TO ('{day + timedelta(days=1)} 00:00:00+00')",
                )
                made += 1
    return made


def floor(connection: Connection) -> datetime | None:
    """The instant below which the ledger takes nothing; None before `metering init`."""
    found: datetime | None = connection.execute(
        text("SELECT floor_at FROM ledger_floor")
    ).scalar_one_or_none()
    return found


def missing(error: psycopg.Error) -> str:
    """What to do about a row that found no partition, naming its day from the key that found no place."""
    table = error.diag.table_name
    if table in ("rejects", "conflicts"):
        return f"the table {table} has no partition for today; nothing was written. Run `metering init`"
    detail = error.diag.message_detail or str(error)
    key = detail.rsplit("(", 1)[-1].split(")")[0]
    try:
        day = datetime.fromtimestamp(int(key.replace("-", "")[:12], 16) / 1000, tz=UTC).date()
    except (ValueError, OverflowError, OSError):
        return (
            f"the ledger has no partition for an event: {detail}; run `metering partitions ensure FROM UNTIL`"
        )
    after = day + timedelta(days=1)
    return f"the ledger has no partition for {day}; nothing was written. Run `metering partitions ensure {day} {after}`"
