"""Positions moved by hand: what is skipped is shown, recorded, and the only jump that verify accepts."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient
from typer.testing import CliRunner

from metering.errors import BadInput, WrongWorld
from metering.settings import Settings
from metering.store import positions, postgres
from metering.store.ledger import Ledger
from metering.store.verify import _batch_heads, verify
from metering.stream.topics import Admin
from tests.event_maker import event, event_id, produce
from tests.ledger_part import empty_part
from workers import ingest, interventions, provision

NOW = datetime.now(UTC)
AT = NOW - timedelta(hours=1)


@pytest.fixture
def ready(settings: Settings) -> Settings:
    """A database with partitions and positions for the test's topic."""
    list(provision.provision(settings))
    return settings


@pytest.fixture
def database(ready: Settings) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection, for looking and for breaking things."""
    with psycopg.connect(ready.database_url.get_secret_value(), autocommit=True) as connection:
        yield connection


def offset(database: psycopg.Connection[Any], partition: int = 0) -> int:
    row = database.execute(
        "SELECT next_offset FROM stream_positions WHERE partition = %s", (partition,)
    ).fetchone()
    assert row is not None
    return int(row[0])


def differences(settings: Settings) -> dict[str, str]:
    with postgres.reading(settings) as connection:
        return {check.name: check.difference for check in verify(connection, roots=True) if check.difference}


def move_on(settings: Settings, partition: int, to_offset: int) -> None:
    """Commit a batch without events that ends at an offset, as if the log had held as much."""
    with Admin(settings) as admin, postgres.connect_driver(settings, "ingest") as connection:
        connection.autocommit = True
        role = f"{settings.role_prefix}ingest"
        claim = positions.claim(connection, admin.get().uuid, partition, role=role, owner="test")
        Ledger(connection, 1024).append([empty_part(claim, next_offset=to_offset)])


def test_a_skip_shows_what_it_skips_fences_the_worker_and_is_accepted_by_verify(
    ready: Settings, database: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from metering.cli import ledger

    produce(ready, [[event("a", AT)]], partition=0)
    ingest.work(ready, until_idle=True)
    produce(ready, [[event(f"{n}-{m}", AT) for m in range(2)] for n in range(3)] + [b"{oops"], partition=0)
    produce(ready, [[event("after", AT)]], partition=0)

    with pytest.raises(
        BadInput, match=r"--to 1: partition 0 stands at offset 1 and its log ends at 6; give 2 to 6"
    ):
        interventions.plan_skip(ready, 0, 1)
    with pytest.raises(BadInput, match="give 2 to 6"):
        interventions.plan_skip(ready, 0, 7)
    with pytest.raises(BadInput, match="partition 9 of the topic has no position; there are 0 to 3"):
        interventions.plan_skip(ready, 9, 7)
    with pytest.raises(BadInput, match="there is no gap"):
        interventions.plan_gap(ready, 0)
    planned = interventions.plan_skip(ready, 0, 5)
    with pytest.raises(BadInput, match="--reason must be one line"):
        interventions.apply(ready, planned, " ")
    text = "\n".join(planned.lines)
    assert "would go on at offset 5 in place of 1: 4 offsets are skipped" in text
    assert "4 records of" in text
    assert f"2 events and 0 rejects of gateway-1, ids {event_id('0-0', AT)} to {event_id('0-1', AT)}" in text
    assert "0 events and 1 rejects of no readable source" in text
    assert "oops" not in text

    for name in ("DATABASE_URL", "KAFKA_BOOTSTRAP", "KAFKA_TOPIC"):
        value = getattr(ready, name.lower())
        monkeypatch.setenv(f"METERING_{name}", value if isinstance(value, str) else value.get_secret_value())
    command = ["skip", "0", "--to", "5", "--reason", "four records of a broken build"]
    asked = CliRunner().invoke(ledger.stream_app, command)
    assert isinstance(asked.exception, BadInput), "there is no terminal to ask on"
    assert offset(database) == 1
    done = CliRunner().invoke(ledger.stream_app, [*command, "--yes"])
    assert (done.exit_code, offset(database)) == (0, 5), done.output
    assert "recorded as intervention 1" in done.stderr
    with pytest.raises(BadInput, match="has moved since offset 1 was seen"):
        interventions.apply(ready, planned, "a second time")

    assert differences(ready) == {}, "the last position may stand behind a skip"
    ingest.work(ready, until_idle=True)
    assert differences(ready) == {}, "the next batch may begin behind it"
    rows = database.execute("SELECT event_key::text FROM usage_events ORDER BY 1").fetchall()
    assert [row[0] for row in rows] == sorted([event_id("a", AT), event_id("after", AT)])
    kept = database.execute(
        "SELECT kind, details->>'from_offset', details->>'to_offset' FROM interventions"
    ).fetchall()
    assert kept == [("skip", "1", "5")]

    # a jump that nobody recorded, one at another place, one that never happened
    for change, words in (
        ("UPDATE stream_positions SET next_offset = 9 WHERE partition = 0", "stands at sequence 2, offset 9"),
        ("UPDATE interventions SET details = jsonb_set(details, '{to_offset}', '4')", "begins at offset 5"),
        (
            "UPDATE interventions SET details = jsonb_set(details, '{from_offset}', '2')",
            "from offset 2 on; before",
        ),
        ("UPDATE interventions SET details = jsonb_set(details, '{sequence}', '7')", "begins at offset 5"),
        ("DELETE FROM interventions", "begins at offset 5; the one before ended at 1"),
    ):
        with postgres.connect(ready, None) as connection:
            connection.exec_driver_sql(change)
            assert words in (_batch_heads(connection).difference or ""), change
            connection.rollback()


def test_a_worker_that_holds_the_partition_is_fenced_and_goes_on_behind_the_skip(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    with ingest.opened(ready) as worker:
        while len(worker._held) < 4:
            worker.step()
        produce(ready, [[event(n, AT)] for n in range(5)], partition=2)
        interventions.apply(ready, interventions.plan_skip(ready, 2, 4), "only the last one is good")
        deadline = time.monotonic() + 20
        while not worker.counts["accepted"] and time.monotonic() < deadline:
            worker.step()
        assert worker.counts == {"records": 1, "accepted": 1, "duplicate": 0, "conflict": 0, "rejected": 0}
    assert differences(ready) == {}


def test_a_gap_goes_on_where_the_log_begins_or_ends_and_a_worker_names_both_offsets(
    ready: Settings, database: psycopg.Connection[Any], kafka_admin: KafkaAdminClient
) -> None:
    for partition in (0, 1):
        produce(ready, [[event(f"{partition}-{n}", AT)] for n in range(6)], partition=partition)
    kafka_admin.delete_records({TopicPartition(ready.kafka_topic, 0): 4})
    with pytest.raises(
        WrongWorld, match=r"partition 0 .* position 0 lies before .* still holds, 4.*stream gap 0"
    ):
        ingest.work(ready, until_idle=True)
    planned = interventions.plan_gap(ready, 0)
    assert (planned.to_offset, planned.kind) == (4, "gap")
    assert "4 offsets, 0 to 3, were removed" in planned.lines[1]
    assert "the next record, at offset 4" in planned.lines[-1]
    interventions.apply(ready, planned, "retention was set to a minute")

    # the database was restored from a time at which the log was longer; the partition is idle
    move_on(ready, 3, 50)
    with pytest.raises(
        WrongWorld, match=r"partition 3 .* position 50 lies beyond the end of the log, 0:.*stream gap 3"
    ):
        ingest.work(ready, until_idle=True)
    with pytest.raises(BadInput, match="nothing is there to skip"):
        interventions.plan_skip(ready, 3, 51)
    with pytest.raises(BadInput, match=r"--to 7: the log of partition 3 holds offsets 0 to 0"):
        interventions.plan_gap(ready, 3, 7)
    interventions.apply(ready, interventions.plan_gap(ready, 3), "the broker was restored")
    assert differences(ready) == {}
    # several jumps at one place, forth and back
    move_on(ready, 3, 10)
    interventions.apply(ready, interventions.plan_gap(ready, 3), "again")
    produce(ready, [[event("new", AT)]], partition=3)
    interventions.apply(ready, interventions.plan_skip(ready, 3, 1), "not wanted")
    assert offset(database, 3) == 1
    produce(ready, [[event("newer", AT)]], partition=3)

    ingest.work(ready, until_idle=True)
    assert differences(ready) == {}
    count = database.execute("SELECT count(*) FROM usage_events").fetchone()
    assert count == (2 + 6 + 1,)
