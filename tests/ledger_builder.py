"""Ledgers for tests: batches of events written as the ingest writes them, chained, counted and positioned."""

import itertools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import polars as pl
import psycopg

from metering.events.identity import event_keys, request_keys, series_digest, uuid7_text
from metering.events.notices import notice_digest
from metering.frames.usage import DIMENSIONS
from metering.meters import METERS
from metering.settings import Settings
from metering.store import partitions, postgres
from metering.store.chain import CHAIN_VERSION, GENESIS, aligned, batch_head, batch_root, text_digest
from metering.store.ledger import EVENT_TYPES
from metering.store.ledger_rows import COPY_COLUMNS, LEDGER_ROW, Rows, to_copy_binary

TOPIC = uuid.UUID("00000000-0000-4000-8000-00000000000a")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_counter = itertools.count(1)


def instant(text: str) -> datetime:
    """A UTC instant from text."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@dataclass(frozen=True)
class Event:
    """One event as a test names it; `tokens` are uncached input and output, `compensates` negates them.

    `voids` makes it a void: of the event with that id, of `voids_source`, on the given `side`.
    """

    at: str
    tokens: tuple[int, int] = (100, 10)
    customer: str = "acme"
    model: str = "large"
    pool: str | None = None
    ran_on: str = "on_demand"
    counts_for: str = "charge_and_cost"
    compensates: bool = False
    event_type: int = 1
    source: str = "gateway"
    event_id: str | None = None
    project: str = ""
    seat: str = ""
    duration_ms: int = -1
    meters: dict[str, int] = field(default_factory=dict)
    request: str | None = None  # None: one of its own
    attempt: int = 0
    nonbillable_reason: int = 0
    voids: str | None = None
    voids_source: str = "gateway"
    side: str = "charge"
    heartbeat: tuple[int, str] | None = None  # sequence, complete until: no usage

    @property
    def notice(self) -> tuple[str, tuple[Any, ...]] | None:
        """The kind and content of an event that is no usage."""
        if self.voids is not None:
            return "void", (self.voids_source, self.voids, self.side, None)
        if self.heartbeat is not None:
            return "heartbeat", (self.heartbeat[0], instant(self.heartbeat[1]))
        return None

    @property
    def dimensions(self) -> tuple[str | int | None, ...]:
        """The series of this event, in the order of frames.DIMENSIONS."""
        sold = (self.customer, "chat", "standard", "own", self.model, "standard", "eu")
        return (*sold, self.pool, self.ran_on, self.counts_for, 0)


class Ledger:
    """A ledger under construction, over a superuser's connection in autocommit."""

    def __init__(self, settings: Settings, days: tuple[date, date] | None = None) -> None:
        """One partition for all, or one for each of `days` (the first, and the day after the last)."""
        self.connection: psycopg.Connection[tuple[Any, ...]] = psycopg.connect(
            settings.database_url.get_secret_value(), autocommit=True
        )
        self.execute("SET timezone = 'UTC'")
        if days is not None:
            with postgres.connect(settings, "owner") as connection:
                partitions.ensure(connection, *days)
        else:
            self._one_partition()
        self._named: dict[str, dict[int, bytes]] = {
            name: {0: text_digest("")} for name in ("series", "source", "project", "seat")
        }

    def _one_partition(self) -> None:
        self.execute(
            "CREATE TABLE IF NOT EXISTS usage_events_all PARTITION OF usage_events "
            "FOR VALUES FROM (MINVALUE) TO (MAXVALUE)"
        )

    def close(self) -> None:
        """Give the connection back."""
        self.connection.close()

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement; its rows, if it gives any."""
        cursor = self.connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []

    def intake(self, partition: int = 0, seen_until: str | None = None) -> int:
        """Give a partition of the topic a position."""
        rows = self.execute(
            "INSERT INTO stream_positions "
            "(kind, topic, topic_uuid, partition, next_offset, chain_head, seen_until) "
            "VALUES ('kafka', 'events', %s, %s, 0, %s, %s) RETURNING intake_id",
            TOPIC, partition, GENESIS, seen_until and instant(seen_until),
        )  # fmt: skip
        return int(rows[0][0])

    def batch(
        self,
        intake_id: int,
        events: Sequence[Event],
        *,
        duplicate: int = 0,
        rejected: int = 0,
        until: str | None = None,
    ) -> int:
        """Append one batch in one transaction, as the ingest does. Returns its batch_id."""
        with self.connection.transaction():
            kind, topic, partition, offset, sequence, previous = self.execute(
                "SELECT kind, topic_uuid, partition, next_offset, next_sequence, chain_head "
                "FROM stream_positions WHERE intake_id = %s FOR UPDATE",
                intake_id,
            )[0]
            batch_id = self.execute("SELECT nextval('ingest_batches_batch_id_seq')")[0][0]
            rows, texts = self._rows(events, batch_id)
            self._copy(rows, texts)
            self._void(events, rows, batch_id)
            self._heartbeats(events, rows, batch_id)
            root = batch_root(
                rows,
                series=aligned(rows["series_id"], self._named["series"]),
                sources=aligned(np.abs(rows["source_id"]), self._named["source"]),
                projects=aligned(rows["project_id"], self._named["project"]),
                seats=aligned(rows["seat_id"], self._named["seat"]),
                event_ids=texts,
            )
            received = len(events) + duplicate + rejected
            counts = {
                "records": received,
                "received": received,
                "accepted": len(events),
                "duplicate": duplicate,
            }
            counts |= {"conflict": 0, "rejected": rejected}
            span = {"sequence": sequence, "first_offset": offset, "next_offset": offset + received}
            head = batch_head(
                bytes(previous), kind=kind, topic_uuid=topic, partition=partition, root=root, **span, **counts
            )
            values = {
                **span, **counts,
                "batch_id": batch_id, "intake_id": intake_id, "epoch": 1, "unknown_fields": 0,
                "appended_until": until and instant(until), "chain_version": CHAIN_VERSION,
                "root": root, "previous_head": previous, "head": head,
            }  # fmt: skip
            places = ", ".join(["%s"] * len(values))
            self.execute(
                f"INSERT INTO ingest_batches ({', '.join(values)}) VALUES ({places})", *values.values()
            )
            self._count_sources(rows, batch_id, duplicate, rejected)
            self.execute(
                "UPDATE stream_positions SET next_offset = %s, next_sequence = %s, chain_head = %s, "
                "seen_until = coalesce(%s, seen_until) WHERE intake_id = %s",
                offset + received, sequence + 1, head, until and instant(until), intake_id,
            )  # fmt: skip
        return int(batch_id)

    def _count_sources(self, rows: Rows, batch_id: int, duplicate: int, rejected: int) -> None:
        known, counts = np.unique(np.abs(rows["source_id"]), return_counts=True)
        outcomes = [(int(source), int(count), 0, 0) for source, count in zip(known, counts, strict=True)]
        if duplicate or rejected:
            outcomes.append((0, 0, duplicate, rejected))
        for source, *ended in outcomes:
            self.execute(
                "INSERT INTO batch_sources (batch_id, source_id, accepted, duplicate, rejected, conflict) "
                "VALUES (%s, %s, %s, %s, %s, 0)",
                batch_id, source, *ended,
            )  # fmt: skip

    def rollups(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every rollup row with its interval, and the fold's positions, sorted: to compare two states."""
        return {
            table: self.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3, 4, 5")
            for table in ("usage_quarters", "pool_minutes", "pool_customer_minutes", "limit_minutes")
        } | {"fold_positions": self.execute("SELECT * FROM fold_positions ORDER BY 1")}

    def _rows(self, events: Sequence[Event], batch_id: int) -> tuple[Rows, list[str]]:
        rows = np.zeros(len(events), LEDGER_ROW)
        numbers = [next(_counter) for _ in events]
        ids = [
            event.event_id or uuid7_text(instant(event.at), number.to_bytes(10, "big"))
            for event, number in zip(events, numbers, strict=True)
        ]
        keys = event_keys(pl.Series(ids, dtype=pl.String))
        rows["event_key"] = keys.keys
        rows["batch_id"] = batch_id
        rows["ordinal"] = np.arange(len(events))
        rows["digest_version"] = 1
        for at, event in enumerate(events):
            sign = -1 if event.compensates else 1
            row = rows[at]
            row["request_key"] = numbers[at].to_bytes(16, "big")
            if event.request is not None:
                named = request_keys(pl.Series([event.customer]), pl.Series([event.request]))
                row["request_key"] = named.tobytes()
            row["attempt"] = event.attempt
            row["nonbillable_reason"] = event.nonbillable_reason
            row["occurred_at"] = (instant(event.at) - _EPOCH).total_seconds() * 1_000_000
            row["digest"] = numbers[at]
            row["source_id"] = sign * self._id("source", event.source)
            row["series_id"] = self._series(event)
            row["project_id"] = self._id("project", event.project) if event.project else 0
            row["seat_id"] = self._id("seat", event.seat) if event.seat else 0
            row["duration_ms"] = event.duration_ms
            row["event_type"] = event.event_type
            if (noticed := event.notice) is not None:
                kind, content = noticed
                row["event_type"], row["series_id"] = EVENT_TYPES[kind], 0
                row["digest"] = notice_digest(kind, ids[at], instant(event.at), content)
                continue
            amounts = {
                "uncached_input_tokens": event.tokens[0],
                "output_tokens": event.tokens[1],
                **event.meters,
            }
            for meter in METERS:
                row[meter] = sign * amounts.get(meter, 0)
        return rows, ["" if is_key else text for text, is_key in zip(ids, keys.key_is_id, strict=True)]

    def _heartbeats(self, events: Sequence[Event], rows: Rows, batch_id: int) -> None:
        for event, row in zip(events, rows, strict=True):
            if event.heartbeat is not None:
                self.execute(
                    "INSERT INTO heartbeats (event_key, source_id, batch_id, occurred_at, sequence, complete_until) "
                    "VALUES (%s, %s, %s, %s, %s, %s)",
                    uuid.UUID(bytes=row["event_key"].ljust(16, b"\0")), int(row["source_id"]), batch_id,
                    instant(event.at), event.heartbeat[0], instant(event.heartbeat[1]),
                )  # fmt: skip

    def _copy(self, rows: Rows, texts: list[str]) -> None:
        with self.connection.cursor() as cursor:
            columns = ", ".join(COPY_COLUMNS)
            with cursor.copy(f"COPY usage_events ({columns}) FROM STDIN (FORMAT binary)") as copy:
                copy.write(to_copy_binary(rows, texts))

    def _void(self, events: Sequence[Event], rows: Rows, batch_id: int) -> None:
        for at, event in enumerate(events):
            if event.voids is None:
                continue
            own = rows["event_key"][at : at + 1].tobytes()
            target = event_keys(pl.Series([event.voids], dtype=pl.String)).keys.tobytes()
            self.execute(
                "INSERT INTO voids (event_key, source_id, batch_id, occurred_at, target_key, target_source_id, "
                "target_id, side) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
                uuid.UUID(bytes=own), int(rows["source_id"][at]), batch_id, instant(event.at), uuid.UUID(bytes=target),
                self._id("source", event.voids_source), event.voids, event.side,
            )  # fmt: skip

    def _id(self, name: str, text: str) -> int:
        self.execute(f"INSERT INTO {name}s ({name}) VALUES (%s) ON CONFLICT DO NOTHING", text)
        number = int(self.execute(f"SELECT {name}_id FROM {name}s WHERE {name} = %s", text)[0][0])
        self._named[name][number] = text_digest(text)
        return number

    def _series(self, event: Event) -> int:
        digest = series_digest(event.dimensions)
        self.execute(
            f"INSERT INTO series (series_digest, {', '.join(DIMENSIONS)}) "
            f"VALUES ({', '.join(['%s'] * 12)}) ON CONFLICT DO NOTHING",
            uuid.UUID(bytes=digest),
            *event.dimensions,
        )
        known = self.execute("SELECT series_id FROM series WHERE series_digest = %s", uuid.UUID(bytes=digest))
        number = int(known[0][0])
        self._named["series"][number] = digest
        return number
