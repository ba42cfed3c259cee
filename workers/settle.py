"""The settle worker: joins voids and the events that they name, appends what takes them back, and finds what is wrong.

One worker at a time holds the lock SETTLE; a second one says who does, and waits. A batch of compensating
entries, the settlements of their voids and the position of the intake commit in one transaction.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import psycopg
import structlog
from sqlalchemy import Connection

from metering.core.settling import Outcome, outcome
from metering.errors import Fenced
from metering.events.identity import series_digest
from metering.frames.usage import DIMENSIONS
from metering.meters import METERS
from metering.settings import Settings
from metering.settings import settings as process_settings
from metering.store import findings, heartbeats, passes, positions, postgres, schema, settling
from metering.store.batch import Companion, Digests, Part, Refused
from metering.store.chain import text_digest
from metering.store.ledger import EVENT_TYPES, Ledger
from metering.store.ledger_rows import LEDGER_ROW
from metering.store.names import Names
from metering.store.positions import Claim
from metering.store.settling import OpenVoid, Target
from workers import loop

_WAIT_SECONDS: Final = 0.5
_SAY_SECONDS: Final = 60.0
_COUNTS_FOR: Final = tuple(DIMENSIONS).index("counts_for")
log = structlog.get_logger()

Driver = psycopg.Connection[tuple[Any, ...]]


class Settle:
    """One worker's way from voids to compensating entries. `connection` is in autocommit, as role settle."""

    def __init__(self, connection: Driver, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._ledger = Ledger(connection, settings.reject_bytes_max)
        self._names = Names(connection, settings.series_cache_entries_max)
        self._claim: Claim | None = None
        self._looked_at = -1
        self._look_at = 0.0

    def settle_some(self) -> int:
        """Settle the next voids whose events are there, in one transaction; returns how many, 0 when none is.

        If the process dies in the middle nothing was written, or everything was: position, entries and
        settlements commit together, and a void is settled once by the primary key of its settlement.
        """
        began = time.monotonic()
        if began < self._look_at:
            return 0
        # read before the voids: what commits in between is looked at again
        committed = settling.committed(self._connection)
        if committed == self._looked_at:
            return 0
        ready = settling.read_ready(self._connection, self._settings.settle_voids_max)
        if not ready:
            self._looked_at = committed
            # many voids that wait make a look long: it takes a fifth of the time at most
            self._look_at = time.monotonic() + 4 * (time.monotonic() - began)
            return 0
        if self._claim is None:
            self._claim = positions.claim_intake(
                self._connection,
                "settle",
                role=f"{self._settings.role_prefix}settle",
                owner=positions.worker_name(),
            )
        try:
            (appended,) = self._ledger.append([self._part(self._claim, ready)])
        except Fenced as error:
            log.warning("fenced", error=str(error))
            self._claim = None
            return len(ready)
        self._claim = appended.claim
        return len(ready)

    def _part(self, claim: Claim, ready: Sequence[OpenVoid]) -> Part:
        """The compensating entries of the voids, and the settlements of all of them."""
        taken_back: set[tuple[Any, int]] = set()
        outcomes: list[Outcome] = []
        compensated: list[tuple[OpenVoid, Target]] = []
        for void in ready:
            identity = (void.target_key, void.target_source_id)
            target = void.target
            told = outcome(
                side=void.side,
                target=None if target is None else target.event_type,
                billable=target is not None and target["nonbillable_reason"] == 0,
                taken_back=void.taken_back or identity in taken_back,
            )
            outcomes.append(told)
            if told == "compensated" and target is not None:
                taken_back.add(identity)
                compensated.append((void, target))
        settled = [
            (void.void_key, void.void_source_id, told, void.target_key, void.target_source_id)
            for void, told in zip(ready, outcomes, strict=True)
        ]
        columns = ("void_key", "void_source_id", "outcome", "target_key", "target_source_id")
        entered = [row for row in settled if row[2] == "compensated"]
        others = [row for row in settled if row[2] != "compensated"]
        rows, digests = self._entries(compensated)

        def refused(chosen: Sequence[int]) -> list[Refused]:
            return [
                Refused(claim.next_offset, at, compensated[at][1].source, compensated[at][1].event_id, b"")
                for at in chosen
            ]

        return Part(
            claim=claim,
            next_offset=claim.next_offset + len(ready),
            records=len(ready),
            rows=rows,
            event_ids=[target.event_id for _, target in compensated],
            digests=digests,
            rejects=[],
            unknown_fields=0,
            appended_until=None,
            seen_until=None,
            refused=refused,
            companions=(
                Companion("settlements", columns, entered, of=range(len(entered))),
                Companion("settlements", columns, others),
            ),
        )

    def _entries(self, compensated: Sequence[tuple[OpenVoid, Target]]) -> tuple[Any, Digests]:
        """LEDGER_ROWs that take their targets back, at the targets' own times, and the names that are hashed."""
        series = [self._series(void, target) for void, target in compensated]
        rows = np.zeros(len(compensated), LEDGER_ROW)
        for at, (void, target) in enumerate(compensated):
            row = rows[at]
            for name, value in zip(settling.REPEATED, target.values, strict=True):
                row[name] = -value if name in METERS else value.bytes if name == "request_key" else value
            row["event_key"] = void.target_key.bytes
            row["source_id"] = -void.target_source_id
            row["ordinal"] = at
            row["series_id"] = series[at][0]
            row["duration_ms"] = -1
            row["event_type"] = EVENT_TYPES["compensation"]
        return rows, Digests(
            np.array([digest for _, digest in series], "S16"),
            *(
                np.array([text_digest(getattr(target, name)) for _, target in compensated], "S16")
                for name in ("source", "project", "seat")
            ),
        )

    def _series(self, void: OpenVoid, target: Target) -> tuple[int, bytes]:
        """Id and digest of the series that an entry stands on: its target's, or that one's `charge` twin."""
        if void.side == "both":
            return target["series_id"], target.series_digest
        twin = (*target.dimensions[:_COUNTS_FOR], "charge", *target.dimensions[_COUNTS_FOR + 1 :])
        digest = series_digest(twin)
        known = self._names.known_series([digest])
        if digest not in known:
            known = self._names.make_series({digest: twin})
        return known[digest], digest


class SettleWorker:
    """The step of the loop: wait for the lock, settle what is ready, and from time to time look for findings."""

    def __init__(self, connection: Connection, entries: Driver, settings: Settings) -> None:
        """`connection` holds the lock and writes findings, `entries` (in autocommit) the ledger."""
        self._connection = connection
        self._settings = settings
        self._settle = Settle(entries, settings)
        self._alone = False
        self._say_at = 0.0
        self._find_at = 0.0

    def step(self) -> bool:
        """One bounded piece of work; False when there is nothing to do now."""
        if not self._alone:
            self._alone = postgres.take_lock(self._connection, postgres.SETTLE)
            if not self._alone:
                self._wait()
                return True
        if settled := self._settle.settle_some():
            log.info("settled", voids=settled)
            return True
        if time.monotonic() < self._find_at:
            return False
        more = find(self._connection, self._settings, datetime.now(UTC))
        if not more:
            self._find_at = time.monotonic() + self._settings.findings_interval_seconds
        return more

    def _wait(self) -> None:
        if time.monotonic() >= self._say_at:
            self._say_at = time.monotonic() + _SAY_SECONDS
            holder = postgres.lock_holder(self._connection, postgres.SETTLE)
            log.warning("another settle worker is at work: waiting for it to end", holder=holder)
        time.sleep(_WAIT_SECONDS)


def find(connection: Connection, settings: Settings, now: datetime) -> bool:
    """Record the findings of voids, of registered sources, and of one closed day that is due; True when another is.

    A transaction each, of one snapshot. If the process dies in the middle, what was not committed is found again.
    """
    # a later statement with a snapshot of its own would no longer see a day that is archived meanwhile
    connection.execution_options(isolation_level="REPEATABLE READ")
    with connection.begin():
        voids = findings.record_voids(connection, settings.unmatched_void_seconds, now)
    with connection.begin():
        found = heartbeats.source_findings(connection, now)
        sources = findings.record(connection, heartbeats.KINDS, found, now)
    with connection.begin():
        due = passes.next_due(connection)
        requests = findings.Recorded(0, 0)
        if due is not None:
            requests = passes.pass_day(connection, due, settings.findings_per_day_max, now)
    opened = voids.opened + sources.opened + requests.opened
    resolved = voids.resolved + sources.resolved + requests.resolved
    if opened or resolved:
        log.warning("findings", opened=opened, resolved=resolved, day=due and due.day.isoformat())
    return due is not None


def run(until_idle: bool = False, settings: Settings | None = None) -> None:
    """Settle until told to stop; with `until_idle` until every void is settled that can be, and all is found."""
    configured = settings or process_settings()

    @contextmanager
    def opened() -> Iterator[loop.Step]:
        with (
            postgres.connect(configured, "settle") as connection,
            postgres.connect_driver(configured, "settle") as entries,
        ):
            schema.check_version(connection)
            connection.rollback()
            entries.autocommit = True
            yield SettleWorker(connection, entries, configured).step

    loop.run(
        "settle",
        opened,
        settings=configured,
        interval_seconds=configured.settle_interval_seconds,
        until_idle=until_idle,
    )


if __name__ == "__main__":
    from metering.cli import main

    main(["work", "settle", *sys.argv[1:]])
