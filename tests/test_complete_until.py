"""`complete_until` on real servers: an event of 2099, an idle partition, a dead worker, a silent gateway, a gap."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
from typer.testing import CliRunner

from metering.cli.ledger import mount
from metering.errors import BadInput
from metering.settings import Settings, read_settings
from metering.store import findings, heartbeats, postgres, watermarks
from metering.store.verify import verify
from metering.store.watermarks import HeldBack
from tests.event_maker import event, heartbeat, produce
from tests.ledger_builder import Event, Ledger, instant
from tests.test_report_commands import apply
from workers import fold, ingest, provision
from workers.now import now_report

REGISTERED = """
sources:
  - {source: gateway, name: Gateway}
  - {source: eastern, name: Eastern, silent_after_seconds: 60}
"""


@pytest.fixture
def stored(database_url: str) -> Settings:
    """Settings of a database alone, in which an hour may be late by ten minutes."""
    return read_settings(database_url=database_url, allowed_lateness_seconds=600)


@pytest.fixture
def ledger(stored: Settings) -> Iterator[Ledger]:
    made = Ledger(stored)
    yield made
    made.close()


def complete(settings: Settings) -> str | None:
    """The hour and minute until which the ledger is complete."""
    with postgres.reading(settings) as connection:
        found = watermarks.complete_until(connection, settings)
    return found and f"{found:%H:%M}"


def holder(settings: Settings) -> str:
    with postgres.reading(settings) as connection:
        held = watermarks.holding_back(connection, settings)
    assert held is not None
    return str(held.partition) if isinstance(held, HeldBack) else held.source


def pin(settings: Settings) -> None:
    with postgres.connect(settings, "fold") as connection:
        fold.pin(connection, settings, "test")


def beat(sequence: int, at: str, source: str = "gateway", until: str | None = None) -> Event:
    day = "2026-10-31"
    return Event(f"{day} {at}", source=source, heartbeat=(sequence, f"{day} {until or at}"))


def wrong(settings: Settings, at: str) -> list[tuple[str, str]]:
    """The findings of sources at a time of the day, recorded twice: the second time changes nothing."""
    with postgres.connect(settings, "settle") as connection, connection.begin():
        now = instant(f"2026-10-31 {at}")
        found = heartbeats.source_findings(connection, now)
        findings.record(connection, heartbeats.KINDS, found, now)
        again = findings.record(connection, heartbeats.KINDS, found, now)
        assert (again.opened, again.resolved) == (0, 0)
        return sorted((entry.kind, entry.subject) for entry in findings.entries(connection))


def test_registered_sources_hold_it_back_by_name(stored: Settings, ledger: Ledger, tmp_path: Path) -> None:
    first, second = ledger.intake(0), ledger.intake(1)

    def batch(*events: Event, intake: int = first, folded: bool = True) -> None:
        ledger.batch(intake, events, until="2026-10-31 14:00")
        if folded:
            fold.run(until_idle=True, settings=stored)

    batch(Event("2026-10-31 09:00:00"))
    batch(Event("2026-10-31 09:00:00"), intake=second)
    assert (complete(stored), holder(stored)) == ("13:50", "0")

    # registered, and never heard: nothing is known to be complete, whatever the partitions say
    apply(stored, tmp_path / "catalog", REGISTERED)
    assert (complete(stored), holder(stored)) == (None, "eastern")
    batch(beat(1, "10:00", "eastern"))
    assert (complete(stored), holder(stored)) == (None, "gateway")
    assert wrong(stored, "10:01") == [("source_silent", "gateway")]
    # an unregistered source may say what it likes
    batch(beat(41, "10:00"), beat(1, "08:00", "other"))
    assert (complete(stored), holder(stored)) == ("10:00", "eastern")
    batch(beat(2, "10:30", "eastern"), beat(42, "10:10", until="10:05"))
    assert (complete(stored), holder(stored)) == ("10:05", "gateway")

    # a heartbeat counts where it is folded, not before; what it knows is what it says, not when it said it
    batch(beat(43, "10:20"), intake=second, folded=False)
    assert complete(stored) == "10:05"
    fold.run(until_idle=True, settings=stored)
    assert complete(stored) == "10:20"
    pin(stored)

    # number 45 is missing: held at 44, until it comes; the next gap until somebody accepts it
    batch(beat(44, "10:22"), beat(46, "10:26"), beat(3, "12:00", "eastern"))
    assert (complete(stored), holder(stored)) == ("10:22", "gateway")
    assert wrong(stored, "10:30") == [("sequence_gap", "gateway")]
    pin(stored)
    batch(beat(45, "10:24"), intake=second)
    assert complete(stored) == "10:26"
    assert wrong(stored, "10:30") == []
    pin(stored)
    batch(beat(50, "10:40"), beat(1, "11:00"), beat(2, "11:10"))
    assert (complete(stored), holder(stored)) == ("10:26", "gateway")
    with postgres.connect(stored, "operator") as connection, connection.begin():
        with pytest.raises(
            BadInput, match="'other' is not registered in the catalog; registered are: eastern, gateway"
        ):
            heartbeats.accept_gap(connection, "other", by="me", reason="it is gone")
        with pytest.raises(BadInput, match="'eastern' has no gap"):
            heartbeats.accept_gap(connection, "eastern", by="me", reason="it is gone")
    assert "without heartbeat 47 to 49" in provision.accept_gap(stored, "gateway", "the host burnt down")
    with pytest.raises(BadInput, match="has no gap"):
        provision.accept_gap(stored, "gateway", "once more")
    assert complete(stored) == "11:10"
    pin(stored)

    # silence holds it where it was, and never takes anything back
    assert wrong(stored, "12:02") == [("source_silent", "eastern"), ("source_silent", "gateway")]
    batch(beat(4, "12:02:00", "eastern"))
    assert wrong(stored, "12:02:30") == [("source_silent", "gateway")]
    assert complete(stored) == "11:10"
    batch(beat(3, "11:12", until="09:00"))
    assert complete(stored) == "11:10"

    # a source that is registered no more holds nothing
    apply(stored, tmp_path / "catalog", REGISTERED.replace("  - {source: gateway, name: Gateway}\n", ""))
    assert (complete(stored), holder(stored)) == ("12:02", "eastern")
    assert wrong(stored, "12:02:30") == []
    with postgres.reading(stored) as connection:
        assert [check for check in verify(connection, roots=True) if check.difference] == []


def test_a_heartbeat_counts_once_all_that_was_appended_before_it_is_read(
    stored: Settings, ledger: Ledger, tmp_path: Path
) -> None:
    """A source that was cut off sends two hours at once; of one partition the worker is slow."""
    apply(stored, tmp_path / "catalog", REGISTERED.partition("  - {source: eastern")[0])
    first, second = ledger.intake(0), ledger.intake(1)

    def batch(intake: int, until: str, *events: Event) -> None:
        ledger.batch(intake, events, until=f"2026-10-31 {until}")
        fold.run(until_idle=True, settings=stored)

    batch(first, "10:00:00", beat(1, "10:00"))
    for intake in (first, second):
        batch(intake, "12:00:00", Event("2026-10-31 12:00:00", source="other"))
    assert (complete(stored), holder(stored)) == ("10:00", "gateway")
    batch(first, "12:01:00", Event("2026-10-31 10:20:00"), beat(2, "12:01"))
    # what it speaks of and what is 90 minutes late lies in the other one
    assert (complete(stored), holder(stored)) == ("10:00", "gateway")
    batch(second, "12:01:00", Event("2026-10-31 10:30:00"))
    assert (complete(stored), holder(stored)) == ("11:51", "0")


def test_the_last_heartbeats_are_found_by_their_index(
    stored: Settings, ledger: Ledger, tmp_path: Path
) -> None:
    """A year of heartbeats, one a minute, of which the last watermark left three to look at."""
    apply(stored, tmp_path / "catalog", REGISTERED)
    intake = ledger.intake()
    ledger.batch(intake, [beat(1, "10:00")], until="2026-10-31 11:00")
    ledger.execute("INSERT INTO sources (source) VALUES ('eastern')")
    ledger.execute(
        "INSERT INTO heartbeats SELECT gen_random_uuid(), source_id, (SELECT min(batch_id) FROM ingest_batches), "
        "at, row_number() OVER (PARTITION BY source_id ORDER BY at), at FROM sources, "
        "generate_series(timestamptz '2026-08-01Z', '2026-10-31 10:02Z', '1 minute') AS at"
    )
    ledger.execute("DELETE FROM heartbeats WHERE sequence = 1 AND occurred_at > '2026-10-01Z'")
    pin(stored)
    assert complete(stored) == "10:02"
    ledger.execute("ANALYZE heartbeats")
    with postgres.reading(stored) as connection:
        plan = connection.exec_driver_sql(
            f"EXPLAIN (ANALYZE, FORMAT json) {heartbeats._heartbeats(folded=True)}".replace("%", "%%")
        ).scalar_one()
    assert _rows_read(plan[0]["Plan"]) < 100


def _rows_read(node: dict[str, Any]) -> int:
    own = (
        node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        if node.get("Relation Name") == "heartbeats"
        else 0
    )
    return int(own * node["Actual Loops"]) + sum(_rows_read(child) for child in node.get("Plans", []))


def test_an_event_of_2099_an_idle_partition_and_a_dead_worker(
    settings: Settings, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = settings.model_copy(update={"allowed_lateness_seconds": 0})
    list(provision.provision(quick))
    now = datetime.now(UTC)
    beats = [heartbeat(1, now - timedelta(minutes=9)), heartbeat(2, now - timedelta(minutes=2))]
    far = event("far", now, time="2099-01-01T00:00:00Z")
    ahead = heartbeat(3, now, data__complete_until="2099-01-01T00:00:00Z")
    produce(quick, [[event("a", now), far, *beats, ahead]], partition=0)
    ingest.work(quick, until_idle=True)
    fold.run(until_idle=True, settings=quick)
    with postgres.reading(quick) as connection:
        until = watermarks.complete_until(connection, quick)
    # 2099 is a reject; partitions 1 to 3 are idle, and read to their ends
    assert until is not None
    assert abs(until - now) < timedelta(minutes=1)

    apply(quick, tmp_path / "catalog", "sources: [{source: gateway-1, name: Gateway}]")
    with postgres.reading(quick) as connection:
        assert watermarks.complete_until(connection, quick) == now - timedelta(minutes=2)
    page = {fact.name: fact for fact in now_report(quick).facts}["complete until"]
    assert "held back by the last heartbeat of source gateway-1" in page.says

    # a worker that died: its partition stands still, and so does everything
    with psycopg.connect(quick.database_url.get_secret_value(), autocommit=True) as database:
        database.execute(
            "UPDATE stream_positions SET seen_until = %s WHERE partition = 3", (now - timedelta(minutes=5),)
        )
        page = {fact.name: fact for fact in now_report(quick).facts}["complete until"]
        assert "not every partition is read as far as these" in page.says
        # the heartbeats were appended before that
        database.execute("UPDATE ingest_batches SET appended_until = %s", (now - timedelta(minutes=6),))
    with postgres.reading(quick) as connection:
        assert watermarks.complete_until(connection, quick) == now - timedelta(minutes=5)
        held = watermarks.holding_back(connection, quick)
    assert isinstance(held, HeldBack)
    assert held.partition == 3

    # a number that never came is accepted by command
    produce(quick, [[heartbeat(5, now - timedelta(minutes=1))]], partition=3)
    ingest.work(quick, until_idle=True)
    fold.run(until_idle=True, settings=quick)
    page = {fact.name: fact for fact in now_report(quick).facts}["complete until"]
    assert "heartbeat 3 to 4 is missing" in page.says
    assert page.state == "bad"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    app = typer.Typer()
    mount(app)
    run = CliRunner().invoke(
        app, ["stream", "gap", "--source", "gateway-1", "--reason", "lost with its host"]
    )
    assert run.exit_code == 0, run.output
    assert "source 'gateway-1' goes on without heartbeat 3 to 4; recorded as intervention 1" in run.output
    with postgres.reading(quick) as connection:
        assert watermarks.complete_until(connection, quick) == now - timedelta(minutes=1)
