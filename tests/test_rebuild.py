"""Rebuild: the same rollups from zero; what differs is said and put right, and no fold is lost meanwhile."""

from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from metering.errors import WrongWorld
from metering.settings import Settings, read_settings
from metering.store import postgres, shadow
from metering.store.verify import verify
from tests.ledger_builder import Event, Ledger
from workers import fold
from workers.rebuild import rebuild


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings(database_url=database_url)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    """Two intakes, the second known to the second watermark only; an open interval; a batch not folded yet."""
    made = Ledger(settings)
    one = made.intake(0)
    made.batch(one, [Event("2026-10-31 10:14:59", pool="north", ran_on="pool"), Event("2026-10-31 10:15:00")])
    pin(settings)
    two = made.intake(1)
    made.batch(two, [Event("2026-10-31 10:15:00", (7, 1)), Event("2026-10-31 10:14:00", event_type=6)])
    made.batch(one, [])
    pin(settings)
    made.batch(one, [Event("2026-10-31 10:15:00", (7, 1), compensates=True, event_type=5)])
    fold.run(until_idle=True, settings=settings)
    made.batch(two, [Event("2026-10-31 10:16:00")])
    yield made
    made.close()


def pin(settings: Settings) -> None:
    with postgres.connect(settings, "fold") as connection:
        fold.pin(connection, settings, "test")


def sound(settings: Settings) -> bool:
    with postgres.reading(settings) as connection:
        return all(each.difference is None for each in verify(connection, roots=False))


def test_an_honest_ledger_gives_the_same_again(settings: Settings, ledger: Ledger) -> None:
    before = ledger.rollups()
    said: list[str] = []
    done = rebuild(settings, dry_run=False, progress=said.append)
    assert (done.swapped, [(each.rows, each.differing) for each in done.differences]) == (
        False,
        [(5, 0), (1, 0), (1, 0), (5, 0)],
    )
    assert "folded 5 of 5 events" in said
    assert ledger.rollups() == before


DAMAGE = """
    UPDATE usage_quarters SET output_tokens = 4 WHERE interval_id = 1 AND quarter_start = '2026-10-31 10:15Z';
    DELETE FROM usage_quarters WHERE interval_id = 3;
    UPDATE pool_minutes SET pool = 'south';
    DELETE FROM pool_customer_minutes;
    UPDATE limit_minutes SET seat_id = 5;
    UPDATE fold_positions SET next_sequence = 9 WHERE intake_id = 2
"""


def test_what_differs_is_said_and_put_right(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    from metering.cli import rebuild as command

    fold.run(until_idle=True, settings=settings)
    before = ledger.rollups()
    for statement in DAMAGE.split(";"):
        ledger.execute(statement)
    damaged = ledger.rollups()
    app = typer.Typer()
    app.add_typer(command.app, name="rebuild")
    monkeypatch.setenv("METERING_DATABASE_URL", settings.database_url.get_secret_value())
    dry = CliRunner().invoke(app, ["rebuild", "rollups", "--dry-run"])
    assert dry.exit_code == 1
    assert "2 differ\n     first difference: quarter_start 2026-10-31T10:15:00+00:00" in dry.stdout
    assert "output_tokens sum to 10 in the ledger, the rollup says 4" in dry.stdout
    assert ledger.rollups() == damaged
    # dying in the middle of the swap changes nothing
    with monkeypatch.context() as patch:
        swap = shadow.swap
        patch.setattr(shadow, "swap", lambda connection: (swap(connection), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            rebuild(settings, dry_run=False)
    assert ledger.rollups() == damaged
    wet = CliRunner().invoke(app, ["rebuild", "rollups"])
    assert wet.exit_code == 0
    assert "the rollups were put right" in wet.stderr
    assert ledger.rollups() == before
    assert sound(settings)
    assert not rebuild(settings, dry_run=False).swapped


def test_folds_and_pins_meanwhile_are_not_lost(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pin and a fold after the comparison, before the lock: the swap catches up with both."""
    ledger.execute("DELETE FROM usage_quarters WHERE interval_id = 1")
    compare = shadow.differences
    seen: list[Any] = []

    def busy(connection: Any) -> Any:
        found = compare(connection)
        seen.append(found)
        if len(seen) == 1:
            ledger.batch(1, [Event("2026-10-31 10:17:00", (1, 1))])
            pin(settings)
            ledger.batch(2, [Event("2026-10-31 10:18:00", (1, 1))])
            fold.run(until_idle=True, settings=settings)
        return found

    monkeypatch.setattr(shadow, "differences", busy)
    assert rebuild(settings, dry_run=False).swapped
    assert len(seen) == 2
    assert sound(settings)


def test_a_batch_that_was_removed_is_named(settings: Settings, ledger: Ledger) -> None:
    before = ledger.rollups()
    ledger.execute("DELETE FROM ingest_batches WHERE intake_id = 1 AND sequence = 1")
    with pytest.raises(WrongWorld, match="intake 1: batch 1 is missing, the next one there is 2"):
        rebuild(settings, dry_run=False)
    assert ledger.rollups() == before
