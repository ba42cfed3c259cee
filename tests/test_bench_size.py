"""The long benchmarks with small numbers: what grows, how fresh it is, who reads it, what they hold in memory."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from bench import freshness, growing, memory, scaling
from bench.__main__ import main
from bench.appender import BATCH_EVENTS, Appender, Synthetic, Task, numbers_of, read_template
from bench.ingesting import clean_stream, ingest_stream
from bench.measures import Table, markdown
from bench.servers import Ground, prepared
from metering.errors import BadInput, Unavailable
from metering.events.identity import event_keys
from metering.store import positions
from metering.store import postgres as store
from metering.store.chain import GENESIS
from metering.store.positions import Claim
from sandbox import kafka, postgres, processes, servers


def quiet(line: str) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def ground(servers: servers.Addresses) -> Iterator[Ground]:
    broker = processes.running(kafka.pid_file(servers.folder))
    assert broker is not None
    url = postgres.url(servers.folder, postgres.USER)
    with prepared(servers.kafka_bootstrap, url, broker.pid) as made:
        yield made


def test_a_ledger_grows_and_is_measured_at_every_point(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "POINTS", (0.0, 1.0))
    monkeypatch.setattr(growing, "KINDS", {"UUIDv7": 230})
    results = growing.grow_results(ground, tmp_path / "not there yet", 20_000, quiet)
    v7, resent = results.tables
    assert [row[0] for row in v7.rows] == ["20,000", "24,000"]
    assert [row[0] for row in resent.rows] == ["0", "0.01 %", "1 %", "10 %", "100 %"]
    assert v7.columns[-4:] == ("table B", "primary key B", "batch index B", "B/event")
    named = {measure.measure: measure for measure in results.measures}
    size = named["bytes per event at 0.024 M events, UUIDv7 ids"]
    assert 150 < size.value < 400
    assert size.goal_ratio == 1.0
    assert named["append at 0.024 M events, UUIDv7 ids (against empty)"].goal_ratio == 0.8
    assert all(measure.value > 0 for measure in results.measures)
    with ground.administrator() as connection:
        left = connection.execute(
            "SELECT count(*) FROM pg_database WHERE datname LIKE 'bench_grow%'"
        ).fetchone()
    assert left == (0,)


def test_an_event_is_a_function_of_its_number(ground: Ground) -> None:
    with ground.intake("rows") as settings:
        ingest_stream(ground, settings, clean_stream(500, 100), quiet, workers=1)
        with store.connect_driver(settings, "read") as connection:
            template = read_template(connection)
        with store.connect_driver(settings, "ingest") as connection:
            connection.autocommit = True
            ((topic,),) = connection.execute("SELECT DISTINCT topic_uuid FROM stream_positions").fetchall()
            claims = [
                positions.claim(
                    connection, topic, partition, role=f"{settings.role_prefix}ingest", owner="me"
                )
                for partition in (0, 1)
            ]
            start_ms = int(datetime.now(UTC).timestamp() * 1_000) - 7_200_000
            for random_ids in (False, True):
                appender = Appender(connection, Synthetic(template, start_ms, random_ids), claims)
                once = appender.grow(Task(0, 2_000, 0, 1))
                assert (once.accepted, once.duplicates, len(once.seconds)) == (2_000, 0, 1)
                again = appender.append([appender.prepared(numbers_of(Task(2_000, 1_000, 0, 1, 1.0)))])
                assert (again.accepted, again.duplicates) == (0, 1_000)
                claims = appender.claims
    assert len(template.rows) == 500
    claim = Claim(1, None, 0, 1, 0, 0, GENESIS)
    numbers = np.arange(3_000, dtype=np.uint64)
    for random_ids in (False, True):
        events = Synthetic(template, 1_790_000_000_000, random_ids)
        part = events.part(claim, numbers)
        assert len(set(part.rows["event_key"].tolist())) == 3_000
        again = events.part(claim, numbers[::-1])
        again.rows["ordinal"] = again.rows["ordinal"][::-1]
        assert (again.rows[::-1] == part.rows).all()
        assert (part.records, part.next_offset) == (30, 30)
        assert all(part.event_ids) == random_ids
        timed = event_keys_have_times(part.rows["event_key"])
        assert timed != random_ids


def event_keys_have_times(keys: np.ndarray) -> bool:
    import polars as pl

    texts = [f"{t[:8]}-{t[8:12]}-{t[12:16]}-{t[16:20]}-{t[20:]}" for t in (key.hex() for key in split(keys))]
    found = event_keys(pl.Series(texts))
    return bool(found.key_is_id.all()) and found.id_at.is_sorted() is False


def split(keys: np.ndarray) -> list[bytes]:
    blob = np.ascontiguousarray(keys).tobytes()
    return [blob[at : at + 16] for at in range(0, len(blob), 16)]


def test_writers_share_the_events_and_resends_repeat_earlier_ones() -> None:
    clean = [numbers_of(Task(5_000, 1_001, place, 2)) for place in (0, 1)]
    assert sorted(np.concatenate(clean).tolist()) == list(range(5_000, 6_001))
    task = Task(5_000, BATCH_EVENTS, 1, 2, resent_ratio=0.1)
    numbers = numbers_of(task)
    again = numbers[numbers < 5_000]
    assert 800 < len(again) < 1_200
    assert (numbers_of(task) == numbers).all()
    assert (numbers_of(Task(5_000, 1_000, 0, 1, resent_ratio=1.0)) < 5_000).all()


def test_a_ledger_that_has_no_room_is_refused(tmp_path: Path, ground: Ground) -> None:
    with pytest.raises(Unavailable, match=r"may take .* GiB, .* has .* free: make room, or give a smaller"):
        growing.grow_results(ground, tmp_path, 10**12, quiet)
    with pytest.raises(BadInput, match="--grow-to 5 must be at least 20,000"):
        main(["--only", "grow", "--grow-to", "5"])


def test_workers_and_partitions_are_told_with_their_processor_time(ground: Ground) -> None:
    results = scaling.scaling_results(ground, 3_000, quiet, workers=(1,), partitions=(3,))
    (table,) = results.tables
    assert [row[:2] for row in table.rows] == [("1", "3")]
    assert all(float(cell) >= 0 for row in table.rows for cell in row[3:])
    assert [measure.measure for measure in results.measures] == ["ingest, 1 workers, 3 partitions"]
    assert float(table.rows[0][5]) > 0, "the broker has used some"


def test_memory_is_told_over_time(ground: Ground) -> None:
    largest = memory.largest_records(ground, 1)
    (value,) = largest.records()
    bound = ground.settings("any").record_bytes_max
    assert 0.8 * bound < len(value) <= bound
    results = memory.memory_results(ground, 3_000, 1, quiet, workers=1)
    (table,) = results.tables
    assert len(table.rows) == 2
    assert all(float(row[-1]) >= float(row[2]) > 10 for row in table.rows)
    assert all(measure.goal == "at most" for measure in results.measures)


def test_freshness_counts_every_record_from_durable_to_folded(ground: Ground) -> None:
    with ground.intake("fresh") as settings:
        delays = freshness.measured_delays(settings, rate=1_000, seconds=3)
    assert 15 <= len(delays) <= 25, "the first second of three is left out"
    assert (delays > 0).all()
    table = freshness.histogram(np.array([0.05, 0.06, 0.15, 7.0]), 1_000)
    assert table.rows[0] == ("0.0 to 0.1", "50.00%", "#" * 40)
    assert table.rows[-1] == ("5.0 and more", "25.00%", "#" * 20)


def test_a_table_as_markdown() -> None:
    table = Table("Rates", ("what", "events/s"), [("ingest", "1,234"), ("fold", ">= 5.0")])
    assert markdown(table) == (
        "**Rates**\n\n| what | events/s |\n| --- | ---: |\n| ingest | 1,234 |\n| fold | >= 5.0 |\n"
    )
