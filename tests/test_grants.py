"""What each role may do, as a table; and that nobody but the owner can change or empty a ledger."""

from datetime import date

import psycopg
import pytest
from sqlalchemy import text

from metering.settings import Settings
from metering.store import postgres
from metering.store.partitions import ensure, ensure_rejects
from metering.store.roles import ROLES
from metering.store.tables import PARTITIONED, metadata

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
fold      limit_minutes      iud
fold      period_closes      i
fold      pool_customer_minutes iud
fold      pool_minutes       iud
fold      rollup_marks       iu
fold      unfilled_rollups   d
fold      usage_quarters     iud
fold      watermarks         i
evaluate  alerts             i
evaluate  outbox             i
deliver   outbox_attempts    i
operator  adjustments        i
operator  batch_sources      i
operator  bill_lines         i
operator  bills              i
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
#: What a worker may not do to any table, each with the letter of the privilege that would let it.
FORMS = {
    "UPDATE {} SET {} = {}": "u",
    "DELETE FROM {}": "d",
    "TRUNCATE {}": "",
    "DROP TABLE {}": "",
    "ALTER TABLE {} DISABLE TRIGGER ALL": "",
    "ALTER TABLE {} ADD COLUMN more int": "",
}
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
def test_no_worker_can_change_empty_or_drop_a_table_or_go_by_way_of_a_partition(
    settings: Settings, role: str
) -> None:
    with postgres.connect(settings, "owner") as connection:
        ensure(connection, date(2026, 11, 1), date(2026, 11, 2))
        ensure_rejects(connection, date(2026, 11, 1), date(2026, 11, 2))
    held = {line.split()[1]: line.split()[2] for line in EXPECTED.splitlines() if line.startswith(f"{role} ")}
    leaves = {
        f"{table}_{suffix}": metadata.tables[table]
        for table in PARTITIONED
        for suffix in ("20261101", *(["unordered"] if table == "usage_events" else []))
    }
    with postgres.connect_driver(settings, role) as connection:
        connection.autocommit = True

        def refused(statement: str) -> None:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)

        for name, table in {**metadata.tables, **leaves}.items():
            column = table.columns.keys()[-1]
            for form, letter in FORMS.items():
                if not letter or letter not in held.get(name, ""):
                    refused(form.format(name, column, column))
        for leaf in leaves:
            refused(f"SELECT * FROM {leaf}")
            refused(f"INSERT INTO {leaf} DEFAULT VALUES")
            refused(f"COPY {leaf} FROM STDIN")


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
                "('usage_events', 'usage_quarters', 'pool_minutes', 'pool_customer_minutes', 'limit_minutes') AND "
                "(column_name LIKE '%tokens' OR column_name LIKE '%ms' OR column_name = 'requests')"
            )
        ).scalars()
        assert set(kinds) == {"integer", "bigint"}
