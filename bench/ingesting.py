"""Ingest with all guarantees on, against raw COPY of what it wrote: rates, stages, memory, row bytes."""

import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import psycopg

from bench import children
from bench.children import Resident
from bench.copying import Copied, raw_copy
from bench.measures import Measure, Progress, mebibytes
from bench.servers import Ground
from bench.stream import Stream, produce
from bench.worker import Told
from metering.errors import Unavailable, WrongWorld
from metering.settings import Settings

WORKERS: Final = 2
MEMORY_MEBIBYTES_MAX: Final = 400
ROW_BYTES_MAX: Final = 190
_JOIN_SECONDS_MAX: Final = 60.0
#: Stages of a worker in the order in which a batch passes them; `write` is told in its parts.
_STAGES: Final = (
    "poll",
    "decode",
    "meter",
    "digest",
    "encode and chain",
    "copy",
    "other statements",
    "commit",
    "rest",
)


@dataclass(frozen=True)
class Ingested:
    """What the workers did with one stream: rates count every event received, duplicates too."""

    received: int
    accepted: int
    duplicates: int
    seconds: float
    stages: dict[str, float]  # seconds of all workers together
    peak_bytes: int
    processor_seconds: float
    server_seconds: float
    broker_seconds: float
    told: list[Told]
    resident: Resident

    @property
    def events_per_second(self) -> float:
        """Events received in a second."""
        return self.received / self.seconds


def ingest_stream(
    ground: Ground,
    settings: Settings,
    stream: Stream,
    progress: Progress,
    *,
    workers: int = WORKERS,
    profile: bool = False,
) -> Ingested:
    """Let fresh workers join, put the stream on the topic, then let them work it off; checks every count.

    The clock runs from the word `go` to the end of the last step that brought records: starting Python and
    joining the group are not in it, the commit of the last transaction is.
    """
    _forget_owners(settings)
    command = ["-m", "bench.worker", *(["--profile"] if profile else [])]
    with children.started(settings, [command] * workers) as processes:
        _await_joined(settings, workers)
        for process in processes:
            children.tell(process, "hold")
        for process in processes:
            children.hear(process)
        again = f" and {stream.resent:,} of them again" if stream.resent else ""
        progress(f"  producing {stream.events:,} events{again}, {stream.events_per_record} a record")
        size = produce(settings, stream)
        ground.checkpoint()
        progress(f"  ingesting {mebibytes(size):,.0f} MiB with {workers} workers")
        server_before, broker_before = ground.processor_seconds(), ground.broker_seconds()
        with children.watched(processes) as resident:
            for process in processes:
                children.tell(process, "go")
            told = [Told(**json.loads(children.hear(process))) for process in processes]
        server_seconds = ground.processor_seconds() - server_before
        broker_seconds = ground.broker_seconds() - broker_before
    return _checked(stream, told, server_seconds, broker_seconds, resident)


def _checked(
    stream: Stream, told: list[Told], server_seconds: float, broker_seconds: float, resident: Resident
) -> Ingested:
    counts: Counter[str] = Counter()
    spent: defaultdict[str, float] = defaultdict(float)
    for one in told:
        counts.update(one.counts)
        for stage, seconds in one.seconds.items():
            spent[stage] += seconds
    expected = {"accepted": stream.events, "duplicate": stream.resent, "conflict": 0, "rejected": 0}
    found = {name: counts[name] for name in expected}
    if found != expected:
        raise WrongWorld(f"the workers counted {found}, the stream holds {expected}; the measurement is void")
    elapsed = max(one.ended_at for one in told) - min(one.began_at for one in told)
    stages = {name: spent[name] for name in ("poll", "decode", "meter", "digest", "copy", "commit")}
    stages["other statements"] = spent["statements"]
    stages["encode and chain"] = spent["write"] - spent["copy"] - spent["commit"] - spent["statements"]
    stages["rest"] = sum(one.ended_at - one.began_at for one in told) - sum(stages.values())
    return Ingested(
        counts["accepted"] + counts["duplicate"],
        counts["accepted"],
        counts["duplicate"],
        elapsed,
        {name: stages[name] for name in _STAGES},
        max(one.peak_bytes for one in told),
        sum(one.processor_seconds for one in told),
        server_seconds,
        broker_seconds,
        told,
        resident,
    )


def _forget_owners(settings: Settings) -> None:
    """So that the owners that are awaited are not those of a run before."""
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        connection.execute("UPDATE stream_positions SET owner = NULL WHERE owner IS NOT NULL")


def _await_joined(settings: Settings, workers: int) -> None:
    """Wait until every partition has an owner and every worker its share."""
    share = settings.kafka_partitions // workers
    deadline = time.monotonic() + _JOIN_SECONDS_MAX
    with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as connection:
        while time.monotonic() < deadline:
            owned = connection.execute(
                "SELECT owner, count(*) FROM stream_positions WHERE topic = %s AND owner IS NOT NULL GROUP BY owner",
                (settings.kafka_topic,),
            ).fetchall()
            if len(owned) == workers and all(count >= share for _, count in owned):
                return
            time.sleep(0.1)
    raise Unavailable(
        f"{workers} workers did not share the partitions in {_JOIN_SECONDS_MAX:.0f} seconds: {owned}"
    )


@dataclass(frozen=True)
class Comparison:
    """Ingest of one kind of stream and raw COPY of what it wrote, run next to each other."""

    ingested: Ingested
    copied: Copied

    @property
    def raw_rate(self) -> float:
        """Rows that raw COPY took in a second."""
        return self.copied.rows / self.copied.seconds


def compare(ground: Ground, settings: Settings, stream: Stream, progress: Progress) -> Comparison:
    """Ingest a stream into the database of `settings`, then COPY what is there into another one."""
    ingested = ingest_stream(ground, settings, stream, progress)
    copied = raw_copy(ground, settings, progress)
    comparison = Comparison(ingested, copied)
    progress(f"  {ingested.events_per_second:,.0f} events/s against {comparison.raw_rate:,.0f} rows/s")
    return comparison


def rate_measure(name: str, comparisons: list[Comparison], goal_ratio: float | None) -> Measure:
    """The run whose ratio is the median of all: its two rates belong together."""
    middle = _median(comparisons)
    return Measure(name, middle.ingested.events_per_second, "events/s", middle.raw_rate, goal_ratio)


def _median(comparisons: list[Comparison]) -> Comparison:
    ordered = sorted(comparisons, key=lambda one: one.ingested.events_per_second / one.raw_rate)
    return ordered[len(ordered) // 2]


def stage_measures(name: str, comparisons: list[Comparison]) -> list[Measure]:
    """Microseconds of a worker that an event costs in each stage; COPY and commit beside raw COPY's."""
    one = _median(comparisons)
    ingested, copied = one.ingested, one.copied
    references = {"copy": copied.copy_seconds, "commit": copied.commit_seconds}
    measures = [
        Measure(
            f"{name}: {stage}",
            1e6 * seconds / ingested.received,
            "us/event",
            1e6 * references[stage] / copied.rows if stage in references else None,
        )
        for stage, seconds in ingested.stages.items()
    ]
    used = (
        ("processor of the workers", ingested.processor_seconds),
        ("processor of Postgres", ingested.server_seconds),
    )
    measures += [
        Measure(f"{name}: {who}", 1e6 * seconds / ingested.received, "us/event") for who, seconds in used
    ]
    return measures


def memory_measure(name: str, comparisons: list[Comparison]) -> Measure:
    """The largest resident set of any worker in some runs, the whole backlog being on the topic."""
    peak = max(one.ingested.peak_bytes for one in comparisons)
    return Measure(f"worker memory, {name}", mebibytes(peak), "MiB", MEMORY_MEBIBYTES_MAX, 1.0, "at most")


_SIZES: Final = """
    WITH days AS (SELECT inhrelid AS day FROM pg_inherits WHERE inhparent = 'usage_events'::regclass),
    places AS (
        SELECT CASE WHEN i.indisprimary THEN 'primary key' ELSE 'batch index' END AS place,
            pg_total_relation_size(i.indexrelid) AS bytes, c.reltuples >= 0 AS known
        FROM days JOIN pg_index i ON i.indrelid = day JOIN pg_class c ON c.oid = i.indexrelid
        WHERE pg_relation_size(day) > 0
        UNION ALL SELECT 'table', pg_relation_size(day, 'main'), true FROM days)
    SELECT place, sum(bytes)::bigint FROM places GROUP BY place"""


def ledger_bytes(settings: Settings) -> dict[str, float]:
    """Bytes that an accepted event takes in the ledger, by place: tables, primary keys, batch indexes."""
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        found: dict[str, int] = dict(connection.execute(_SIZES).fetchall())
        (rows,) = connection.execute("SELECT sum(accepted)::bigint FROM ingest_batches").fetchone() or (0,)
    return {place: found[place] / rows for place in ("table", "primary key", "batch index")}


def size_measures(settings: Settings) -> list[Measure]:
    """`ledger_bytes`, and their sum against its goal."""
    places = ledger_bytes(settings)
    measures = [Measure(f"bytes per event: {place}", value, "bytes") for place, value in places.items()]
    return [
        *measures,
        Measure("bytes per event", sum(places.values()), "bytes", ROW_BYTES_MAX, 1.0, "at most"),
    ]


def clean_stream(events: int, events_per_record: int, *, resent_ratio: float = 0.0) -> Stream:
    """A stream that ends now."""
    return Stream(events, events_per_record, resent_ratio, datetime.now(UTC))
