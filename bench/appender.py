"""One writer that makes a ledger grow: prepared parts through Ledger.append, the way of every ingest worker.

Event `number` of the stream is a function of its number alone, so that any event can be sent again. Its
content is that of a row which the ingest wrote before. Protocol, a line each on stdin and stdout: the task
(JSON), `prepared`, `go`, then what it took (JSON).
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Final
from uuid import UUID

import numpy as np
import numpy.typing as npt

from metering.events.identity import KEY_BYTES
from metering.settings import settings
from metering.store import positions, postgres
from metering.store.batch import Digests, Part
from metering.store.chain import aligned, text_digest
from metering.store.ledger import Connection, Ledger
from metering.store.ledger_rows import LEDGER_COLUMNS, LEDGER_ROW, Rows, select_rows
from metering.store.positions import Claim

#: Events in one transaction: about what a worker gathers.
BATCH_EVENTS: Final = 20_000
#: Events that stand for one record in the counts of a batch.
RECORD_EVENTS: Final = 100
#: The stream's own clock: events that end in each of its seconds. 2.6 billion a month.
EVENTS_PER_SECOND: Final = 1_000
#: A resend repeats one of so many events before it.
RESENT_AFTER_EVENTS_MAX: Final = 1_000_000

Numbers = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Task:
    """Append every `writers`-th of the events [first, first + events), beginning at `place`.

    `resent_ratio`: the share of them that repeats an earlier event instead. Unmeasured, the parts are made as
    they are appended, and none is kept.
    """

    first: int
    events: int
    place: int
    writers: int
    resent_ratio: float = 0.0
    measured: bool = True


@dataclass(frozen=True)
class Took:
    """Unix times of the first and after the last append, the seconds of each, and how the events ended."""

    began_at: float
    ended_at: float
    seconds: list[float]
    accepted: int
    duplicates: int


@dataclass(frozen=True)
class Template:
    """Rows that the ingest wrote, and the digests of the names in them: what every event looks like."""

    rows: Rows
    digests: Digests


def read_template(connection: Connection) -> Template:
    """Up to one batch of the ledger's rows."""
    found = select_rows(
        connection,
        f"SELECT {', '.join(LEDGER_COLUMNS)} FROM usage_events WHERE event_type = 1 AND duration_ms IS NOT NULL "
        f"ORDER BY event_key LIMIT {BATCH_EVENTS}",
        LEDGER_COLUMNS,
    )
    rows = np.zeros(len(found), LEDGER_ROW)
    for name in LEDGER_COLUMNS:
        rows[name] = found[name]
    named = {
        table: {0: text_digest(""), **{number: text_digest(name) for number, name in names}}
        for table, column in (("sources", "source"), ("projects", "project"), ("seats", "seat"))
        if (names := connection.execute(f"SELECT {column}_id, {column} FROM {table}").fetchall())
    }
    series = {
        number: digest.bytes
        for number, digest in connection.execute("SELECT series_id, series_digest FROM series").fetchall()
    }
    return Template(
        rows,
        Digests(
            aligned(rows["series_id"], series),
            aligned(rows["source_id"], named["sources"]),
            aligned(rows["project_id"], named["projects"]),
            aligned(rows["seat_id"], named["seats"]),
        ),
    )


def _mixed(numbers: Numbers, seed: int) -> Numbers:
    """64 bits that look random, a function of number and seed (splitmix64)."""
    mixed = (numbers + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@dataclass(frozen=True)
class Synthetic:
    """Events by their number. `start_ms` is the Unix time of event 0; with `random_ids` ids are UUIDv4s."""

    template: Template
    start_ms: int
    random_ids: bool

    def part(self, claim: Claim, numbers: Numbers) -> Part:
        """The events as one intake brings them, in this order."""
        places = (numbers % np.uint64(len(self.template.rows))).astype(np.intp)
        rows = self.template.rows[places]
        rows["ordinal"] = np.arange(len(numbers))
        random = np.empty((len(numbers), 2), np.uint64)
        random[:, 0], random[:, 1] = _mixed(numbers, 1), _mixed(numbers, 2)
        ended_ms = self.start_ms + (numbers * np.uint64(1_000) // np.uint64(EVENTS_PER_SECOND)).astype(
            np.int64
        )
        took_ms = (random[:, 0] % np.uint64(4_500)).astype(np.int64) + 150
        rows["occurred_at"] = ended_ms * 1_000 + 7
        rows["duration_ms"] = took_ms
        rows["digest"] = _mixed(numbers, 3).view(np.int64)
        requests = np.column_stack([_mixed(numbers, 4), _mixed(numbers, 5)])
        rows["request_key"] = np.ascontiguousarray(requests).view(f"S{KEY_BYTES}").reshape(-1)
        key = random.view(np.uint8).reshape(-1, KEY_BYTES)
        texts = [""] * len(numbers)
        if self.random_ids:
            texts = _uuid4_texts(key)
            key[:, 0] |= 0x80
        else:
            key[:, :6] = (ended_ms - took_ms).astype(">i8").view(np.uint8).reshape(-1, 8)[:, 2:]
            key[:, 6] = (key[:, 6] & 0x0F) | 0x70
            key[:, 8] = (key[:, 8] & 0x3F) | 0x80
        rows["event_key"] = key.view(f"S{KEY_BYTES}").reshape(-1)
        records = -(-len(numbers) // RECORD_EVENTS)
        return Part(
            claim=claim,
            next_offset=claim.next_offset + records,
            records=records,
            rows=rows,
            event_ids=texts,
            digests=self.template.digests.take(places),
            rejects=[],
            unknown_fields=0,
            appended_until=None,
            seen_until=None,
            refused=_no_conflicts,
        )


def _no_conflicts(rows: Any) -> Any:
    raise AssertionError(f"an event that is sent again has the same content: rows {rows} conflict")


def _uuid4_texts(key: npt.NDArray[np.uint8]) -> list[str]:
    blob = key.tobytes().hex()
    texts = (blob[at : at + 32] for at in range(0, len(blob), 32))
    return [f"{t[:8]}-{t[8:12]}-4{t[13:16]}-{t[16:20]}-{t[20:]}" for t in texts]


def numbers_of(task: Task) -> Numbers:
    """The numbers of a task's events, those of resends in the place of new ones; the same every time."""
    numbers = np.arange(task.first + task.place, task.first + task.events, task.writers, dtype=np.uint64)
    if not task.resent_ratio:
        return numbers
    chosen = np.random.default_rng([task.first, task.place])
    again = np.flatnonzero(chosen.random(len(numbers)) < task.resent_ratio)
    back = min(task.first, RESENT_AFTER_EVENTS_MAX)
    numbers[again] = task.first - chosen.integers(1, back + 1, len(again))
    return numbers


class Appender:
    """Holds the claims of a few intakes and appends to all of them in each transaction."""

    def __init__(self, connection: Connection, events: Synthetic, claims: list[Claim]) -> None:
        self._ledger = Ledger(connection, settings().reject_bytes_max)
        self._events = events
        self.claims = claims

    def prepared(self, numbers: Numbers) -> list[Part]:
        """One transaction: the events dealt out to the intakes in turn."""
        return [
            self._events.part(claim, numbers[place :: len(self.claims)])
            for place, claim in enumerate(self.claims)
        ]

    def append(self, batches: list[list[Part]]) -> Took:
        """Append them one after the other; what was prepared takes up the positions as they are then."""
        seconds, accepted, duplicates = [], 0, 0
        began_at = time.time()
        for parts in batches:
            began = time.perf_counter()
            moved = [
                replace(part, claim=claim, next_offset=claim.next_offset + part.records)
                for part, claim in zip(parts, self.claims, strict=True)
            ]
            appended = self._ledger.append(moved)
            seconds.append(time.perf_counter() - began)
            after = {outcome.claim.intake_id: outcome.claim for outcome in appended}
            self.claims = [after[claim.intake_id] for claim in self.claims]
            accepted += sum(outcome.accepted for outcome in appended)
            duplicates += sum(outcome.duplicate for outcome in appended)
        return Took(began_at, time.time(), seconds, accepted, duplicates)

    def grow(self, task: Task) -> Took:
        """All of a task, a batch in memory at a time; its seconds are those of making the rows too."""
        began_at = time.time()
        took = [self.append([self.prepared(numbers)]) for numbers in _batches(numbers_of(task))]
        return Took(
            began_at,
            time.time(),
            [seconds for one in took for seconds in one.seconds],
            sum(one.accepted for one in took),
            sum(one.duplicates for one in took),
        )


def _batches(numbers: Numbers) -> list[Numbers]:
    return [numbers[start : start + BATCH_EVENTS] for start in range(0, len(numbers), BATCH_EVENTS)]


def main(topic_uuid: UUID, partitions: list[int], start_ms: int, random_ids: bool) -> None:
    """Follow the protocol until stdin ends."""
    with postgres.connect_driver(settings(), "read") as connection:
        template = read_template(connection)
    role = f"{settings().role_prefix}ingest"
    with postgres.connect_driver(settings(), "ingest") as connection:
        connection.autocommit = True
        connection.execute("SET jit = off")
        claims = [
            positions.claim(connection, topic_uuid, partition, role=role, owner=positions.worker_name())
            for partition in partitions
        ]
        appender = Appender(connection, Synthetic(template, start_ms, random_ids), claims)
        for line in sys.stdin:
            task = Task(**json.loads(line))
            batches = [appender.prepared(one) for one in _batches(numbers_of(task))] if task.measured else []
            print("prepared", flush=True)
            if sys.stdin.readline().strip() != "go":
                return
            took = appender.append(batches) if task.measured else appender.grow(task)
            print(json.dumps(asdict(took)), flush=True)


if __name__ == "__main__":
    uuid, dealt, start, ids = sys.argv[1:]
    main(UUID(uuid), [int(number) for number in dealt.split(",")], int(start), ids == "random")
