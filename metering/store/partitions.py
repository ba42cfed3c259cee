"""Partitions by day: made ahead, retired, dropped; and the floor below which the ledger takes nothing.

No statement here lets a COPY or a report wait for it: a partition is made beside its table and attached, and
detached concurrently before it is dropped. Where a lock does not come in time the statement gives way, and is
tried again.
"""

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Final
from uuid import UUID

import psycopg
from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import DBAPIError

from metering.errors import BadInput, Unavailable, WrongWorld

_ATTEMPTS: Final = 20
#: Nobody waits for a partition to go: a report that reads it may go on, and the next pass comes by again.
_DROP_ATTEMPTS: Final = 5
#: Tables of what was not accepted, by the day on which that happened.
_REFUSED: Final = ("rejects", "conflicts")


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
    archived = connection.execute(
        text(
            "SELECT min(day), max(day) FROM archives WHERE restored_at IS NULL AND day >= :first "
            "AND (day < :until OR day < (SELECT floor_at FROM ledger_floor))"
        ),
        {"first": first, "until": until},
    ).one()
    if archived[0] is not None:
        raise BadInput(
            f"{first}..{until}: the days {archived[0]} to {archived[1]} are archived, and an older day cannot "
            f"be taken beneath them; `metering archive restore {archived[1]}` brings the last of them back"
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
    for parent in _REFUSED:
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


def ahead(connection: Connection, today: date, days: int) -> list[date]:
    """Make every partition from yesterday to `days` ahead of `today`; returns the ledger's days that were missing.

    A ledger keeps its floor. Raises WrongWorld before `metering init`.
    """
    lowest = floor(connection)
    connection.rollback()
    if lowest is None:
        raise WrongWorld("the ledger has no floor yet; run `metering init`")
    until = today + timedelta(days=days + 1)
    made = ensure(connection, max(lowest.date(), today - timedelta(days=1)), until)
    ensure_rejects(connection, today - timedelta(days=1), until)
    return made


def days_of(connection: Connection, parent: str) -> list[date]:
    """The days for which a table has a partition, in order. The ledger's unordered partition has none."""
    return sorted(
        datetime.strptime(name[-8:], "%Y%m%d").date()  # noqa: DTZ007 - a day, without a zone
        for name in _existing(connection, parent)
        if name[-8:].isdigit()
    )


def made_until(connection: Connection) -> date | None:
    """The last day for which the ledger, rejects and conflicts all have a partition; None without any."""
    lasts = [days_of(connection, parent)[-1:] for parent in ("usage_events", *_REFUSED)]
    return min(last[0] for last in lasts) if all(lasts) else None


def retire_refused(connection: Connection, before: date) -> list[str]:
    """Drop the partitions of rejects and conflicts of the days before `before`; returns their names.

    If it dies in the middle a second run finishes. Raises Unavailable while a report holds one.
    """
    dropped = []
    for parent in _REFUSED:
        days = days_of(connection, parent)
        connection.rollback()
        for day in days:
            if day < before:
                drop(connection, parent, f"{parent}_{day:%Y%m%d}")
                dropped.append(f"{parent}_{day:%Y%m%d}")
    return dropped


def drop(connection: Connection, parent: str, name: str) -> None:
    """Detach a partition, and drop it, without ever standing in the way of a COPY or a report.

    Leaves `connection` outside a transaction. What an attempt left that died, detached half way or whole, is
    finished. Raises Unavailable while somebody holds it for longer than the attempts last.
    """
    connection.rollback()
    connection.execution_options(isolation_level="AUTOCOMMIT")
    try:
        for attempt in range(_DROP_ATTEMPTS):
            try:
                if (state := _inherited(connection, parent, name)) is not None:
                    form = "FINALIZE" if state.inhdetachpending else "CONCURRENTLY"
                    connection.exec_driver_sql(f"ALTER TABLE {parent} DETACH PARTITION {name} {form}")
                connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")
                return
            except DBAPIError as error:
                # a lock that did not come; or another one detached it meanwhile, or began to
                if getattr(error.orig, "sqlstate", None) not in ("55P03", "40P01", "42P01", "55000"):
                    raise
                time.sleep(0.1 * attempt)
        raise Unavailable(
            f"partition {name} is in use and was not dropped; nothing is lost, and the next attempt finishes"
        )
    finally:
        if not connection.invalidated:
            connection.rollback()
            connection.execution_options(isolation_level="READ COMMITTED")


def hold(connection: Connection) -> None:
    """Keep every partition of the ledger where it is until the transaction ends.

    For one that is REPEATABLE READ, as its first statement, which takes no snapshot by itself: a snapshot alone
    keeps no day that is detached before the ledger is read, and this alone none from the next snapshot.
    """
    connection.exec_driver_sql("LOCK TABLE ONLY usage_events IN ACCESS SHARE MODE")


def _inherited(connection: Connection, parent: str, name: str) -> Row[tuple[bool]] | None:
    return connection.execute(
        text(
            "SELECT inhdetachpending FROM pg_inherits "
            "WHERE inhparent = to_regclass(:parent) AND inhrelid = to_regclass(:name)"
        ),
        {"parent": parent, "name": name},
    ).one_or_none()


def floor(connection: Connection) -> datetime | None:
    """The instant below which the ledger takes nothing; None before `metering init`."""
    found: datetime | None = connection.execute(
        text("SELECT floor_at FROM ledger_floor")
    ).scalar_one_or_none()
    return found


def has_day(connection: Connection, day: date) -> bool:
    """Whether the ledger has a partition for a day."""
    return f"usage_events_{day:%Y%m%d}" in _existing(connection, "usage_events")


def missing(error: psycopg.Error) -> str:
    """What to do about a row that found no partition, naming its day from the key that found no place."""
    table = error.diag.table_name
    if table in _REFUSED:
        return (
            f"the table {table} has no partition for today; nothing was written. Run `metering init`, and "
            "keep `metering work tend` running"
        )
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
