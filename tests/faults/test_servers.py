"""Servers that stop, die and start again under the workers, and a disk that is full."""

import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from metering.settings import Settings, read_settings
from sandbox import kafka, postgres, processes, servers
from tests.faults.conftest import QUICK, Started, now
from tests.faults.oracle import Traffic, differences, send
from tests.faults.small_disk import mounted
from tests.faults.worker import Nursery, Worker
from workers import fold, ingest, provision, settle

#: How many records of the topic were read; settle has batches of its own.
RECORDS = "SELECT coalesce(sum(records), 0) FROM ingest_batches JOIN stream_positions USING (intake_id) WHERE kind = 'kafka'"
RESTARTS = {
    "Postgres, fast": (postgres.NAME, postgres.pid_file, signal.SIGINT),
    "Postgres, immediate": (postgres.NAME, postgres.pid_file, signal.SIGQUIT),
    "broker, asked": (kafka.NAME, kafka.pid_file, signal.SIGTERM),
    "broker, killed": (kafka.NAME, kafka.pid_file, signal.SIGKILL),
}


def test_servers_are_restarted_under_the_workers(
    nursery: Nursery, own_servers: servers.Addresses, cache_folder: Path, traffic: Traffic
) -> None:
    settings = read_settings(
        database_url=own_servers.database_url, kafka_bootstrap=own_servers.kafka_bootstrap, **QUICK
    ).model_copy(update={"batch_bytes_target": 40_000})
    list(provision.provision(settings))
    started = Started(nursery, settings)
    workers = [started("ingest"), started("ingest"), started("settle"), started("fold")]
    total = 0

    def read() -> int:
        try:
            with psycopg.connect(own_servers.database_url) as connection:
                row = connection.execute(RECORDS).fetchone()
            return int(row[0]) if row else 0
        except psycopg.OperationalError:
            return -1

    try:
        for what, (name, pid_file, number) in RESTARTS.items():
            send(settings, traffic.records(15))
            total += 15
            stopped = processes.stop(name, pid_file(own_servers.folder), ((number, 40.0),))
            assert stopped, f"{what}: there was nothing to stop"
            servers.up(own_servers.folder, cache=cache_folder)
            _wait(workers, lambda total=total: read() == total, f"the rest to be read after: {what}")
        assert [worker.code for worker in workers] == [None] * 4, "a restart is no reason to end"
        assert all('"unavailable"' in worker.said() for worker in workers)
    finally:
        started.kill()
    ingest.work(settings, until_idle=True)
    settle.run(until_idle=True, settings=settings)
    fold.run(until_idle=True, settings=settings)
    with psycopg.connect(own_servers.database_url) as connection:
        assert differences(settings, connection, traffic) == []


def _wait(workers: list[Worker], done: Callable[[], bool], what: str) -> None:
    """Any of the workers may end it, none may end."""
    workers[0].wait_for(done, what, seconds=90)


def test_the_disk_of_the_ledger_is_full_for_a_while(
    ready: Settings,
    database: psycopg.Connection[Any],
    start: Started,
    feed: Callable[[int], None],
    nothing_lost: Callable[[], None],
    servers: servers.Addresses,
) -> None:
    name = f"small_{uuid.uuid4().hex}"
    with mounted(servers.folder.parent / name, database, name) as disk:
        if disk is None:
            pytest.skip("only root may mount a small file system, to fill it")
        try:
            disk.move(now().date())
            worker = start("ingest", settings=ready.model_copy(update={"batch_bytes_target": 40_000}))
            feed(5)
            worker.wait_for(lambda: _batches(database) > 0, "a first batch")
            before = _batches(database)
            with disk.full():
                feed(40)
                worker.wait_for(
                    lambda: worker.said().count("No space left on device") >= 2, "the disk to be full, twice"
                )
                stuck = _batches(database)
            worker.wait_for(lambda: _records(database) == 45, "the rest, once there is room again")
            assert before <= stuck < _batches(database)
            nothing_lost()
        finally:
            start.kill()
            for (table,) in database.execute(
                "SELECT oid::regclass::text FROM pg_class WHERE reltablespace = "
                "(SELECT oid FROM pg_tablespace WHERE spcname = %s) AND relnamespace = 'public'::regnamespace",
                (name,),
            ).fetchall():
                kind = "INDEX" if _is_index(database, table) else "TABLE"
                database.execute(f"ALTER {kind} {table} SET TABLESPACE pg_default")
            database.execute(f"DROP TABLESPACE {name}")


def _is_index(database: psycopg.Connection[Any], name: str) -> bool:
    row = database.execute("SELECT relkind = 'i' FROM pg_class WHERE oid = %s::regclass", (name,)).fetchone()
    assert row is not None
    return bool(row[0])


def _batches(database: psycopg.Connection[Any]) -> int:
    row = database.execute("SELECT count(*) FROM ingest_batches").fetchone()
    assert row is not None
    return int(row[0])


def _records(database: psycopg.Connection[Any]) -> int:
    row = database.execute(RECORDS).fetchone()
    assert row is not None
    return int(row[0])
