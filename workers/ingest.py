"""Ingest: Kafka records become ledger rows, exactly once, by any number of workers."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import polars as pl
import psycopg
import structlog

from metering.core.usage import meter
from metering.errors import Fenced, WrongWorld
from metering.events import RecordBytes, decode, refuse
from metering.frames import DIMENSIONS
from metering.identity import DIGEST_VERSION, content_digests, event_keys, request_keys, series_digests
from metering.laws import DecodeLimits
from metering.meters import METERS
from metering.settings import Settings
from metering.store import positions, postgres, schema
from metering.store.chain import text_digest
from metering.store.ledger import EVENT_TYPES, NONBILLABLE_REASONS, USAGE_SOURCES, Appended, Digests, Ledger, Part, Refused, Reject
from metering.store.ledger_rows import LEDGER_ROW, Rows
from metering.store.names import Names
from metering.store.positions import Claim
from metering.store.sources import Brake
from metering.stream.consumer import Consumer, Fetched, Record
from metering.stream.topics import Admin, Topic
from metering.rejects import RejectCode
from workers.loop import Step, run

_POLL_SECONDS: Final = 0.2
_REPORT_SECONDS: Final = 5.0
log = structlog.get_logger()


@dataclass(frozen=True)
class _Held:
    """A partition that this worker reads: its claim, and the generation of the assignment it is good for."""

    claim: Claim
    generation: int


class Timings:
    """Seconds spent by stage, for the log and for the benchmarks."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began


class Ingest:
    """One worker: claims what it is dealt, and in each step reads, decodes and appends one batch."""

    def __init__(
        self, settings: Settings, connection: psycopg.Connection[tuple[Any, ...]], consumer: Consumer, admin: Admin
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._consumer = consumer
        self._admin = admin
        self._topic: Topic = admin.get()
        self._held: dict[int, _Held] = {}
        self._ledger = Ledger(connection, settings.reject_bytes_max)
        self._names = Names(connection, settings.series_cache_entries_max)
        self._brake = Brake(connection, settings)
        self._limits = self._read_limits()
        self._ends: tuple[datetime, dict[int, int]] | None = None
        self._refreshed = 0.0
        self._owner = positions.worker_name()
        self._bytes_per_record = 65_536.0  # until a poll has shown more, few records at once
        self.timings = Timings()
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
        """True when every partition of the topic, whoever reads it, has been read to its end."""
        ends = self._admin.offsets(self._topic)
        rows = self._connection.execute(
            "SELECT partition, next_offset FROM stream_positions WHERE topic_uuid = %s AND retired_at IS NULL",
            (self._topic.uuid,),
        ).fetchall()
        behind = any(offset < ends.get(partition, 0) for partition, offset in rows)
        if not behind:
            self._refresh()
        return not behind

    # ---- claiming ----------------------------------------------------------------------------------------

    def _claim_pending(self) -> None:
        for partition in self._consumer.pending():
            self._same_topic()
            claim = positions.claim(
                self._connection,
                self._topic.uuid,
                partition,
                role=f"{self._settings.role_prefix}ingest",
                owner=self._owner,
            )
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

    def _read_limits(self) -> DecodeLimits:
        row = self._connection.execute("SELECT floor_at FROM ledger_floor").fetchone()
        stored = self._connection.execute(
            "SELECT DISTINCT topic_uuid FROM stream_positions WHERE topic = %s AND retired_at IS NULL",
            (self._topic.name,),
        ).fetchall()
        if row is None or not stored:
            raise WrongWorld(f"topic '{self._topic.name}' has no positions in this database; run `metering init`")
        if (self._topic.uuid,) not in stored:
            raise WrongWorld(positions.remade(self._topic.name, stored[0][0], self._topic.uuid))
        return DecodeLimits.of(self._settings, row[0])

    def _refresh(self) -> None:
        """Confirm idle partitions as read to their end, and read anew what other people may have changed."""
        fetched_at = datetime.now(UTC) - timedelta(seconds=self._settings.clock_skew_seconds)
        self._ends = (fetched_at, self._admin.offsets(self._topic))
        self._limits = self._read_limits()
        self._brake.refresh()
        for partition, held in self._held.items():
            if held.claim.next_offset == self._ends[1].get(partition):
                positions.seen(self._connection, held.claim, fetched_at)
        self._refreshed = time.monotonic()

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
                size += sum(len(record.value or b"") for record in part.records)
                before = gathered.get(part.partition)
                joined = part if before is None else Fetched(
                    part.partition, before.records + part.records, part.next_offset
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
        """Append a batch; what the store refuses is narrowed down to one record and rejected by itself."""
        try:
            self._append_once(fetched, refused=None)
        except (psycopg.DataError, psycopg.errors.ProgramLimitExceeded, psycopg.errors.CheckViolation) as error:
            if isinstance(error, psycopg.errors.CheckViolation) and error.diag.constraint_name is None:
                raise WrongWorld(_missing_partition(error)) from error
            halves = _halves(fetched)
            if halves is None:
                detail = str(error).splitlines()[0][:400]
                log.warning("store refused a record", partition=fetched[0].partition, error=detail)
                self._append_once(fetched, refused=detail)
                return
            for half in halves:
                self._append(half)

    def _append_once(self, fetched: list[Fetched], *, refused: str | None) -> None:
        # the other half of a batch may have lost a partition
        fetched = [part for part in fetched if part.partition in self._held]
        if not fetched:
            return
        try:
            parts = self._parts(fetched, refused)
            with self.timings.of("write"):
                appended = self._ledger.append(parts)
        except Fenced as error:
            log.warning("fenced", error=str(error), partitions=[part.partition for part in fetched])
            for part in fetched:
                self._held.pop(part.partition, None)
                self._consumer.release(part.partition)
            return
        self._settle(fetched, appended)

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

    def _parts(self, fetched: list[Fetched], refused: str | None) -> list[Part]:
        """Decode and meter the records of a batch into one Part per partition."""
        records = [record for part in fetched for record in part.records]
        raw = [RecordBytes(record.value, record.content_type, record.appended_at) for record in records]
        with self.timings.of("decode"):
            decoded = decode(raw, limits=self._limits)
        with self.timings.of("meter"):
            events, contradictions = meter(decoded.events)
            rejects = [decoded.rejects]
            if contradictions.height:
                code = pl.lit(RejectCode.COUNTS_CONTRADICT.value).alias("code")
                rejects.append(refuse(raw, events=decoded.events, refused=contradictions.with_columns(code)))
            events, stopped = self._brake.hold_back(events, self._names)
            if stopped.height:
                rejects.append(refuse(raw, events=decoded.events, refused=stopped))
            if refused is not None and events.height:
                store_refused = events.select("record", "index").with_columns(
                    code=pl.lit(RejectCode.STORE_REFUSED.value),
                    field=pl.lit(None, pl.String),
                    detail=pl.lit(f"the store refuses this record: {refused}"),
                )
                rejects.append(refuse(raw, events=decoded.events, refused=store_refused))
                events = events.clear()
            all_rejects = pl.concat(rejects).sort("record", "index")
            self._brake.count(events, all_rejects)
        return self._split(fetched, records, raw, events, all_rejects, decoded.unknown_fields)

    def _split(
        self,
        fetched: list[Fetched],
        records: list[Record],
        raw: list[RecordBytes],
        events: pl.DataFrame,
        rejects: pl.DataFrame,
        unknown: Mapping[str, int],
    ) -> list[Part]:
        """Rows, digests and rejects of each partition, in the order of its records."""
        with self.timings.of("digest"):
            events = events.sort("record", "index")
            rows, texts, digests = self._rows(events)
        firsts = np.cumsum([0] + [len(part.records) for part in fetched])
        event_bounds = np.searchsorted(events["record"].to_numpy(), firsts)
        reject_bounds = np.searchsorted(rejects["record"].to_numpy(), firsts)
        parts = []
        for number, part in enumerate(fetched):
            low, high = int(event_bounds[number]), int(event_bounds[number + 1])
            own = rows[low:high]
            own["ordinal"] = np.arange(high - low)
            chosen = np.arange(low, high)
            places = events.slice(low, high - low).select("record", "index", "source", "event_id")

            def cut(row: int, places: pl.DataFrame = places) -> Refused:
                record, index, source, event_id = places.row(row)
                pieces = refuse(
                    raw,
                    events=places,
                    refused=places.slice(row, 1).select(
                        "record",
                        "index",
                        code=pl.lit(RejectCode.STORE_REFUSED.value),
                        field=pl.lit(None, pl.String),
                        detail=pl.lit("conflict"),
                    ),
                )
                return Refused(records[record].offset, index, source, event_id, pieces["payload"][0])

            held = self._held[part.partition]
            last = part.records[-1].appended_at if part.records else None
            at_end = self._ends is not None and self._ends[1].get(part.partition) == part.next_offset
            seen = max(filter(None, (last, self._ends[0] if at_end and self._ends else None)), default=None)
            parts.append(
                Part(
                    claim=held.claim,
                    next_offset=part.next_offset,
                    records=len(part.records),
                    rows=own,
                    event_ids=texts[low:high],
                    digests=digests.take(chosen),
                    rejects=[
                        Reject(records[row["record"]].offset, row["index"], row["source"], row["event_id"],
                               row["payload"], row["code"], row["field"], row["detail"])
                        for row in rejects.slice(
                            int(reject_bounds[number]), int(reject_bounds[number + 1] - reject_bounds[number])
                        ).iter_rows(named=True)
                    ],  # fmt: skip
                    # counted per source by the decoder; the batch row keeps the sum, on its first part
                    unknown_fields=sum(unknown.values()) if number == 0 else 0,
                    appended_until=last,
                    seen_until=seen,
                    refused=cut,
                )
            )
        return parts

    def _rows(self, events: pl.DataFrame) -> tuple[Rows, list[str], Digests]:
        """LEDGER_ROWs of metered events (batch and ordinal still open), id texts, and names to hash."""
        keys = event_keys(events["event_id"])
        series = series_digests(events)
        series_ids = self._names.known_series(set(series.to_list()))
        sources = self._names.ids("sources", events["source"].unique().to_list())
        projects = self._names.ids("projects", events["project"].drop_nulls().unique().to_list())
        seats = self._names.ids("seats", events["seat"].drop_nulls().unique().to_list())
        columns: dict[str, Any] = {
            "event_key": keys.keys,
            "request_key": request_keys(events["customer"], events["request_id"]),
            "occurred_at": events["occurred_at"].dt.timestamp("us").to_numpy(),
            "digest": content_digests(events).to_numpy(),
            "source_id": _mapped(events["source"], sources),
            "series_id": np.array([series_ids[digest] for digest in series.to_list()], np.int32),
            "project_id": _mapped(events["project"], projects),
            "seat_id": _mapped(events["seat"], seats),
            "duration_ms": events["duration_ms"].fill_null(-1).to_numpy(),
            **{name: events[name].to_numpy() for name in METERS},
            "attempt": events["attempt"].to_numpy(),
            "event_type": EVENT_TYPES["usage"],
            "usage_source": _mapped(events["usage_source"], USAGE_SOURCES),
            "nonbillable_reason": _mapped(events["nonbillable_reason"], NONBILLABLE_REASONS),
            "digest_version": DIGEST_VERSION,
        }
        rows = np.zeros(events.height, LEDGER_ROW)
        for name, values in columns.items():
            rows[name] = values
        texts = np.where(keys.key_is_id, "", events["event_id"].to_numpy()).tolist() if events.height else []
        names = Digests(
            np.frombuffer(b"".join(series.to_list()), "S16"),
            _digested(events["source"]),
            _digested(events["project"]),
            _digested(events["seat"]),
        )
        return rows, texts, names

    def _report(self) -> None:
        now, received = time.monotonic(), sum(self.counts.values()) - self.counts["records"]
        since, before = self._reported
        if now - since >= _REPORT_SECONDS:
            log.info(
                "appending",
                events_per_second=round((received - before) / (now - since)),
                **{name: self.counts[name] for name in ("accepted", "duplicate", "conflict", "rejected")},
            )
            self._reported = (now, received)


def _mapped(column: pl.Series, ids: Mapping[Any, int]) -> np.ndarray[Any, Any]:
    """A column of texts as their ids; null is 0."""
    distinct = column.unique().to_list()
    wanted = [0 if value is None else ids[value] for value in distinct]
    return column.replace_strict(pl.Series(distinct, dtype=pl.String), wanted, return_dtype=pl.Int32).to_numpy()


def _digested(column: pl.Series) -> np.ndarray[Any, Any]:
    """A column of texts as the digests that name them; null is the text ''."""
    codes = column.fill_null("").rle_id() if column.n_unique() == 1 else column.fill_null("").rank("dense") - 1
    distinct = column.fill_null("").unique().sort().to_list()
    table = np.frombuffer(b"".join(map(text_digest, distinct)), "S16")
    return table[codes.to_numpy().astype(np.intp)] if len(column) else np.empty(0, "S16")


def _halves(fetched: list[Fetched]) -> tuple[list[Fetched], list[Fetched]] | None:
    """A batch as two smaller ones; None when it is a single record."""
    if len(fetched) > 1:
        middle = len(fetched) // 2
        return fetched[:middle], fetched[middle:]
    (part,) = fetched
    if len(part.records) <= 1:
        return None
    middle = len(part.records) // 2
    first, second = part.records[:middle], part.records[middle:]
    return [Fetched(part.partition, first, second[0].offset)], [Fetched(part.partition, second, part.next_offset)]


def _missing_partition(error: psycopg.Error) -> str:
    """Name the day whose partition is missing, from the key that found no place."""
    detail = error.diag.message_detail or str(error)
    key = detail.rsplit("(", 1)[-1].split(")")[0]
    try:
        day = datetime.fromtimestamp(int(key.replace("-", "")[:12], 16) / 1000, tz=UTC).date()
    except (ValueError, OverflowError, OSError):
        return f"the ledger has no partition for an event: {detail}; run `metering partitions ensure FROM UNTIL`"
    after = day + timedelta(days=1)
    return f"the ledger has no partition for {day}; nothing was written. Run `metering partitions ensure {day} {after}`"


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
    from metering.cli import main

    main(["work", "ingest"])
