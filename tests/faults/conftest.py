"""What the faults need: a nursery of workers, a superuser's connection, and servers that a test may break."""

import json
import signal
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from metering.settings import Settings
from sandbox import servers
from tests.faults.oracle import Traffic, differences, send
from tests.faults.worker import Nursery, Worker
from workers import fold, ingest, provision, settle


@pytest.fixture(scope="package")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Workers of the test build, forked from a process that has everything imported."""
    with Nursery(tmp_path_factory.mktemp("nursery")) as made:
        yield made


@pytest.fixture
def ready(settings: Settings) -> Settings:
    """A database with partitions and positions for the test's topic; short timeouts, small batches."""
    list(provision.provision(settings))
    return quick(settings)


def quick(settings: Settings) -> Settings:
    """Settings under which a fault is over in seconds."""
    return settings.model_copy(update=QUICK)


QUICK: dict[str, Any] = {
    "idle_refresh_seconds": 0.1,
    "clock_skew_seconds": 0,
    "session_timeout_ms": 6_000,
    "idle_in_transaction_session_timeout_ms": 5_000,
    "retry_backoff_seconds_max": 0.5,
    "fold_interval_seconds": 0.2,
}


@pytest.fixture
def database(ready: Settings) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection, for looking and for breaking things."""
    with psycopg.connect(ready.database_url.get_secret_value(), autocommit=True) as connection:
        yield connection


class Started:
    """Starts workers of the test build on one test's database and topic, and ends them."""

    def __init__(self, nursery: Nursery, settings: Settings) -> None:
        self._nursery = nursery
        self._settings = settings
        self._workers: list[Worker] = []

    def __call__(self, *arguments: str, settings: Settings | None = None, **faults: Any) -> Worker:
        """Start a worker; `settings` other than the test's, `faults` as the nursery takes them."""
        worker = self._nursery.start(arguments, variables(settings or self._settings), **faults)
        self._workers.append(worker)
        return worker

    def kill(self) -> None:
        """Kill what still runs."""
        for worker in self._workers:
            worker.send(signal.SIGKILL)
        for worker in self._workers:
            worker.wait()


@pytest.fixture
def start(nursery: Nursery, ready: Settings) -> Iterator[Started]:
    """Start a worker of the test build; what still runs in the end is killed."""
    started = Started(nursery, ready)
    yield started
    started.kill()


def variables(settings: Settings) -> dict[str, str]:
    """Settings as the environment of a process."""
    told = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if value is not None:
            told[f"METERING_{name.upper()}"] = str(getattr(value, "get_secret_value", lambda v=value: v)())
    return told


@pytest.fixture
def traffic(request: pytest.FixtureRequest) -> Traffic:
    """Events of this test, always the same ones but for their times."""
    return Traffic(seed=sum(request.node.name.encode()))


@pytest.fixture
def nothing_lost(
    ready: Settings, database: psycopg.Connection[Any], traffic: Traffic, start: Started
) -> Callable[[], None]:
    """Kill what runs, read what is left, hold everything against the dictionaries; a second run moves nothing."""

    def check() -> None:
        start.kill()
        calm = ready.model_copy(update={"consumer_group": f"calm-{uuid.uuid4().hex}"})
        seen = []
        for _ in range(2):
            ingest.work(calm, until_idle=True)
            settle.run(until_idle=True, settings=calm)
            fold.run(until_idle=True, settings=calm)
            seen.append(
                database.execute(
                    "SELECT (SELECT count(*) FROM ingest_batches), (SELECT count(*) FROM usage_events), "
                    "(SELECT sum(requests) FROM usage_quarters), (SELECT sum(next_sequence) FROM fold_positions)"
                ).fetchall()
            )
        assert seen[0] == seen[1], "a second run moved something"
        assert differences(calm, database, traffic) == []

    return check


@pytest.fixture
def feed(ready: Settings, traffic: Traffic) -> Callable[[int], None]:
    """Send so many records of this test's traffic."""
    return lambda count: send(ready, traffic.records(count))


def journal_of(path: Path) -> list[dict[str, Any]]:
    """The points that a worker passed."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def own_servers(servers_folder: Path, cache_folder: Path) -> Iterator[servers.Addresses]:
    """Servers of this test alone, which it may stop and break."""
    folder = servers_folder.with_name(f"{servers_folder.name}-own")
    servers.down(folder, erase=True)
    yield servers.up(folder, cache=cache_folder)
    servers.down(folder, erase=True)


def now() -> datetime:
    """The instant, UTC."""
    return datetime.now(UTC)
