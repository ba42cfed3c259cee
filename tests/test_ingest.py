"""Ingest on real servers: exactly once, whatever comes in and whoever dies; compared with a plain count."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic
from sqlalchemy import text

from metering.errors import BadInput, Fenced, WrongWorld
from metering.settings import Settings
from metering.store import positions, postgres
from metering.store.chain import GENESIS
from metering.store.ledger import Ledger
from metering.stream.topics import Admin
from tests.event_maker import event, event_id, produce
from tests.ledger_part import empty_part
from workers import ingest, provision

NOW = datetime.now(UTC)


@pytest.fixture
def ready(settings: Settings) -> Settings:
    """A database with partitions and positions for the test's topic."""
    list(provision.provision(settings))
    return settings


@pytest.fixture
def database(ready: Settings) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection, for looking."""
    with psycopg.connect(ready.database_url.get_secret_value(), autocommit=True) as connection:
        yield connection


def ids(database: psycopg.Connection[Any]) -> list[str]:
    rows = database.execute(
        "SELECT CASE event_id WHEN '' THEN event_key::text ELSE event_id END FROM usage_events"
    )
    return sorted(row[0] for row in rows)


def state(database: psycopg.Connection[Any]) -> tuple[Any, ...]:
    """Everything that ingest may write, to see that nothing moved."""
    tables = ("usage_events", "rejects", "conflicts", "ingest_batches")
    return (
        *(database.execute(f"SELECT count(*) FROM {table}").fetchone() for table in tables),
        database.execute(
            "SELECT intake_id, next_offset, chain_head FROM stream_positions ORDER BY 1"
        ).fetchall(),
    )


def outcome(database: psycopg.Connection[Any]) -> dict[str, int]:
    names = ("records", "received", "accepted", "duplicate", "conflict", "rejected")
    row = database.execute(
        f"SELECT {', '.join(f'sum({name})::int' for name in names)} FROM ingest_batches"
    ).fetchone()
    return dict(zip(names, row, strict=True))


def test_every_event_ends_as_one_of_four_and_a_second_run_moves_nothing(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    at = NOW - timedelta(hours=1)
    again = event("a", at)
    other = event("a", at, usage__output_tokens=11)
    produce(ready, [[event("a", at), event("b", at), event("plain", at, id="order-7")]], partition=0)
    ingest.work(ready, until_idle=True)
    produce(
        ready,
        [[again, other, event("c", at), again], b"{", b"", [event("d", at, id="x" * 10_000)]],
        partition=0,
    )
    totals = ingest.work(ready, until_idle=True)

    assert {name: totals[name] for name in ("accepted", "duplicate", "conflict", "rejected")} == {
        "accepted": 1, "duplicate": 2, "conflict": 1, "rejected": 3,
    }  # fmt: skip
    assert outcome(database) == {
        "records": 5, "received": 10, "accepted": 4, "duplicate": 2, "conflict": 1, "rejected": 3,
    }  # fmt: skip
    assert ids(database) == sorted([event_id("a", at), event_id("b", at), event_id("c", at), "order-7"])
    # the first content stands
    assert database.execute("SELECT sum(output_tokens) FROM usage_events").fetchone() == (40,)
    codes = database.execute("SELECT code FROM rejects ORDER BY code").fetchall()
    assert codes == [("empty_record",), ("id_invalid",), ("not_json",)]
    kept = database.execute(
        "SELECT event_id, accepted_digest <> refused_digest, payload FROM conflicts"
    ).fetchone()
    assert kept is not None
    assert kept[:2] == (event_id("a", at), True)
    assert b'"output_tokens": 11' in kept[2]

    before = state(database)
    ingest.work(ready, until_idle=True)
    assert state(database) == before


def test_which_of_two_contents_came_first_is_decided_within_a_batch_too(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    at = NOW - timedelta(hours=1)
    twice = event("a", at)
    produce(ready, [[twice, event("a", at, usage__output_tokens=11), twice, event("b", at)]], partition=1)
    ingest.work(ready, until_idle=True)
    assert outcome(database) == {
        "records": 1, "received": 4, "accepted": 2, "duplicate": 1, "conflict": 1, "rejected": 0,
    }  # fmt: skip
    assert database.execute("SELECT ordinal, output_tokens FROM usage_events ORDER BY 1").fetchall() == [
        (0, 10),
        (3, 10),
    ]


def test_workers_that_are_killed_lose_and_double_nothing(
    ready: Settings, database: psycopg.Connection[Any], environment: dict[str, str]
) -> None:
    """Three workers are killed by SIGKILL again and again while 40,000 events, 10 % of them twice, come in."""
    expected, batches = set(), []
    for number in range(400):
        names = [f"{number}-{index}" for index in range(90)]
        at = NOW - timedelta(minutes=number)
        batch = [event(name, at) for name in names]
        expected.update(made["id"] for made in batch)
        batches.append(batch + batch[:10])
    producer = threading.Thread(target=produce, args=(ready, batches))
    producer.start()
    quick = {**environment, "METERING_BATCH_BYTES_TARGET": "200000", "METERING_SESSION_TIMEOUT_MS": "6000",
             "METERING_IDLE_IN_TRANSACTION_SESSION_TIMEOUT_MS": "5000"}  # fmt: skip
    command = [sys.executable, "-m", "workers.ingest"]
    kills = 0
    for _ in range(3):
        workers = [
            subprocess.Popen(command, env=quick, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            for _ in range(2)
        ]
        before = database.execute("SELECT count(*) FROM ingest_batches").fetchone()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if database.execute("SELECT count(*) FROM ingest_batches").fetchone() != before:
                break
            time.sleep(0.02)
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
            kills += worker.wait() == -signal.SIGKILL
    producer.join()
    assert kills == 6, "a worker left before it was killed: the fault was not injected"
    ingest.work(ready, until_idle=True)

    assert ids(database) == sorted(expected)
    counts = outcome(database)
    assert counts["received"] == 40_000
    assert counts["accepted"] == 36_000
    assert counts["duplicate"] == 4_000


def test_sigterm_finishes_the_batch_and_leaves(ready: Settings, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "workers.ingest"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        for line in worker.stderr:
            if "claimed" in line:
                break
        worker.send_signal(signal.SIGTERM)
        rest = worker.stderr.read()
        assert worker.wait(timeout=20) == 0
    assert "stopped on request" in rest


def test_a_worker_whose_partition_was_claimed_writes_nothing_and_claims_again(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    at = NOW - timedelta(hours=1)
    with ingest.opened(ready) as worker:
        while not worker._held:
            worker.step()
        uuid_of_topic = worker._topic.uuid
        thief = postgres.connect_driver(ready, "ingest")
        thief.autocommit = True
        for partition in range(4):
            positions.claim(thief, uuid_of_topic, partition, role=f"{ready.role_prefix}ingest", owner="thief")
        for partition in range(4):
            produce(ready, [[event(f"{partition}-{n}", at)] for n in range(5)], partition=partition)
        deadline = time.monotonic() + 20
        while worker.counts["accepted"] < 20 and time.monotonic() < deadline:
            worker.step()
        assert worker.counts["accepted"] == 20
        thief.close()
    epochs = database.execute("SELECT DISTINCT epoch FROM stream_positions").fetchall()
    assert epochs == [(3,)], "claimed by the worker, by the thief, and by the worker again"
    assert len(ids(database)) == 20


def test_two_owners_of_one_position_race_and_one_wins(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    """The compare-and-set, step by step: the older claim is fenced; without its condition it would not be."""
    with postgres.connect_driver(ready, "ingest") as one, postgres.connect_driver(ready, "ingest") as two:
        one.autocommit = two.autocommit = True
        row = database.execute("SELECT topic_uuid FROM stream_positions LIMIT 1").fetchone()
        assert row is not None
        old = positions.claim(one, row[0], 0, role=f"{ready.role_prefix}ingest", owner="one")
        new = positions.claim(two, row[0], 0, role=f"{ready.role_prefix}ingest", owner="two")
        assert (new.epoch, new.next_offset) == (old.epoch + 1, old.next_offset)
        with pytest.raises(Fenced, match="partition 0 was claimed by another worker"):
            Ledger(one, 1024).append([empty_part(old, next_offset=5)])
        assert state(database)[3] == (0,), "nothing was written"
        (appended,) = Ledger(two, 1024).append([empty_part(new, next_offset=5)])
        assert appended.claim.next_offset == 5
        assert appended.claim.chain_head != GENESIS
        # the same claim a second time: the position has moved on
        with pytest.raises(Fenced):
            Ledger(two, 1024).append([empty_part(new, next_offset=5)])
        # negative control: the row is there and would move if nobody compared
        moved = database.execute(
            "UPDATE stream_positions SET next_offset = 9 WHERE intake_id = %s", (old.intake_id,)
        ).rowcount
        assert moved == 1


def test_an_owner_that_stalls_with_the_row_locked_is_terminated(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    row = database.execute("SELECT topic_uuid FROM stream_positions LIMIT 1").fetchone()
    assert row is not None
    role = f"{ready.role_prefix}ingest"
    stalled = postgres.connect_driver(ready, "ingest")
    stalled.autocommit = True
    held = positions.claim(stalled, row[0], 2, role=role, owner="stalled")
    stalled.execute("BEGIN")
    stalled.execute("UPDATE stream_positions SET next_offset = 1 WHERE intake_id = %s", (held.intake_id,))
    with postgres.connect_driver(ready, "ingest") as other:
        other.autocommit = True
        taken = positions.claim(other, row[0], 2, role=role, owner="other")
        assert (taken.epoch, taken.next_offset) == (held.epoch + 1, 0)
        assert other.execute("SELECT current_user").fetchone() == (role,)
    with pytest.raises(psycopg.errors.AdminShutdown):
        stalled.execute("SELECT 1")


def test_positions_pass_transaction_markers_and_aborted_records(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    at = NOW - timedelta(hours=1)
    producer = KafkaProducer(bootstrap_servers=ready.kafka_bootstrap, transactional_id=f"t-{uuid.uuid4()}")
    producer.init_transactions()
    for name, commit in (("kept", True), ("aborted", False), ("kept too", True)):
        producer.begin_transaction()
        producer.send(ready.kafka_topic, json.dumps([event(name, at)]).encode(), partition=3)
        producer.flush()
        if commit:
            producer.commit_transaction()
        else:
            producer.abort_transaction()
    producer.close()
    ingest.work(ready, until_idle=True)
    assert ids(database) == sorted([event_id("kept", at), event_id("kept too", at)])
    # three records and three markers
    assert database.execute("SELECT next_offset FROM stream_positions WHERE partition = 3").fetchone() == (6,)


def test_an_event_of_a_day_without_partition_stops_the_worker_and_names_the_day(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    with postgres.connect(ready, "owner") as connection:
        connection.execute(text("UPDATE ledger_floor SET floor_at = '2025-01-01'"))
        connection.commit()
    produce(ready, [[event("old", datetime(2025, 3, 2, 12, tzinfo=UTC))]])
    with pytest.raises(
        WrongWorld, match=r"no partition for 2025-03-02.*partitions ensure 2025-03-02 2025-03-03"
    ):
        ingest.work(ready, until_idle=True)
    assert ids(database) == []
    provision.ensure_days(ready, datetime(2025, 3, 2).date(), datetime(2025, 3, 3).date())  # noqa: DTZ001
    ingest.work(ready, until_idle=True)
    assert len(ids(database)) == 1


def test_what_the_store_refuses_is_narrowed_down_to_its_record(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    """A constraint of the table stands in for whatever a later version of the store may refuse."""
    at = NOW - timedelta(hours=1)
    database.execute("ALTER TABLE usage_events ADD CONSTRAINT never_13 CHECK (output_tokens <> 13)")
    produce(ready, [[event(n, at, usage__output_tokens=n) for n in (11, 12)]], partition=0)
    produce(ready, [[event(n, at, usage__output_tokens=n) for n in (13, 14)]], partition=0)
    produce(ready, [[event(n, at, usage__output_tokens=n) for n in (15, 16)]], partition=0)
    ingest.work(ready, until_idle=True)
    assert database.execute("SELECT output_tokens FROM usage_events ORDER BY 1").fetchall() == [
        (11,),
        (12,),
        (15,),
        (16,),
    ]
    refused = database.execute("SELECT code, record_offset, index FROM rejects ORDER BY index").fetchall()
    assert refused == [("store_refused", 1, 0), ("store_refused", 1, 1)]
    assert outcome(database)["received"] == 6


def test_a_content_type_that_no_column_can_hold_is_a_reject(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    producer = KafkaProducer(bootstrap_servers=ready.kafka_bootstrap, enable_idempotence=True)
    producer.send(ready.kafka_topic, b"{}", partition=0, headers=[("content-type", b"text/\0plain")])
    producer.close()
    produce(ready, [[event("a", NOW)]], partition=0)
    assert ingest.work(ready, until_idle=True)["accepted"] == 1
    assert database.execute("SELECT code, content_type FROM rejects").fetchall() == [
        ("content_type_unknown", "text/\ufffdplain")
    ]


def test_a_source_with_a_new_series_for_every_event_is_stopped_by_name(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    at = NOW - timedelta(hours=1)
    strict = ready.model_copy(update={"series_new_per_batch_max": 10})
    runaway = [event(n, at, source="runaway", data__model_served=f"model-{n}") for n in range(50)]
    produce(ready, [[*runaway, event("good", at)]], partition=0)
    ingest.work(strict, until_idle=True)
    assert ids(database) == [event_id("good", at)]
    assert database.execute("SELECT count(*), min(code) FROM rejects").fetchone() == (50, "source_stopped")
    assert database.execute("SELECT source, stopped FROM source_stops").fetchall() == [("runaway", True)]
    assert database.execute("SELECT count(*) FROM series").fetchone() == (1,)

    produce(ready, [[event("later", at, source="runaway")]], partition=0)
    ingest.work(strict, until_idle=True)
    assert len(ids(database)) == 1, "it stays stopped"
    assert "intervention 1" in provision.resume_source(ready, "runaway", "the gateway was mended")
    produce(ready, [[event("mended", at, source="runaway")]], partition=0)
    ingest.work(strict, until_idle=True)
    assert len(ids(database)) == 2


def test_a_source_that_sends_mostly_rejects_is_stopped_and_the_others_go_on(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    at = NOW - timedelta(hours=1)
    strict = ready.model_copy(update={"reject_window_events_min": 20})
    bad = [event(n, at, source="broken", usage__cache_read_tokens=1000) for n in range(30)]
    produce(ready, [bad, [event("good", at)]], partition=0)
    ingest.work(strict, until_idle=True)
    produce(ready, [[event("fine", at, source="broken"), event("good too", at)]], partition=0)
    ingest.work(strict, until_idle=True)
    codes = Counter(row[0] for row in database.execute("SELECT code FROM rejects"))
    assert codes == {"counts_contradict": 30, "source_stopped": 1}
    assert ids(database) == sorted([event_id("good", at), event_id("good too", at)])


def test_a_source_that_makes_a_new_series_with_every_event_is_stopped_however_small_its_batches(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    at = NOW - timedelta(hours=1)
    strict = ready.model_copy(update={"reject_window_events_min": 20, "batch_records_max": 3})
    runaway = [
        [event(n, at, source="runaway", data__model_served=f"m-{n}"), event(f"good-{n}", at)]
        for n in range(40)
    ]
    produce(ready, runaway, partition=0)
    ingest.work(strict, until_idle=True)
    assert database.execute("SELECT source, reason FROM source_stops").fetchall() == [
        ("runaway", "100% of its last 21 events had a series that nobody had used before")
    ]
    assert database.execute("SELECT count(*), min(code) FROM rejects").fetchone() == (19, "source_stopped")
    assert outcome(database)["accepted"] == 61


def test_the_topic_is_stopped_only_when_every_event_is_bad_and_goes_on_only_by_an_intervention(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    """Bytes without a source count to the topic; what another worker accepts meanwhile holds the brake off."""
    at = NOW - timedelta(hours=1)
    strict = ready.model_copy(update={"reject_window_events_min": 20, "batch_records_max": 5})
    produce(ready, [b"{"] * 19 + [[event("good", at)]] + [b"{"] * 19, partition=0)
    ingest.work(strict, until_idle=True)
    assert database.execute("SELECT count(*) FROM source_stops").fetchone() == (0,)

    with ingest.opened(strict) as worker:

        def step_to(rejected: int) -> None:
            while worker.counts["rejected"] < rejected:
                worker.step()

        produce(ready, [b"{"] * 10, partition=0)
        step_to(10)
        # a batch of another worker, as far as the table tells
        database.execute("UPDATE ingest_batches SET committed_at = clock_timestamp() WHERE accepted = 1")
        produce(ready, [b"{"] * 10, partition=0)
        step_to(20)
        assert database.execute("SELECT count(*) FROM source_stops").fetchone() == (0,)
        produce(ready, [b"{"] * 30, partition=0)
        stopped = r"is stopped: its last \d+ events were rejects.*stream resume --topic"
        with pytest.raises(WrongWorld, match=stopped):
            step_to(50)
    assert worker.counts["rejected"] in range(40, 46)
    before = state(database)
    for _ in range(2):
        with pytest.raises(WrongWorld, match="is stopped"):
            ingest.work(strict, until_idle=True)
    assert state(database) == before, "nothing more is read"
    assert database.execute("SELECT source FROM source_stops").fetchall() == [("",)]
    with pytest.raises(BadInput, match="source 'gateway-1' is not stopped"):
        provision.resume_source(ready, "gateway-1", "it was mended")
    assert "topic 'test-" in provision.resume_source(ready, "", "the codec was mended")
    produce(ready, [[event("mended", at)]], partition=0)
    ingest.work(ready, until_idle=True)
    assert ids(database) == sorted([event_id("good", at), event_id("mended", at)])
    with pytest.raises(BadInput, match="is not stopped"):
        provision.resume_source(ready, "", "again")


def test_a_batch_that_is_halved_counts_once(ready: Settings, database: psycopg.Connection[Any]) -> None:
    at = NOW - timedelta(hours=1)
    database.execute("ALTER TABLE usage_events ADD CONSTRAINT never_13 CHECK (output_tokens <> 13)")
    strict = ready.model_copy(update={"reject_window_events_min": 16})
    bad = [[event(f"bad-{n}", at, usage__cache_read_tokens=1000)] for n in range(6)]
    good = [[event(n, at, usage__output_tokens=n)] for n in range(12, 15)]
    produce(ready, bad + good, partition=0)
    ingest.work(strict, until_idle=True)
    assert outcome(database)["rejected"] == 7
    assert database.execute("SELECT count(*) FROM source_stops").fetchone() == (0,), "9 events, 7 of them bad"


def test_a_batch_stays_small_when_records_grow_all_at_once(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    at = NOW - timedelta(hours=1)
    narrow = ready.model_copy(update={"batch_bytes_target": 8_192, "record_bytes_max": 16_384})
    small = [[event(n, at)] for n in range(12)]
    large = [[event(f"large {n} {m}", at) for m in range(8)] for n in range(24)]
    produce(ready, small + large, partition=0)
    ingest.work(narrow, until_idle=True)
    assert outcome(database)["accepted"] == 12 + 24 * 8
    sizes = [len(json.dumps(record)) for record in small + large]
    assert sizes[-1] > 6 * sizes[0]
    spans = database.execute("SELECT first_offset, next_offset FROM ingest_batches ORDER BY 1").fetchall()
    assert max(sum(sizes[first:until]) for first, until in spans) <= 2 * narrow.batch_bytes_target
    assert max(until - first for first, until in spans) > 1


def test_a_topic_made_again_stops_the_worker_until_it_is_adopted(
    ready: Settings, database: psycopg.Connection[Any], kafka_admin: KafkaAdminClient
) -> None:
    at = NOW - timedelta(hours=1)
    produce(ready, [[event("before", at)]])
    ingest.work(ready, until_idle=True)
    kafka_admin.delete_topics([ready.kafka_topic])
    with Admin(ready) as admin:
        while admin.find() is not None:
            time.sleep(0.05)
    with pytest.raises(WrongWorld, match="has no topic"):
        ingest.work(ready, until_idle=True)
    kafka_admin.create_topics(
        [NewTopic(ready.kafka_topic, 4, 1, topic_configs={"message.timestamp.type": "LogAppendTime"})]
    )
    kafka_admin.wait_for_topics([ready.kafka_topic])
    produce(ready, [[event("after", at)]])
    with pytest.raises(WrongWorld, match="was deleted and made again"):
        ingest.work(ready, until_idle=True)
    with pytest.raises(WrongWorld, match="stream adopt"):
        list(provision.provision(ready))
    assert len(list(provision.adopt_topic(ready, "the cluster was rebuilt"))) == 4
    ingest.work(ready, until_idle=True)
    assert ids(database) == sorted([event_id("before", at), event_id("after", at)])
    row = database.execute("SELECT kind, reason, details->>'topic' FROM interventions").fetchone()
    assert row == ("adopt", "the cluster was rebuilt", ready.kafka_topic)


def test_seen_until_follows_the_log_and_an_idle_partition(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    produce(ready, [[event("a", NOW - timedelta(hours=1))]], partition=0)
    ingest.work(ready, until_idle=True)
    seen = [row[0] for row in database.execute("SELECT seen_until FROM stream_positions ORDER BY partition")]
    assert all(at is not None and at > NOW - timedelta(seconds=30) for at in seen), seen


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "METERING_DATABASE_URL",
            "postgresql://127.0.0.1:1/none",
            "cannot reach Postgres at 127.0.0.1:1/none",
        ),
        ("METERING_KAFKA_BOOTSTRAP", "127.0.0.1:1", "cannot reach Kafka at 127.0.0.1:1"),
    ],
)
def test_nothing_answers_at_the_address(
    ready: Settings, environment: dict[str, str], variable: str, value: str, message: str
) -> None:
    command = [sys.executable, "-m", "workers.ingest", "--until-idle"]
    done = subprocess.run(command, env={**environment, variable: value}, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert f"metering: {message}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("0001", "at migration 0001, this program needs .*metering init"),
        ("9999", "newer than this program knows"),
    ],
)
def test_a_database_at_another_migration(
    ready: Settings, database: psycopg.Connection[Any], version: str, message: str
) -> None:
    database.execute("UPDATE alembic_version SET version_num = %s", (version,))
    with pytest.raises(WrongWorld, match=message):
        ingest.work(ready, until_idle=True)


def test_a_database_without_tables(settings: Settings, empty_database_url: str) -> None:
    empty = settings.model_copy(update={"database_url": type(settings.database_url)(empty_database_url)})
    with pytest.raises(WrongWorld, match="metering init"):
        ingest.work(empty, until_idle=True)


def test_a_topic_that_does_not_exist(ready: Settings) -> None:
    lost = ready.model_copy(update={"kafka_topic": f"lost-{os.getpid()}"})
    with pytest.raises(WrongWorld, match=r"has no topic 'lost-.*metering init"):
        ingest.work(lost, until_idle=True)


def test_a_ledger_reads_one_topic(
    ready: Settings, database: psycopg.Connection[Any], kafka_admin: KafkaAdminClient
) -> None:
    other = ready.model_copy(update={"kafka_topic": f"{ready.kafka_topic}-other"})
    with pytest.raises(WrongWorld, match=f"reads topic '{ready.kafka_topic}'.*one topic.*stream adopt"):
        list(provision.provision(other))
    assert database.execute("SELECT count(*) FROM stream_positions").fetchone() == (4,)
    assert len(list(provision.adopt_topic(other, "the topic was renamed"))) == 4
    produce(other, [[event("a", NOW - timedelta(hours=1))]])
    ingest.work(other, until_idle=True)
    assert len(ids(database)) == 1
    active = database.execute(
        "SELECT DISTINCT topic FROM stream_positions WHERE retired_at IS NULL"
    ).fetchall()
    assert active == [(other.kafka_topic,)]
