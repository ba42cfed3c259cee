"""The benchmarks' own servers and databases: a throw-away sandbox, databases copied from a template."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg
from kafka.admin import KafkaAdminClient

from bench.measures import Progress
from metering.settings import Settings, read_settings
from metering.store import partitions, postgres, schema
from sandbox import kafka, processes, servers
from sandbox import postgres as sandbox_postgres
from workers.provision import provision

PARTITIONS: Final = 4


@dataclass(frozen=True)
class Ground:
    """Running servers, and the database that every other is copied from: migrated, with its partitions."""

    bootstrap: str
    server_url: str  # of the database `postgres`, as a user who may make databases
    template: str
    broker_pid: int | None = None  # where it runs on this machine

    def url(self, database: str) -> str:
        """The URL of another database of the same server."""
        head, _, query = self.server_url.partition("?")
        return f"{head.rsplit('/', 1)[0]}/{database}" + (f"?{query}" if query else "")

    def settings(self, database: str, partitions: int = PARTITIONS) -> Settings:
        """Settings that lead to a database, and to a topic and group of the same name."""
        return read_settings(
            database_url=self.url(database),
            kafka_bootstrap=self.bootstrap,
            kafka_topic=database,
            kafka_partitions=partitions,
            consumer_group=database,
        )

    @contextmanager
    def administrator(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection in autocommit to the server."""
        with psycopg.connect(self.server_url, autocommit=True) as connection:
            yield connection

    @contextmanager
    def database(self, purpose: str) -> Iterator[str]:
        """The name of an empty, ready database that is dropped at the end."""
        name = f"bench_{purpose}_{uuid.uuid4().hex[:8]}"
        with self.administrator() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        try:
            yield name
        finally:
            with self.administrator() as connection:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def intake(self, purpose: str, partitions: int = PARTITIONS) -> Iterator[Settings]:
        """A ready database with a topic whose partitions have their positions."""
        with self.database(purpose) as name:
            settings = self.settings(name, partitions)
            for _ in provision(settings):
                pass
            try:
                yield settings
            finally:
                administrator = KafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap.split(","))
                administrator.delete_topics([settings.kafka_topic])
                administrator.close()

    def checkpoint(self) -> None:
        """Write everything out, so that what is measured next does not pay for what was before."""
        with self.administrator() as connection:
            connection.execute("CHECKPOINT")

    def processor_seconds(self) -> float:
        """Processor time that the whole Postgres server has used so far."""
        with self.administrator() as connection:
            (data,) = connection.execute(
                "SELECT setting FROM pg_settings WHERE name = 'data_directory'"
            ).fetchone() or ("",)
        server = psutil.Process(int((Path(data) / "postmaster.pid").read_text().split("\n", 1)[0]))
        own = server.cpu_times()
        used = own.user + own.system + own.children_user + own.children_system
        for child in server.children():
            try:
                times = child.cpu_times()
            except psutil.NoSuchProcess:
                continue
            used += times.user + times.system
        return float(used)

    def broker_seconds(self) -> float:
        """Processor time that the broker has used so far; 0 where it runs elsewhere."""
        if self.broker_pid is None:
            return 0.0
        times = psutil.Process(self.broker_pid).cpu_times()
        return float(times.user + times.system)

    def version(self) -> str:
        """The server's version."""
        with self.administrator() as connection:
            return f"Postgres {connection.info.parameter_status('server_version')}"


@contextmanager
def prepared(bootstrap: str, server_url: str, broker_pid: int | None = None) -> Iterator[Ground]:
    """Make the template on running servers; it is dropped at the end."""
    ground = Ground(bootstrap, server_url, f"bench_template_{uuid.uuid4().hex[:8]}", broker_pid)
    with ground.administrator() as connection:
        connection.execute(f"CREATE DATABASE {ground.template}")
    try:
        settings = ground.settings(ground.template)
        schema.upgrade(settings)
        today = datetime.now(UTC).date()
        ahead = today + timedelta(days=settings.partition_ahead_days + 1)
        with postgres.connect(settings, "owner") as connection:
            partitions.ensure(connection, today - timedelta(days=settings.ledger_back_days), ahead)
            partitions.ensure_rejects(connection, today - timedelta(days=1), ahead)
        yield ground
    finally:
        with ground.administrator() as connection:
            connection.execute(f"DROP DATABASE {ground.template} WITH (FORCE)")


@contextmanager
def started(folder: Path, progress: Progress) -> Iterator[Ground]:
    """Servers of their own in `folder`, started empty, stopped and erased at the end."""
    servers.down(folder, erase=True)
    try:
        addresses = servers.up(folder, progress)
        server_url = sandbox_postgres.url(addresses.folder, sandbox_postgres.USER)
        broker = processes.running(kafka.pid_file(addresses.folder))
        with prepared(addresses.kafka_bootstrap, server_url, broker.pid if broker else None) as ground:
            yield ground
    finally:
        servers.down(folder, erase=True)
