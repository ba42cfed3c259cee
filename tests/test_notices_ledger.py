"""Voids, refusals and heartbeats in the ledger: entered once, with their details, chained, and counting nothing."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from metering.settings import Settings
from metering.store import postgres
from metering.store.details import details
from metering.store.verify import verify
from tests.event_maker import event, event_id, heartbeat, instant_text, produce, refusal, void
from workers import fold, ingest, provision

AT = datetime.now(UTC).replace(microsecond=123_456) - timedelta(hours=1)


@pytest.fixture
def ready(settings: Settings) -> Settings:
    """A database with partitions and positions for the test's topic."""
    list(provision.provision(settings))
    return settings


@pytest.fixture
def database(ready: Settings) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection, for looking and for tampering."""
    with psycopg.connect(ready.database_url.get_secret_value(), autocommit=True) as connection:
        yield connection


def enter(settings: Settings, *records: list[dict[str, Any]], partition: int = 0) -> dict[str, int]:
    produce(settings, list(records), partition=partition)
    totals = ingest.work(settings, until_idle=True)
    fold.run(until_idle=True, settings=settings)
    return {name: totals[name] for name in ("accepted", "duplicate", "conflict", "rejected") if totals[name]}


def differences(settings: Settings) -> dict[str, str]:
    with postgres.reading(settings) as connection:
        return {check.name: check.difference for check in verify(connection, roots=True) if check.difference}


def rollups(database: psycopg.Connection[Any]) -> list[list[tuple[Any, ...]]]:
    return [
        database.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
        for table in ("usage_quarters", "pool_minutes", "pool_customer_minutes", "limit_minutes")
    ]


def test_each_is_entered_once_with_its_details_and_counts_nothing(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    assert enter(ready, [event("a", AT), event("b", AT)]) == {"accepted": 2}
    before = rollups(database)
    named = void("v", AT, ("gateway-1", event_id("a", AT)), data__reason="twice")
    plain = void("w", AT, ("elsewhere", "order-7"), id="void-7", data__side="both")
    refused = refusal("r", AT, data__estimated_input_tokens=0)
    beats = [heartbeat(1, AT), heartbeat(2, AT + timedelta(minutes=1))]
    mixed = [beats[0], event("a", AT), named, {"type": "?"}, refused, plain, named]
    assert enter(ready, mixed, [beats[1]]) == {"accepted": 5, "duplicate": 2, "rejected": 1}
    assert rollups(database) == before

    rows = database.execute(
        "SELECT event_type, series_id, event_id, uncached_input_tokens + output_tokens, request_key::text "
        "FROM usage_events WHERE event_type <> 1 ORDER BY batch_id, ordinal"
    ).fetchall()
    zero = "00000000-0000-0000-0000-000000000000"
    assert [row[:4] for row in rows] == [
        (4, 0, "", 0), (2, 0, "", 0), (3, 0, "", 0), (2, 0, "void-7", 0), (4, 0, "", 0),
    ]  # fmt: skip
    assert [row[4] == zero for row in rows] == [True, True, False, True, True]
    ((void_7,),) = database.execute("SELECT event_key::text FROM usage_events WHERE event_id = 'void-7'")
    assert database.execute(
        "SELECT v.event_key::text, s.source, target_id, side, reason, occurred_at, "
        "EXISTS (SELECT FROM usage_events u WHERE (u.event_key, u.source_id) = (target_key, target_source_id)) "
        "FROM voids v JOIN sources s ON s.source_id = target_source_id ORDER BY side DESC"
    ).fetchall() == [
        (event_id("v", AT), "gateway-1", event_id("a", AT), "charge", "twice", AT, True),
        (void_7, "elsewhere", "order-7", "both", None, AT, False),
    ]  # fmt: skip
    assert database.execute(
        "SELECT customer, request_id, attempt, reason, product, tier_sold, provider, model, region, pool, project, "
        "seat, estimated_input_tokens, estimated_output_tokens FROM refusals"
    ).fetchall() == [
        ("acme", "request-r", 1, "pool_full", "lumen", "standard", None, "lumen", "global", "north", None, None, 0, None)
    ]  # fmt: skip
    assert database.execute("SELECT sequence, complete_until FROM heartbeats ORDER BY 1").fetchall() == [
        (1, AT), (2, AT + timedelta(minutes=1)),
    ]  # fmt: skip
    assert database.execute(
        "SELECT source, sum(accepted)::int, sum(duplicate)::int, sum(rejected)::int FROM batch_sources "
        "LEFT JOIN sources USING (source_id) GROUP BY 1 ORDER BY 1"
    ).fetchall() == [("desk", 2, 1, 0), ("gateway-1", 5, 1, 0), (None, 0, 0, 1)]
    assert differences(ready) == {}

    # the same again changes nothing; other content under the same name is kept as a conflict
    other = void("v", AT, ("gateway-1", event_id("b", AT)))
    late = heartbeat(1, AT, data__complete_until=instant_text(AT - timedelta(seconds=1)))
    assert enter(ready, mixed, [other, late], partition=1) == {
        "duplicate": 6, "conflict": 2, "rejected": 1,
    }  # fmt: skip
    kept = database.execute("SELECT payload FROM conflicts ORDER BY conflict_id").fetchall()
    assert [json.loads(row[0]) for row in kept] == [other, late]
    assert database.execute("SELECT count(*) FROM voids").fetchall() == [(2,)]
    assert differences(ready) == {}


def test_what_a_stopped_source_says_is_kept_for_later(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    database.execute("INSERT INTO source_stops (source, stopped, reason) VALUES ('gateway-1', true, 'test')")
    assert enter(ready, [heartbeat(1, AT), void("v", AT, ("gateway-1", "x"))]) == {
        "accepted": 1,
        "rejected": 1,
    }
    assert database.execute("SELECT code, source FROM rejects").fetchall() == [
        ("source_stopped", "gateway-1")
    ]


def test_details_that_were_tampered_with_are_found(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    enter(ready, [void("v", AT, ("gateway-1", "x")), refusal("r", AT), heartbeat(1, AT)])
    assert differences(ready) == {}
    tables = ("voids", "refusals", "heartbeats")
    for table in tables:
        database.execute(f"CREATE TEMPORARY TABLE kept_{table} AS SELECT * FROM {table}")
    for change, said in (
        ("UPDATE voids SET side = 'both'", "its row in voids does not give its digest"),
        ("UPDATE voids SET target_source_id = source_id", "its row in voids does not give its digest"),
        ("UPDATE refusals SET seat = 'x'", "its row in refusals does not give its digest"),
        ("UPDATE heartbeats SET complete_until = now()", "its row in heartbeats does not give its digest"),
        ("UPDATE heartbeats SET batch_id = batch_id + 1", "batch or time of its row in heartbeats"),
        ("DELETE FROM refusals", "has no row in refusals"),
        ("INSERT INTO heartbeats SELECT gen_random_uuid(), source_id, batch_id, occurred_at, 2, complete_until "
         "FROM heartbeats", "the ledger has no such heartbeat"),
    ):  # fmt: skip
        database.execute(change)
        with postgres.reading(ready) as connection:
            assert said in str(details(connection)[1]), change
        for table in tables:
            database.execute(f"DELETE FROM {table}")
            database.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")
    assert differences(ready) == {}
