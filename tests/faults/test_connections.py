"""Connections that are cut, stall or are refused between a worker and its servers."""

import random
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from metering.settings import Settings
from sandbox import postgres, servers
from tests.faults.conftest import Started
from tests.faults.proxy import Proxy

Start = Started
Feed = Callable[[int], None]
Check = Callable[[], None]


@pytest.fixture
def postgres_proxy(servers: servers.Addresses) -> Iterator[Proxy]:
    with Proxy(str(postgres.socket_folder(servers.folder) / ".s.PGSQL.5432")) as proxy:
        yield proxy


@pytest.fixture
def kafka_proxy(servers: servers.Addresses) -> Iterator[Proxy]:
    host, port = servers.kafka_bootstrap.rsplit(":", 1)
    with Proxy((host, int(port))) as proxy:
        yield proxy


def through(settings: Settings, proxy: Proxy, user: str = postgres.USER) -> Settings:
    """The settings with the database behind the proxy."""
    name = conninfo_to_dict(settings.database_url.get_secret_value())["dbname"]
    return settings.model_copy(
        update={"database_url": SecretStr(f"postgresql://{user}@{proxy.address}/{name}")}
    )


def batches(database: psycopg.Connection[Any]) -> int:
    row = database.execute("SELECT count(*) FROM ingest_batches").fetchone()
    assert row is not None
    return int(row[0])


def records(database: psycopg.Connection[Any]) -> int:
    row = database.execute("SELECT coalesce(sum(records), 0) FROM ingest_batches").fetchone()
    assert row is not None
    return int(row[0])


def test_the_reply_to_a_commit_is_lost_and_the_position_decides(
    ready: Settings,
    database: psycopg.Connection[Any],
    start: Start,
    feed: Feed,
    postgres_proxy: Proxy,
    nothing_lost: Check,
) -> None:
    feed(5)
    worker = start("ingest", settings=through(ready, postgres_proxy))
    worker.wait_for(lambda: batches(database) > 0, "a first batch")
    for _ in range(3):
        before, lost = batches(database), postgres_proxy.hits["swallowed"]
        postgres_proxy.swallow_reply_to(b"COMMIT\0", after=b"INSERT INTO ingest_batches")
        feed(3)
        worker.wait_for(lambda lost=lost: postgres_proxy.hits["swallowed"] > lost, "a reply that is lost")
        worker.wait_for(lambda before=before: batches(database) > before, "the batch whose reply was lost")
    assert postgres_proxy.hits["swallowed"] == 3
    worker.wait_for(lambda: worker.said().count('"unavailable"') == 3, "the worker to notice each time")
    nothing_lost()


def test_postgres_is_slow_and_cut_off_again_and_again(
    ready: Settings, start: Start, feed: Feed, postgres_proxy: Proxy, nothing_lost: Check
) -> None:
    draw = random.Random(23)
    through_proxy = through(ready.model_copy(update={"batch_bytes_target": 40_000}), postgres_proxy)
    workers = [start("ingest", settings=through_proxy), start("fold", settings=through_proxy)]
    for number in range(6):
        cut = postgres_proxy.hits["cut"]
        postgres_proxy.delay_seconds = 0.005 if number % 2 else 0.0
        postgres_proxy.cut_after(draw.randrange(2_000, 30_000))
        feed(4)
        workers[0].wait_for(lambda cut=cut: postgres_proxy.hits["cut"] > cut, "a connection that is cut")
    assert postgres_proxy.hits["delayed"] > 0
    assert [worker.code for worker in workers] == [None, None], "a cut connection is no reason to end"
    nothing_lost()


def test_kafka_is_slow_cut_off_and_refuses(
    ready: Settings,
    database: psycopg.Connection[Any],
    start: Start,
    feed: Feed,
    kafka_proxy: Proxy,
    nothing_lost: Check,
) -> None:
    worker = start(
        "ingest", settings=ready.model_copy(update={"batch_bytes_target": 40_000}), kafka=kafka_proxy.address
    )
    worker.wait_for(lambda: "claimed" in worker.said(), "a first claim")
    for number in range(6):
        feed(6)
        kafka_proxy.delay_seconds = 0.02 if number % 2 else 0.0
        # between two cuts it connects again
        worker.wait_for(lambda: kafka_proxy.cut() > 0, "a connection to cut")
    kafka_proxy.delay_seconds = 0.0
    kafka_proxy.refusing = True
    kafka_proxy.cut()
    feed(5)
    worker.wait_for(lambda: kafka_proxy.hits["refused"] > 0, "a connection that is refused")
    kafka_proxy.refusing = False
    assert kafka_proxy.hits["delayed"] > 0
    worker.wait_for(lambda: records(database) == 41, "the worker to read on", seconds=60)
    nothing_lost()


def test_a_half_open_connection_to_postgres_is_given_up(
    ready: Settings,
    database: psycopg.Connection[Any],
    start: Start,
    feed: Feed,
    postgres_proxy: Proxy,
    nothing_lost: Check,
) -> None:
    """Nothing comes back any more, not even an acknowledgement: the client's keepalives end it."""
    feed(5)
    worker = start("ingest", settings=through(ready, postgres_proxy))
    worker.wait_for(lambda: batches(database) > 0, "a first batch")
    assert postgres_proxy.blackhole() > 0
    feed(5)
    worker.wait_for(lambda: '"unavailable"' in worker.said(), "the connection to be given up", seconds=45)
    worker.wait_for(lambda: worker.said().count('"claimed"') > 4, "a claim over a new connection")
    nothing_lost()


def test_a_half_open_connection_to_kafka_is_given_up(
    ready: Settings,
    database: psycopg.Connection[Any],
    start: Start,
    feed: Feed,
    kafka_proxy: Proxy,
    nothing_lost: Check,
) -> None:
    feed(5)
    worker = start("ingest", kafka=kafka_proxy.address, consumer={"request_timeout_ms": 7_000})
    worker.wait_for(lambda: batches(database) > 0, "a first batch")
    before = batches(database)
    assert kafka_proxy.blackhole() > 0
    feed(5)
    worker.wait_for(lambda: batches(database) > before, "a batch over a new connection", seconds=45)
    nothing_lost()


def test_a_backend_is_terminated_inside_a_copy(
    database: psycopg.Connection[Any], start: Start, feed: Feed, nothing_lost: Check
) -> None:
    feed(5)
    worker = start("ingest", at=[["inside COPY usage_events", "sleep 1"]])
    terminated: list[Any] = []

    def terminate() -> bool:
        terminated.extend(
            database.execute(
                "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name = 'metering ingest' AND query LIKE 'COPY usage_events%%' AND state = 'active'"
            ).fetchall()
        )
        return terminated != []

    worker.wait_for(terminate, "a backend inside COPY")
    assert terminated == [(True,)]
    worker.wait_for(lambda: batches(database) > 0, "a batch over a new connection")
    assert '"unavailable"' in worker.said()
    nothing_lost()


def test_no_connection_is_left_for_the_worker(
    ready: Settings,
    database: psycopg.Connection[Any],
    start: Start,
    feed: Feed,
    postgres_proxy: Proxy,
    nothing_lost: Check,
) -> None:
    user = f"worker_{uuid.uuid4().hex}"
    groups = ", ".join(f"{ready.role_prefix}{role}" for role in ("ingest", "read"))
    database.execute(f"CREATE ROLE {user} LOGIN CONNECTION LIMIT 0 IN ROLE {groups}")
    try:
        feed(5)
        worker = start("ingest", settings=through(ready, postgres_proxy, user))
        worker.wait_for(lambda: worker.said().count("too many connections") >= 2, "the refusal, twice")
        database.execute(f"ALTER ROLE {user} CONNECTION LIMIT 5")
        worker.wait_for(lambda: batches(database) > 0, "a batch")
        worker.send(15)
        assert worker.wait() == 0
    finally:
        database.execute(f"DROP ROLE {user}")
    nothing_lost()
