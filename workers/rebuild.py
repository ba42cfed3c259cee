"""Rebuild: the rollups folded again from zero, compared with those that are kept, and put right where they differ.

Reads in short transactions, beside a fold at work; compares in one snapshot; and only where something differs
takes the lock KNOWLEDGE, catches up with the fold, and swaps in one transaction. If the process dies before
that commits nothing has changed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import Connection

from metering.core.folding import fold
from metering.settings import Settings
from metering.store import partitions, postgres, rollups, schema, shadow
from metering.store.shadow import Difference, Folded
from workers.fold import EVENTS_TARGET, SeriesPools
from workers.loop import database_errors

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Rebuilt:
    """What was compared, and whether the rollups were swapped."""

    differences: list[Difference]
    swapped: bool


class _Shadow:
    """A shadow under construction: what it holds, by intake the next sequence that it does not."""

    def __init__(self, connection: Connection, settings: Settings, progress: Progress) -> None:
        self._connection = connection
        self._series = SeriesPools(settings.series_cache_entries_max)
        self._progress = progress
        self._done: dict[int, int] = {}
        self._events = 0
        shadow.begin(connection)

    def catch_up(self, *, commit: bool) -> int:
        """Add what the rollups hold and the shadow does not; returns how many batches. `commit` after each group."""
        partitions.hold(self._connection)
        batches = shadow.folded(self._connection, self._done)
        ahead = sum(batch.accepted for batch in batches) + self._events
        for group in _groups(batches):
            rows = rollups.read_foldable(self._connection, [batch.batch_id for batch in group])
            sums = fold(rows, self._series.of(self._connection, rows["series_id"]))
            shadow.add(self._connection, group[0].interval_id, sums)
            if commit:
                self._connection.commit()
            self._events += sum(batch.accepted for batch in group)
            self._progress(f"folded {self._events:,} of {ahead:,} events")
        for batch in batches:
            self._done[batch.intake_id] = max(self._done.get(batch.intake_id, 0), batch.sequence + 1)
        return len(batches)


def _groups(batches: list[Folded]) -> Iterator[list[Folded]]:
    """Batches of one interval, as many as a fold takes at once."""
    for _, same in groupby(batches, key=lambda batch: batch.interval_id):
        group: list[Folded] = []
        events = 0
        for batch in same:
            if group and events + batch.accepted > EVENTS_TARGET:
                yield group
                group, events = [], 0
            group.append(batch)
            events += batch.accepted
        yield group


def rebuild(settings: Settings, *, dry_run: bool, progress: Progress = lambda message: None) -> Rebuilt:
    """Rebuild the rollups; `dry_run` only compares. Works as `fold`, beside a fold and with another rebuild."""
    with database_errors(), postgres.connect(settings, "fold") as connection:
        schema.check_version(connection)
        # a comparison of all rows may take longer than a worker's statement
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.commit()
        made = _Shadow(connection, settings, progress)
        connection.execution_options(isolation_level="REPEATABLE READ")
        while made.catch_up(commit=True):
            connection.rollback()
        connection.rollback()
        progress("comparing")
        # what was folded meanwhile, and the comparison, in one snapshot
        made.catch_up(commit=False)
        found = shadow.differences(connection)
        wrong = any(each.differing for each in found) or bool(rollups.unfilled(connection))
        # temporary tables keep what this transaction added to them
        connection.commit()
        if dry_run or not wrong:
            return Rebuilt(found, swapped=False)
        progress("swapping")
        with postgres.knowledge(connection):
            made.catch_up(commit=False)
            found = shadow.differences(connection)
            shadow.swap(connection)
        return Rebuilt(found, swapped=True)
