"""Audio, images and tool calls in the ledger: packed, folded, taken back, verified, archived; free where absent."""

import hashlib
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import psycopg
import pytest

from metering.meters import FIRST_METERS, FURTHER_METERS, METERS
from metering.settings import Settings, read_settings
from metering.store import archived_sums, postgres, rollups
from metering.store.verify import verify
from tests.ledger_builder import Event, Ledger, instant
from workers import archive, fold, settle
from workers.rebuild import rebuild

FIRST = date(2026, 10, 1)
SPOKEN = {"audio_input_tokens": 300, "audio_output_tokens": 2**31 - 1}
SEEN = {"image_input_tokens": 70, "image_output_tokens": 8, "tool_calls": 3}


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return read_settings(
        database_url=database_url, archive_address=str(tmp_path / "archive"), archive_after_days=5
    )


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    made = Ledger(settings, (FIRST, FIRST + timedelta(days=2)))
    yield made
    made.close()


def differences(settings: Settings) -> dict[str, str]:
    with postgres.reading(settings, scratch=archived_sums.SCRATCH) as connection:
        return {each.name: each.difference for each in verify(connection, roots=True) if each.difference}


def sums(settings: Settings) -> list[tuple[int, ...]]:
    """What reports read of the first day, per quarter hour: uncached input, then the further meters."""
    with postgres.reading(settings) as connection:
        start, until = instant("2026-10-01"), instant("2026-10-02")
        usage = rollups.read_usage(connection, start, until, None)
        pools = rollups.read_pool_usage(connection, start, until, None)
        customers = rollups.read_pool_customer_usage(connection, start, until, None)
        served = rollups.read_served(connection, start, until, None)
    assert pools.select(METERS).rows() == customers.select(METERS).rows()
    assert served.select(METERS).sum().rows() == usage.select(METERS).sum().rows()
    return usage.select("uncached_input_tokens", *FURTHER_METERS).rows()


def test_from_the_ledger_to_reports_and_files_and_back(settings: Settings, ledger: Ledger) -> None:
    intake = ledger.intake()
    ledger.batch(
        intake,
        [
            Event("2026-10-01 10:00:00", duration_ms=5),
            Event("2026-10-01 10:01:00", meters=SPOKEN, event_id="spoken", duration_ms=5),
            Event("2026-10-01 10:20:00", meters=SEEN, pool="north", ran_on="pool"),
            Event("2026-10-01 10:40:00", pool="north", ran_on="pool"),
            Event("2026-10-02 10:00:00"),
        ],
    )
    # a row without any takes what it took before there were any: header 24, columns 119, this one's length 1
    widths = ledger.execute("SELECT pg_column_size(u) FROM usage_events u ORDER BY ordinal LIMIT 1")
    assert widths == [(144,)]
    fold.run(until_idle=True, settings=settings)
    assert differences(settings) == {}
    quarters = [(200, 300, 2**31 - 1, 0, 0, 0), (100, 0, 0, 70, 8, 3), (100, 0, 0, 0, 0, 0)]
    assert sums(settings) == quarters
    # no room in a rollup either: null, not 0
    nulls = " OR ".join(f"{meter} = 0" for meter in FURTHER_METERS)
    for rollup in ledger.rollups():
        if rollup != "fold_positions":
            assert ledger.execute(f"SELECT count(*) FROM {rollup} WHERE {nulls}") == [(0,)]
    assert not any(each.differing for each in rebuild(settings, dry_run=True).differences)
    # taken back: nothing is left of them, whichever way they are summed
    ledger.batch(
        intake,
        [Event("2026-10-02 11:00:00", voids="spoken", side="both")],
    )
    ledger.execute("UPDATE stream_positions SET seen_until = '2026-10-19'")
    settle.run(until_idle=True, settings=settings)
    fold.run(until_idle=True, settings=settings)
    assert sums(settings) == [(100, *[0] * 5), *quarters[1:]]
    assert differences(settings) == {}
    assert not any(each.differing for each in rebuild(settings, dry_run=True).differences)
    # a file and back
    before = ledger.execute("SELECT * FROM usage_events ORDER BY batch_id, ordinal")
    archive.archive_day(settings, FIRST, date(2026, 10, 20))
    assert differences(settings) == {}
    assert not any(each.differing for each in rebuild(settings, dry_run=True).differences)
    archive.restore_day(settings, FIRST)
    assert ledger.execute("SELECT * FROM usage_events ORDER BY batch_id, ordinal") == before
    assert differences(settings) == {}
    # what is altered is named
    ledger.execute("UPDATE usage_events SET further_meters = further_meters || '' WHERE further_meters <> ''")
    assert differences(settings) == {}
    ledger.execute(
        "UPDATE usage_events SET further_meters = set_byte(further_meters, 19, 4) WHERE event_id = '' "
        "AND further_meters <> ''"
    )
    found = differences(settings)
    assert sorted(found) == [
        *("ledger rows", "limit_minutes", "pool_customer_minutes", "pool_minutes", "usage_quarters")
    ]
    assert "tool_calls sum to 4 in the ledger, the rollup says 3" in found["usage_quarters"]


@pytest.mark.parametrize("value", [b"\0" * 19, b"\0" * 24, b"\xff" * 20])
def test_the_ledger_refuses_what_is_no_further_meters(ledger: Ledger, value: bytes) -> None:
    intake = ledger.intake()
    ledger.batch(intake, [Event("2026-10-01 10:00:00")])
    with pytest.raises(psycopg.errors.CheckViolation, match="further_meters"):
        ledger.execute("UPDATE usage_events SET further_meters = %s", value)


def test_every_meter_is_kept_once() -> None:
    assert len({*FIRST_METERS, *FURTHER_METERS}) == len(METERS) == 12


def test_a_day_that_was_archived_before_there_were_further_meters(
    settings: Settings, ledger: Ledger, tmp_path: Path
) -> None:
    intake = ledger.intake()
    ledger.batch(intake, [Event("2026-10-01 10:00:00"), Event("2026-10-02 10:00:00", meters=SEEN)])
    ledger.execute("UPDATE stream_positions SET seen_until = '2026-10-19'")
    fold.run(until_idle=True, settings=settings)
    before = ledger.execute("SELECT * FROM usage_events ORDER BY batch_id, ordinal")
    archive.archive_day(settings, FIRST, date(2026, 10, 20))
    (file,) = (tmp_path / "archive").glob("*.parquet")
    pl.read_parquet(file).drop(FURTHER_METERS).write_parquet(file)
    content = file.read_bytes()
    ledger.execute(
        "UPDATE archives SET sha256 = %s, bytes = %s", hashlib.sha256(content).digest(), len(content)
    )
    assert differences(settings) == {}
    assert not any(each.differing for each in rebuild(settings, dry_run=True).differences)
    archive.restore_day(settings, FIRST)
    assert ledger.execute("SELECT * FROM usage_events ORDER BY batch_id, ordinal") == before
    assert differences(settings) == {}
