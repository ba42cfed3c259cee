"""Ingest: Kafka records become ledger rows, exactly once, by any number of workers."""

import gc
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import structlog

from metering.errors import Fenced, WrongWorld
from metering.events.laws import DecodeLimits
from metering.settings import Settings
from metering.store import partitions, positions, postgres, schema
from metering.store.batch import Appended
from metering.store.ledger import Ledger
from metering.store.names import Names
from metering.store.positions import Claim
from metering.store.sources import Brake
from metering.stream.consumer import Consumer, Fetched
from metering.stream.topics import Admin, Topic
from workers.batching import REFUSALS, Batching, Timings, append, halves, size_of
from workers.loop import Step, run, show_progress

_POLL_SECONDS: Final = 0.2
_REPORT_SECONDS: Final = 5.0
log = structlog.get_logger()


@dataclass(frozen=True)
class _Held:
    """A partition that this worker reads: its claim, and the generation of the assignment it is good for."""

    claim: Claim
    generation: int


class Ingest:
    """One worker: claims what it is dealt, and in each step reads, decodes and appends one batch."""

    def __init__(
        self,
        settings: Settings,
        connection: psycopg.Connection[tuple[Any, ...]],
        consumer: Consumer,
        admin: Admin,
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._consumer = consumer
        self._admin = admin
        self._topic: Topic = admin.get()
        self._held: dict[int, _Held] = {}
        self._ledger = Ledger(connection, settings.reject_bytes_max)
        self._brake = Brake(connection, settings)
        self._limits = self._read_limits()
        self._ends: tuple[datetime, dict[int, int]] | None = None
        self._refreshed = 0.0
        self._began = datetime.now(UTC) - timedelta(seconds=settings.clock_skew_seconds)
        self._owner = positions.worker_name()
        # until a poll has shown otherwise every record may be one at the bound
        self._bytes_per_record = float(settings.record_bytes_max)
        self.timings = Timings()
        names = Names(connection, settings.series_cache_entries_max)
        self._batching = Batching(names, self._brake, self.timings)
        self.counts: Counter[str] = Counter()
        self._reported = (time.monotonic(), 0)

    def step(self) -> bool:
        """Claim what is pending, read one bounded batch, append it. True when something was read.

        If the process dies anywhere in here, positions and ledger still agree: the next owner goes on from
        what was committed.
        """
        self._claim_pending()
        if time.monotonic() - self._refreshed >= self._settings.idle_refresh_seconds:
            self._refresh()
        with self.timings.of("poll"):
            fetched = self._gather()
        if fetched:
            self._same_topic()
            self._append(fetched)
            self._report()
            return any(part.records for part in fetched)
        return False

    def idle(self) -> bool:
        """True when every partition of the topic, whoever reads it, was confirmed as read to its end since we began.

        A transaction that is open holds that back until it is decided.
        """
        self._refresh()
        assert self._ends is not None
        rows = self._connection.execute(
            "SELECT partition, next_offset, seen_until FROM stream_positions "
            "WHERE topic_uuid = %s AND retired_at IS NULL",
            (self._topic.uuid,),
        ).fetchall()
        return all(
            offset >= self._ends[1].get(partition, 0) and seen_until is not None and seen_until >= self._began
            for partition, offset, seen_until in rows
        )

    # ---- claiming ----------------------------------------------------------------------------------------

    def _claim_pending(self) -> None:
        pending = self._consumer.pending()
        if not pending:
            return
        self._same_topic()
        role = f"{self._settings.role_prefix}ingest"
        claims = {
            partition: positions.claim(
                self._connection, self._topic.uuid, partition, role=role, owner=self._owner
            )
            for partition in pending
        }
        # before anything is fetched: an idle partition too says at once that its log does not reach our position
        self._admin.check_positions(
            self._topic, {partition: claim.next_offset for partition, claim in claims.items()}
        )
        for partition, claim in claims.items():
            generation = self._consumer.start(partition, claim.next_offset)
            if generation is None:
                self._held.pop(partition, None)
                continue
            self._held[partition] = _Held(claim, generation)
            log.info("claimed", partition=partition, epoch=claim.epoch, next_offset=claim.next_offset)

    def _same_topic(self) -> None:
        """Stop when the topic is another one than that whose positions we hold.

        Asked after the records were fetched and before they are appended: a UUID never returns, so what was
        fetched came from the topic that is still there.
        """
        topic = self._admin.get()
        if topic.uuid != self._topic.uuid:
            raise WrongWorld(positions.remade(topic.name, self._topic.uuid, topic.uuid))
        # it may have been given more partitions
        self._topic = topic

    def _read_limits(self) -> DecodeLimits:
        row = self._connection.execute("SELECT floor_at FROM ledger_floor").fetchone()
        stored = self._connection.execute(
            "SELECT DISTINCT topic_uuid FROM stream_positions WHERE topic = %s AND retired_at IS NULL",
            (self._topic.name,),
        ).fetchall()
        if row is None or not stored:
            raise WrongWorld(
                f"topic '{self._topic.name}' has no positions in this database; run `metering init`"
            )
        if (self._topic.uuid,) not in stored:
            raise WrongWorld(positions.remade(self._topic.name, stored[0][0], self._topic.uuid))
        return DecodeLimits.of(self._settings, row[0])

    def _refresh(self) -> None:
        """Confirm idle partitions as read to their end, and read anew what other people may have changed."""
        fetched_at = datetime.now(UTC) - timedelta(seconds=self._settings.clock_skew_seconds)
        # a record of an open transaction was appended before now, and will be read later
        self._ends = (fetched_at, self._admin.offsets(self._topic, undecided=True))
        self._limits = self._read_limits()
        self._brake.refresh()
        for partition, held in list(self._held.items()):
            at_end = held.claim.next_offset == self._ends[1].get(partition)
            if at_end and not positions.seen(self._connection, held.claim, fetched_at):
                log.warning("fenced", partitions=[partition])
                self._let_go(partition)
        self._refreshed = time.monotonic()

    def _let_go(self, partition: int) -> None:
        """Forget a claim that no longer holds; the partition is claimed again, if it is still assigned."""
        self._held.pop(partition, None)
        self._consumer.release(partition)

    # ---- reading -----------------------------------------------------------------------------------------

    def _gather(self) -> list[Fetched]:
        """Poll until a batch is full or nothing more is at hand. Bounded by bytes and by records."""
        gathered: dict[int, Fetched] = {}
        size = records = 0
        timeout = _POLL_SECONDS
        while size < self._settings.batch_bytes_target and records < self._settings.batch_records_max:
            room = (self._settings.batch_bytes_target - size) / self._bytes_per_record
            fetched = self._consumer.poll(
                timeout_seconds=timeout,
                records_max=max(1, min(int(room), self._settings.batch_records_max - records)),
            )
            brought = 0
            for part in fetched:
                held = self._held.get(part.partition)
                if held is None:
                    continue
                brought += len(part.records)
                size += size_of([part])
                before = gathered.get(part.partition)
                joined = (
                    part
                    if before is None
                    else Fetched(part.partition, before.records + part.records, part.next_offset)
                )
                if joined.records or joined.next_offset > held.claim.next_offset:
                    gathered[part.partition] = joined
            records += brought
            if records:
                self._bytes_per_record = max(64.0, size / records)
            if not brought:
                break
            timeout = 0.0
        owned = self._consumer.owned()
        return [
            part
            for partition, part in sorted(gathered.items())
            if owned.get(partition) == self._held[partition].generation
        ]

    # ---- appending ---------------------------------------------------------------------------------------

    def _append(self, fetched: list[Fetched]) -> None:
        """Append a batch; what the store refuses is narrowed down to one record and rejected by itself.

        A poll brings more than was asked for where records grew all at once: a batch of more than twice the
        bytes of one is appended in halves, for its events take several times the memory of its bytes.
        """
        if size_of(fetched) > 2 * self._settings.batch_bytes_target and (smaller := halves(fetched)):
            for half in smaller:
                self._append(half)
            return
        try:
            self._append_once(fetched, refused=None)
        except REFUSALS as error:
            if isinstance(error, psycopg.errors.CheckViolation) and error.diag.constraint_name is None:
                limits, self._limits = self._limits, self._read_limits()
                if limits == self._limits:
                    raise WrongWorld(partitions.missing(error)) from error
                # a day was archived since the floor was read: its events are too old now
                self._append(fetched)
                return
            smaller = halves(fetched)
            if smaller is None:
                detail = str(error).splitlines()[0][:400]
                log.warning("store refused a record", partition=fetched[0].partition, error=detail)
                self._append_once(fetched, refused=detail)
                return
            for half in smaller:
                self._append(half)

    def _append_once(self, fetched: list[Fetched], *, refused: str | None) -> None:
        # the other half of a batch may have lost a partition
        fetched = [part for part in fetched if part.partition in self._held]
        if not fetched:
            return
        try:
            parts = self._batching.parts(
                fetched,
                {part.partition: self._held[part.partition].claim for part in fetched},
                limits=self._limits,
                ends=self._ends,
                refused=refused,
            )
            with self.timings.of("write"):
                appended = append(self._ledger, parts)
        except Fenced as error:
            log.warning("fenced", error=str(error), partitions=[part.partition for part in fetched])
            for part in fetched:
                self._let_go(part.partition)
            return
        self._settle(fetched, appended)
        # not before: a batch that was fenced or halved would count twice
        self._brake.count(parts)

    def _settle(self, fetched: list[Fetched], appended: list[Appended]) -> None:
        """Take the new claims over and tell the group, for its lag display only."""
        by_partition = {outcome.claim.partition: outcome for outcome in appended}
        for part in fetched:
            outcome = by_partition[part.partition]
            self._held[part.partition] = _Held(outcome.claim, self._held[part.partition].generation)
            self.counts.update(
                records=len(part.records),
                accepted=outcome.accepted,
                duplicate=outcome.duplicate,
                conflict=outcome.conflict,
                rejected=outcome.rejected,
            )
        self._consumer.commit_advisory({part.partition: part.next_offset for part in fetched})

    def _report(self) -> None:
        now, received = time.monotonic(), sum(self.counts.values()) - self.counts["records"]
        since, before = self._reported
        if now > since:
            show_progress(
                f"ingest: {received:,} events read, {(received - before) / (now - since):,.0f} a second, "
                f"{self.counts['duplicate']:,} duplicate, {self.counts['rejected']:,} rejected"
            )
        if now - since >= _REPORT_SECONDS:
            log.info(
                "appending",
                events_per_second=round((received - before) / (now - since)),
                **{name: self.counts[name] for name in ("accepted", "duplicate", "conflict", "rejected")},
            )
            self._reported = (now, received)


def spare_the_collector() -> None:
    """Let the garbage collector of this process look less often.

    What is imported stays; the many short-lived objects of a batch hold no cycles worth looking for.
    """
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)


@contextmanager
def opened(settings: Settings) -> Iterator[Ingest]:
    """A worker with its connections; leaving it releases the partitions."""
    with Admin(settings) as admin:
        admin.get()
        with postgres.connect(settings, "read") as checked:
            schema.check_version(checked)
        with postgres.connect_driver(settings, "ingest") as connection:
            connection.autocommit = True
            # short statements over many partitions: compiling them costs more than running them
            connection.execute("SET jit = off")
            with Consumer(settings) as consumer:
                yield Ingest(settings, connection, consumer, admin)


def work(settings: Settings, *, until_idle: bool = False) -> Counter[str]:
    """Run one ingest worker until it is stopped or, with `until_idle`, until every partition is read to its end."""
    totals: Counter[str] = Counter()
    spare_the_collector()

    @contextmanager
    def stepping() -> Iterator[Step]:
        with opened(settings) as ingest:

            def step() -> bool:
                return ingest.step() or (until_idle and not ingest.idle())

            try:
                yield step
            finally:
                totals.update(ingest.counts)
                seconds = {name: round(spent, 2) for name, spent in ingest.timings.seconds.items()}
                log.info("totals", **ingest.counts, seconds=seconds)

    run("ingest", stepping, settings=settings, interval_seconds=0.0, until_idle=until_idle)
    return totals


if __name__ == "__main__":
    import sys

    from metering.cli import main

    main(["work", "ingest", *sys.argv[1:]])
