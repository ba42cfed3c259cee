"""Watermarks: what was pinned stays, it holds every position, `complete_until` never moves back."""

import threading
from collections.abc import Iterator
from datetime import datetime

import psycopg
import pytest

from metering.errors import BadInput
from metering.frames.usage import POOL_USAGE, USAGE
from metering.settings import Settings, read_settings
from metering.store import postgres, rollups, watermarks
from metering.store.chain import GENESIS
from metering.store.watermarks import HeldBack, Knowledge
from tests.ledger_builder import TOPIC, Event, Ledger, instant
from tests.text_tables import check
from workers import fold as worker

DAY = (instant("2026-10-31"), instant("2026-11-01"))


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings(database_url=database_url, allowed_lateness_seconds=600)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    made = Ledger(settings)
    yield made
    made.close()


def pin(settings: Settings, reason: str = "test") -> Knowledge:
    with postgres.connect(settings, "fold") as connection:
        return worker.pin(connection, settings, reason)


def live(settings: Settings) -> Knowledge:
    with postgres.reading(settings) as connection:
        return watermarks.read_knowledge(connection, None, settings=settings)


def tokens(settings: Settings, as_of: int | None) -> tuple[int, int]:
    """Input tokens of the day's quarters, and of its pool minutes."""
    with postgres.reading(settings) as connection:
        usage = USAGE.conform(rollups.read_usage(connection, *DAY, as_of))
        pools = POOL_USAGE.conform(rollups.read_pool_usage(connection, *DAY, as_of))
    return int(usage["uncached_input_tokens"].sum() or 0), int(pools["uncached_input_tokens"].sum() or 0)


def pooled(at: str, amount: int) -> Event:
    return Event(at, (amount, 0), pool="north", ran_on="pool")


def test_what_is_pinned_stays_whatever_comes(settings: Settings, ledger: Ledger) -> None:
    intake = ledger.intake()
    assert tokens(settings, None) == (0, 0)
    assert pin(settings).watermark_id == 1
    ledger.batch(intake, [pooled("2026-10-31 10:00:00", 100), Event("2026-10-31 10:00:00", (1000, 0))])
    assert pin(settings).watermark_id == 2
    # late usage of the same quarter hour and series, and a void of what was there
    ledger.batch(intake, [pooled("2026-10-31 10:00:01", 7)])
    worker.run(until_idle=True, settings=settings)
    ledger.batch(intake, [Event("2026-10-31 10:00:00", (1000, 0), compensates=True, event_type=5)])
    assert [tokens(settings, as_of) for as_of in (1, 2)] == [(0, 0), (1100, 100)]
    assert tokens(settings, None) == (1107, 107)
    assert pin(settings).watermark_id == 3
    assert [tokens(settings, as_of) for as_of in (1, 2, 3, None)] == [
        (0, 0), (1100, 100), (107, 107), (107, 107),
    ]  # fmt: skip


def test_a_pin_folds_all_that_is_committed(settings: Settings, ledger: Ledger) -> None:
    intake = ledger.intake()
    for number in range(7):
        ledger.batch(intake, [Event(f"2026-10-31 10:0{number}:00", (1, 0))])
    small = settings.model_copy(update={"fold_batches_max": 2})
    pin(small)
    assert ledger.rollups()["fold_positions"] == [(intake, 7)]
    assert tokens(settings, 1) == (7, 0)


def test_a_watermark_holds_every_position(settings: Settings, ledger: Ledger) -> None:
    first, second = ledger.intake(0), ledger.intake(1)
    ledger.batch(first, [Event("2026-10-31 10:00:00")], rejected=4)
    pin(settings, "to see")
    with postgres.reading(settings) as connection:
        (one,) = watermarks.watermarks(connection)
    heads = dict(ledger.execute("SELECT intake_id, encode(chain_head, 'hex') FROM stream_positions"))
    common = {"kind": "kafka", "topic": "events", "topic_uuid": str(TOPIC)}
    assert one.positions == [
        {
            **common,
            "intake_id": first,
            "partition": 0,
            "next_offset": 5,
            "next_sequence": 1,
            "chain_head": heads[first],
        },
        {
            **common,
            "intake_id": second,
            "partition": 1,
            "next_offset": 0,
            "next_sequence": 0,
            "chain_head": GENESIS.hex(),
        },
    ]
    assert (one.reason, one.catalog_revision, one.previous_head) == ("to see", 0, GENESIS)
    pin(settings)
    with postgres.reading(settings) as connection:
        assert watermarks.watermarks(connection)[1].previous_head == one.head


def test_complete_until_is_that_of_the_last_partition_and_never_moves_back(
    settings: Settings, ledger: Ledger
) -> None:
    def complete() -> tuple[datetime | None, datetime | None]:
        return live(settings).complete_until, pin(settings).complete_until

    assert complete() == (None, None)
    first = ledger.intake(0, seen_until="2026-10-31 12:00:00")
    second = ledger.intake(1)
    assert complete() == (None, None)
    ledger.execute(
        "UPDATE stream_positions SET seen_until = %s WHERE intake_id = %s",
        instant("2026-10-31 11:00"),
        second,
    )
    assert complete() == (instant("2026-10-31 10:50"),) * 2
    with postgres.reading(settings) as connection:
        assert watermarks.holding_back(connection, settings) == HeldBack(
            second, "events", 1, instant("2026-10-31 11:00")
        )
    # a partition that was never seen, and one that was seen less far: neither takes anything back
    third = ledger.intake(2)
    assert complete() == (instant("2026-10-31 10:50"),) * 2
    ledger.execute(
        "UPDATE stream_positions SET retired_at = now() WHERE intake_id IN (%s, %s)", second, third
    )
    assert complete() == (instant("2026-10-31 11:50"),) * 2
    ledger.execute(
        "UPDATE stream_positions SET seen_until = %s WHERE intake_id = %s", instant("2026-10-31 11:00"), first
    )
    assert complete() == (instant("2026-10-31 11:50"),) * 2


def test_what_is_not_folded_is_not_complete(settings: Settings, ledger: Ledger) -> None:
    intake = ledger.intake()
    ledger.batch(intake, [Event("2026-10-31 10:00:00")], until="2026-10-31 10:30:00")
    assert live(settings).complete_until is None
    worker.run(until_idle=True, settings=settings)
    assert live(settings).complete_until == instant("2026-10-31 10:20")
    ledger.batch(intake, [Event("2026-10-31 10:00:00")], until="2026-10-31 12:30:00")
    assert live(settings).complete_until == instant("2026-10-31 10:20")
    assert pin(settings).complete_until == instant("2026-10-31 12:20")


def test_an_unknown_watermark_is_refused_by_name(settings: Settings) -> None:
    with (
        postgres.reading(settings) as connection,
        pytest.raises(BadInput, match="no watermark 1: none was pinned yet"),
    ):
        watermarks.read_knowledge(connection, 1)
    pin(settings)
    pin(settings)
    with postgres.reading(settings) as connection:
        assert watermarks.read_knowledge(connection, 2).watermark_id == 2
        for unknown in (0, 3):
            with pytest.raises(BadInput, match=f"no watermark {unknown}: there are watermarks 1 to 2"):
                watermarks.read_knowledge(connection, unknown)


def test_pins_at_once_get_numbers_of_their_own(settings: Settings, ledger: Ledger) -> None:
    intake = ledger.intake()
    for number in range(4):
        ledger.batch(intake, [Event(f"2026-10-31 10:0{number}:00", (1, 0))])
    threads = [threading.Thread(target=pin, args=(settings,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with postgres.reading(settings) as connection:
        found = watermarks.watermarks(connection)
    assert [one.watermark_id for one in found] == [1, 2, 3, 4, 5]
    assert tokens(settings, 1) == tokens(settings, 5) == (4, 0)


def test_a_pin_that_dies_leaves_the_interval_open(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.batch(ledger.intake(), [pooled("2026-10-31 10:00:00", 100)])
    before = ledger.rollups()

    def die(*arguments: object) -> None:
        raise ConnectionAbortedError("the machine went away")

    with monkeypatch.context() as broken:
        broken.setattr(worker, "append_watermark", die)
        with pytest.raises(ConnectionAbortedError):
            pin(settings)
    assert ledger.rollups() == before
    assert ledger.execute("SELECT 1 FROM watermarks") == []
    assert pin(settings).watermark_id == 1


def test_a_watermark_cannot_be_changed_by_a_worker(settings: Settings) -> None:
    pin(settings)
    for statement in ("UPDATE watermarks SET reason = ''", "DELETE FROM watermarks", "TRUNCATE watermarks"):
        with (
            postgres.connect_driver(settings, "fold") as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement)


def test_reports_of_a_watermark_are_the_same_rows_in_the_same_order(
    settings: Settings, ledger: Ledger
) -> None:
    intake = ledger.intake()
    for number in range(3):
        events = [
            pooled(f"2026-10-31 1{number}:00:00", 1),
            Event("2026-10-31 09:00:00", (1, 1), customer=f"c{number}"),
        ]
        ledger.batch(intake, events)
        worker.run(until_idle=True, settings=settings)
    pin(settings)
    with postgres.reading(settings) as connection:
        first = rollups.read_usage(connection, *DAY, 1)
        again = rollups.read_usage(connection, *DAY, 1)
    ledger.batch(intake, events)
    pin(settings)
    with postgres.reading(settings) as connection:
        later = rollups.read_usage(connection, *DAY, 1)
    assert first.equals(again)
    assert first.equals(later)
    assert USAGE.conform(first).equals(first)
    check(
        first,
        """
        quarter_start    | customer | pool  | requests
        2026-10-31 09:00 | c0       | -     | 1
        2026-10-31 09:00 | c1       | -     | 1
        2026-10-31 09:00 | c2       | -     | 1
        2026-10-31 10:00 | acme     | north | 1
        2026-10-31 11:00 | acme     | north | 1
        2026-10-31 12:00 | acme     | north | 1
        """,
    )


def test_sums_over_watermarks_do_not_wrap(settings: Settings, ledger: Ledger) -> None:
    intake = ledger.intake()
    for _ in range(3):
        ledger.batch(intake, [pooled("2026-10-31 10:00:00", 1)])
        pin(settings)
    largest = 2**63 - 1
    ledger.execute(f"UPDATE usage_quarters SET uncached_input_tokens = {largest}")
    ledger.execute(f"UPDATE pool_minutes SET uncached_input_tokens = {largest}")
    assert [tokens(settings, as_of) for as_of in (1, 2, 3)] == [(n * largest, n * largest) for n in (1, 2, 3)]
    with postgres.reading(settings) as connection:
        usage = rollups.read_usage(connection, *DAY, None)
    check(usage, "requests | output_tokens | accelerator_ms\n3 | 0 | 0")
