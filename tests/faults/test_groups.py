"""Workers that stall, leave and come: zombies, storms of rebalancing, a group that is deleted."""

import signal
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from kafka.admin import KafkaAdminClient

from metering.settings import Settings
from tests.faults.conftest import Started
from tests.faults.worker import Worker

Feed = Callable[[int], None]
Check = Callable[[], None]


def one(database: psycopg.Connection[Any], query: str) -> Any:
    row = database.execute(query).fetchone()
    assert row is not None
    return row[0]


def received(database: psycopg.Connection[Any]) -> int:
    return int(one(database, "SELECT coalesce(sum(records), 0) FROM ingest_batches"))


def in_another_group(settings: Settings) -> Settings:
    """For a worker that takes over at once, as after a rebalance of which the first one knows nothing."""
    return settings.model_copy(update={"consumer_group": f"group-{uuid.uuid4().hex}"})


def stopped(worker: Worker) -> bool:
    return worker.state() == "T"


def test_a_zombie_wakes_after_its_partitions_went_to_another(
    ready: Settings, database: psycopg.Connection[Any], start: Started, feed: Feed, nothing_lost: Check
) -> None:
    feed(20)
    zombie = start("ingest", at=[["after poll", "stop"]])
    zombie.wait_for(lambda: stopped(zombie), "the stop")
    heir = start("ingest", settings=in_another_group(ready))
    heir.wait_for(lambda: received(database) == 20, "the heir to read everything")
    written = one(database, "SELECT count(*) FROM usage_events")
    zombie.send(signal.SIGCONT)
    zombie.wait_for(lambda: '"fenced"' in zombie.said(), "the zombie to be fenced")
    assert one(database, "SELECT count(*) FROM usage_events") == written
    nothing_lost()


def test_a_zombie_in_the_middle_of_a_copy_is_terminated_by_who_takes_over(
    ready: Settings, database: psycopg.Connection[Any], start: Started, feed: Feed, nothing_lost: Check
) -> None:
    """No timeout of the server reaches a client that stands still inside COPY, with the position's row locked."""
    feed(20)
    zombie = start("ingest", at=[["inside COPY usage_events", "stop"]])
    zombie.wait_for(lambda: stopped(zombie), "the stop")
    active = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY usage_events%' AND state = 'active'"
    )
    assert one(database, f"{active} AND datname = current_database()") == 1
    heir = start("ingest", settings=in_another_group(ready))
    heir.wait_for(lambda: received(database) == 20, "the heir to read everything")
    assert one(database, f"{active} AND datname = current_database()") == 0
    zombie.send(signal.SIGCONT)
    zombie.wait_for(lambda: '"unavailable"' in zombie.said(), "the zombie to notice")
    assert "terminat" in zombie.said() or "closed the connection" in zombie.said()
    nothing_lost()


@pytest.mark.parametrize("assignor", ["roundrobin", "cooperative"])
def test_a_storm_of_rebalances(
    ready: Settings,
    database: psycopg.Connection[Any],
    start: Started,
    feed: Feed,
    nothing_lost: Check,
    assignor: str,
) -> None:
    """Eager and cooperative: workers come, leave and are killed while events come in."""
    small = ready.model_copy(update={"batch_bytes_target": 40_000})

    def one_more() -> Worker:
        return start("ingest", settings=small, consumer={"assignors": [assignor]})

    first = one_more()
    first.wait_for(lambda: '"claimed"' in first.said(), "a claim")
    rebalances = 0
    for number in range(3):
        guests = [one_more(), one_more()]
        feed(10)
        for guest in guests:
            guest.wait_for(lambda guest=guest: '"claimed"' in guest.said(), "a claim", seconds=40)
            rebalances += 1
        feed(10)
        guests[0].send(signal.SIGTERM)
        guests[1].send(signal.SIGTERM if number else signal.SIGKILL)
        assert guests[0].wait() == 0
    assert rebalances == 6
    first.wait_for(lambda: received(database) == 60, "everything to be read", seconds=40)
    nothing_lost()


def test_a_worker_that_takes_too_long_between_two_polls_leaves_and_claims_again(
    ready: Settings, database: psycopg.Connection[Any], start: Started, feed: Feed, nothing_lost: Check
) -> None:
    feed(10)
    slow = start("ingest", at=[["after poll", "sleep 9"]], consumer={"max_poll_interval_ms": 6_000})
    slow.wait_for(lambda: '"claimed"' in slow.said(), "a claim")
    other = start("ingest")
    other.wait_for(lambda: received(database) == 10, "the other to take over", seconds=60)
    # it was in the same group: the other got the partitions because this one was taken out of it
    slow.wait_for(lambda: slow.said().count('"claimed"') > 4, "another claim", seconds=60)
    nothing_lost()


def test_the_group_is_deleted_under_a_worker(
    ready: Settings,
    database: psycopg.Connection[Any],
    start: Started,
    feed: Feed,
    kafka_admin: KafkaAdminClient,
    nothing_lost: Check,
) -> None:
    feed(10)
    worker = start("ingest")
    worker.wait_for(lambda: received(database) == 10, "a first part")
    worker.send(signal.SIGSTOP)

    def deleted() -> bool:
        answer = kafka_admin.delete_groups([ready.consumer_group])
        return "NON_EMPTY" not in str(answer).upper() and "NONEMPTY" not in str(answer).upper()

    worker.wait_for(deleted, "the group to be empty, and deleted")
    assert ready.consumer_group not in str(kafka_admin.list_groups())
    feed(10)
    worker.send(signal.SIGCONT)
    worker.wait_for(lambda: received(database) == 20, "the second part")
    # what it had fetched it may still append; then it finds that it is no member any more
    worker.wait_for(lambda: worker.said().count('"claimed"') >= 8, "four partitions to be claimed twice")
    nothing_lost()
