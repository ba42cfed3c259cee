"""The fold worker: ledger rows into rollups, whenever there is something new; and the pinning of watermarks.

Folds and pins take the lock KNOWLEDGE and write in one REPEATABLE READ transaction each: sums and position
move together or not at all. One worker at a time holds the lock FOLD; a second one says who does, and waits.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import polars as pl
import structlog
from sqlalchemy import Connection

from metering.core.folding import SERIES_POOLS, fold
from metering.settings import Settings
from metering.settings import settings as process_settings
from metering.store import postgres, rollups, schema
from metering.store.watermarks import Knowledge, Watermark, append_watermark, seconds_to_pin
from workers import loop

#: Events after which a transaction of the fold takes no further batch: it bounds memory.
EVENTS_TARGET: Final = 500_000
_WAIT_SECONDS: Final = 0.5
_SAY_SECONDS: Final = 60.0


class SeriesPools:
    """The series that a fold has met, so that it asks for each but once. Bounded: full, it starts anew."""

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._known = SERIES_POOLS.empty()

    def of(self, connection: Connection, series_ids: pl.Series) -> pl.DataFrame:
        """SERIES_POOLS of the given series, which may repeat."""
        wanted = pl.DataFrame({"series_id": series_ids.unique()})
        missing = wanted.join(self._known, on="series_id", how="anti")["series_id"].to_list()
        if missing:
            if self._known.height + len(missing) > self._entries_max:
                self._known = SERIES_POOLS.empty()
                missing = wanted["series_id"].to_list()
            self._known = self._known.vstack(rollups.read_series_pools(connection, missing))
        return self._known.join(wanted, on="series_id", how="semi")


def fold_some(connection: Connection, settings: Settings, series: SeriesPools) -> int:
    """Fold the next batches, at most `fold_batches_max`, in the caller's transaction; returns how many."""
    batches = rollups.unfolded(connection, settings.fold_batches_max)
    taken, events = 0, 0
    while taken < len(batches) and events < EVENTS_TARGET:
        events += batches[taken].accepted
        taken += 1
    batches = batches[:taken]
    if not batches:
        return 0
    rows = rollups.read_foldable(connection, [batch.batch_id for batch in batches])
    sums = fold(rows, series.of(connection, rows["series_id"]))
    rollups.add_sums(connection, rollups.open_interval(connection), sums)
    rollups.advance_fold(connection, batches)
    return taken


def fold_once(connection: Connection, settings: Settings, series: SeriesPools) -> int:
    """One transaction of the fold; returns how many batches it folded, 0 when there was nothing new.

    If the process dies in the middle nothing was written: the next fold begins where this one began.
    """
    waiting = rollups.unfolded(connection, 1)
    connection.rollback()
    if not waiting:
        return 0
    with postgres.knowledge(connection):
        return fold_some(connection, settings, series)


def pin(connection: Connection, settings: Settings, reason: str) -> Knowledge:
    """Fold all that is committed, close the open interval, and append its watermark, in one transaction.

    `connection` works as `fold` and has no transaction open. Waits for a fold, pin or catalog apply at work.
    If the process dies in the middle nothing was written.
    """
    schema.check_version(connection)
    with postgres.knowledge(connection):
        return pin_within(connection, settings, reason).knowledge


def pin_within(connection: Connection, settings: Settings, reason: str) -> Watermark:
    """What `pin` does, in the transaction of a caller that holds the lock KNOWLEDGE; it commits."""
    series = SeriesPools(settings.series_cache_entries_max)
    while fold_some(connection, settings, series):
        pass
    return append_watermark(connection, settings, reason)


class FoldWorker:
    """The step of the loop: wait for the lock, pin when it is time, fold what is new."""

    def __init__(self, connection: Connection, settings: Settings, *, until_idle: bool) -> None:
        self._connection = connection
        self._settings = settings
        self._pins = not until_idle
        self._series = SeriesPools(settings.series_cache_entries_max)
        self._alone = False
        self._say_at = 0.0
        self._pin_at = 0.0

    def step(self) -> bool:
        """One bounded piece of work; False when there is nothing to do now."""
        if not self._alone:
            self._alone = postgres.take_lock(self._connection, postgres.FOLD)
            if not self._alone:
                self._wait()
                return True
            # the interval runs on over a restart
            self._pin_at = time.monotonic() + seconds_to_pin(
                self._connection, self._settings.pin_interval_seconds
            )
        folded = fold_once(self._connection, self._settings, self._series)
        if folded:
            structlog.get_logger().info("folded", batches=folded)
        if self._pins and time.monotonic() >= self._pin_at:
            pinned = pin(self._connection, self._settings, "timer")
            structlog.get_logger().info("pinned", watermark=pinned.watermark_id)
            self._pin_at = time.monotonic() + self._settings.pin_interval_seconds
        return folded > 0

    def _wait(self) -> None:
        if time.monotonic() >= self._say_at:
            self._say_at = time.monotonic() + _SAY_SECONDS
            holder = postgres.lock_holder(self._connection, postgres.FOLD)
            structlog.get_logger().warning(
                "another fold worker is at work: waiting for it to end", holder=holder
            )
        time.sleep(_WAIT_SECONDS)


def run(until_idle: bool = False, settings: Settings | None = None) -> None:
    """Fold until told to stop; with `until_idle` until everything committed is folded, without pins."""
    configured = settings or process_settings()

    @contextmanager
    def opened() -> Iterator[loop.Step]:
        with postgres.connect(configured, "fold") as connection:
            schema.check_version(connection)
            connection.rollback()
            yield FoldWorker(connection, configured, until_idle=until_idle).step

    loop.run(
        "fold",
        opened,
        settings=configured,
        interval_seconds=configured.fold_interval_seconds,
        until_idle=until_idle,
    )


if __name__ == "__main__":
    from metering.cli import main

    main(["work", "fold", *sys.argv[1:]])
