"""Every point at which a worker can die: found by the server's own log, then tried one after the other."""

import re
import signal
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from metering.settings import Settings
from metering.store import postgres
from metering.store.verify import verify
from sandbox import servers
from tests.event_maker import event, event_id, instant_text, produce
from tests.faults.conftest import journal_of
from tests.faults.worker import Worker
from workers import fold, ingest, settle

AT = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
LANES = 2
#: From where on the points of a worker are numbered: before that it only connects.
COUNTED = {"ingest": "^poll$", "settle": "pg_try_advisory_lock", "fold": "pg_try_advisory_lock"}
NAMES = {"sources": "source_id", "projects": "project_id", "seats": "seat_id", "series": "series_id"}


def void(name: str, source: str, target: str, side: str) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": event_id(name, AT),
        "source": source,
        "type": "inference.void.v1",
        "time": instant_text(AT),
        "data": {"source": source, "id": target, "side": side, "reason": "a test"},
    }


class Ledger:
    """What this test sends and looks at. Every batch has the same shape: it meets an event that is there
    already, a conflict, a reject, and names that nobody has used before.
    """

    def __init__(self, settings: Settings, database: psycopg.Connection[Any]) -> None:
        self.settings = settings
        self.database = database
        self.batches = 0
        self.names: dict[str, int] = {}
        produce(settings, [[event("first", AT), event("second", AT)]], partition=0)
        ingest.work(settings, until_idle=True)

    def send_batch(self) -> None:
        self.batches += 1
        n = self.batches
        named = {"source": f"source-{n}", "data__project": f"project-{n}", "data__seat": f"seat-{n}"}
        pool = {"data__capacity_pool": "north", "data__ran_on": "pool", "data__model_served": f"model-{n}"}
        made = [
            event("first", AT),
            event("second", AT, usage__output_tokens=11),
            event(f"bad-{n}", AT, usage__output_tokens=-1),
            *(event(f"{n}-{m}", AT + timedelta(minutes=m), **named, **pool) for m in range(20)),
            *(
                void(
                    f"void-{n}-{side}", named["source"], event_id(f"{n}-{m}", AT + timedelta(minutes=m)), side
                )
                for m, side in enumerate(("charge", "both"))
            ),
        ]
        produce(self.settings, [made], partition=0)
        self.note_names()

    def note_names(self) -> None:
        """What is there now is not taken back."""
        self.names = {
            table: self.one(f"SELECT coalesce(max({column}), 0) FROM {table}")
            for table, column in NAMES.items()
        }

    def forget_names(self) -> None:
        """Take back the names that a worker made before it died: the next one is to send the same statements."""
        for table, column in NAMES.items():
            self.database.execute(f"DELETE FROM {table} WHERE {column} > %s", (self.names[table],))

    def one(self, query: str) -> Any:
        row = self.database.execute(query).fetchone()
        assert row is not None
        return row[0]

    def let_go(self) -> None:
        """Wait until the server has noticed that a killed worker is gone, and released its locks."""
        held = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid() "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        until = time.monotonic() + 30
        while self.one(held) and time.monotonic() < until:
            time.sleep(0.02)

    def written(self) -> list[tuple[Any, ...]]:
        """Everything that ingest and settle write, but for names and who owns the positions."""
        rows: list[tuple[Any, ...]] = []
        for query in (
            "SELECT * FROM usage_events ORDER BY 1, 2",
            "SELECT * FROM rejects ORDER BY reject_id",
            "SELECT batch_id, event_key FROM conflicts ORDER BY 1, 2",
            "SELECT * FROM voids ORDER BY 1, 2",
            "SELECT * FROM settlements ORDER BY 1, 2",
            "SELECT * FROM ingest_batches ORDER BY 1",
            "SELECT * FROM batch_sources ORDER BY 1, 2",
            "SELECT intake_id, next_offset, next_sequence, chain_head FROM stream_positions ORDER BY 1",
        ):
            rows += self.database.execute(query).fetchall()
        return rows

    def folded(self) -> list[tuple[Any, ...]]:
        """Everything that the fold writes."""
        rows: list[tuple[Any, ...]] = []
        for table in (
            "usage_quarters",
            "pool_minutes",
            "pool_customer_minutes",
            "limit_minutes",
            "fold_positions",
            "rollup_marks",
        ):
            rows += self.database.execute(f"SELECT * FROM {table} ORDER BY {table}::text").fetchall()
        return rows

    def check(self) -> None:
        """Each batch is there once, with its neighbours' outcomes, and every chain and rollup holds."""
        ingest.work(self.settings, until_idle=True)
        settle.run(until_idle=True, settings=self.settings)
        fold.run(until_idle=True, settings=self.settings)
        counts = self.database.execute(
            "SELECT sum(accepted)::int, sum(duplicate)::int, sum(conflict)::int, sum(rejected)::int "
            "FROM ingest_batches JOIN stream_positions USING (intake_id) GROUP BY kind ORDER BY kind"
        ).fetchall()
        n = self.batches
        assert counts == [(2 + 22 * n, n, n, n), (2 * n, 0, 0, 0)], (
            "of what Kafka brought, and of what was settled"
        )
        assert self.one("SELECT count(DISTINCT (event_key, source_id)) FROM usage_events") == 2 + 24 * n
        assert self.one("SELECT sum(requests)::int FROM usage_quarters") == 2 + 18 * n
        assert self.one("SELECT sum(output_tokens)::int FROM usage_quarters") == 10 * (2 + 18 * n)
        # a charge that is taken back leaves the burn where it was
        for table in ("pool_minutes", "pool_customer_minutes"):
            assert self.one(f"SELECT sum(requests)::int FROM {table}") == 19 * n
        with postgres.reading(self.settings) as connection:
            assert [check.difference for check in verify(connection, roots=True) if check.difference] == []


@pytest.fixture
def ledger(ready: Settings, database: psycopg.Connection[Any]) -> Ledger:
    return Ledger(ready, database)


Start = Callable[..., Worker]


def points_of(
    start: Start, ledger: Ledger, worker: str, journal: Path, **faults: Any
) -> list[dict[str, Any]]:
    """Run a worker to its end and return the numbered points that it passed."""
    own = ledger.settings.model_copy(update={"consumer_group": f"group-{uuid.uuid4().hex}"})
    done = start(
        worker,
        "--until-idle",
        settings=own,
        journal=str(journal),
        count=COUNTED[worker],
        **faults,
    )
    done.wait()
    ledger.let_go()
    points = [point for point in journal_of(journal) if point["number"] is not None]
    if worker == "ingest":
        last = next(
            (n for n, p in enumerate(points) if (p["when"], p["statement"]) == ("after", "advisory commit")),
            len(points),
        )
        points = points[: last + 1]
    return points


def commit_after(points: list[dict[str, Any]], statement: str) -> int:
    """The number of the point before the COMMIT that follows a statement."""
    first = next(n for n, p in enumerate(points) if p["statement"].startswith(statement))
    return next(n for n, p in enumerate(points) if n > first and p["statement"] == "COMMIT")


def shape(point: dict[str, Any]) -> tuple[str, str]:
    """A point without the numbers that differ from batch to batch."""
    return point["when"], re.sub(r"\d+", "n", point["statement"])


def logged(log: Path, since: int, backends: set[int]) -> list[str]:
    """The statements that a server says it was sent by these backends."""
    entries: list[list[str]] = []
    with log.open() as lines:
        lines.seek(since)
        for line in lines:
            if found := re.match(r"\S+ \S+ \S+ \[(\d+)\] (\w+):  (.*)", line):
                entries.append([found[1], found[3]])
            elif entries:
                entries[-1][1] += " " + line
    told = []
    for backend, text in entries:
        if int(backend) in backends and (found := re.match(r"(?s)(?:statement|execute [^:]*): (.*)", text)):
            told.append(" ".join(found[1].split()))
    return told


@pytest.mark.parametrize("worker", ["ingest", "settle", "fold"])
def test_every_statement_has_a_point_before_and_after_it(
    worker: str, ledger: Ledger, start: Start, servers: servers.Addresses, tmp_path: Path
) -> None:
    """By the server's log: what is sent between the poll and the advisory commit, and by a whole fold."""
    ledger.send_batch()
    if worker != "ingest":
        ingest.work(ledger.settings, until_idle=True)
    name = ledger.one("SELECT current_database()")
    ledger.database.execute(f"ALTER DATABASE {name} SET log_statement = 'all'")
    log = servers.folder / "postgres.log"
    since = log.stat().st_size
    points = points_of(start, ledger, worker, tmp_path / "journal")
    ledger.database.execute(f"ALTER DATABASE {name} RESET log_statement")

    everything = journal_of(tmp_path / "journal")
    backends = {point["backend"] for point in everything if point["backend"]}
    sent = logged(log, since, backends)
    passed = [p["statement"] for p in everything if p["when"] == "before" and p["backend"]]
    assert sent == passed, "the points are not those of the statements that the server was sent"
    # within what is numbered each statement has both points, and nothing is sent between them
    assert len(points) > 30
    open_statement = None
    for point in points:
        if point["when"] == "before":
            assert open_statement is None, f"{point['statement']} begins inside {open_statement}"
            open_statement = point["statement"]
        elif point["when"] == "after" and point["statement"] != "poll":
            assert open_statement == point["statement"]
            open_statement = None
    copied = [p["statement"].split()[1] for p in points if p["when"] == "inside"]
    if worker == "ingest":
        # the first is refused for the event that is there already
        assert copied == ["usage_events", "usage_events", "rejects", "conflicts", "voids"]
    assert [p["statement"] for p in points if p["when"] == "before"].count("COMMIT") >= 1


@pytest.mark.parametrize("lane", range(LANES))
def test_ingest_dies_at_every_point_and_all_or_nothing_is_written(
    lane: int, ledger: Ledger, start: Start, tmp_path: Path
) -> None:
    ledger.send_batch()
    points = points_of(start, ledger, "ingest", tmp_path / "whole")
    number_of_commit = commit_after(points, "INSERT INTO ingest_batches")
    struck = 0
    for number in range(lane, len(points), LANES):
        if ledger.one("SELECT next_offset FROM stream_positions WHERE partition = 0") == 1 + ledger.batches:
            ledger.send_batch()
        ledger.forget_names()
        before = ledger.written()
        passed = points_of(start, ledger, "ingest", tmp_path / f"at-{number}", at=[[f"#{number}", "kill"]])
        assert [shape(p) for p in passed] == [shape(p) for p in points[: number + 1]]
        struck += passed[-1]["struck"] == ["kill"]
        wrote = ledger.written() != before
        assert wrote == (number > number_of_commit), f"killed {passed[-1]['when']} {passed[-1]['statement']}"
    assert struck == len(range(lane, len(points), LANES)), "a worker was not killed where it was to be"
    ledger.check()
    once = ledger.written()
    ledger.check()
    assert ledger.written() == once


@pytest.mark.parametrize("worker", ["settle", "fold"])
def test_settle_and_fold_die_at_every_point_and_all_or_nothing_is_written(
    worker: str, ledger: Ledger, start: Start, tmp_path: Path
) -> None:
    last = {"settle": "INSERT INTO ingest_batches", "fold": "INSERT INTO fold_positions"}[worker]
    state = {"settle": ledger.written, "fold": ledger.folded}[worker]

    def one_more() -> None:
        ledger.send_batch()
        ingest.work(ledger.settings, until_idle=True)
        if worker == "fold":
            settle.run(until_idle=True, settings=ledger.settings)
        else:
            ledger.note_names()

    # what is done only once in a while is done
    settle.run(until_idle=True, settings=ledger.settings)
    fold.run(until_idle=True, settings=ledger.settings)
    one_more()
    points = points_of(start, ledger, worker, tmp_path / "whole")
    commit = commit_after(points, last)
    struck, waiting = 0, False
    for number in range(commit + 2):
        if not waiting:
            one_more()
        if worker == "settle":
            ledger.forget_names()
        before = state()
        passed = points_of(start, ledger, worker, tmp_path / f"at-{number}", at=[[f"#{number}", "kill"]])
        assert [shape(p) for p in passed] == [shape(p) for p in points[: number + 1]]
        struck += passed[-1]["struck"] == ["kill"]
        wrote = state() != before
        assert wrote == (number > commit), f"killed {passed[-1]['when']} {passed[-1]['statement']}"
        waiting = not wrote
    # what comes after the COMMIT comes also when there was nothing to do
    idle, before = points_of(start, ledger, worker, tmp_path / "idle"), state()
    for number in range(len(idle)):
        passed = points_of(start, ledger, worker, tmp_path / f"idle-{number}", at=[[f"#{number}", "kill"]])
        assert [shape(p) for p in passed] == [shape(p) for p in idle[: number + 1]]
        struck += passed[-1]["struck"] == ["kill"]
        assert state() == before
    assert struck == commit + 2 + len(idle), "a worker was not killed where it was to be"
    ledger.check()
    once = state()
    ledger.check()
    assert state() == once


def test_the_sign_of_death_is_the_kill(ledger: Ledger, start: Start) -> None:
    """The harness itself: a worker that is to be killed is killed, and one that is not ends well."""
    assert start("fold", "--until-idle", at=[["before BEGIN", "kill"]]).wait() == -signal.SIGKILL
    assert start("fold", "--until-idle").wait() == 0
