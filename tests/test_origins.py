"""Origins: the batches behind a figure, whatever its events' ids say of their time."""

from metering.events.identity import uuid7_text
from metering.settings import Settings
from metering.store.origins import read_origins
from metering.store.postgres import connect, reading
from tests.ledger_builder import Event, Ledger, instant
from workers.fold import pin

START, UNTIL = instant("2026-11-20"), instant("2026-11-21")


def test_events_are_found_by_the_day_of_their_id_and_where_those_lack_some_by_looking_through_all(
    settings: Settings,
) -> None:
    early = uuid7_text(instant("2026-11-02T10:00:00"), bytes(range(10)))
    ledger = Ledger(settings)
    intake = ledger.intake(0)

    def found() -> list[tuple[int, int]]:
        with connect(settings, "fold") as connection:
            pin(connection, settings, "test")
        with reading(settings) as connection:
            return [
                (one.batch_id, one.events)
                for one in read_origins(connection, START, UNTIL, None, {"customer": "acme"})
            ]

    ledger.batch(
        intake,
        [
            Event("2026-11-20T10:00:00"),
            Event("2026-11-20T11:00:00", event_id="an id without a time"),
            Event("2026-11-20T12:00:00", customer="other"),
            Event("2026-11-21T00:00:00"),
        ],
    )
    [(near, events)] = found()
    assert events == 2
    # minted eighteen days before it ended
    ledger.batch(intake, [Event("2026-11-20T10:00:00", event_id=early), Event("2026-11-19T23:59:59")])
    assert [events for _, events in found()] == [2, 1]
    # what is not folded yet is not in the figure either
    ledger.batch(intake, [Event("2026-11-20T10:00:00")])
    with reading(settings) as connection:
        rows = read_origins(connection, START, UNTIL, None, {"customer": "acme"})
    assert rows[0].batch_id == near
    assert len(rows) == 2
    assert len(found()) == 3
    ledger.close()
