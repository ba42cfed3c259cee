"""Archive: a closed day of the ledger becomes a file, and a file a day of the ledger again.

In order: the file is written and read back; under the lock KNOWLEDGE the day is closed, entered and the floor
raised; the partition is detached and dropped. If the process dies before the entry, a file is left that
nothing names; after it, a partition that nobody reads any more, and the next run drops it. No row is lost.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta

import structlog
from sqlalchemy import Connection, text

from metering.errors import BadInput, Unavailable, WrongWorld
from metering.settings import Settings
from metering.store import archives, partitions, postgres, schema
from metering.store.archives import Archive
from metering.store.watermarks import complete_until
from workers.loop import database_errors

#: Rows may come in while a file is written; each time it is written again.
_ATTEMPTS = 5
log = structlog.get_logger(worker="archive")


@contextmanager
def _alone(settings: Settings) -> Iterator[Connection]:
    """A connection as the owner that holds the lock ARCHIVE; raises Unavailable while another one does."""
    with database_errors(), postgres.connect(settings, "owner") as connection:
        schema.check_version(connection)
        # a day may be large
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.commit()
        if not postgres.take_lock(connection, postgres.ARCHIVE):
            holder = postgres.lock_holder(connection, postgres.ARCHIVE)
            raise Unavailable(f"another archive is at work ({holder}); wait for it to end")
        yield connection


def due(connection: Connection, settings: Settings, today: date) -> date | None:
    """The oldest day in Postgres, if it is closed and old enough to be archived; ends the transaction."""
    days = partitions.days_of(connection, "usage_events")
    archived = {archive.day for archive in archives.archives(connection)}
    until = complete_until(connection, settings)
    connection.rollback()
    held = [day for day in days if day not in archived]
    if not held or until is None:
        return None
    edge = min(today - timedelta(days=settings.archive_after_days), until.date())
    return held[0] if held[0] < edge else None


def archive_day(settings: Settings, day: date, today: date | None = None) -> Archive:
    """Archive the oldest day of the ledger; any other one, and one that is not closed, is refused by name."""
    today = today or datetime.now(UTC).date()
    if settings.archive_address is None:
        raise BadInput("METERING_ARCHIVE_ADDRESS is not set; give the folder or fsspec address for archives")
    with _alone(settings) as connection:
        finish(connection)
        _check(connection, settings, day, today)
        return _archive(connection, settings, settings.archive_address, day)


def _check(connection: Connection, settings: Settings, day: date, today: date) -> None:
    archived = {archive.day: archive for archive in archives.archives(connection)}
    days = partitions.days_of(connection, "usage_events")
    until = complete_until(connection, settings)
    connection.rollback()
    if day in archived:
        raise BadInput(f"{day} is archived already, at {archived[day].address}")
    if day not in days:
        raise BadInput(f"the ledger has no partition for {day}; `metering archive list` shows what there is")
    if day != days[0]:
        raise BadInput(
            f"{day} is not the oldest day of the ledger: the floor rises over the days in order; "
            f"archive {days[0]} first"
        )
    if until is None or until.date() <= day:
        known = (
            "nothing is known to be complete"
            if until is None
            else f"input is complete until {until:%Y-%m-%d %H:%M} UTC"
        )
        raise BadInput(f"{day} is not closed: {known}")
    if day >= today - timedelta(days=settings.archive_after_days):
        raise BadInput(
            f"{day} lies less than {settings.archive_after_days} full days back; wait, or lower "
            "METERING_ARCHIVE_AFTER_DAYS"
        )


def _archive(connection: Connection, settings: Settings, folder: str, day: date) -> Archive:
    for _ in range(_ATTEMPTS):
        with postgres.reading(settings, "owner") as snapshot:
            written = archives.write_day(snapshot, day, folder)
            difference = archives.first_difference(snapshot, written)
        if difference is not None:
            raise WrongWorld(f"{difference}; nothing was entered or dropped")
        with postgres.knowledge(connection):
            entered = archives.enter(connection, written)
        if entered:
            log.info("archived", day=str(day), rows=written.rows, address=written.address)
            finish(connection)
            return written
        log.warning("rows came in while the file was written: it is written again", day=str(day))
    raise Unavailable(f"{day} still takes in rows; nothing was entered or dropped. Try again later")


def finish(connection: Connection) -> None:
    """Drop what is left in Postgres of archived days. Raises Unavailable while a report holds one."""
    left = archives.leftovers(connection)
    connection.rollback()
    for day in left:
        partitions.drop(connection, "usage_events", archives.partition(day))
        log.info("dropped", day=str(day))


def archive_next(settings: Settings, today: date) -> Archive | None:
    """Archive the oldest day if it is due; None when none is. Raises Unavailable while another one is at work."""
    if settings.archive_address is None:
        return None
    with _alone(settings) as connection:
        finish(connection)
        day = due(connection, settings, today)
        return None if day is None else _archive(connection, settings, settings.archive_address, day)


def restore_day(settings: Settings, day: date) -> Archive:
    """Bring the last archived day back, row for row; the floor goes down to it. The file stays.

    If the process dies in the middle the day is still archived, and a second run begins anew.
    """
    with _alone(settings) as connection:
        finish(connection)
        archived = archives.archives(connection)
        connection.rollback()
        chosen = next((archive for archive in archived if archive.day == day), None)
        if chosen is None:
            raise BadInput(f"{day} is not archived; `metering archive list` shows the days that are")
        if chosen is not archived[-1]:
            raise BadInput(
                f"{day} is not the last archived day: the floor goes down over the days in order; "
                f"restore {archived[-1].day} first"
            )
        archives.refill(connection, chosen)
        with postgres.reading(settings, "owner") as snapshot:
            rows = snapshot.execute(text(f"SELECT count(*) FROM {archives.partition(day)}")).scalar_one()
        if rows != chosen.rows:
            raise WrongWorld(f"{chosen} gave {rows:,} of {chosen.rows:,} rows; the day stays archived")
        with postgres.knowledge(connection):
            archives.reopen(connection, chosen)
        log.info("restored", day=str(day), rows=chosen.rows)
        return chosen


def list_archives(settings: Settings) -> tuple[list[Archive], date | None]:
    """The archived days, oldest first, and the first day that is in Postgres."""
    with database_errors(), postgres.reading(settings) as connection:
        archived = archives.archives(connection)
        days = partitions.days_of(connection, "usage_events")
    closed = {archive.day for archive in archived}
    return archived, next((day for day in days if day not in closed), None)
