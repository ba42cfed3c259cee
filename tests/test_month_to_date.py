"""The month so far, of which only the days that changed are computed anew: what it is, computed whole, at every step."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from random import Random

import pytest

from metering.bills.document import Bill, BillLine
from metering.periods import DAY, parse_period
from metering.settings import Settings, read_settings
from metering.store import bills, positions, postgres
from tests.ledger_builder import Event, Ledger
from tests.test_cost_reports import CATALOG, POOL
from tests.test_report_commands import apply
from workers import fold
from workers.month_to_date import MonthToDate
from workers.rebuild import rebuild

POOLS = POOL.format(pool="shared", policy="none") + POOL.format(pool="promised", policy="entitlement")
#: globex pays at least $30 a month, acme is charged by quantity alone.
TERMS = CATALOG.replace(
    "  - contract: globex-trial\n", "  - contract: globex-trial\n    minimum_per_period: 30\n"
)
SHARED, PROMISED = {"pool": "shared", "ran_on": "pool"}, {"pool": "promised", "ran_on": "pool"}


class Both:
    """A month judged both ways, again and again: days from memory, and whole by a process that just started."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.months = MonthToDate()
        self.ledger = Ledger(settings)
        self.ledger.execute("INSERT INTO ledger_floor (floor_at) VALUES ('2026-11-01Z')")
        self.intake = self.ledger.intake(0, seen_until="2026-11-05T12:20:00")

    def fold(self, *events: Event, until: str = "2026-11-05T12:20:00") -> None:
        self.ledger.batch(self.intake, events, until=until)
        fold.run(until_idle=True, settings=self.settings)

    def days(self, month: str = "2026-11") -> list[int]:
        """The days that were computed anew; what came of it is what a computation of the whole month gives."""
        with postgres.reading(self.settings) as connection:
            kept = self.months.margin(connection, self.settings, parse_period(month), None)
            anew = MonthToDate().margin(connection, self.settings, parse_period(month), None)
        assert kept.lines().equals(anew.lines())
        assert kept.summary.equals(anew.summary)
        assert kept.lines().height
        return [day.start.day for run in kept.anew for day in run.runs(DAY)]


@pytest.fixture
def both(database_url: str) -> Iterator[Both]:
    made = Both(read_settings(database_url=database_url))
    yield made
    made.ledger.close()


def test_only_what_changed_is_computed_and_it_comes_to_the_whole(both: Both, tmp_path: Path) -> None:
    settings = both.settings
    apply(settings, tmp_path / "catalog", CATALOG + POOLS)
    first = [
        Event(f"2026-11-0{day}T10:0{minute}:00", (30 * day + minute, 7), customer=customer, **pool)
        for day in range(1, 6)
        for minute, (customer, pool) in enumerate([("acme", SHARED), ("globex", PROMISED), ("acme", {})])
    ]
    both.fold(*first)
    assert both.days() == [1, 2, 3, 4, 5]
    assert both.days() == []
    # beyond the cut, of the open day: not judged yet
    both.fold(Event("2026-11-05T12:15:00", **SHARED))
    assert both.days() == []

    # late usage; what is taken back
    late = Event("2026-11-02T10:02:00", (9, 0), customer="globex", **PROMISED)
    both.fold(late)
    assert both.days() == [2]
    both.fold(replace(late, compensates=True), Event("2026-11-04T10:02:00", (5, 5), compensates=True))
    assert both.days() == [2, 4]
    # a key of the closed interval, in the open one
    with postgres.connect(settings, "fold") as connection:
        fold.pin(connection, settings, "test")
    assert both.days() == []
    both.fold(Event("2026-11-01T10:00:00", (30, 7), **SHARED))
    assert both.days() == [1]

    # a bill, a catalog, a rebuild that found something: everything
    span = (datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
    billed = Bill(
        "northstar", "INV-1", "USD", (BillLine("1", "charge", "pool", "shared", Decimal(360), *span),)
    )
    with postgres.connect_driver(settings, "operator") as raw:
        raw.autocommit = True
        claim = positions.claim_intake(raw, "bills", role=f"{settings.role_prefix}operator", owner="ann")
        bills.append(raw, claim, [bills.Entry(billed, 1, date(2026, 11, 1), "november.csv", "")], by="ann")
    assert both.days() == [1, 2, 3, 4, 5]
    both.ledger.execute("UPDATE usage_quarters SET uncached_input_tokens = 1 + uncached_input_tokens")
    rebuild(settings, dry_run=False)
    assert both.days() == [1, 2, 3, 4, 5]
    apply(settings, tmp_path / "catalog", (CATALOG + POOLS).replace("1000}", "1001}"))
    assert both.days() == [1, 2, 3, 4, 5]

    # the open day goes on, and is over; another month; the month before is let go of
    both.fold(until="2026-11-05T13:20:00")
    assert both.days() == [5]
    both.fold(until="2026-11-06T02:20:00")
    assert both.days() == [5, 6]
    both.fold(Event("2026-12-02T10:00:00", **SHARED), until="2026-12-02T12:20:00")
    assert both.days("2026-12") == [1, 2]
    assert both.days() == [*range(6, 31)]
    both.months.forget(datetime(2026, 12, 1, tzinfo=UTC))
    assert both.days("2026-12") == []
    assert len(both.days()) == 30

    # what terms make of days that are over changes with what is covered of the month
    apply(settings, tmp_path / "catalog", TERMS + POOLS)
    assert both.days("2026-12") == [1, 2]
    both.fold(Event("2026-12-02T11:00:00", customer="globex"), until="2026-12-02T13:20:00")
    assert both.days("2026-12") == [1, 2]
    assert both.days("2026-12") == []

    # idle by burn, where a floor asks for it: the whole month
    apply(settings, tmp_path / "catalog", CATALOG + POOLS.replace("policy: none", "policy: burn"))
    assert [both.days("2026-12") for _ in range(2)] == [[1, 2], [1, 2]]


def test_any_history_comes_to_the_whole(both: Both, tmp_path: Path) -> None:
    dice = Random(2)
    apply(both.settings, tmp_path / "catalog", TERMS + POOLS)
    known: list[Event] = []
    hours = 5 * 24
    for _ in range(10):
        hours += dice.choice([0, 0, 1, 26])
        came = [
            Event(
                f"2026-11-{dice.randint(1, hours // 24):02}T{dice.randint(0, 11):02}:{dice.randint(0, 59):02}:00",
                (dice.randint(1, 9), dice.randint(0, 9)),
                customer=dice.choice(["acme", "globex"]),
                **dice.choice([SHARED, PROMISED, {}]),
            )
            for _ in range(dice.randint(0, 3))
        ]
        back = dice.sample(known, min(len(known), dice.randint(0, 1)))
        known = [event for event in known if event not in back] + came
        taken = [replace(event, compensates=True) for event in back]
        both.fold(*came, *taken, until=f"2026-11-{hours // 24 + 1:02}T{hours % 24:02}:20:00")
        if dice.random() < 0.2:
            with postgres.connect(both.settings, "fold") as connection:
                fold.pin(connection, both.settings, "test")
        both.days()
