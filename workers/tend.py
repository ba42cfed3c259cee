"""Tend: partitions made ahead, rejects and conflicts retired, and old days of the ledger archived."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import Connection

from metering.settings import Settings
from metering.store import partitions, postgres, schema
from workers import archive, loop

log = structlog.get_logger(worker="tend")


def step(connection: Connection, settings: Settings) -> bool:
    """Look after every partition once; True when there may be more to do at once. Two at once do no harm.

    `connection` works as the owner. If the process dies in the middle the next step finishes.
    """
    today = datetime.now(UTC).date()
    made = partitions.ahead(connection, today, settings.partition_ahead_days)
    if made:
        log.info("partitions made", first=str(made[0]), last=str(made[-1]))
    retired = partitions.retire_refused(connection, today - timedelta(days=settings.reject_retention_days))
    if retired:
        log.info("partitions retired", partitions=retired)
    return archive.archive_next(settings, today) is not None


@contextmanager
def opened(settings: Settings) -> Iterator[loop.Step]:
    """One connection as the owner, for as long as the worker runs."""
    with postgres.connect(settings, "owner") as connection:
        schema.check_version(connection)
        connection.rollback()
        yield lambda: step(connection, settings)


def run(settings: Settings, *, until_idle: bool = False) -> None:
    """Tend every `tend_interval_seconds` until stopped; with `until_idle` until nothing is left to do."""
    loop.run(
        "tend",
        lambda: opened(settings),
        settings=settings,
        interval_seconds=settings.tend_interval_seconds,
        until_idle=until_idle,
    )


if __name__ == "__main__":
    from metering.cli import main

    main(["work", "tend", *sys.argv[1:]])
