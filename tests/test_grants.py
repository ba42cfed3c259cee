"""What each role may do, as a table; and that nobody but the owner can change or empty a ledger."""

from datetime import date

import psycopg
import pytest
from sqlalchemy import text

from metering.settings import Settings
from metering.store import postgres
from metering.store.partitions import ensure, ensure_rejects
from metering.store.roles import ROLES
from metering.store.tables import metadata

# table-level privileges beside SELECT: i INSERT, u UPDATE, d DELETE (of derived rows)
EXPECTED = """
role      table              privileges
ingest    batch_sources      i
ingest    conflicts          i
ingest    heartbeats         i
ingest    ingest_batches     i
ingest    projects           i
ingest    refusals           i
ingest    rejects            i
ingest    seats              i
ingest    series             i
ingest    source_stops       i
ingest    sources            i
ingest    stream_positions   u
ingest    usage_events       i
ingest    voids              i
settle    batch_sources      i
settle    finding_passes     iu
settle    findings           i
settle    ingest_batches     i
settle    series             i
settle    settlements        i
settle    stream_positions   iu
settle    usage_events       i
fold      fold_positions     iu
fold      pool_minutes       iud
fold      usage_quarters     iud
fold      watermarks         i
evaluate  alerts             i
evaluate  outbox             i
deliver   outbox_attempts    i
operator  adjustments        i
operator  batch_sources      i
operator  catalog_objects    i
operator  catalog_revisions  i
operator  conflicts          i
operator  heartbeats         i
operator  ingest_batches     i
operator  interventions      i
operator  projects           i
operator  refusals           i
operator  rejects            i
operator  replays            i
operator  seats              i
operator  series             i
operator  source_stops       i
operator  sources            i
operator  stream_positions   iu
operator  usage_events       i
operator  voids              i
"""
LEDGERS = ("usage_events", "ingest_batches", "rejects", "conflicts", "watermarks", "catalog_objects",
           "catalog_revisions", "interventions", "alerts", "outbox", "outbox_attempts", "series", "sources", "voids",
           "refusals", "heartbeats", "settlements", "adjustments", "replays", "batch_sources", "findings",
           "archives")  # fmt: skip
WORKERS = tuple(role for role in ROLES if role != "owner")


def test_each_role_has_just_these_privileges(settings: Settings) -> None:
    letters = {
        "INSERT": "i",
        "UPDATE": "u",
        "DELETE": "d",
        "TRUNCATE": "t",
        "REFERENCES": "r",
        "TRIGGER": "g",
    }
    found = [["role", "table", "privileges"]]
    with postgres.connect(settings, None) as connection:
        for role in WORKERS:
            for table in sorted(metadata.tables):
                held = "".join(
                    letter
                    for privilege, letter in letters.items()
                    if connection.execute(
                        text("SELECT has_table_privilege(:role, :table, :privilege)"),
                        {"role": settings.role_prefix + role, "table": table, "privilege": privilege},
                    ).scalar_one()
                )
                if held:
                    found.append([role, table, held])
    assert found == [line.split() for line in EXPECTED.strip().splitlines()]


@pytest.mark.parametrize("role", WORKERS)
def test_no_worker_can_change_empty_or_drop_a_ledger(settings: Settings, role: str) -> None:
    with postgres.connect(settings, "owner") as connection:
        ensure(connection, date(2026, 11, 1), date(2026, 11, 2))
        ensure_rejects(connection, date(2026, 11, 1), date(2026, 11, 2))
    forms = (
        "DELETE FROM {}",
        "TRUNCATE {}",
        "DROP TABLE {}",
        "ALTER TABLE {} DISABLE TRIGGER ALL",
        "ALTER TABLE {} ADD COLUMN more int",
    )
    with postgres.connect_driver(settings, role) as connection:
        connection.autocommit = True
        for table in LEDGERS:
            column = metadata.tables[table].columns.keys()[-1]
            for form in (*forms, f"UPDATE {{}} SET {column} = {column}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(form.format(table))
        for leaf in (
            "usage_events_20261101",
            "usage_events_unordered",
            "rejects_20261101",
            "conflicts_20261101",
        ):
            for form in ("INSERT INTO {} DEFAULT VALUES", "SELECT * FROM {}", *forms):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(form.format(leaf))


def test_only_the_rejects_role_reads_their_bytes(settings: Settings) -> None:
    for role in WORKERS:
        with postgres.connect_driver(settings, role) as connection:
            connection.autocommit = True
            if role == "rejects":
                assert connection.execute("SELECT payload FROM rejects").fetchall() == []
                continue
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT payload FROM rejects")


def test_a_number_that_is_none_cannot_enter(settings: Settings) -> None:
    """Quantities are integers: NaN and Infinity have no way into the ledger or a rollup."""
    with postgres.connect(settings, None) as connection:
        kinds = connection.execute(
            text(
                "SELECT DISTINCT data_type FROM information_schema.columns WHERE table_name IN "
                "('usage_events', 'usage_quarters', 'pool_minutes') AND "
                "(column_name LIKE '%tokens' OR column_name LIKE '%ms' OR column_name = 'requests')"
            )
        ).scalars()
        assert set(kinds) == {"integer", "bigint"}
