"""Freshness: how long after it is durable in Kafka an event stands in the rollups that every report reads."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psycopg
from kafka import KafkaProducer

from bench.children import environment
from bench.ingesting import WORKERS, clean_stream, ingest_stream
from bench.measures import CHECKOUT, Measure, Progress, Results, Table
from bench.servers import Ground
from metering.errors import Unavailable
from metering.settings import Settings

SECONDS_MAX: Final = 2.0
EVENTS_PER_RECORD: Final = 100
_LOOK_SECONDS: Final = 0.02
_WAIT_SECONDS_MAX: Final = 60.0
_BAR: Final = 40
#: Next offset of each partition up to which everything is folded.
_FOLDED: Final = """
    SELECT p.partition, b.next_offset FROM fold_positions f
    JOIN stream_positions p USING (intake_id)
    JOIN ingest_batches b ON b.intake_id = f.intake_id AND b.sequence = f.next_sequence - 1
    WHERE p.kind = 'kafka'"""


def freshness_results(ground: Ground, events: int, seconds: float, progress: Progress) -> Results:
    """Send at half the rate at which a backlog of `events` is worked off, for some seconds."""
    progress("freshness: the maximum rate first")
    with ground.intake("fastest") as settings:
        fastest = ingest_stream(
            ground, settings, clean_stream(events, EVENTS_PER_RECORD), progress
        ).events_per_second
    rate = fastest / 2
    progress(f"sending {rate:,.0f} events/s for {seconds:.0f} seconds")
    with ground.intake("fresh") as settings:
        delays = measured_delays(settings, rate, seconds)
    middle, late = np.quantile(delays, (0.5, 0.99))
    name = f"durable in Kafka to visible in a report, at {rate:,.0f} events/s"
    return Results(
        [
            Measure(f"{name}: p50", float(middle), "s"),
            Measure(f"{name}: p99", float(late), "s", SECONDS_MAX, 1.0, "at most"),
        ],
        [histogram(delays, rate)],
    )


def measured_delays(settings: Settings, rate: float, seconds: float) -> npt.NDArray[np.float64]:
    """Seconds from the broker's acknowledgement of each record to the first look that found it folded.

    Two ingest workers and a fold run as they do in production. The first second is left out.
    """
    records = list(clean_stream(max(EVENTS_PER_RECORD, int(rate * seconds)), EVENTS_PER_RECORD).records())
    looks: list[tuple[float, dict[int, int]]] = []
    stopping = threading.Event()
    with _workers(settings):
        watcher = threading.Thread(target=_watch, args=(settings, looks, stopping), daemon=True)
        watcher.start()
        try:
            durable = _send(settings, records, rate / EVENTS_PER_RECORD)
            ends = {partition: max(offsets) + 1 for partition, (offsets, _) in durable.items()}
            deadline = time.monotonic() + _WAIT_SECONDS_MAX
            while not (looks and all(looks[-1][1].get(p, 0) >= end for p, end in ends.items())):
                if time.monotonic() > deadline or not watcher.is_alive():
                    raise Unavailable(
                        f"not everything was folded {_WAIT_SECONDS_MAX:.0f} seconds after it was sent"
                    )
                time.sleep(_LOOK_SECONDS)
        finally:
            stopping.set()
            watcher.join()
    began = min(min(acked) for _, acked in durable.values())
    delays = []
    seen_at = np.array([at for at, _ in looks])
    for partition, (offsets, acked) in durable.items():
        folded = np.array([until.get(partition, 0) for _, until in looks])
        # the first look at which the fold stood beyond the record
        found = np.searchsorted(folded, np.array(offsets) + 1)
        delays.append((seen_at[found] - np.array(acked))[np.array(acked) > began + 1.0])
    return np.concatenate(delays)


def histogram(delays: npt.NDArray[np.float64], rate: float) -> Table:
    """Delays in steps of a tenth of a second up to the goal, in wide ones beyond it."""
    edges = np.array(
        [*(tenth / 10 for tenth in range(round(SECONDS_MAX * 10))), SECONDS_MAX, 3.0, 5.0, np.inf]
    )
    counts, _ = np.histogram(np.maximum(delays, 0.0), edges)
    most = max(1, int(counts.max()))
    rows = [
        (
            f"{low:.1f} to {high:.1f}" if np.isfinite(high) else f"{low:.1f} and more",
            f"{count / len(delays):.2%}",
            "#" * round(_BAR * count / most),
        )
        for low, high, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
    ]
    title = f"Seconds from durable to visible at {rate:,.0f} events/s, {len(delays):,} records"
    return Table(title, ("seconds", "records", "share"), rows)


def _watch(settings: Settings, looks: list[tuple[float, dict[int, int]]], stopping: threading.Event) -> None:
    with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as connection:
        while not stopping.wait(_LOOK_SECONDS):
            folded: dict[int, int] = dict(connection.execute(_FOLDED).fetchall())
            looks.append((time.time(), folded))


def _send(settings: Settings, records: list[bytes], rate: float) -> dict[int, tuple[list[int], list[float]]]:
    """Send evenly; for each partition the offsets in order and when each was acknowledged."""
    producer: Any = KafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap.split(","),
        enable_idempotence=True,
        compression_type="lz4",
        linger_ms=5,
    )
    durable: dict[int, tuple[list[int], list[float]]] = {}

    def acknowledged(metadata: Any) -> None:
        offsets, acked = durable.setdefault(metadata.partition, ([], []))
        offsets.append(metadata.offset)
        acked.append(time.time())

    began = time.monotonic()
    for number, value in enumerate(records):
        early = began + number / rate - time.monotonic()
        if early > 0:
            time.sleep(early)
        sent = producer.send(settings.kafka_topic, value, partition=number % settings.kafka_partitions)
        sent.add_callback(acknowledged)
    producer.flush()
    producer.close()
    return durable


@contextmanager
def _workers(settings: Settings) -> Iterator[None]:
    """Two ingest workers and a fold; ready when every partition has an owner."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "metering", "work", name],
            cwd=CHECKOUT,
            env=environment(settings),
            stderr=subprocess.DEVNULL,
        )
        for name in ("ingest",) * WORKERS + ("fold",)
    ]
    try:
        deadline = time.monotonic() + _WAIT_SECONDS_MAX
        with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as connection:
            while True:
                (waiting, owners) = connection.execute(
                    "SELECT count(*) FILTER (WHERE owner IS NULL), count(DISTINCT owner) FROM stream_positions"
                ).fetchone() or (1, 0)
                if not waiting and owners == WORKERS:
                    break
                if time.monotonic() > deadline:
                    raise Unavailable(f"the workers did not join within {_WAIT_SECONDS_MAX:.0f} seconds")
                time.sleep(0.1)
        yield
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait()
