"""Settle: a void takes back what it names, once, whenever either comes; whatever is wrong becomes a finding."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from metering.core.settling import outcome
from metering.errors import Unavailable
from metering.events.identity import uuid7_text
from metering.periods import parse_period
from metering.settings import Settings, read_settings
from metering.store import findings, postgres
from metering.store.ledger import Ledger as Store
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
            for check in verify(connection, roots=True)
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
            event("refusal", heartbeat=(1, f"{DAY}T10:00:00")),
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
    assert ledger.execute("SELECT sum(duplicate) + sum(conflict) FROM ingest_batches") == [(0,)]
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


def test_a_void_ends_where_another_row_stands_in_the_place_of_its_entry(
    settings: Settings, ledger: Ledger
) -> None:
    """A producer uses the name and an id of an adjustment downwards."""
    intake = ledger.intake()
    taken = event("n-1", source="adjustments", event_type=6, compensates=True)
    ledger.batch(intake, [taken, event("n-1", source="adjustments")])
    ledger.batch(intake, [void("v-1", "n-1", "both", voids_source="adjustments")])
    with postgres.connect_driver(settings, "settle") as connection:
        connection.autocommit = True
        step = settle.Settle(connection, settings)
        assert [step.settle_some(), step.settle_some()] == [1, 0]
    assert settlements(ledger) == {"v-1": "second_void"}


def test_an_archived_event_and_a_crash_and_two_settles_at_once(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Voids that wait starve none; a step that dies leaves nothing; a fenced step goes on where the other ended."""
    settings = settings.model_copy(update={"settle_voids_max": 2})
    intake = ledger.intake()
    waiting = [void(f"waits-{number}", f"nowhere-{number}") for number in range(5)]
    archived = uuid7_text(instant("2026-09-30T23:59:59.999"), b"0123456789")
    ledger.batch(intake, [*waiting, void("v-archived", archived)])
    ledger.batch(intake, [event(f"e-{number}") for number in range(5)])
    ledger.batch(intake, [void(f"v-{number}", f"e-{number}", "both") for number in range(5)])
    before = state(ledger)

    def die(*arguments: object) -> None:
        raise psycopg.OperationalError("the process died")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "_write_batch_row", die)
        with pytest.raises(Unavailable):
            settle.run(until_idle=True, settings=settings)
    assert state(ledger) == before

    with (
        postgres.connect_driver(settings, "settle") as one,
        postgres.connect_driver(settings, "settle") as two,
    ):
        one.autocommit = two.autocommit = True
        first, second = settle.Settle(one, settings), settle.Settle(two, settings)
        assert (first.settle_some(), second.settle_some()) == (2, 2)
        # the claim of the first was taken over: nothing of its step is written, the next one goes on
        count = len(settlements(ledger))
        assert first.settle_some() == 2
        assert len(settlements(ledger)) == count == 4
        assert first.settle_some() == 2
        assert first.settle_some() == 0
        assert second.settle_some() == 0
    assert settlements(ledger) == {
        "v-archived": "target_archived",
        **{f"v-{number}": "compensated" for number in range(5)},
    }
    assert ledger.execute(
        "SELECT next_offset, next_sequence FROM stream_positions WHERE kind = 'settle'"
    ) == [(6, 3)]
    assert ledger.execute("SELECT count(*), sum(output_tokens) FROM usage_events WHERE source_id < 0") == [
        (5, 0)
    ]
    run(settings)
    assert open_findings(ledger) == [("target_archived", "v-archived")]
    assert differences(settings) == []


def test_a_second_worker_says_who_is_at_work_and_waits(settings: Settings, ledger: Ledger) -> None:
    ledger.batch(ledger.intake(), [event("e"), void("v", "e")])
    with (
        postgres.connect(settings, "settle") as first,
        postgres.connect(settings, "settle") as second,
        postgres.connect_driver(settings, "settle") as entries,
    ):
        entries.autocommit = True
        assert postgres.take_lock(first, postgres.SETTLE)
        step = settle.SettleWorker(second, entries, settings).step
        with capture_logs() as logs:
            assert step()
        assert logs[0]["holder"].startswith("backend ")
        assert settlements(ledger) == {}
        first.close()
        deadline = time.monotonic() + 10
        while not settlements(ledger) and time.monotonic() < deadline:
            step()
        assert settlements(ledger) == {"v": "compensated"}


def test_what_is_taken_back_is_folded_before_what_takes_it_back(settings: Settings, ledger: Ledger) -> None:
    """With the fold behind, no sum of a minute is ever negative, whatever intake has more to fold."""
    intake = ledger.intake()
    pooled = {"pool": "north", "ran_on": "pool"}
    for number in range(4):
        ledger.batch(intake, [event(f"e{number}", at=f"{DAY}T10:0{number}:00", **pooled)])
    ledger.batch(intake, [void("v", "e3", "both")])
    settle.run(until_idle=True, settings=settings)
    settings = settings.model_copy(update={"fold_batches_max": 2})
    with postgres.connect(settings, "fold") as connection:
        series = fold.SeriesPools(10)
        while fold.fold_once(connection, settings, series):
            assert ledger.execute("SELECT min(uncached_input_tokens) >= 0 FROM pool_minutes") == [(True,)]
    assert ledger.execute("SELECT sum(requests)::int FROM pool_minutes") == [(3,)]


# ---- findings of requests ------------------------------------------------------------------------------


def subjects(ledger: Ledger) -> list[tuple[str, str, list[str]]]:
    """Day, kind and the events of every open finding of a request."""
    rows = ledger.execute(
        "SELECT day::text, kind, details FROM (SELECT DISTINCT ON (kind, subject) * FROM findings "
        "ORDER BY kind, subject, sequence DESC) last WHERE state = 'opened' AND customer = 'acme'"
    )
    return sorted((day, kind, [one["id"] for one in details["events"]]) for day, kind, details in rows)


def test_requests_billed_twice_are_found_per_closed_day_and_resolve(
    settings: Settings, ledger: Ledger
) -> None:
    settings = settings.model_copy(update={"allowed_lateness_seconds": 0})
    last, next_day = "2026-10-30T23:59:59", "2026-10-31T00:00:01"
    timed, c2 = (uuid7_text(instant(at), b"0123456789") for at in (last, next_day))
    intake = ledger.intake(0, "2026-10-30T23:59:59")

    def pinned(until: str, *events: Event) -> None:
        ledger.batch(intake, events, until=until)
        with postgres.connect(settings, "fold") as connection:
            fold.pin(connection, settings, "test")
        settle.run(until_idle=True, settings=settings)

    def request(name: str, at: str, request: str, attempt: int = 1, **more: Any) -> Event:
        return event(name, at=at, request=request, attempt=attempt, **more)

    free = {"counts_for": "cost", "nonbillable_reason": 1}
    pinned(
        "2026-10-30T23:59:59",
        request("a1", last, "a", 1),
        request("a2", last, "a", 2),  # a retry that was billed too
        request("b1", last, "b", 1),
        request("b1-again", last, "b", 1, **free),  # the same attempt, not billed
        request(timed, last, "c", 1),
        request("f1", last, "f", 1),
        request("d1", last, "d", 1),
        request("d2", last, "d", 2, **free),
        request("a1-of-another", last, "a", 3, customer="other"),
    )
    assert subjects(ledger) == []  # the day is not over

    pinned("2026-10-31T00:00:00", request(c2, next_day, "c", 2), request("f2", next_day, "f", 2))
    found = [
        ("2026-10-30", "double_billable", ["a1", "a2"]),
        ("2026-10-30", "double_billable", [timed, c2]),
        ("2026-10-30", "double_billable", ["f1", "f2"]),
        ("2026-10-30", "repeated_attempt", ["b1", "b1-again"]),
    ]
    assert subjects(ledger) == sorted(found)
    before = state(ledger)
    run(settings)
    assert state(ledger) == before

    # late usage: the day is passed again once it is in a watermark, and sees what was voided until then
    pinned(
        "2026-10-31T10:00:00",
        void("v-a2", "a2"),
        void("v-b1-again", "b1-again", "both"),
        request("d3", last, "d", 3),
    )
    found = [
        ("2026-10-30", "double_billable", [timed, c2]),
        ("2026-10-30", "double_billable", ["d1", "d3"]),
        ("2026-10-30", "double_billable", ["f1", "f2"]),
    ]
    assert subjects(ledger) == sorted(found)
    pinned("2026-10-31T10:01:00")  # what settle appended
    # a charge void of the event of the next day resolves the pair; that day is passed as it closes
    pinned(
        "2026-11-01T00:00:00",
        void("v-c2", c2),
        request("e1", next_day, "e"),
        request("e2", next_day, "e", 2),
    )
    pinned("2026-11-01T00:01:00")
    assert subjects(ledger) == [
        ("2026-10-30", "double_billable", ["d1", "d3"]),
        ("2026-10-30", "double_billable", ["f1", "f2"]),
        ("2026-10-31", "double_billable", ["e1", "e2"]),
    ]
    history = ledger.execute("SELECT count(*) FILTER (WHERE state = 'opened'), count(*) FROM findings")
    assert history == [(6, 9)]


def test_more_requests_than_are_named_are_counted(settings: Settings, ledger: Ledger) -> None:
    settings = settings.model_copy(update={"findings_per_day_max": 2, "allowed_lateness_seconds": 0})
    at = "2026-10-30T10:00:00"
    pairs = [
        event(f"{name}{attempt}", at=at, request=name, attempt=attempt)
        for name in "abc"
        for attempt in (1, 2)
    ]
    ledger.batch(ledger.intake(), pairs, until="2026-10-31T00:00:00")
    with postgres.connect(settings, "fold") as connection:
        fold.pin(connection, settings, "test")
    settle.run(until_idle=True, settings=settings)
    assert len(subjects(ledger)) == 2
    rows = ledger.execute("SELECT details FROM findings WHERE subject = '2026-10-30/more'")
    assert rows == [({"requests": 3, "named": 2},)]


def test_a_void_that_waits_for_long_is_found_until_its_event_comes(
    settings: Settings, ledger: Ledger
) -> None:
    intake = ledger.intake()
    ledger.batch(intake, [void("v", "late")])
    with postgres.connect(settings, "settle") as connection:
        now = datetime.now(UTC)
        for at in (now, now + timedelta(days=1, minutes=1), now + timedelta(days=1, minutes=2)):
            settle.find(connection, settings, at)
            assert open_findings(ledger) == ([("unmatched_void", "v")] if at > now else [])
        ledger.batch(intake, [event("late")])
        run(settings)
        settle.find(connection, settings, now + timedelta(days=2))
        settle.find(connection, settings, now + timedelta(days=2))
        (kind, subject), *_ = ledger.execute("SELECT kind, subject FROM findings")
        entries = findings.history(connection, kind, subject)
    assert [(one.sequence, one.state) for one in entries] == [(1, "opened"), (2, "resolved")]
    assert entries[0].details["target"] == {"source": "gateway", "id": "late"}


# ---- in any order --------------------------------------------------------------------------------------

_SIDES = st.lists(st.sampled_from(["none", "charge", "both"]), min_size=1, max_size=5)


@hypothesis_settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sides=_SIDES, data=st.data())
def test_order_and_batching_change_no_sum(
    settings: Settings, ledger: Ledger, sides: list[str], data: st.DataObject
) -> None:
    """Each event is voided at most once: what is left per kind of series depends on nothing else."""
    unique = uuid4().hex
    made = [event(f"{unique}-e{number}", (1 << number, 0), customer=unique) for number in range(len(sides))]
    made += [
        void(f"{unique}-v{number}", f"{unique}-e{number}", side)
        for number, side in enumerate(sides)
        if side != "none"
    ]
    order = data.draw(st.permutations(made))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(made)), max_size=3)) | {0, len(made)})
    intake = ledger.execute("SELECT intake_id FROM stream_positions WHERE kind = 'kafka'")
    intake_id = intake[0][0] if intake else ledger.intake()
    for start, end in pairwise(cuts):
        ledger.batch(intake_id, order[start:end])
        if data.draw(st.booleans()):
            settle.run(until_idle=True, settings=settings)
    run(settings)
    rows = ledger.execute(
        "SELECT counts_for, sum(uncached_input_tokens)::int, sum(requests)::int FROM usage_quarters "
        "JOIN series USING (series_id) WHERE customer = %s GROUP BY 1",
        unique,
    )
    ran = sum(1 << number for number, side in enumerate(sides) if side != "both")
    taken = [number for number, side in enumerate(sides) if side == "charge"]
    expected = {"charge_and_cost": (ran, sum(side != "both" for side in sides))}
    if taken:
        expected["charge"] = (-sum(1 << number for number in taken), -len(taken))
    assert {name: sums for name, *sums in map(list, rows)} == {
        name: list(sums) for name, sums in expected.items()
    }
