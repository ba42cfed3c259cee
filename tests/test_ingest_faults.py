"""Faults on the way from Kafka to the ledger, each injected on the real servers and each seen to have struck."""

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewPartitions, NewTopic
from kafka.cluster import ClusterMetadata

from metering.errors import Unavailable, WrongWorld
from metering.events.identity import uuid7_text
from metering.settings import Settings
from metering.store import positions, postgres, schema
from metering.store.batch import Batch, Indexes, Part
from metering.store.ledger import Ledger
from metering.store.verify import verify
from metering.stream.consumer import Consumer
from tests.event_maker import event, event_id, produce
from workers import ingest, provision
from workers.ingest import Ingest

NOW = datetime.now(UTC)
AT = NOW - timedelta(hours=1)


@pytest.fixture
def ready(settings: Settings) -> Settings:
    """A database with partitions and positions for the test's topic; idle partitions confirm at once."""
    list(provision.provision(settings))
    return settings.model_copy(update={"idle_refresh_seconds": 0.1, "clock_skew_seconds": 0})


@pytest.fixture
def database(ready: Settings) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection, for looking and for breaking things."""
    with psycopg.connect(ready.database_url.get_secret_value(), autocommit=True) as connection:
        yield connection


def one(database: psycopg.Connection[Any], query: str, *values: object) -> Any:
    row = database.execute(query, values).fetchone()
    assert row is not None
    return row[0] if len(row) == 1 else row


def outcome(database: psycopg.Connection[Any]) -> tuple[int, ...]:
    """Events accepted, duplicate, in conflict, rejected."""
    names = ("accepted", "duplicate", "conflict", "rejected")
    found: tuple[int, ...] = one(
        database, f"SELECT {', '.join(f'sum({name})::int' for name in names)} FROM ingest_batches"
    )
    return found


def step_until(worker: Ingest, done: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not come to that"
        worker.step()


def raising(database: psycopg.Connection[Any], sqlstate: str, times: int) -> None:
    """Let the first `times` attempts to write a ledger row fail with an SQLSTATE; `attempts` counts them."""
    database.execute("CREATE SEQUENCE attempts")
    database.execute(
        f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN "
        f"IF nextval('attempts') <= {times} THEN RAISE EXCEPTION 'injected' USING ERRCODE = '{sqlstate}'; END IF; "
        "RETURN NEW; END $$"
    )
    database.execute("CREATE TRIGGER fail BEFORE INSERT ON usage_events FOR EACH ROW EXECUTE FUNCTION fail()")


def test_a_conflict_whose_key_ends_in_zeros_is_kept_and_harms_no_neighbour(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    key = uuid7_text(AT, b"123456789\0")
    assert key.endswith("00")
    produce(ready, [[event("a", AT, id=key)]], partition=0)
    produce(ready, [[event("a", AT, id=key, usage__output_tokens=11), event("b", AT)]], partition=0)
    ingest.work(ready, until_idle=True)
    assert outcome(database) == (2, 0, 1, 0)
    assert one(database, "SELECT event_key FROM conflicts") == UUID(key)


def test_a_whole_batch_of_conflicts_is_kept_within_the_time_of_a_statement(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    for output_tokens in (10, 11):
        produce(
            ready,
            [
                [event(f"{record}-{n}", AT, usage__output_tokens=output_tokens) for n in range(500)]
                for record in range(8)
            ],
            partition=0,
        )
    ingest.work(ready.model_copy(update={"statement_timeout_ms": 3_000}), until_idle=True)
    assert outcome(database) == (4_000, 0, 4_000, 0)
    payload = bytes(one(database, "SELECT payload FROM conflicts WHERE event_id = %s", event_id("3-7", AT)))
    assert payload == database.execute("SELECT payload FROM conflicts WHERE index = 7").fetchall()[3][0]


@pytest.mark.parametrize("sqlstate", ["40P01", "40001", "55P03"])
def test_a_lock_that_does_not_come_is_tried_again_before_the_worker_lets_go(
    ready: Settings, database: psycopg.Connection[Any], sqlstate: str
) -> None:
    raising(database, sqlstate, times=1)
    produce(ready, [[event("a", AT), event("b", AT)]])
    ingest.work(ready, until_idle=True)
    assert one(database, "SELECT last_value FROM attempts") > 1, "the fault was not injected"
    assert outcome(database) == (2, 0, 0, 0)
    assert database.execute("SELECT DISTINCT epoch FROM stream_positions").fetchall() == [(1,)]


def test_a_lock_that_never_comes_ends_in_unavailable(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    raising(database, "40P01", times=1_000)
    produce(ready, [[event("a", AT)]])
    with pytest.raises(Unavailable, match="40P01"):
        ingest.work(ready, until_idle=True)
    assert 1 < one(database, "SELECT last_value FROM attempts") < 10


def test_a_worker_that_stalls_inside_a_transaction_loses_it_and_connects_again(
    ready: Settings, database: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Ledger._write_rejects
    stalls: list[int] = []

    def stall(ledger: Ledger, part: Part, batch_id: int) -> None:
        if not stalls:
            stalls.append(batch_id)
            time.sleep(0.5)
        write(ledger, part, batch_id)

    monkeypatch.setattr(Ledger, "_write_rejects", stall)
    produce(ready, [[event("a", AT)]])
    impatient = ready.model_copy(update={"idle_in_transaction_session_timeout_ms": 200})
    with pytest.raises(Unavailable):
        ingest.work(impatient, until_idle=True)
    assert stalls
    assert one(database, "SELECT count(*) FROM usage_events") == 0
    ingest.work(impatient, until_idle=True)
    assert outcome(database) == (1, 0, 0, 0)


def test_keys_that_others_append_between_every_two_attempts_are_all_found(
    ready: Settings, database: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(ready, [[event("template", AT)]])
    ingest.work(ready, until_idle=True)
    names = iter(range(9))

    def another_appears() -> None:
        database.execute(
            "INSERT INTO usage_events SELECT (jsonb_populate_record(u, jsonb_build_object('event_key', %s::text))).* "
            "FROM usage_events u WHERE event_key = %s",
            (event_id(next(names), AT), event_id("template", AT)),
        )

    look_up = Ledger._lookup

    def raced(ledger: Ledger, batch: Batch, chosen: Indexes) -> dict[int, int]:
        found = look_up(ledger, batch, chosen)
        another_appears()
        return found

    monkeypatch.setattr(Ledger, "_lookup", raced)
    another_appears()
    produce(ready, [[event(n, AT) for n in range(9)]])
    with pytest.raises(StopIteration):
        ingest.work(ready, until_idle=True)
    monkeypatch.setattr(Ledger, "_lookup", look_up)
    ingest.work(ready, until_idle=True)
    assert one(database, "SELECT count(*) FROM usage_events") == 10


def test_an_idle_partition_that_was_claimed_by_another_is_claimed_again(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    """Else nobody would confirm it as read to its end, and no period would ever be complete."""
    with ingest.opened(ready) as worker:
        step_until(worker, lambda: len(worker._held) == 4)
        with postgres.connect_driver(ready, "ingest") as thief:
            thief.autocommit = True
            role = f"{ready.role_prefix}ingest"
            for partition in range(4):
                positions.claim(thief, worker._topic.uuid, partition, role=role, owner="thief")
        step_until(worker, lambda: one(database, "SELECT min(epoch) FROM stream_positions") == 3)
        claimed_at = datetime.now(UTC)
        step_until(
            worker,
            lambda: (
                one(database, "SELECT coalesce(min(seen_until), 'epoch') FROM stream_positions") > claimed_at
            ),
        )


def test_a_record_of_an_open_transaction_holds_seen_until_back(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    """It was appended already and will be read later: nobody may say that all until now was seen."""
    seen = "SELECT seen_until FROM stream_positions WHERE partition = 3"
    producer = KafkaProducer(bootstrap_servers=ready.kafka_bootstrap, transactional_id=f"t-{uuid.uuid4()}")
    producer.init_transactions()
    with ingest.opened(ready) as worker:
        step_until(worker, lambda: one(database, seen) is not None)
        producer.begin_transaction()
        appended = producer.send(ready.kafka_topic, b"{", partition=3).get(timeout=10)
        for _ in range(6):
            worker.step()
        assert one(database, seen) <= datetime.fromtimestamp(appended.timestamp / 1000, tz=UTC)
        producer.abort_transaction()
        producer.close()
        aborted_at = datetime.now(UTC)
        step_until(worker, lambda: bool(one(database, seen) > aborted_at))
    # the aborted record and its marker
    assert one(database, "SELECT next_offset FROM stream_positions WHERE partition = 3") == 2


def test_a_partition_that_was_added_is_confirmed_too(
    ready: Settings,
    database: psycopg.Connection[Any],
    kafka_admin: KafkaAdminClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ingest.opened(ready) as worker:
        step_until(worker, lambda: len(worker._held) == 4)
        kafka_admin.create_partitions({ready.kafka_topic: NewPartitions(total_count=5)})
        list(provision.provision(ready))
        cluster = worker._consumer._kafka._manager.cluster
        assert isinstance(cluster, ClusterMetadata)
        cluster.request_update()
        step_until(worker, lambda: 4 in worker._held)
        step_until(
            worker, lambda: one(database, "SELECT count(seen_until) FROM stream_positions") == 5, seconds=5
        )


def test_a_producers_clock_never_moves_seen_until(
    ready: Settings, database: psycopg.Connection[Any], kafka_admin: KafkaAdminClient
) -> None:
    """A topic that somebody else made may carry the producers' stamps."""
    theirs = ready.model_copy(update={"kafka_topic": f"theirs-{uuid.uuid4().hex}"})
    kafka_admin.create_topics(
        [NewTopic(theirs.kafka_topic, 1, 1, topic_configs={"message.timestamp.type": "CreateTime"})]
    )
    kafka_admin.wait_for_topics([theirs.kafka_topic])
    list(provision.adopt_topic(theirs, "the topic that somebody else made"))
    ahead = int((datetime.now(UTC) + timedelta(minutes=50)).timestamp() * 1000)
    producer = KafkaProducer(bootstrap_servers=theirs.kafka_bootstrap)
    producer.send(theirs.kafka_topic, b"{", timestamp_ms=ahead)
    producer.close()
    ingest.work(theirs, until_idle=True)
    assert outcome(database) == (0, 0, 0, 1)
    assert one(database, "SELECT max(seen_until) FROM stream_positions") <= datetime.now(UTC)


def test_the_second_of_two_migrations_waits_for_the_first(
    settings: Settings, empty_database_url: str
) -> None:
    empty = settings.model_copy(update={"database_url": type(settings.database_url)(empty_database_url)})
    second = threading.Thread(target=schema.upgrade, args=(empty,))
    with psycopg.connect(empty_database_url, autocommit=True) as first:
        first.execute("SELECT pg_advisory_lock(%s)", (0x6D657465,))
        second.start()
        second.join(1.5)
        assert second.is_alive()
    second.join(30)
    with postgres.connect(empty, "read") as connection:
        schema.check_version(connection)


def test_a_missing_day_of_the_rejects_is_named_as_that(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    for day in (NOW, datetime.now(UTC)):
        database.execute(f"DROP TABLE IF EXISTS rejects_{day:%Y%m%d}")
    produce(ready, [b"{"], partition=0)
    with pytest.raises(WrongWorld, match=r"table rejects has no partition.*metering init"):
        ingest.work(ready, until_idle=True)
    list(provision.provision(ready))
    ingest.work(ready, until_idle=True)
    assert outcome(database) == (0, 0, 0, 1)


def test_a_series_that_the_store_refuses_is_narrowed_down_to_its_record(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    database.execute("ALTER TABLE series ADD CONSTRAINT never CHECK (model_served <> 'never')")
    produce(
        ready, [[event("a", AT)], [event("b", AT, data__model_served="never")], [event("c", AT)]], partition=0
    )
    ingest.work(ready, until_idle=True)
    assert outcome(database) == (2, 0, 0, 1)
    assert one(database, "SELECT code FROM rejects") == "store_refused"


def test_two_workers_with_the_same_events_keep_each_once_and_the_chain_holds(
    ready: Settings, database: psycopg.Connection[Any], environment: dict[str, str]
) -> None:
    """Partitions 0 and 1 carry the same 3,000 ids, 2 and 3 other contents of a third of them."""
    for partition in range(4):
        count, tokens = (100, 10) if partition < 2 else (33, 11)
        produce(
            ready,
            [[event(f"{r}-{n}", AT, usage__output_tokens=tokens) for n in range(count)] for r in range(30)],
            partition=partition,
        )
    command = [sys.executable, "-m", "workers.ingest", "--until-idle"]
    small = {**environment, "METERING_BATCH_BYTES_TARGET": "100000"}
    workers = [subprocess.Popen(command, env=small, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for worker in workers:
        _, said = worker.communicate(timeout=40)
        assert worker.returncode == 0, said
    accepted, duplicate, conflict, rejected = outcome(database)
    assert (accepted, rejected) == (3_000, 0)
    assert duplicate + conflict == 3_000 + 2 * 990
    assert one(database, "SELECT count(*) FROM conflicts") == conflict
    with postgres.reading(ready) as connection:
        differences = [check for check in verify(connection, roots=True) if check.difference]
    assert differences == []


def test_three_inits_at_once_on_nothing(environment: dict[str, str], empty_database_url: str) -> None:
    fresh = {
        **environment,
        "METERING_DATABASE_URL": empty_database_url,
        "METERING_KAFKA_TOPIC": f"fresh-{uuid.uuid4().hex}",
    }
    command = [sys.executable, "-m", "metering", "init"]
    inits = [subprocess.Popen(command, env=fresh, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for init in inits:
        _, said = init.communicate(timeout=60)
        assert init.returncode == 0, said
    with psycopg.connect(empty_database_url) as connection:
        assert one(connection, "SELECT count(*), count(DISTINCT partition) FROM stream_positions") == (4, 4)


def test_a_group_that_does_not_take_the_worker_in_is_left(
    ready: Settings, database: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is missed by the client, as a broken library or broker would have it."""
    assigned = Consumer._assigned

    def forget(consumer: Consumer, partitions: list[int]) -> None:
        assigned(consumer, partitions)
        consumer._unjoined_seconds = 0.0

    monkeypatch.setattr("metering.stream.consumer._UNJOINED_SESSIONS_MAX", 0.001)
    monkeypatch.setattr(Consumer, "_assigned", forget)
    with pytest.raises(Unavailable, match="has not taken this worker in"):
        ingest.work(ready, until_idle=True)
    monkeypatch.undo()
    ingest.work(ready, until_idle=True)
