"""The fold: ledger rows into rollups, once each, in any order and chunking, by one writer at a time."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise

import polars as pl
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from metering.core.folding import (
    CUSTOMER_MINUTE_SUMS,
    FOLDABLE,
    LIMIT_SUMS,
    MINUTE_SUMS,
    QUARTER_SUMS,
    SERIES_POOLS,
    fold,
)
from metering.errors import WrongWorld
from metering.frames.usage import POOL_CUSTOMER_USAGE, POOL_USAGE, USAGE
from metering.meters import METERS
from metering.settings import Settings, read_settings
from metering.store import postgres, rollups
from tests.conftest import CHECKOUT
from tests.ledger_builder import Event, Ledger, instant
from tests.text_tables import check, read
from workers import fold as worker

DAY = (instant("2026-10-31"), instant("2026-11-01"))
SERIES = read(
    """
    series_id | pool  | counts_for
    1         | -     | charge_and_cost
    2         | north | charge_and_cost
    3         | north | cost
    4         | north | charge
    """,
    SERIES_POOLS,
    ran_on="pool",
    model_served="large",
    tier_served="standard",
    region="eu",
)


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings(database_url=database_url)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    made = Ledger(settings)
    yield made
    made.close()


# ---- the core ------------------------------------------------------------------------------------------


def test_edges_of_minutes_and_quarters_and_what_counts() -> None:
    rows = read(
        """
        occurred_at                | series_id | requests     | uncached_input_tokens | output_tokens
        2026-10-31 09:59:59.999999 | 2         | 1            | 1                     | 10
        2026-10-31 10:00:00        | 2         | 1            | 2                     | 20
        2026-10-31 10:00:59.999999 | 3         | 1            | 4                     | 40
        2026-10-31 10:01:00        | 2         | 1            | 8                     | 80
        2026-10-31 10:14:59.999999 | 1         | 1            | 16                    | 160
        2026-10-31 10:15:00        | 1         | 1            | 32                    | 320
        2026-10-31 10:00:30        | 4         | -1           | -2                    | -20
        2026-10-31 10:00:31        | 2         | -1           | -2                    | -20
        """,
        FOLDABLE,
    )
    quarters, minutes, customers, holders = fold(rows, SERIES)
    check(
        quarters,
        """
        quarter_start    | series_id | requests | uncached_input_tokens | output_tokens | accelerator_ms
        2026-10-31 09:45 | 2         | 1        | 1                     | 10            | 0
        2026-10-31 10:00 | 1         | 1        | 16                    | 160           | 0
        2026-10-31 10:00 | 2         | 1        | 8                     | 80            | 0
        2026-10-31 10:00 | 3         | 1        | 4                     | 40            | 0
        2026-10-31 10:00 | 4         | -1       | -2                    | -20           | 0
        2026-10-31 10:15 | 1         | 1        | 32                    | 320           | 0
        """,
    )
    # without a pool there is no minute; a charge taken back (series 4) leaves the burn where it was
    check(
        minutes,
        """
        minute           | pool  | requests | uncached_input_tokens | output_tokens
        2026-10-31 09:59 | north | 1        | 1                     | 10
        2026-10-31 10:00 | north | 1        | 4                     | 40
        2026-10-31 10:01 | north | 1        | 8                     | 80
        """,
    )
    # the same by series, each of which has one customer
    check(
        customers,
        """
        minute           | series_id | requests | uncached_input_tokens | output_tokens
        2026-10-31 09:59 | 2         | 1        | 1                     | 10
        2026-10-31 10:00 | 2         | 0        | 0                     | 0
        2026-10-31 10:00 | 3         | 1        | 4                     | 40
        2026-10-31 10:01 | 2         | 1        | 8                     | 80
        """,
    )
    # everything, whether or not it was meant for a pool, by who held it
    assert holders["requests"].sum() == 4
    assert holders.height == 7


def test_minutes_of_holders_tell_projects_and_seats_apart() -> None:
    rows = read(
        """
        occurred_at         | series_id | project_id | seat_id | requests | output_tokens
        2026-10-31 10:00:01 | 1         | 0          | 0       | 1        | 1
        2026-10-31 10:00:02 | 1         | 7          | 0       | 1        | 2
        2026-10-31 10:00:03 | 1         | 7          | 3       | 1        | 4
        2026-10-31 10:00:04 | 1         | 7          | 3       | 1        | 8
        2026-10-31 10:00:05 | 4         | 7          | 3       | -1       | -8
        """,
        FOLDABLE,
    )
    check(
        fold(rows, SERIES)[3],
        """
        minute           | series_id | project_id | seat_id | requests | output_tokens
        2026-10-31 10:00 | 1         | 0          | 0       | 1        | 1
        2026-10-31 10:00 | 1         | 7          | 0       | 1        | 2
        2026-10-31 10:00 | 1         | 7          | 3       | 2        | 12
        2026-10-31 10:00 | 4         | 7          | 3       | -1       | -8
        """,
    )


def test_nothing_folds_to_nothing() -> None:
    folded = fold(FOLDABLE.empty(), SERIES_POOLS.empty())
    declared = (QUARTER_SUMS, MINUTE_SUMS, CUSTOMER_MINUTE_SUMS, LIMIT_SUMS)
    assert all(sums.equals(frame.empty()) for sums, frame in zip(folded, declared, strict=True))


def test_a_row_of_an_unknown_series_is_refused() -> None:
    rows = read("occurred_at | series_id | requests\n2026-10-31 | 9 | 1", FOLDABLE)
    with pytest.raises(AssertionError, match="no series 9"):
        fold(rows, SERIES)


def test_the_largest_quantities_do_not_wrap() -> None:
    largest = 2**31 - 1
    rows = pl.concat(
        [
            read("occurred_at | series_id | requests\n2026-10-31 | 2 | 1", FOLDABLE).with_columns(
                pl.lit(largest, pl.Int32).alias(meter) for meter in METERS
            )
        ]
        * 1000
    )
    quarters, minutes, customers, holders = fold(rows, SERIES)
    assert set(holders.row(0)[4:]) == {1000, 1000 * largest}
    assert set(quarters.row(0)[2:]) == set(customers.row(0)[2:]) == {1000, 1000 * largest}
    assert set(minutes.row(0)[7:]) == {1000, 1000 * largest}


events = st.builds(
    lambda second, series, holder, compensating, amounts: (
        instant("2026-10-31") + timedelta(seconds=second, microseconds=second * 7 % 1_000_000),
        series,
        *holder,
        compensating,
        *(-amount if compensating else amount for amount in amounts),
    ),
    st.integers(0, 7200),
    st.integers(1, 4),
    st.sampled_from([(0, 0), (1, 0), (0, 1)]),
    st.booleans(),
    st.lists(st.integers(0, 2**31 - 1), min_size=len(METERS), max_size=len(METERS)),
)


@given(st.lists(events, max_size=40), st.lists(st.integers(0, 40), max_size=4), st.randoms())
def test_folds_add_up_in_any_order_and_chunking(rows: list[tuple], cuts: list[int], random) -> None:  # type: ignore[no-untyped-def, type-arg]
    def frame(part: list[tuple]) -> pl.DataFrame:  # type: ignore[type-arg]
        return pl.DataFrame(part, schema=dict(FOLDABLE.columns), orient="row")

    whole = fold(frame(rows), SERIES)
    shuffled = random.sample(rows, len(rows))
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    parts = [fold(frame(shuffled[start:end]), SERIES) for start, end in pairwise(edges)] or [whole]
    for place, declared in enumerate((QUARTER_SUMS, MINUTE_SUMS, CUSTOMER_MINUTE_SUMS, LIMIT_SUMS)):
        added = pl.concat([part[place] for part in parts]).group_by(declared.key).sum()
        assert declared.conform(added).equals(whole[place])
    every_customer = whole[2].join(SERIES, on="series_id").group_by(MINUTE_SUMS.key)
    assert MINUTE_SUMS.conform(every_customer.agg(pl.col("requests", *METERS).sum())).equals(whole[1])


# ---- the store and the worker --------------------------------------------------------------------------


def traffic(intake: int, ledger: Ledger, batches: int = 5) -> None:
    for number in range(batches):
        ledger.batch(
            intake,
            [
                Event(
                    f"2026-10-31 10:{number * 7 % 60:02}:59.999999",
                    (100 + number, 10),
                    pool="north",
                    ran_on="pool",
                ),
                Event(f"2026-10-31 10:{number * 7 % 60:02}:00", (7, 1), customer="globex", project="alpha"),
                Event(
                    "2026-10-31 11:00:00", (5, 5), event_id=f"not-a-uuid-{intake}-{number}", duration_ms=12
                ),
                Event("2026-10-31 11:00:00", (0, 0), event_type=2),
            ],
            duplicate=1,
            rejected=2,
        )


def run(settings: Settings) -> None:
    worker.run(until_idle=True, settings=settings)


def test_fold_and_read_again(settings: Settings, ledger: Ledger) -> None:
    intake = ledger.intake()
    ledger.batch(
        intake,
        [
            Event("2026-10-31 10:14:59.999999", (100, 10), pool="north", ran_on="pool"),
            Event("2026-10-31 10:15:00", (200, 20), pool="north", ran_on="pool"),
            Event("2026-10-31 10:15:01", (1, 1)),
            Event("2026-10-31 10:15:02", (0, 0), event_type=3),
        ],
    )
    ledger.batch(intake, [], rejected=3)
    ledger.batch(
        intake,
        [
            Event(
                "2026-10-31 10:15:00", (200, 20), pool="north", ran_on="pool", compensates=True, event_type=5
            ),
            Event("2026-10-31 10:15:00", (1, 1), counts_for="charge", compensates=True, event_type=5),
        ],
    )
    run(settings)
    with postgres.reading(settings) as connection:
        usage = USAGE.conform(rollups.read_usage(connection, *DAY, None))
        pools = POOL_USAGE.conform(rollups.read_pool_usage(connection, *DAY, None))
        assert rollups.read_usage(connection, DAY[1], DAY[1] + timedelta(days=1), None).schema == usage.schema
        assert rollups.read_pool_usage(connection, DAY[1], DAY[1] + timedelta(days=1), None).is_empty()
    check(
        usage,
        """
        quarter_start    | pool  | counts_for      | requests | uncached_input_tokens | output_tokens
        2026-10-31 10:00 | north | charge_and_cost | 1        | 100                   | 10
        2026-10-31 10:15 | north | charge_and_cost | 0        | 0                     | 0
        2026-10-31 10:15 | -     | charge_and_cost | 1        | 1                     | 1
        2026-10-31 10:15 | -     | charge          | -1       | -1                    | -1
        """,
    )
    check(
        pools,
        """
        minute           | pool  | ran_on | requests | uncached_input_tokens | output_tokens
        2026-10-31 10:14 | north | pool   | 1        | 100                   | 10
        2026-10-31 10:15 | north | pool   | 0        | 0                     | 0
        """,
    )


def test_run_it_twice(settings: Settings, ledger: Ledger) -> None:
    traffic(ledger.intake(), ledger)
    run(settings)
    once = ledger.rollups()
    assert once["usage_quarters"]
    assert once["pool_minutes"]
    assert once["pool_customer_minutes"]
    assert once["limit_minutes"]
    run(settings)
    assert ledger.rollups() == once


@pytest.mark.parametrize("most", [1, 2, 3, 50])
def test_any_chunking_gives_the_same_rollups(settings: Settings, ledger: Ledger, most: int) -> None:
    intakes = [ledger.intake(partition) for partition in range(3)]
    for number, intake in enumerate(intakes):
        traffic(intake, ledger, batches=number * 2 + 1)
    with postgres.connect(settings, "fold") as connection:
        series = worker.SeriesPools(entries_max=1)
        small = settings.model_copy(update={"fold_batches_max": most})
        while worker.fold_once(connection, small, series):
            pass
    assert [row[1] for row in ledger.rollups()["fold_positions"]] == [1, 3, 5]
    chunked = ledger.rollups()
    ledger.execute(
        "TRUNCATE usage_quarters, pool_minutes, pool_customer_minutes, limit_minutes, fold_positions"
    )
    run(settings)
    assert ledger.rollups() == chunked


def test_what_dies_in_the_middle_leaves_nothing(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic(ledger.intake(), ledger)
    before = ledger.rollups()

    def die(*arguments: object) -> None:
        raise ConnectionAbortedError("the machine went away")

    for point in ("advance_fold", "add_sums", "read_foldable"):
        with monkeypatch.context() as broken, postgres.connect(settings, "fold") as connection:
            broken.setattr(rollups, point, die)
            with pytest.raises(ConnectionAbortedError):
                worker.fold_once(connection, settings, worker.SeriesPools(100))
            assert ledger.rollups() == before
            broken.undo()
            # the lock KNOWLEDGE was given back: another session can take it at once
            assert ledger.execute(f"SELECT pg_try_advisory_lock({postgres.KNOWLEDGE})") == [(True,)]
            ledger.execute(f"SELECT pg_advisory_unlock({postgres.KNOWLEDGE})")
    run(settings)
    assert ledger.rollups() != before


def test_a_backend_killed_in_the_middle_leaves_nothing(settings: Settings, ledger: Ledger) -> None:
    traffic(ledger.intake(), ledger)
    before = ledger.rollups()
    with postgres.connect(settings, "fold") as connection:
        with pytest.raises(DBAPIError), postgres.knowledge(connection):
            _fold_and_die(connection, settings, ledger)
        connection.invalidate()
    assert ledger.rollups() == before
    run(settings)
    assert [row[1] for row in ledger.rollups()["fold_positions"]] == [5]


def _fold_and_die(connection: Connection, settings: Settings, ledger: Ledger) -> None:
    assert worker.fold_some(connection, settings, worker.SeriesPools(100)) == 5
    pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    ledger.execute("SELECT pg_terminate_backend(%s, 5000)", pid)


def test_many_folds_at_once_count_everything_once(settings: Settings, ledger: Ledger) -> None:
    intakes = [ledger.intake(partition) for partition in range(2)]
    for intake in intakes:
        traffic(intake, ledger)
    small = settings.model_copy(update={"fold_batches_max": 1})

    def work() -> None:
        with postgres.connect(settings, "fold") as connection:
            series = worker.SeriesPools(100)
            while worker.fold_once(connection, small, series):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    together = ledger.rollups()
    ledger.execute(
        "TRUNCATE usage_quarters, pool_minutes, pool_customer_minutes, limit_minutes, fold_positions"
    )
    run(settings)
    assert ledger.rollups() == together


def test_a_second_worker_says_who_is_at_work_and_waits(
    settings: Settings, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    traffic(ledger.intake(), ledger)
    with postgres.connect(settings, "fold") as first:
        assert postgres.take_lock(first, postgres.FOLD)
        pid = first.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        first.rollback()
        with postgres.connect(settings, "fold") as second:
            step = worker.FoldWorker(second, settings, until_idle=True).step
            assert step()
            assert not postgres.take_lock(second, postgres.FOLD)
            assert postgres.lock_holder(second, postgres.FOLD).startswith(
                f"backend {pid} from a local socket, since 20"
            )
            assert ledger.rollups()["fold_positions"] == []
            first.close()
            deadline = time.monotonic() + 10
            while step() and time.monotonic() < deadline:
                pass
            assert postgres.lock_holder(second, postgres.FOLD) != "nobody any more"
    assert [row[1] for row in ledger.rollups()["fold_positions"]] == [5]
    assert f"backend {pid}" in capsys.readouterr().out


def test_a_missing_batch_stops_the_fold(settings: Settings, ledger: Ledger) -> None:
    intake = ledger.intake()
    traffic(intake, ledger)
    ledger.execute("DELETE FROM ingest_batches WHERE sequence = 2")
    with pytest.raises(WrongWorld, match=f"intake {intake}: batch 2 is missing"):
        run(settings)
    assert ledger.rollups()["fold_positions"] == []


def test_a_sum_beyond_64_bits_is_an_error(settings: Settings, ledger: Ledger) -> None:
    intake = ledger.intake()
    ledger.batch(intake, [Event("2026-10-31 10:00:00", (100, 10))])
    run(settings)
    ledger.execute("UPDATE usage_quarters SET uncached_input_tokens = 9223372036854775807")
    ledger.batch(intake, [Event("2026-10-31 10:00:00", (1, 10))])
    before = ledger.rollups()
    with pytest.raises(Exception, match="out of range"):
        run(settings)
    assert ledger.rollups() == before


def test_reports_sum_series_of_the_same_dimensions(settings: Settings, ledger: Ledger) -> None:
    intake = ledger.intake()
    ledger.batch(
        intake, [Event("2026-10-31 10:00:00", (100, 10)), Event("2026-10-31 10:00:00", (1, 1), customer="x")]
    )
    ledger.execute("UPDATE series SET customer = 'acme'")
    run(settings)
    with postgres.reading(settings) as connection:
        usage = rollups.read_usage(connection, *DAY, None)
    check(usage, "customer | requests | uncached_input_tokens\nacme | 2 | 101")


def test_usage_of_customers_by_pool_adds_up_to_that_of_the_pools(settings: Settings, ledger: Ledger) -> None:
    intake = ledger.intake()
    north, south = ({"pool": pool, "ran_on": "pool"} for pool in ("north", "south"))
    ledger.batch(
        intake,
        [
            Event("2026-10-31 10:14:59.999999", (100, 10), **north),
            Event("2026-10-31 10:14:00", (200, 20), counts_for="cost", **north),
            Event("2026-10-31 10:14:00", (3, 3), customer="globex", **north),
            Event("2026-10-31 10:14:00", (4, 4), customer="globex", pool="north", ran_on="overflow"),
            Event("2026-10-31 10:15:00", (5, 5), customer="globex", **south),
            Event("2026-10-31 10:15:00", (6, 6), customer="globex"),
        ],
    )
    with postgres.connect(settings, "fold") as connection:
        worker.pin(connection, settings, "test")
    # a charge that is taken back leaves what was burned, what never ran does not
    backward = {"compensates": True, "event_type": 5, **north}
    ledger.batch(
        intake,
        [
            Event("2026-10-31 10:14:59.999999", (100, 10), counts_for="charge", **backward),
            Event("2026-10-31 10:14:00", (3, 3), customer="globex", **backward),
        ],
    )
    run(settings)

    def read_back(as_of: int | None, pools: list[str] | None = None) -> pl.DataFrame:
        with postgres.reading(settings) as connection:
            found = rollups.read_pool_customer_usage(connection, *DAY, as_of, pools)
            if pools is None:
                every = rollups.read_pool_usage(connection, *DAY, as_of)
                assert POOL_USAGE.conform(
                    found.group_by(POOL_USAGE.key).agg(pl.col("requests", *METERS).sum())
                ).equals(every)
        assert POOL_CUSTOMER_USAGE.conform(found).equals(found)
        return found

    check(
        read_back(None),
        """
        minute           | pool  | ran_on   | customer | provider | requests | uncached_input_tokens | output_tokens
        2026-10-31 10:14 | north | overflow | globex   | own      | 1        | 4                     | 4
        2026-10-31 10:14 | north | pool     | acme     | own      | 2        | 300                   | 30
        2026-10-31 10:14 | north | pool     | globex   | own      | 0        | 0                     | 0
        2026-10-31 10:15 | south | pool     | globex   | own      | 1        | 5                     | 5
        """,
    )
    assert read_back(1)["requests"].to_list() == [1, 2, 1, 1]
    assert read_back(None, ["south", "no such"])["pool"].to_list() == ["south"]
    assert read_back(None, []).is_empty()
    with postgres.reading(settings) as connection:
        later = rollups.read_pool_customer_usage(connection, DAY[1], DAY[1] + timedelta(days=1), None)
    assert later.equals(POOL_CUSTOMER_USAGE.empty())


def test_texts_with_quotes_and_line_ends_come_through(settings: Settings, ledger: Ledger) -> None:
    pool = 'no"rth,\n "x" é'
    ledger.batch(ledger.intake(), [Event("2026-10-31 10:00:00", pool=pool, ran_on="pool", model="")])
    run(settings)
    with postgres.reading(settings) as connection:
        pools = rollups.read_pool_usage(connection, *DAY, None)
        usage = rollups.read_usage(connection, *DAY, None)
        assert rollups.read_pool_customer_usage(connection, *DAY, None, [pool])["pool"][0] == pool
    assert (pools["pool"][0], pools["model_served"][0]) == (pool, "")
    assert (usage["pool"][0], usage["model_served"][0]) == (pool, "")


def test_only_the_fold_may_write_rollups(settings: Settings) -> None:
    for role in ("read", "ingest", "evaluate", "operator"):
        with (
            postgres.connect_driver(settings, role) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute("DELETE FROM usage_quarters")


def test_the_command_pins_by_its_timer_and_stops_on_a_signal(settings: Settings, ledger: Ledger) -> None:
    traffic(ledger.intake(), ledger)
    address = settings.database_url.get_secret_value()
    environment = {**os.environ, "METERING_DATABASE_URL": address, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.fold"], env=environment, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 30
        while not ledger.execute("SELECT 1 FROM watermarks") and time.monotonic() < deadline:
            time.sleep(0.2)
        assert [row[1] for row in ledger.rollups()["fold_positions"]] == [5]
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
