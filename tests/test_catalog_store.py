"""Catalog revisions in a real Postgres: appended once, chained, planned again under the lock, readable."""

import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from metering.catalog import CatalogObjects, Plan, books, load_folder, plan
from metering.cli.catalog import app
from metering.errors import BadInput, Fenced
from metering.settings import Settings
from metering.store.books import (
    Revision,
    append_revision,
    first_difference,
    latest_revision,
    read_books,
    read_catalog,
    read_revision,
)
from metering.store.postgres import KNOWLEDGE, connect
from tests.test_catalog import SOUND, folder_of
from workers.fold import pin

AT = datetime(2026, 3, 10, 12, 1, 2, 345678, tzinfo=UTC)


@pytest.fixture
def operator(settings: Settings) -> Iterator[Connection]:
    """A connection as the role that applies catalogs."""
    with connect(settings, "operator") as connection:
        yield connection


def objects_of(path: Path, *edits: tuple[str, str]) -> CatalogObjects:
    """SOUND with edits, as read from a folder."""
    content = SOUND
    for old, new in edits:
        assert content.count(old) == 1
        content = content.replace(old, new)
    path.mkdir(exist_ok=True)
    return load_folder(folder_of(path, catalog=content))


def planned(connection: Connection, folder: CatalogObjects, at: datetime = AT) -> Plan:
    newest = latest_revision(connection)
    made = plan(read_catalog(connection, newest), folder, base_revision=newest, at=at)
    connection.rollback()
    return made


def applied(
    connection: Connection, folder: CatalogObjects, *, shown: Plan | None = None, at: datetime = AT
) -> Revision | None:
    return append_revision(
        connection,
        folder,
        shown=shown or planned(connection, folder, at),
        at=at,
        applied_by="carol",
        reason="new prices",
        program_version="0.1.0",
    )


PRICE = ("output_tokens: 15}", "output_tokens: 14}")
DEARER = ("output_tokens: 15}", "output_tokens: 16}")
SOURCE = ('  - {source: "gateway://west", name: Gateway West}', "")


def test_an_empty_database_is_revision_0_with_empty_books(operator: Connection) -> None:
    assert latest_revision(operator) == 0
    assert read_catalog(operator, 0) == CatalogObjects()
    made = read_books(operator, 0)
    assert all(getattr(made, name).height == 0 for name in vars(made) if name != "catalog_revision")
    with pytest.raises(BadInput, match="there is no catalog revision 3; the newest is 0"):
        read_catalog(operator, 3)


def test_what_is_applied_is_read_back(operator: Connection, tmp_path: Path) -> None:
    folder = objects_of(tmp_path)
    revision = applied(operator, folder)
    assert revision is not None
    assert revision.catalog_revision == latest_revision(operator) == 1
    assert read_revision(operator, 1) == revision
    back = read_catalog(operator, 1)
    assert {key: (one.item, one.file, one.line) for key, one in back.entries.items()} == {
        key: (one.item, one.file, one.line) for key, one in folder.entries.items()
    }
    told, expected = read_books(operator, 1), books(folder, 1)
    for name, frame in vars(expected).items():
        assert name == "catalog_revision" or frame.equals(getattr(told, name))


def test_applying_twice_appends_once(operator: Connection, tmp_path: Path) -> None:
    folder = objects_of(tmp_path)
    assert applied(operator, folder) is not None
    assert planned(operator, folder).changes == ()
    assert applied(operator, folder) is None
    assert latest_revision(operator) == 1
    rows = operator.execute(text("SELECT count(*) FROM catalog_objects")).scalar_one()
    assert rows == len(folder.entries)


def test_only_what_changed_is_appended_and_every_revision_stays_readable(
    operator: Connection, tmp_path: Path
) -> None:
    folders = [
        objects_of(tmp_path / "a"),
        objects_of(tmp_path / "b", PRICE),
        objects_of(tmp_path / "c", SOURCE),
    ]
    for day, folder in enumerate(folders):
        applied(operator, folder, at=AT + timedelta(days=day))
    rows = operator.execute(
        text(
            "SELECT kind, name, catalog_revision, ended_at FROM catalog_objects "
            "WHERE catalog_revision > 1 ORDER BY catalog_revision, kind"
        )
    ).all()
    ended = datetime(2026, 3, 12, 12, 15, tzinfo=UTC)
    assert [tuple(row) for row in rows] == [
        ("price_book", "standard", 2, None),
        ("price_book", "standard", 3, None),
        ("source", "gateway://west", 3, ended),
    ]
    for revision, folder in enumerate(folders[:2], start=1):
        live = {key: one.item for key, one in read_catalog(operator, revision).entries.items()}
        assert live == {key: one.item for key, one in folder.entries.items()}
    assert read_catalog(operator, 3).entries["source", "gateway://west"].ended_at == ended
    assert first_difference(operator) is None


def test_a_plan_that_somebody_else_overtook_is_refused(operator: Connection, tmp_path: Path) -> None:
    applied(operator, objects_of(tmp_path / "a"))
    mine = objects_of(tmp_path / "b", PRICE)
    shown = planned(operator, mine)
    applied(operator, objects_of(tmp_path / "c", DEARER))
    with pytest.raises(
        Fenced, match="catalog revision 2 was applied since this plan was made against revision 1"
    ):
        applied(operator, mine, shown=shown)
    operator.rollback()
    assert latest_revision(operator) == 2


def test_a_plan_that_somebody_else_already_applied_leaves_nothing_to_do(
    operator: Connection, tmp_path: Path
) -> None:
    applied(operator, objects_of(tmp_path / "a"))
    mine = objects_of(tmp_path / "b", PRICE)
    shown = planned(operator, mine)
    applied(operator, mine)
    assert applied(operator, mine, shown=shown) is None
    assert latest_revision(operator) == 2


def test_two_applies_at_once_wait_for_each_other(
    settings: Settings, operator: Connection, tmp_path: Path
) -> None:
    folders = [objects_of(tmp_path / "a"), objects_of(tmp_path / "b", PRICE)]
    outcomes: list[object] = []

    def apply(folder: CatalogObjects, shown: Plan) -> None:
        with connect(settings, "operator") as connection:
            try:
                outcomes.append(applied(connection, folder, shown=shown))
            except Fenced as refusal:
                outcomes.append(refusal)

    shown = [planned(operator, folder) for folder in folders]
    operator.exec_driver_sql(f"SELECT pg_advisory_lock({KNOWLEDGE})")
    operator.commit()
    threads = [threading.Thread(target=apply, args=pair) for pair in zip(folders, shown, strict=True)]
    for thread in threads:
        thread.start()
    waiting = text(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    while operator.execute(waiting).scalar_one() < 2:
        operator.rollback()
    assert latest_revision(operator) == 0
    operator.exec_driver_sql(f"SELECT pg_advisory_unlock({KNOWLEDGE})")
    operator.commit()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Fenced", "Revision"]
    assert latest_revision(operator) == 1


def test_the_operator_cannot_rewrite_a_revision(operator: Connection, tmp_path: Path) -> None:
    applied(operator, objects_of(tmp_path))
    for statement in (
        "UPDATE catalog_objects SET body = '{}'",
        "DELETE FROM catalog_revisions",
        "TRUNCATE catalog_objects",
    ):
        with pytest.raises(DBAPIError, match="permission denied"):
            operator.execute(text(statement))
        operator.rollback()


TAMPERED = [
    (
        "UPDATE catalog_objects SET body = jsonb_set(body, '{name}', '\"Acme Inc\"') WHERE name = 'acme'",
        "catalog revision 1: customer acme does not match its digest",
    ),
    (
        "DELETE FROM catalog_objects WHERE name = 'acme'",
        "catalog revision 1: its 7 objects do not match its digest",
    ),
    (
        "UPDATE catalog_objects SET ended_at = '2026-01-01Z' WHERE name = 'acme'",
        "catalog revision 1: its 8 objects do not match its digest",
    ),
    (
        "UPDATE catalog_revisions SET reason = 'other' WHERE catalog_revision = 1",
        "catalog revision 1 does not continue the chain of revision 0",
    ),
    (
        "DELETE FROM catalog_revisions WHERE catalog_revision = 1",
        "catalog revision 1 is missing: the next one is 2",
    ),
    (
        "DELETE FROM catalog_revisions WHERE catalog_revision = 2",
        "price_book standard belongs to catalog revision 2, which is missing",
    ),
]


@pytest.mark.parametrize(("statement", "expected"), TAMPERED, ids=[row[1] for row in TAMPERED])
def test_the_chain_names_what_was_tampered_with(
    operator: Connection, settings: Settings, tmp_path: Path, statement: str, expected: str
) -> None:
    applied(operator, objects_of(tmp_path / "a"))
    applied(operator, objects_of(tmp_path / "b", PRICE))
    assert first_difference(operator) is None
    operator.rollback()
    with connect(settings, None) as superuser:
        superuser.execute(text(statement))
        superuser.commit()
    assert first_difference(operator) == expected


# ---- the command -------------------------------------------------------------------------------------


@pytest.fixture
def cli(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """Runs `metering catalog ...` in this process, on the test's own database."""
    for name, value in environment.items():
        if name.startswith("METERING_"):
            monkeypatch.setenv(name, value)
    return CliRunner()


def test_check_plan_apply_show(cli: CliRunner, tmp_path: Path) -> None:
    folder = str(folder_of(tmp_path, catalog=SOUND))
    checked = cli.invoke(app, ["check", folder])
    assert checked.stdout == (
        f"{folder}: the catalog is sound: 1 customers, 2 models, 1 price books, 1 cost books, 1 contracts, "
        "1 capacity contracts, 1 sources\n"
    )
    assert "8 to add, 0 to change, 0 to end" in cli.invoke(app, ["plan", folder]).stdout
    refused = cli.invoke(app, ["apply", folder])
    assert isinstance(refused.exception, BadInput)
    assert "give --yes" in str(refused.exception)
    assert "no catalog was applied yet" in cli.invoke(app, ["show"]).stderr
    done = cli.invoke(app, ["apply", folder, "--yes", "--reason", "first prices"])
    assert done.exit_code == 0
    assert done.stderr.startswith("applied catalog revision 1 (head ")
    again = cli.invoke(app, ["apply", folder, "--yes"])
    assert again.stdout == "no changes: catalog revision 1 says the same as the folder\n"
    shown = cli.invoke(app, ["show", "--revision", "1"]).stdout
    assert "first prices" in shown
    assert "acme-2026" in shown
    assert isinstance(cli.invoke(app, ["show", "--revision", "2"]).exception, BadInput)


def test_show_as_of_a_watermark_shows_the_revision_that_it_pins(
    cli: CliRunner, operator: Connection, settings: Settings, tmp_path: Path
) -> None:
    applied(operator, objects_of(tmp_path))
    with connect(settings, "fold") as connection:
        pinned = pin(connection, settings, "operator").watermark_id
    applied(operator, objects_of(tmp_path, PRICE))
    shown = cli.invoke(app, ["show", "--as-of", str(pinned)]).stdout
    assert shown.startswith("catalog revision 1, ")
    assert cli.invoke(app, ["show"]).stdout.startswith("catalog revision 2, ")
    assert shown == cli.invoke(app, ["show", "--revision", "1"]).stdout
    assert "there is no watermark 99" in str(cli.invoke(app, ["show", "--as-of", "99"]).exception)
    both = cli.invoke(app, ["show", "--as-of", "1", "--revision", "1"]).exception
    assert str(both) == "--revision and --as-of both name a revision; give one of them"


def test_a_faulty_folder_exits_with_2_and_changes_nothing(cli: CliRunner, tmp_path: Path) -> None:
    folder = str(folder_of(tmp_path, catalog=SOUND.replace("kind: paying", "kind: payng")))
    for command in (["check", folder], ["plan", folder], ["apply", folder, "--yes"]):
        refused = cli.invoke(app, command).exception
        assert isinstance(refused, BadInput)
        assert refused.exit_code == 2
        assert str(refused).startswith(
            f"{folder}: 1 fault in the catalog, nothing was changed\n"
            "catalog.yaml:5: customers[0].dated[0].kind: 'payng': must be one of"
        )


@pytest.mark.parametrize(("answer", "revision"), [(b"n\n", 0), (b"y\n", 1)])
def test_apply_asks_on_a_terminal(
    environment: dict[str, str], operator: Connection, tmp_path: Path, answer: bytes, revision: int
) -> None:
    folder = folder_of(tmp_path, catalog=SOUND)
    ours, theirs = pty.openpty()
    program = "from metering.cli.catalog import app; app()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "apply", str(folder)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    os.close(theirs)
    os.write(ours, answer)
    out, err = process.communicate(timeout=60)
    os.close(ours)
    assert b"8 to add" in out
    assert b"Apply this?" in err
    assert latest_revision(operator) == revision


def test_the_command_group_is_a_typer_app() -> None:
    assert isinstance(app, typer.Typer)
