"""Archive: a closed day becomes a file and a day again; nothing is lost wherever it dies, nobody waits."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
import structlog
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from typer.testing import CliRunner

from metering.errors import BadInput, Unavailable, WrongWorld
from metering.events.identity import uuid7_text
from metering.settings import Settings, read_settings
from metering.store import archived_sums, archives, findings, partitions, passes, postgres, rollups
from metering.store.verify import verify
from tests.ledger_builder import Event, Ledger, instant
from workers import archive as worker
from workers import fold, provision, settle, tend
from workers.rebuild import rebuild

FIRST = date(2026, 10, 1)
DAY = timedelta(days=1)
TODAY = date(2026, 10, 20)
ULID = "01M3VHY0W0ABCDEFGHJKMNPQRS"  # of 2026-10-01


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return read_settings(
        database_url=database_url, archive_address=str(tmp_path / "archive"), archive_after_days=5
    )


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    """Three days, rows of one batch in two of them, ids of every kind, compensations, two intervals and an open one."""
    made = Ledger(settings, (FIRST, FIRST + 3 * DAY))
    one, two = made.intake(0), made.intake(1)
    made.batch(
        one,
        [
            Event("2026-10-01 10:00:00", (100, 10), pool="north", ran_on="pool", project="alpha"),
            Event("2026-10-01 23:59:59", (7, 1), customer="globex", duration_ms=12),
            Event("2026-10-02 00:00:00", (5, 5)),
            Event("2026-10-01 12:00:00", (3, 3), event_id="a hashed id"),
        ],
    )
    pin(settings)
    made.batch(
        two, [Event("2026-10-01 10:00:30", (50, 5)), Event("2026-10-01 11:00:00", (9, 9), event_id=ULID)]
    )
    made.batch(one, [Event("2026-10-01 10:00:00", (100, 10), compensates=True, event_type=5)])
    pin(settings)
    made.batch(two, [Event("2026-10-02 10:00:00", (1, 1)), Event("2026-10-03 10:00:00", (1, 1))])
    made.execute("UPDATE stream_positions SET seen_until = '2026-10-19'")
    fold.run(until_idle=True, settings=settings)
    yield made
    made.close()


def pin(settings: Settings) -> None:
    with postgres.connect(settings, "fold") as connection:
        fold.pin(connection, settings, "test")


def differences(settings: Settings) -> dict[str, str]:
    with postgres.reading(settings, scratch=archived_sums.SCRATCH) as connection:
        return {each.name: each.difference for each in verify(connection, roots=True) if each.difference}


def rows(ledger: Ledger) -> list[tuple[Any, ...]]:
    return ledger.execute("SELECT * FROM usage_events ORDER BY batch_id, ordinal")


def state(ledger: Ledger) -> list[Any]:
    """Everything that an archive may change."""
    return [
        rows(ledger),
        ledger.execute("SELECT floor_at FROM ledger_floor"),
        ledger.execute("SELECT * FROM archives ORDER BY 1"),
        ledger.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'usage_events'::regclass ORDER BY 1"
        ),
    ]


def floor(ledger: Ledger) -> date:
    found: datetime = ledger.execute("SELECT floor_at FROM ledger_floor")[0][0]
    return found.date()


def test_a_day_goes_to_a_file_and_comes_back_row_for_row(settings: Settings, ledger: Ledger) -> None:
    before, folded = rows(ledger), ledger.rollups()
    written = worker.archive_day(settings, FIRST, TODAY)
    assert (written.rows, written.first_batch_id, written.last_batch_id) == (5, 1, 3)
    assert floor(ledger) == FIRST + DAY
    # what is in Postgres still: later days, and the row whose id is hashed
    assert [row for row in before if row not in rows(ledger)] != []
    assert len(rows(ledger)) == len(before) - 5
    assert ledger.execute("SELECT to_regclass('usage_events_20261001')") == [(None,)]
    assert differences(settings) == {}
    # a fold from zero reads the file
    ledger.execute(
        "TRUNCATE usage_quarters, pool_minutes, pool_customer_minutes, limit_minutes, fold_positions"
    )
    fold.run(until_idle=True, settings=settings)
    assert sum(row[3] for row in ledger.rollups()["usage_quarters"]) == sum(
        row[3] for row in folded["usage_quarters"]
    )
    once = state(ledger)
    with pytest.raises(BadInput, match="2026-10-01 is archived already, at "):
        worker.archive_day(settings, FIRST, TODAY)
    with pytest.raises(psycopg.errors.CheckViolation, match="no partition"):
        ledger.batch(1, [Event("2026-10-01 10:00:00")])
    assert state(ledger) == once
    worker.restore_day(settings, FIRST)
    assert rows(ledger) == before
    assert floor(ledger) == FIRST
    with pytest.raises(BadInput, match="2026-10-01 is not archived"):
        worker.restore_day(settings, FIRST)
    # and takes rows again, and is archived again
    ledger.batch(1, [Event("2026-10-01 10:00:00")])
    fold.run(until_idle=True, settings=settings)
    assert worker.archive_day(settings, FIRST, TODAY).rows == 6
    assert len(ledger.execute("SELECT archive_id FROM archives")) == 2


def test_sums_of_archived_days_are_compared(settings: Settings, ledger: Ledger) -> None:
    worker.archive_day(settings, FIRST, TODAY)
    worker.archive_day(settings, FIRST + DAY, TODAY)
    assert differences(settings) == {}
    with postgres.reading(settings, scratch=archived_sums.SCRATCH) as connection:
        as_of = list(verify(connection, roots=True, watermark_id=1))
    assert [each.seen for each in as_of if each.name == "batch counts"] == ["1 batches, 4 accepted events"]
    assert not [each for each in as_of if each.difference]
    ledger.execute("UPDATE usage_quarters SET output_tokens = 4 WHERE quarter_start = '2026-10-01 10:00Z'")
    assert (
        "output_tokens sum to 10 in the ledger, the rollup says 4" in differences(settings)["usage_quarters"]
    )
    with pytest.raises(BadInput, match=r"2026-10-01 is not the last archived day.*restore 2026-10-02 first"):
        worker.restore_day(settings, FIRST)


@pytest.mark.parametrize(
    ("day", "after_days", "says"),
    [
        ("2026-10-02", 5, "2026-10-02 is not the oldest day.*archive 2026-10-01 first"),
        ("2026-10-04", 5, "no partition for 2026-10-04"),
        ("2026-10-01", 19, "2026-10-01 lies less than 19 full days back"),
    ],
)
def test_other_days_are_refused_by_name(
    settings: Settings, ledger: Ledger, day: str, after_days: int, says: str
) -> None:
    before = state(ledger)
    with pytest.raises(BadInput, match=says):
        worker.archive_day(
            settings.model_copy(update={"archive_after_days": after_days}), date.fromisoformat(day), TODAY
        )
    assert state(ledger) == before


def test_a_day_that_is_not_closed_and_an_address_that_is_none(settings: Settings, ledger: Ledger) -> None:
    ledger.execute("UPDATE watermarks SET complete_until = NULL")
    ledger.execute("UPDATE stream_positions SET seen_until = '2026-10-01 23:00Z'")
    with pytest.raises(
        BadInput, match="2026-10-01 is not closed: input is complete until 2026-10-01 22:50 UTC"
    ):
        worker.archive_day(settings, FIRST, TODAY)
    ledger.execute("UPDATE stream_positions SET seen_until = '2026-10-19'")
    with pytest.raises(BadInput, match="METERING_ARCHIVE_ADDRESS is not set"):
        worker.archive_day(settings.model_copy(update={"archive_address": None}), FIRST, TODAY)
    with pytest.raises(BadInput, match="'nowhere://x' cannot be used as an address"):
        worker.archive_day(settings.model_copy(update={"archive_address": "nowhere://x"}), FIRST, TODAY)
    assert floor(ledger) == FIRST


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [(Path.unlink, "is missing"), (cut, "bytes, .* were written: it was cut off"), (flip, "it was altered")],
)
def test_a_damaged_file_is_named_and_nothing_else_stops(
    settings: Settings, ledger: Ledger, damage: Callable[[Path], None], says: str
) -> None:
    written = worker.archive_day(settings, FIRST, TODAY)
    system, path = archives.filesystem(written.address)
    whole = Path(path).read_bytes()
    damage(Path(path))
    found = differences(settings)
    assert found.keys() == {
        "archives",
        "batch counts",
        "ledger rows",
        "usage_quarters",
        "pool_minutes",
        "pool_customer_minutes",
        "limit_minutes",
    }
    with pytest.raises(WrongWorld, match=f"the archive of 2026-10-01 at .*{says}"):
        worker.restore_day(settings, FIRST)
    assert str(written) in found["archives"]
    # ingest, folds, pins and the next archive go on
    ledger.batch(1, [Event("2026-10-02 10:00:00")])
    pin(settings)
    worker.archive_day(settings, FIRST + DAY, TODAY)
    Path(path).write_bytes(whole)
    assert differences(settings) == {}
    assert system.exists(path)


class Dies(BaseException):
    """Stands for the end of the process."""


#: (where it dies, is the day entered then)
STAGES = [
    ("write_day", False), ("first_difference", False), ("enter", False), ("entered", True), ("drop", True),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "entered"), STAGES)
def test_it_may_die_anywhere_and_a_second_run_finishes(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, stage: str, entered: bool
) -> None:
    before = rows(ledger)

    def die(*values: object, **named: object) -> None:
        raise Dies

    def die_after(*values: Any) -> None:
        archives_enter(*values)
        raise Dies

    archives_enter = archives.enter
    with monkeypatch.context() as patch:
        if stage == "enter":
            # in the middle of its transaction: what it wrote is gone
            patch.setattr(archives, "enter", die_after)
        elif stage == "entered":
            patch.setattr(worker, "finish", lambda connection: archives.leftovers(connection) and die())
        elif stage == "drop":
            patch.setattr(partitions, "drop", die)
        else:
            patch.setattr(archives, stage, die)
        with pytest.raises(Dies):
            worker.archive_day(settings, FIRST, TODAY)
    assert (floor(ledger) == FIRST + DAY) == entered
    assert rows(ledger) == before
    assert differences(settings) == {}
    if entered:
        # the partition that nobody reads takes nothing more
        with pytest.raises(psycopg.errors.SerializationFailure, match="usage_events_20261001 is archived"):
            ledger.batch(1, [Event("2026-10-01 10:00:00")])
        worker.archive_next(settings, TODAY - 14 * DAY)
    else:
        worker.archive_day(settings, FIRST, TODAY)
    assert ledger.execute("SELECT to_regclass('usage_events_20261001')") == [(None,)]
    assert len(ledger.execute("SELECT archive_id FROM archives")) == 1
    assert differences(settings) == {}
    if stage != "drop":
        return
    # the same of the way back
    with monkeypatch.context() as patch:
        patch.setattr(archives, "reopen", die)
        with pytest.raises(Dies):
            worker.restore_day(settings, FIRST)
    assert differences(settings) == {}
    worker.restore_day(settings, FIRST)
    assert rows(ledger) == before
    assert differences(settings) == {}


def test_rows_that_come_in_meanwhile_are_in_the_file(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = [Event("2026-10-01 20:00:00", (4, 4))]
    compare = archives.first_difference

    def late_row(connection: Connection, archive: archives.Archive) -> str | None:
        if late:
            ledger.batch(2, [late.pop()])
        return compare(connection, archive)

    monkeypatch.setattr(archives, "first_difference", late_row)
    assert worker.archive_day(settings, FIRST, TODAY).rows == 6
    fold.run(until_idle=True, settings=settings)
    assert differences(settings) == {}


def test_a_file_that_is_not_what_was_written_is_not_entered(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(ledger)
    read_day = archives.read_day
    calls: list[object] = []

    def reversed_once(*values: Any) -> Iterator[Any]:
        calls.append(values)
        for frame in read_day(*values):
            yield frame.reverse() if len(calls) == 1 else frame

    monkeypatch.setattr(archives, "read_day", reversed_once)
    with pytest.raises(WrongWorld, match="differs from its partition"):
        worker.archive_day(settings, FIRST, TODAY)
    assert state(ledger) == before


def test_two_at_once_and_a_report_that_reads_the_day(settings: Settings, ledger: Ledger) -> None:
    with worker._alone(settings), pytest.raises(Unavailable, match=r"another archive is at work.*backend"):
        worker.archive_day(settings, FIRST, TODAY)
    with postgres.reading(settings, scratch=archived_sums.SCRATCH) as report:
        before = report.execute(text("SELECT count(*) FROM usage_events")).scalar_one()
        quick = settings.model_copy(update={"lock_timeout_ms": 50})
        with pytest.raises(Unavailable, match="usage_events_20261001 is in use"):
            worker.archive_day(quick, FIRST, TODAY)
        # a snapshot of before, and one of after, both whole
        assert report.execute(text("SELECT count(*) FROM usage_events")).scalar_one() == before
        assert not [each for each in verify(report, roots=True) if each.difference]
        assert differences(settings) == {}
        began = datetime.now(UTC)
        ledger.batch(1, [Event("2026-10-02 20:00:00")])
        assert datetime.now(UTC) - began < timedelta(seconds=1)
    worker.archive_next(settings, FIRST)
    assert ledger.execute("SELECT to_regclass('usage_events_20261001')") == [(None,)]


@pytest.fixture
def logs_end_here() -> Iterator[None]:
    """The commands configure the logs, onto the output that the runner takes away again."""
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("logs_end_here")
def test_tending_archives_what_is_due_and_the_commands_say_what_they_did(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    from metering.cli import archive as commands
    from metering.cli import knowledge

    app = typer.Typer()
    app.add_typer(commands.app, name="archive")
    knowledge.mount(app)
    assert settings.archive_address is not None
    monkeypatch.setenv("METERING_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("METERING_ARCHIVE_ADDRESS", settings.archive_address)
    monkeypatch.setenv("METERING_ARCHIVE_AFTER_DAYS", "5")
    # all three days are old by today's clock
    with postgres.connect(settings, "owner") as connection:
        assert tend.step(connection, settings)
    run = CliRunner()
    listed = run.invoke(app, ["archive", "list"])
    assert "2026-10-01" in listed.stdout
    assert "1 days are archived; the first day in Postgres is 2026-10-02" in listed.stderr
    done = run.invoke(app, ["archive", "day", "2026-10-02"])
    assert done.exit_code == 0, done.output
    assert "file://" in done.stdout
    assert "2026-10-02: 2 rows" in done.stderr
    verified = run.invoke(app, ["verify", "--chain"])
    assert verified.exit_code == 0, verified.output
    assert "ok   archives: 2 days" in verified.stdout
    back = run.invoke(app, ["archive", "restore", "2026-10-02"])
    assert "2026-10-02: 2 rows are in Postgres again" in back.stderr


def open_findings(ledger: Ledger) -> list[str]:
    """The kinds of the findings that are open."""
    rows = ledger.execute(
        "SELECT kind FROM (SELECT DISTINCT ON (kind, subject) * FROM findings "
        "ORDER BY kind, subject, sequence DESC) last WHERE state = 'opened' ORDER BY 1"
    )
    return [row[0] for row in rows]


def test_what_is_wrong_with_voids_stays_known_when_their_day_is_archived(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = uuid7_text(instant("2026-10-01T09:00:00"), b"0123456789")
    ledger.batch(
        1,
        [
            Event("2026-10-01 20:00:00", voids="a hashed id that never comes"),
            Event("2026-10-01 20:00:01", voids="another", side="both"),
        ],
    )
    fold.run(until_idle=True, settings=settings)
    later = datetime.now(UTC) + 2 * DAY

    def look() -> list[str]:
        with postgres.connect(settings, "settle") as connection, connection.begin():
            findings.record_voids(connection, settings.unmatched_void_seconds, later)
        return open_findings(ledger)

    assert look() == ["unmatched_void", "unmatched_void"]
    with monkeypatch.context() as patch:
        # a report holds the partition: it is archived and there still
        patch.setattr(worker, "finish", lambda connection: None)
        worker.archive_day(settings, FIRST, TODAY)
    # the event is in Postgres and takes no compensating entry any more; nothing waits for that
    ledger.batch(
        1,
        [
            Event("2026-10-02 20:00:00", voids=target),
            Event("2026-10-02 20:00:01", voids=ULID, side="both"),
        ],
    )
    settle.run(until_idle=True, settings=settings)
    fold.run(until_idle=True, settings=settings)
    assert ledger.execute("SELECT outcome FROM settlements") == [("target_archived",)] * 2
    worker.archive_day(settings, FIRST + DAY, TODAY)
    assert ledger.execute("SELECT to_regclass('usage_events_20261001')") == [(None,)]
    assert look() == ["target_archived", "target_archived", "unmatched_void", "unmatched_void"]
    ledger.execute("TRUNCATE findings")
    assert look() == ["target_archived", "target_archived", "unmatched_void", "unmatched_void"]


def test_a_day_stays_while_its_requests_are_passed(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.batch(
        1, [Event("2026-10-01 15:00:00", request="twice"), Event("2026-10-01 15:00:01", request="twice")]
    )
    pin(settings)
    ledger.execute("UPDATE watermarks SET complete_until = '2026-10-19'")

    def find() -> None:
        with postgres.connect(settings, "settle") as connection:
            while settle.find(connection, settings, datetime.now(UTC)):
                pass

    find()
    assert open_findings(ledger) == ["double_billable", "repeated_attempt"]
    ledger.execute("UPDATE finding_passes SET watermark_id = 0 WHERE day = '2026-10-01'")
    pass_day = passes.pass_day

    def archived_meanwhile(connection: Connection, due: passes.Due, *values: Any) -> findings.Recorded:
        with pytest.raises(Unavailable, match="usage_events_20261001 is in use"):
            worker.archive_day(settings.model_copy(update={"lock_timeout_ms": 50}), FIRST, TODAY)
        return pass_day(connection, due, *values)

    with monkeypatch.context() as patch:
        patch.setattr(passes, "pass_day", archived_meanwhile)
        find()
    worker.archive_next(settings, FIRST)
    find()
    assert open_findings(ledger) == ["double_billable", "repeated_attempt"]


def test_no_older_days_are_made_while_one_is_archived(settings: Settings, ledger: Ledger) -> None:
    before = state(ledger)
    with worker._alone(settings), pytest.raises(Unavailable, match=r"being archived or restored \(backend"):
        provision.ensure_days(settings, FIRST - DAY, FIRST)
    assert state(ledger) == before
    assert provision.ensure_days(settings, FIRST - DAY, FIRST) == [FIRST - DAY]
    with pytest.raises(BadInput, match="2026-10-01 is not the oldest day"):
        worker.archive_day(settings, FIRST, TODAY)


def test_an_address_that_takes_nothing_ends_no_worker(
    settings: Settings, ledger: Ledger, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    before = state(ledger)
    nowhere = settings.model_copy(update={"archive_address": str(tmp_path / "file" / "folder")})
    with pytest.raises(Unavailable, match=r"2026-10-01 could not be written to .*nothing was entered"):
        worker.archive_day(nowhere, FIRST, TODAY)
    assert state(ledger) == before


def test_a_rollup_that_came_with_an_upgrade_is_filled_from_archived_days_too(
    settings: Settings, ledger: Ledger
) -> None:
    """What the previous version folded is missing by name, not zero, until a rebuild has filled it."""

    def read_back(as_of: int | None) -> list[pl.DataFrame]:
        span = (instant("2026-10-01"), instant("2026-11-01"), as_of)
        with postgres.reading(settings) as connection:
            return [
                rollups.read_pool_usage(connection, *span),
                rollups.read_pool_customer_usage(connection, *span, ["north"]),
                rollups.read_limit_usage(connection, *span),
            ]

    ledger.batch(
        2, [Event("2026-10-02 10:16:30", (3, 0), pool="north", ran_on="overflow", customer="globex")]
    )
    fold.run(until_idle=True, settings=settings)
    pin(settings)
    before, as_kept = ledger.rollups(), [read_back(as_of) for as_of in (1, 2, 3, None)]
    assert [customers["uncached_input_tokens"].to_list() for _, customers, _ in as_kept] == [
        [100], [100], [100, 3], [100, 3],
    ]  # fmt: skip
    ledger.execute("UPDATE stream_positions SET seen_until = '2026-10-19'")
    worker.archive_day(settings, FIRST, TODAY)
    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    config.set_main_option("path_separator", "os")
    config.attributes["settings"] = settings
    command.downgrade(config, "0006")
    command.upgrade(config, "head")
    # the fold goes on where it was
    ledger.batch(1, [Event("2026-10-02 10:20:00", (4, 0), pool="north", ran_on="pool")])
    fold.run(until_idle=True, settings=settings)
    assert [row[:3] for row in ledger.rollups()["pool_customer_minutes"]] == [
        (instant("2026-10-02 10:20:00"), 1, 4)
    ]
    assert len(ledger.rollups()["limit_minutes"]) == 1
    unfilled = "came with an upgrade and lacks what was folded before it; run `metering rebuild rollups`"
    with pytest.raises(WrongWorld, match=f"pool_customer_minutes {unfilled}"):
        read_back(None)
    with postgres.reading(settings) as connection, pytest.raises(WrongWorld, match="limit_minutes came with"):
        rollups.read_limit_usage(connection, instant("2026-10-01"), instant("2026-11-01"), None)
    assert list(differences(settings)) == ["pool_customer_minutes", "limit_minutes"]
    assert unfilled in differences(settings)["pool_customer_minutes"]
    assert [each.differing for each in rebuild(settings, dry_run=True).differences] == [
        0,
        0,
        2,
        len(before["limit_minutes"]),
    ]
    assert unfilled in differences(settings)["pool_customer_minutes"]
    assert rebuild(settings, dry_run=False).swapped
    assert differences(settings) == {}
    kept = before["pool_customer_minutes"]
    assert [row for row in ledger.rollups()["pool_customer_minutes"] if row[2] < 4] == kept
    assert [row for row in ledger.rollups()["limit_minutes"] if row[4] < 4] == before["limit_minutes"]
    for was, now in zip(as_kept[:3], [read_back(as_of) for as_of in (1, 2, 3)], strict=True):
        assert all(one.equals(other) for one, other in zip(was, now, strict=True))
    assert not rebuild(settings, dry_run=False).swapped
