"""A ledger that grows: what appending costs at points up to its full size, by kind of id.

Between the points, and in the windows that are measured, prepared rows go through Ledger.append on two
connections (`bench.appender`); beside each window two ingest workers read a stream from Kafka.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import numpy as np
import psycopg

from bench import children
from bench.appender import EVENTS_PER_SECOND, Task, Took
from bench.ingesting import ROW_BYTES_MAX, ingest_stream, ledger_bytes
from bench.measures import Measure, Progress, Results, Table
from bench.servers import Ground
from bench.stream import Stream
from metering.errors import Unavailable, WrongWorld
from metering.settings import Settings
from metering.store.chain import GENESIS

WRITERS: Final = 2
#: Where the ledger is measured, as shares of its full size.
POINTS: Final = (0.0, 0.2, 0.5, 1.0)
#: Shares of resends in the windows at full size.
RESENT: Final = ((0.0001, "0.01 %"), (0.01, "1 %"), (0.1, "10 %"), (1.0, "100 %"))
RATE_RATIO_MIN: Final = 0.8
#: A ledger that has not reached its size by then is measured at the size it has.
SECONDS_MAX: Final = 3_600.0
#: Kinds of ids, each with the bytes of disk that an event may take at most.
KINDS: Final = {"UUIDv7": 230, "random": 340}
#: What WAL and topics take beside the ledger.
_BESIDE_BYTES: Final = 9 * 1024**3
_PARTITIONS_OF_A_WRITER: Final = 2
_GROW_EVENTS: Final = 1_000_000
_WINDOW_EVENTS: Final = 1_000_000
_INGEST_EVENTS: Final = 600_000
_TOPIC: Final = "grown"


@dataclass(frozen=True)
class Window:
    """What a measured window of appends took; latencies are of one transaction."""

    rate: float
    p50_seconds: float
    p99_seconds: float
    wal_bytes: float


@dataclass(frozen=True)
class Point:
    """The ledger at one size: a window of appends, an ingest, and bytes per event by place."""

    events: int
    window: Window
    ingest_rate: float
    places: dict[str, float]


class Growing:
    """A ledger, its writers, and the number of the next event."""

    def __init__(
        self, ground: Ground, settings: Settings, writers: list[children.Child], start_ms: int, ids: str
    ) -> None:
        self._ground = ground
        self._settings = settings
        self._writers = writers
        self._start_ms = start_ms
        self._random = ids == "random"
        self.next = 0

    def _run(self, events: int, *, resent_ratio: float, measured: bool) -> tuple[list[Took], int]:
        tasks = [
            Task(self.next, events, place, len(self._writers), resent_ratio, measured)
            for place in range(len(self._writers))
        ]
        for writer, task in zip(self._writers, tasks, strict=True):
            children.tell(writer, json.dumps(asdict(task)))
        for writer in self._writers:
            children.hear(writer)
        if measured:
            self._ground.checkpoint()
        before = self._wal()
        for writer in self._writers:
            children.tell(writer, "go")
        took = [Took(**json.loads(children.hear(writer))) for writer in self._writers]
        wal = self._wal() - before
        self.next += events
        counted = sum(one.accepted + one.duplicates for one in took)
        if counted != events or (not resent_ratio and any(one.duplicates for one in took)):
            raise WrongWorld(f"{counted:,} of {events:,} events are accounted for; the measurement is void")
        return took, wal

    def _wal(self) -> int:
        with self._ground.administrator() as connection:
            (position,) = connection.execute(
                "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"
            ).fetchone() or (0,)
        return int(position)

    def window(self, events: int, resent_ratio: float = 0.0) -> Window:
        """Append events that were made beforehand, from a checkpoint on."""
        took, wal = self._run(events, resent_ratio=resent_ratio, measured=True)
        elapsed = max(one.ended_at for one in took) - min(one.began_at for one in took)
        latencies = np.array([seconds for one in took for seconds in one.seconds])
        middle, late = np.quantile(latencies, (0.5, 0.99))
        return Window(events / elapsed, float(middle), float(late), wal / events)

    def grow(self, events: int) -> None:
        """Append without measuring."""
        self._run(events, resent_ratio=0.0, measured=False)

    def ingest(self, events: int, progress: Progress) -> float:
        """Events a second that two workers read from Kafka, at this place of the stream."""
        self.next += events
        until = datetime.fromtimestamp(self._start_ms / 1_000 + self.next / EVENTS_PER_SECOND, UTC)
        stream = Stream(events, 100, 0.0, until, random_ids=self._random)
        return ingest_stream(self._ground, self._settings, stream, progress).events_per_second

    def events(self) -> int:
        """What the ledger holds."""
        with psycopg.connect(self._settings.database_url.get_secret_value()) as connection:
            (held,) = connection.execute("SELECT sum(accepted)::bigint FROM ingest_batches").fetchone() or (
                0,
            )
        return int(held or 0)


@contextmanager
def _growing(ground: Ground, ids: str, full: int, progress: Progress) -> Iterator[Growing]:
    """An empty ledger whose names exist, with its writers."""
    with ground.intake("grow") as settings:
        # every event lies before now, with room for the windows and ingests beside the growth
        back = timedelta(seconds=1.5 * full / EVENTS_PER_SECOND + 3_600)
        start_ms = int((datetime.now(UTC) - back).timestamp() * 1_000)
        first = Stream(20_000, 100, 0.0, datetime.fromtimestamp(start_ms / 1_000 - 60, UTC))
        ingest_stream(ground, settings, first, progress)
        topic = _positions(settings)
        commands = [
            ["-m", "bench.appender", str(topic), ",".join(map(str, _dealt(place))), str(start_ms), ids]
            for place in range(WRITERS)
        ]
        with children.started(settings, commands) as writers:
            yield Growing(ground, settings, writers, start_ms, ids)
            for writer in writers:
                writer.communicate()


def _dealt(place: int) -> range:
    return range(place * _PARTITIONS_OF_A_WRITER, (place + 1) * _PARTITIONS_OF_A_WRITER)


def _positions(settings: Settings) -> UUID:
    """Intakes of the writers' own: beside the topic that the workers read."""
    topic = uuid4()
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        for place in range(WRITERS):
            for partition in _dealt(place):
                connection.execute(
                    "INSERT INTO stream_positions (kind, topic, topic_uuid, partition, next_offset, chain_head) "
                    "VALUES ('kafka', %s, %s, %s, 0, %s)",
                    (_TOPIC, topic, partition, GENESIS),
                )
    return topic


def grow_results(ground: Ground, folder: Path, full: int, progress: Progress) -> Results:
    """Grow a ledger to `full` events, once for each kind of id. Raises Unavailable where there is no room."""
    _check_room(folder, full)
    results = Results()
    for ids in KINDS:
        points, resent = _measured(ground, ids, full, progress)
        results.measures += _measures(ids, points)
        results.tables += _tables(ids, points, resent)
    return results


def _check_room(folder: Path, full: int) -> None:
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(place).free
    needed = int(1.3 * full * max(KINDS.values())) + min(_BESIDE_BYTES, 2_000 * full + 1024**3)
    if free < needed:
        raise Unavailable(
            f"a ledger of {full:,} events may take {needed / 1024**3:.1f} GiB, {place} has {free / 1024**3:.1f} free: "
            "make room, or give a smaller --grow-to"
        )


def _measured(
    ground: Ground, ids: str, full: int, progress: Progress
) -> tuple[list[Point], list[tuple[str, Window]]]:
    window, ingested = (max(2_000, min(most, full // 10)) for most in (_WINDOW_EVENTS, _INGEST_EVENTS))
    progress(f"growing a ledger to {full:,} events with {ids} ids")
    began = time.monotonic()
    points: list[Point] = []
    with _growing(ground, ids, full, progress) as growing:
        for share in POINTS:
            held = growing.events()
            while held < share * full and time.monotonic() - began < SECONDS_MAX:
                at = time.monotonic()
                some = min(_GROW_EVENTS, int(share * full) - held)
                growing.grow(some)
                held = growing.events()
                progress(f"  {held:,} events, {some / (time.monotonic() - at):,.0f} a second")
            if held < share * full:
                progress(f"  stopped after {SECONDS_MAX:.0f} seconds at {held:,} events")
            took = growing.window(window)
            rate = growing.ingest(ingested, progress)
            points.append(Point(held, took, rate, ledger_bytes(growing._settings)))
            progress(f"  {held:,} events: {took.rate:,.0f} events/s appended, {rate:,.0f} ingested")
            if held < share * full:
                break
        resent = [(name, growing.window(max(1_000, window // 2), ratio)) for ratio, name in RESENT]
    return points, resent


def _measures(ids: str, points: list[Point]) -> list[Measure]:
    first, last = points[0], points[-1]
    goal = RATE_RATIO_MIN if ids == "UUIDv7" else None
    size = f"{last.events / 1e6:g} M events, {ids} ids"
    measures = [
        Measure(f"append at {size} (against empty)", last.window.rate, "events/s", first.window.rate, goal),
        Measure(f"ingest at {size} (against empty)", last.ingest_rate, "events/s", first.ingest_rate, goal),
        Measure(
            f"append at {size}: p99", 1_000 * last.window.p99_seconds, "ms", 1_000 * first.window.p99_seconds
        ),
        Measure(f"WAL per event at {size}", last.window.wal_bytes, "bytes", first.window.wal_bytes),
    ]
    total = sum(last.places.values())
    most = ROW_BYTES_MAX if ids == "UUIDv7" else None
    return [*measures, Measure(f"bytes per event at {size}", total, "bytes", most, 1.0, "at most")]


def _tables(ids: str, points: list[Point], resent: list[tuple[str, Window]]) -> list[Table]:
    first = points[0]
    grown = Table(
        f"A ledger that grows, {ids} ids",
        (
            *("events", "append/s", "ratio", "p50 ms", "p99 ms", "ingest/s", "ratio", "WAL B/event"),
            *(f"{place} B" for place in first.places),
            "B/event",
        ),
        [
            (
                f"{point.events:,}",
                f"{point.window.rate:,.0f}",
                f"{point.window.rate / first.window.rate:.2f}",
                f"{1_000 * point.window.p50_seconds:,.0f}",
                f"{1_000 * point.window.p99_seconds:,.0f}",
                f"{point.ingest_rate:,.0f}",
                f"{point.ingest_rate / first.ingest_rate:.2f}",
                f"{point.window.wal_bytes:,.0f}",
                *(f"{value:,.1f}" for value in point.places.values()),
                f"{sum(point.places.values()):,.1f}",
            )
            for point in points
        ],
    )
    clean = points[-1].window
    again = Table(
        f"Resends among the events, {ids} ids, at {points[-1].events:,} events",
        ("resends", "append/s", "ratio to clean", "p50 ms", "p99 ms", "WAL B/event"),
        [
            (
                name,
                f"{window.rate:,.0f}",
                f"{window.rate / clean.rate:.2f}",
                f"{1_000 * window.p50_seconds:,.0f}",
                f"{1_000 * window.p99_seconds:,.0f}",
                f"{window.wal_bytes:,.0f}",
            )
            for name, window in (("0", clean), *resent)
        ],
    )
    return [grown, again]
