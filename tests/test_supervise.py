"""All workers as processes of one command: what ends comes back, what never works stops all; and the probe."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from metering.cli.work import app
from metering.errors import BadInput, Unavailable, WrongWorld
from metering.settings import Settings
from workers import probe, supervise
from workers.provision import provision

SLEEP = "import time; print('at work', flush=True); time.sleep(60)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
FAIL = "import sys; print('disk full', flush=True); sys.exit(4)"


@pytest.fixture
def ready(settings: Settings) -> Settings:
    for _ in provision(settings):
        pass
    return settings


def until(true: Callable[[], object], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.1)


@pytest.fixture
def supervisor(
    ready: Settings, environment: dict[str, str], tmp_path: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    with (tmp_path / "log").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "metering", "work", "all", "--ingest", "2"],
            env={
                **environment,
                # the group notices sooner that a member was killed
                "METERING_SESSION_TIMEOUT_MS": "6000",
                "METERING_IDLE_IN_TRANSACTION_SESSION_TIMEOUT_MS": "5000",
            },
            stderr=said,
        )
        children = []
        try:
            yield process
            children = psutil.Process(process.pid).children() if process.poll() is None else []
        finally:
            process.kill()
            process.wait()
            for child in children:
                child.kill()


def metering(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "metering", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def owners(settings: Settings) -> set[str]:
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        found = connection.execute("SELECT owner FROM stream_positions WHERE kind = 'kafka'").fetchall()
    return {owner for (owner,) in found if owner}


def test_a_worker_that_is_killed_comes_back_and_a_signal_stops_all(
    supervisor: "subprocess.Popen[bytes]", ready: Settings, environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    until(lambda: len(owners(ready)) == 2)
    until(lambda: all(one.seconds_ago is not None for one in looked(ready)))
    assert re.match(r"healthy: 4 partitions", probe.health(ready))
    asked = metering(environment, "probe", "health")
    assert (asked.returncode, asked.stderr) == (0, "")
    pids = started(log)
    assert sorted(pids) == sorted(supervise.names(2))
    killed = pids["ingest-1"]
    os.kill(killed, signal.SIGKILL)
    until(lambda: started(log)["ingest-1"] != killed)
    assert all(pid == started(log)[name] for name, pid in pids.items() if name != "ingest-1")
    again = f":{started(log)['ingest-1']}"
    until(lambda: any(owner.endswith(again) for owner in owners(ready)))
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(90) == 0
    assert not [pid for pid in started(log).values() if psutil.pid_exists(pid)]
    text = log.read_text()
    assert re.search(r"^ingest-2 \| .*stopped on request", text, re.M)
    assert re.search(r"^fold     \| .*stopped on request", text, re.M)


def looked(settings: Settings) -> list["object"]:
    from metering.store import postgres, pulse

    with postgres.reading(settings) as connection:
        return list(pulse.moves(connection))


def started(log: Path) -> dict[str, int]:
    """The last pid of each worker, as the supervisor's own lines tell."""
    lines = [
        line for line in log.read_text().splitlines() if '"event": "started"' in line and '"pid"' in line
    ]
    found = [(re.search(r'"name": "([^"]+)"', line), re.search(r'"pid": (\d+)', line)) for line in lines]
    return {name[1]: int(pid[1]) for name, pid in found if name and pid}


def of(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update={"retry_backoff_seconds_max": 0.2, **changes})


def quick() -> Settings:
    return of(Settings())


def programs(**scripts: str) -> Callable[[str], list[str]]:
    return lambda command: ["-c", scripts.get(command, SLEEP)]


def alive() -> list[psutil.Process]:
    """The workers of these tests; other tests of this process may have left children of their own."""
    return [child for child in psutil.Process().children() if script(child) in (SLEEP, DEAF)]


def script(child: psutil.Process) -> str:
    try:
        return child.cmdline()[-1]
    except (psutil.Error, IndexError):
        return "ended"


def test_a_worker_that_never_works_stops_all_and_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    settings = of(Settings(), worker_restarts_max=2)
    with pytest.raises(WrongWorld, match=r"fold ended 3 times within 300 seconds, .* exit code 4: disk full"):
        supervise.run(settings, 1, programs(fold=FAIL))
    assert not alive()
    said = capfd.readouterr().err
    assert said.count("fold     | disk full") == 3
    assert said.count("ingest-1 | at work") == 1


def test_what_ended_long_ago_does_not_count(capfd: pytest.CaptureFixture[str]) -> None:
    settings = of(
        Settings(), worker_restarts_max=1, worker_restart_span_seconds=1, retry_backoff_seconds_max=1.5
    )
    slow = "import sys, time; print('slow', flush=True); time.sleep(0.7); sys.exit(1)"
    stop = threading.Timer(4.0, os.kill, (os.getpid(), signal.SIGTERM))
    stop.start()
    supervise.run(settings, 1, programs(fold=slow))
    stop.join()
    assert capfd.readouterr().err.count("fold     | slow") >= 2
    assert not alive()


@pytest.mark.parametrize(("signals", "seconds"), [(1, 0.5), (2, 30.0)])
def test_what_does_not_end_is_killed_when_time_is_up_or_at_the_second_signal(
    signals: int, seconds: float
) -> None:
    settings = of(Settings(), worker_stop_seconds_max=seconds)

    def ask() -> None:
        try:
            until(lambda: len(alive()) == len(supervise.names(1)))
            time.sleep(0.3)
        finally:
            # whatever went wrong, nobody waits for ever
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(Unavailable, match="killed, for they did not end by themselves: settle;"):
        supervise.run(settings, 1, programs(settle=DEAF))
    asking.join()
    assert not alive()


def test_every_worker_is_looked_after() -> None:
    commands = {command.name for command in app.registered_commands}
    assert commands == {"all", "ingest", *supervise.SINGLE}, "supervise.SINGLE names every worker but ingest"
    assert supervise.names(2)[:3] == ["ingest-1", "ingest-2", "fold"]
    with pytest.raises(BadInput, match="--ingest 0"):
        supervise.names(0)


def test_the_probe_names_what_is_wrong(
    settings: Settings, environment: dict[str, str], ready: Settings
) -> None:
    assert probe.ready(ready).startswith("ready: database ")
    with pytest.raises(
        Unavailable, match="partition 0 and 3 more was never read; is an ingest worker running"
    ):
        probe.health(ready)
    with psycopg.connect(ready.database_url.get_secret_value(), autocommit=True) as connection:
        connection.execute(
            "UPDATE stream_positions SET seen_until = now() - '1 h'::interval * (partition + 1)"
        )
        with pytest.raises(Unavailable, match="partition 0 and 3 more stands still since"):
            probe.health(ready)
        connection.execute("UPDATE stream_positions SET seen_until = now()")
        assert probe.health(ready).startswith("healthy: 4 partitions")
        connection.execute(
            "INSERT INTO ingest_batches (batch_id, intake_id, sequence, epoch, first_offset, next_offset, records, "
            "received, accepted, duplicate, conflict, rejected, unknown_fields, committed_at, chain_version, root, "
            "previous_head, head) SELECT 1, intake_id, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, now() - '1 h'::interval, 1, "
            "chain_head, chain_head, chain_head FROM stream_positions WHERE partition = 2"
        )
        with pytest.raises(Unavailable, match=r"a batch waits for the fold since 3[56]\d\d seconds"):
            probe.health(ready)
        with psycopg.connect(ready.database_url.get_secret_value()) as folding:
            folding.execute("SELECT pg_advisory_lock(%s)", (postgres_fold(),))
            assert probe.health(ready).startswith("healthy")
    gone = {**environment, "METERING_DATABASE_URL": "postgresql://127.0.0.1:1/nowhere"}
    for question in ("health", "ready"):
        asked = metering(gone, "probe", question)
        assert (asked.returncode, asked.stdout) == (3, "")
        assert asked.stderr.startswith("metering: ")
    other = ready.model_copy(update={"kafka_topic": "another"})
    with pytest.raises(WrongWorld, match="another"):
        probe.ready(other)


def test_an_empty_database_is_not_ready(empty_database_url: str, environment: dict[str, str]) -> None:
    asked = metering({**environment, "METERING_DATABASE_URL": empty_database_url}, "probe", "ready")
    assert asked.returncode == 4
    assert "metering init" in asked.stderr


def postgres_fold() -> int:
    from metering.store.postgres import FOLD

    return FOLD
