"""Settle: a void takes back what it names, once, whenever either comes; whatever is wrong becomes a finding."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from metering.core.settling import outcome
from metering.periods import parse_period
from metering.settings import Settings, read_settings
from metering.store import postgres
from metering.store.verify import verify
from tests.ledger_builder import Event, Ledger, instant
from tests.test_report_commands import apply
from workers import fold, reports, settle

#: A million input tokens bring 3 and cost 1 on demand.
CATALOG = """
customers:
  - customer: acme
    name: Acme
    dated: [{effective_from: 2026-01-01, kind: paying, segment: startup}]
models:
  - {provider: own, model: large, name: Large, cost_book: on-demand}
price_books:
  - book: standard
    currency: USD
    prices:
      - {product: chat, effective_from: 2026-01-01, per_million: {uncached_input_tokens: 3}}
cost_books:
  - book: on-demand
    provider: own
    currency: USD
    prices:
      - {model: large, effective_from: 2026-01-01, per_million: {uncached_input_tokens: 1}}
contracts:
  - {contract: acme-standard, customer: acme, price_book: standard, effective_from: 2026-01-01}
"""
MILLION = (1_000_000, 0)
DAY = "2026-10-31"


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings(database_url=database_url)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    made = Ledger(settings)
    made.execute("INSERT INTO ledger_floor (floor_at) VALUES ('2026-10-01Z')")
    yield made
    made.close()


def event(name: str, tokens: tuple[int, int] = MILLION, at: str = f"{DAY}T10:00:00", **more: Any) -> Event:
    return Event(at, tokens, event_id=name, **more)


def void(name: str, target: str, side: str = "charge", at: str = f"{DAY}T11:00:00", **more: Any) -> Event:
    return Event(at, event_id=name, voids=target, side=side, **more)


def run(settings: Settings) -> None:
    """Settle all that is there, then fold it."""
    settle.run(until_idle=True, settings=settings)
    fold.run(until_idle=True, settings=settings)


def state(ledger: Ledger) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that settling and folding may write."""
    tables = ("usage_events", "settlements", "findings", "finding_passes", "ingest_batches", "batch_sources")
    return ledger.rollups() | {
        table: sorted(ledger.execute(f"SELECT * FROM {table}"), key=str) for table in tables
    }


def settlements(ledger: Ledger) -> dict[str, str]:
    """The outcome of every void that was settled, by its id."""
    rows = ledger.execute(
        "SELECT u.event_id, s.outcome FROM settlements s "
        "JOIN usage_events u ON u.event_key = s.void_key AND u.source_id = s.void_source_id"
    )
    return dict(rows)


def open_findings(ledger: Ledger) -> list[tuple[str, str]]:
    """Kind and subject of every finding that is open; a void's subject without the number of its source."""
    rows = ledger.execute(
        "SELECT kind, subject FROM (SELECT DISTINCT ON (kind, subject) * FROM findings "
        "ORDER BY kind, subject, sequence DESC) last WHERE state = 'opened'"
    )
    return sorted((kind, subject.partition("/")[2]) for kind, subject in rows)


def margin(settings: Settings, as_of: int | None = None) -> dict[str, Decimal]:
    """Revenue, cost and margin of acme on the day."""
    with postgres.reading(settings) as connection:
        made = reports.margin_report(connection, settings, parse_period(DAY), as_of).by("customer")
    (row,) = made.rows.filter(customer="acme").select("revenue", "cost", "margin").rows(named=True)
    return dict(row)


def differences(settings: Settings) -> list[str]:
    with postgres.reading(settings) as connection:
        return [
            f"{check.name}: {check.difference}"
            for check in verify(connection, roots=False)
            if check.difference
        ]


@pytest.mark.parametrize(
    ("told", "side", "target", "billable", "taken_back"),
    [
        ("compensated", "charge", "usage", True, False),
        ("compensated", "both", "usage", False, False),
        ("nonbillable_charge", "charge", "usage", False, False),
        ("second_void", "charge", "usage", True, True),
        ("second_void", "both", "usage", True, True),
        ("void_of_void", "both", "void", False, False),
        ("void_of_other", "both", "refused", False, False),
        ("void_of_other", "both", "heartbeat", False, False),
        ("void_of_other", "both", "adjustment", False, False),
        ("target_archived", "both", None, False, False),
    ],
)
def test_how_a_void_settles(told: str, side: Any, target: str, billable: bool, taken_back: bool) -> None:
    assert outcome(side=side, target=target, billable=billable, taken_back=taken_back) == told


def test_every_void_has_its_outcome_and_a_second_run_moves_nothing(
    settings: Settings, ledger: Ledger, tmp_path: Path
) -> None:
    """Six requests of a million tokens at 3 against 1: a charge void leaves cost, `both` leaves neither."""
    apply(settings, tmp_path / "catalog", CATALOG)
    first, second = ledger.intake(0, f"{DAY}T23:00:00"), ledger.intake(1, f"{DAY}T23:00:00")
    # the void of `early` comes before its event, by another partition
    ledger.batch(second, [void("v-early", "early", "both"), void("v-missing", "never")])
    ledger.batch(
        first,
        [
            *(event(name, project="p") for name in ("kept", "charge", "both", "twice")),
            event("free", counts_for="cost", nonbillable_reason=1),
            event("refusal", (0, 0), event_type=3),
        ],
    )
    ledger.batch(
        second,
        [
            void("v-charge", "charge"),
            void("v-both", "both", "both"),
            void("v-twice-2", "twice", "both", at=f"{DAY}T11:00:01"),
            void("v-twice-1", "twice", "both"),
            void("v-free", "free"),
            void("v-refusal", "refusal"),
            void("v-void", "v-charge", "both"),
            void("v-self", "v-self"),
            void("v-elsewhere", "kept", voids_source="another"),
        ],
    )
    fold.run(until_idle=True, settings=settings)
    assert margin(settings) == {"revenue": Decimal(12), "cost": Decimal(5), "margin": Decimal(7)}

    run(settings)
    assert settlements(ledger) == {
        "v-charge": "compensated",
        "v-both": "compensated",
        "v-twice-1": "compensated",
        "v-twice-2": "second_void",
        "v-free": "nonbillable_charge",
        "v-refusal": "void_of_other",
        "v-void": "void_of_void",
        "v-self": "void_of_void",
    }
    assert ledger.execute(
        "SELECT event_id, counts_for, uncached_input_tokens, occurred_at, event_type, project_id > 0 "
        "FROM usage_events JOIN series USING (series_id) WHERE source_id < 0 ORDER BY 1"
    ) == [
        ("both", "charge_and_cost", -1_000_000, instant(f"{DAY}T10:00:00"), 5, True),
        ("charge", "charge", -1_000_000, instant(f"{DAY}T10:00:00"), 5, True),
        ("twice", "charge_and_cost", -1_000_000, instant(f"{DAY}T10:00:00"), 5, True),
    ]
    # left are kept (3 against 1), charge (1) and free (1)
    assert margin(settings) == {"revenue": Decimal(3), "cost": Decimal(3), "margin": Decimal(0)}
    with postgres.connect(settings, "fold") as connection:
        pinned = fold.pin(connection, settings, "before the late event").watermark_id

    # the event comes, and is taken back at its own time; both after charge changes nothing any more
    ledger.batch(first, [event("early"), event("other", at=f"{DAY}T10:20:00")])
    ledger.batch(second, [void("v-charge-both", "charge", "both")])
    run(settings)
    assert settlements(ledger)["v-early"] == "compensated"
    assert settlements(ledger)["v-charge-both"] == "second_void"
    assert margin(settings) == {"revenue": Decimal(6), "cost": Decimal(4), "margin": Decimal(2)}
    assert margin(settings, pinned) == {"revenue": Decimal(3), "cost": Decimal(3), "margin": Decimal(0)}
    assert open_findings(ledger) == [
        ("nonbillable_charge", "v-free"),
        ("second_void", "v-charge-both"),
        ("second_void", "v-twice-2"),
        ("void_of_other", "v-refusal"),
        ("void_of_void", "v-self"),
        ("void_of_void", "v-void"),
    ]
    assert differences(settings) == []
    before = state(ledger)
    run(settings)
    assert state(ledger) == before
