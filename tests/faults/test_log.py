"""What can be wrong with the log itself, and with what stands in it."""

import json
import random
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lz4.frame
import psycopg
import pytest
from kafka import KafkaProducer

from metering.settings import Settings
from sandbox import servers
from tests.event_maker import event
from tests.faults.conftest import Started, now
from tests.faults.oracle import POISON, Traffic, send
from workers import ingest

Feed = Callable[[int], None]
Check = Callable[[], None]


def one(database: psycopg.Connection[Any], query: str) -> Any:
    row = database.execute(query).fetchone()
    assert row is not None
    return row[0]


def test_everything_again_shuffled_over_other_partitions_and_batches_changes_nothing(
    ready: Settings, database: psycopg.Connection[Any], traffic: Traffic, nothing_lost: Check
) -> None:
    """Duplicates, other contents, late and future-dated events, shuffled: each minute's totals are the oracle's."""
    records = list(traffic.records(30))
    send(ready, records)
    ingest.work(ready, until_idle=True)
    assert min(traffic.outcomes[name] for name in ("accepted", "duplicate", "conflict", "rejected")) > 10
    again: dict[tuple[str, str], dict[str, Any]] = {}
    for _, value in records:
        if value.startswith(b'[{"specversion"'):
            for made in json.loads(value):
                if (made["source"], made["id"]) in traffic.accepted:
                    again.setdefault((made["source"], made["id"]), made)
    shuffled = list(again.values())
    draw = random.Random(16)
    draw.shuffle(shuffled)
    assert len(shuffled) == len(traffic.accepted)
    traffic.outcomes["duplicate"] += len(shuffled)
    pieces = [shuffled[start : start + 37] for start in range(0, len(shuffled), 37)]
    send(ready, [(draw.randrange(4), json.dumps(piece).encode()) for piece in pieces])
    nothing_lost()


def test_poison_is_rejected_and_its_neighbours_stay(
    ready: Settings, database: psycopg.Connection[Any], traffic: Traffic, nothing_lost: Check
) -> None:
    """NUL, a lone surrogate, NaN, duplicate keys, huge integers, deep nesting, and 20 MB in a small record."""
    bomb = b'[{"id": "' + b"x" * 20_000_000 + b'"}]'
    digits = json.dumps([event("digits", now())]).replace("100", "1" * 5_000).encode()
    producer = KafkaProducer(
        bootstrap_servers=ready.kafka_bootstrap, compression_type="lz4", max_request_size=64 * 2**20
    )
    for value in (*POISON, bomb, digits, b"[" * 100_000 + b"]" * 100_000):
        producer.send(ready.kafka_topic, value, partition=1).get(timeout=30)
        traffic.outcomes["rejected"] += 1
    producer.close()
    assert len(lz4.frame.compress(bomb)) < 200_000, "it is not small on the wire"
    send(ready, traffic.records(5))
    nothing_lost()
    codes = {
        row[0] for row in database.execute("SELECT DISTINCT code FROM rejects WHERE payload_bytes > 4194304")
    }
    assert codes == {"record_too_large"}


def test_a_damaged_batch_stops_the_worker_and_nothing_is_skipped(
    ready: Settings,
    database: psycopg.Connection[Any],
    traffic: Traffic,
    servers: servers.Addresses,
    start: Started,
    nothing_lost: Check,
) -> None:
    """One bit of the log is turned over on the broker's disk, and back again."""
    records = list(traffic.records(4))
    whole = [(0, value) for _, value in records if value not in POISON]
    traffic.outcomes["rejected"] -= len(records) - len(whole)
    send(ready, whole)
    segment = servers.folder / "kafka" / f"{ready.kafka_topic}-0" / ("0" * 20 + ".log")
    worker_said = _with_a_bit_turned(segment, lambda: _run_to_its_end(start))
    assert "cannot be read on from here" in worker_said
    assert "nothing was skipped" in worker_said
    assert one(database, "SELECT next_offset FROM stream_positions WHERE partition = 0") == 0
    nothing_lost()


def _run_to_its_end(start: Started) -> str:
    began = time.monotonic()
    worker = start("ingest")
    assert worker.wait(60) == 4
    assert time.monotonic() - began < 60
    return worker.said()


def _with_a_bit_turned(path: Path, do: Callable[[], str]) -> str:
    place = path.stat().st_size // 2

    def turn() -> None:
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))

    turn()
    try:
        return do()
    finally:
        turn()


def test_a_codec_that_is_missing_stops_the_worker_by_name(
    ready: Settings, database: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kafka import codec

    from metering.errors import WrongWorld

    producer = KafkaProducer(bootstrap_servers=ready.kafka_bootstrap, compression_type="zstd")
    value = json.dumps([event(n, now() - timedelta(hours=1)) for n in range(50)]).encode()
    # the topic keeps what it is told, lz4: this one batch keeps its producer's codec
    from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=ready.kafka_bootstrap)
    admin.alter_configs(
        [ConfigResource(ConfigResourceType.TOPIC, ready.kafka_topic, {"compression.type": "producer"})]
    )
    admin.close()
    producer.send(ready.kafka_topic, value, partition=0).get(timeout=30)
    producer.close()
    assert codec.has_zstd()
    with monkeypatch.context() as broken:
        broken.setattr("kafka.record.default_records.codecs.has_zstd", lambda: False)
        with pytest.raises(WrongWorld, match=r"(?i)zstd|codec"):
            ingest.work(ready, until_idle=True)
    assert one(database, "SELECT count(*) FROM ingest_batches") == 0
    ingest.work(ready, until_idle=True)
    assert one(database, "SELECT count(*) FROM usage_events") == 50


def test_a_migration_gives_way_to_a_worker_and_a_worker_to_a_migration(
    ready: Settings,
    database: psycopg.Connection[Any],
    start: Started,
    feed: Feed,
    tmp_path: Path,
    nothing_lost: Check,
) -> None:
    """A real migration of the ledger's table, while a worker stands inside a COPY, then while it works."""
    from alembic import command
    from sqlalchemy.exc import OperationalError

    from metering.store import schema

    script = (
        "from alembic import op\nrevision = 'next'\n"
        f"down_revision = {schema.head()!r}\n"
        "def upgrade():\n"
        "    op.execute('ALTER TABLE usage_events ADD COLUMN later int')\n"
        "    op.execute('SELECT pg_sleep(2.5)')\n"
    )
    (tmp_path / "next.py").write_text(script)
    config = schema._config()
    config.set_main_option(
        "version_locations", f"{Path(schema.__file__).parents[2] / 'migrations/versions'}:{tmp_path}"
    )
    config.attributes["settings"] = ready
    feed(10)
    worker = start("ingest", at=[["inside COPY usage_events", "sleep 4"]])
    inside = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY usage_events%' AND state = 'active' "
        "AND datname = current_database()"
    )
    worker.wait_for(lambda: one(database, inside) == 1, "the worker inside COPY")
    with pytest.raises(OperationalError, match="lock timeout"):
        command.upgrade(config, "next")
    assert one(database, "SELECT version_num FROM alembic_version") == schema.head()
    worker.wait_for(
        lambda: one(database, "SELECT count(*) FROM ingest_batches") > 0, "the batch to be written"
    )
    migrating = threading.Thread(target=command.upgrade, args=(config, "next"))
    migrating.start()
    locked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(2.5)' AND state = 'active'"
    worker.wait_for(lambda: one(database, locked) > 0 or not migrating.is_alive(), "the migration")
    feed(10)
    migrating.join()
    assert one(database, "SELECT version_num FROM alembic_version") == "next"
    worker.wait_for(lambda: one(database, "SELECT sum(records) FROM ingest_batches") == 20, "the rest")
    assert "lock timeout" in worker.said(), "the worker never waited for the migration"
    database.execute("UPDATE alembic_version SET version_num = %s", (schema.head(),))
    nothing_lost()
