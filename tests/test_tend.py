"""Tend: partitions ahead, old rejects retired, and nobody waits for either."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest
from sqlalchemy import Connection, text

from metering.errors import BadInput, Unavailable, WrongWorld
from metering.settings import Settings, read_settings
from metering.store import partitions, postgres
from workers import tend as worker
from workers.now import _partitions

TODAY = datetime.now(UTC).date()
DAY = timedelta(days=1)


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings(database_url=database_url)


def names(connection: Connection) -> list[str]:
    found = connection.execute(
        text("SELECT inhrelid::regclass::text FROM pg_inherits JOIN pg_class ON oid = inhrelid "
             "WHERE relkind = 'r' AND NOT inhdetachpending ORDER BY 1")
    ).scalars().all()  # fmt: skip
    connection.rollback()
    return list(found)


def test_days_are_made_ahead_once_and_old_rejects_are_retired(settings: Settings) -> None:
    with postgres.connect(settings, "owner") as connection:
        with pytest.raises(WrongWorld, match="metering init"):
            worker.step(connection, settings)
        partitions.ensure(connection, TODAY - 3 * DAY, TODAY)
        kept, old = TODAY - 90 * DAY, TODAY - 91 * DAY
        partitions.ensure_rejects(connection, old, kept + DAY)
        assert partitions.made_until(connection) == kept
        worker.step(connection, settings)
        made = names(connection)
        days = [f"{TODAY + n * DAY:%Y%m%d}" for n in range(-1, 15)]
        assert {
            f"{parent}_{day}" for day in days for parent in ("usage_events", "rejects", "conflicts")
        } < set(made)
        assert f"usage_events_{TODAY + 15 * DAY:%Y%m%d}" not in made
        assert f"rejects_{kept:%Y%m%d}" in made
        assert {f"rejects_{old:%Y%m%d}", f"conflicts_{old:%Y%m%d}"}.isdisjoint(made)
        assert (
            connection.execute(text("SELECT to_regclass(:t)"), {"t": f"rejects_{old:%Y%m%d}"}).scalar()
            is None
        )
        assert partitions.made_until(connection) == TODAY + 14 * DAY
        floor = partitions.floor(connection)
        worker.step(connection, settings)
        assert (names(connection), partitions.floor(connection)) == (made, floor)


@pytest.mark.parametrize(("days", "state"), [(14, "good"), (7, "good"), (6, "bad"), (None, "bad")])
def test_the_page_alarms_below_seven_days(settings: Settings, days: int | None, state: str) -> None:
    until = None if days is None else TODAY + days * DAY
    fact = _partitions(datetime(TODAY.year, TODAY.month, TODAY.day, 23, tzinfo=UTC), settings, until)
    assert (fact.state, fact.values["until"]) == (state, until)


def test_an_open_report_holds_up_neither_ingest_nor_the_days_ahead(settings: Settings) -> None:
    """While a report reads every partition, days are made and retired ones left; no write waits meanwhile."""
    longest, stop = [0.0], threading.Event()
    old = TODAY - 100 * DAY

    def write() -> None:
        with postgres.connect_driver(settings, "ingest") as connection:
            connection.autocommit = True
            while not stop.is_set():
                began = time.monotonic()
                connection.execute(
                    "INSERT INTO rejects (batch_id, intake_id, record_offset, index, payload, payload_bytes, "
                    "payload_sha256, code, detail) VALUES (1, 1, 1, 1, '', 0, '', 'bad_json', '')"
                )
                with pytest.raises(psycopg.errors.NotNullViolation):
                    # routed to its partition, and no further
                    connection.execute(
                        "INSERT INTO usage_events (event_key, source_id) VALUES (%s, 1)",
                        (partitions.key_floor(datetime.now(UTC)),),
                    )
                longest[0] = max(longest[0], time.monotonic() - began)

    with postgres.connect(settings, "owner") as connection:
        partitions.ensure(connection, TODAY, TODAY + DAY)
        partitions.ensure_rejects(connection, TODAY, TODAY + DAY)
        partitions.ensure_rejects(connection, old, old + DAY)
        writer = threading.Thread(target=write)
        with postgres.reading(settings) as report:
            for table in ("usage_events", "rejects", "conflicts"):
                report.execute(text(f"SELECT count(*) FROM {table}"))
            writer.start()
            try:
                quick = settings.model_copy(update={"lock_timeout_ms": 50})
                with (
                    postgres.connect(quick, "owner") as owner,
                    pytest.raises(Unavailable, match=f"rejects_{old:%Y%m%d} is in use"),
                ):
                    worker.step(owner, quick)
                assert partitions.made_until(connection) == TODAY + 14 * DAY
                connection.rollback()
            finally:
                stop.set()
                writer.join()
        assert 0 < longest[0] < 1.0
        # what was detached half way is finished when the report has gone
        worker.step(connection, settings)
        assert f"rejects_{old:%Y%m%d}" not in names(connection)
        assert (
            connection.execute(text("SELECT to_regclass(:t)"), {"t": f"rejects_{old:%Y%m%d}"}).scalar()
            is None
        )


def test_two_at_once_do_no_harm(settings: Settings) -> None:
    with postgres.connect(settings, "owner") as connection:
        partitions.ensure(connection, TODAY, TODAY + DAY)
        partitions.ensure_rejects(connection, TODAY - 95 * DAY, TODAY - 93 * DAY)
    with postgres.connect(settings, "owner") as one, postgres.connect(settings, "owner") as two:
        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(worker.step, each, settings) for each in (one, two)]:
                done.result()
        assert partitions.made_until(one) == TODAY + 14 * DAY
        assert partitions.days_of(one, "rejects")[0] == TODAY - DAY


def test_past_days_beneath_archived_ones_are_refused(settings: Settings) -> None:
    with postgres.connect(settings, "owner") as connection:
        first = date(2026, 10, 1)
        partitions.ensure(connection, first, first + 2 * DAY)
        connection.execute(text("UPDATE ledger_floor SET floor_at = '2026-10-02'"))
        connection.execute(
            text(
                "INSERT INTO archives (day, address, rows, bytes, sha256) VALUES (:day, 'x', 0, 0, sha256(''))"
            ),
            {"day": first},
        )
        connection.commit()
        for begin, end in ((first - DAY, first), (first, first + DAY), (first - DAY, first + 3 * DAY)):
            with pytest.raises(BadInput, match=r"2026-10-01 are archived.*archive restore 2026-10-01"):
                partitions.ensure(connection, begin, end)
            connection.rollback()
        assert partitions.ensure(connection, first + DAY, first + 3 * DAY) == [first + 2 * DAY]
