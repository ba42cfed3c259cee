"""Evaluate on a real Postgres: a breach opens one alert with one message, stays, and resolves once."""

import threading
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from sqlalchemy import Connection

from metering.catalog import load_folder, plan
from metering.errors import Unavailable
from metering.periods import parse_period
from metering.settings import Settings, read_settings
from metering.store import outbox, postgres
from metering.store.books import append_revision, latest_revision, read_catalog
from metering.store.watermarks import Knowledge
from tests.test_slack import read
from tests.webhook import webhook
from workers import deliver, evaluate
from workers.fold import pin
from workers.month_to_date import MonthToDate
from workers.reports import margin_report

#: A million tokens cost 10; sold as `cheap` they bring 5, as `dear` 50. Floor 0.25: with 275 million cheap,
#: 62.5 million dear are exactly at the floor and from 64.8 on the margin is above the band of 0.01.
CUSTOMER = """\
  - customer: {name}
    name: {name} & Co
    dated:
      - {{effective_from: 2025-01-01, kind: paying, segment: enterprise}}
"""
CONTRACT = """\
  - contract: {name}-1
    customer: {name}
    price_book: list
    effective_from: 2025-01-01
    margin_floor_ratio: {floor}
"""
CATALOG = """\
models:
  - {{provider: cloud, model: m, name: M, cost_book: on-demand}}
price_books:
  - book: list
    currency: USD
    prices:
      - {{product: cheap, effective_from: 2025-01-01, per_million: {{output_tokens: 5}}}}
      - {{product: dear, effective_from: 2025-01-01, per_million: {{output_tokens: 50}}}}
cost_books:
  - book: on-demand
    provider: cloud
    currency: USD
    prices:
      - {{model: m, effective_from: 2025-01-01, per_million: {{output_tokens: 10}}}}
customers:
{customers}
contracts:
{contracts}
"""


class World:
    """A database with a catalog, rollups as the fold leaves them, and one partition read to `seen_until`."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder

    def agree(self, *names: str, floor: str = "0.25", terms: str = "") -> None:
        """Apply a catalog in which exactly these customers have a contract; `terms`: more lines of each."""
        customers = "".join(CUSTOMER.format(name=name) for name in names)
        contracts = "".join(CONTRACT.format(name=name, floor=floor) + terms for name in names)
        (self.folder / "catalog.yaml").write_text(CATALOG.format(customers=customers, contracts=contracts))
        objects, at = load_folder(self.folder), datetime.now(UTC)
        with postgres.connect(self.settings, "operator") as connection:
            newest = latest_revision(connection)
            made = plan(read_catalog(connection, newest), objects, base_revision=newest, at=at)
            connection.rollback()
            append_revision(
                connection, objects, shown=made, at=at, applied_by="test", reason="", program_version="0"
            )

    def use(self, customer: str, product: str, millions: str, at: str) -> None:
        """Add millions of output tokens to a quarter hour, as the fold does."""
        with self.superuser() as connection:
            series_id = connection.execute(
                "INSERT INTO series (series_digest, customer, product, tier_sold, provider, model_served, "
                "tier_served, region, pool, ran_on, counts_for, context_breakpoint) "
                "VALUES (md5(%s)::uuid, %s, %s, 'standard', 'cloud', 'm', 'standard', 'global', NULL, "
                "'on_demand', 'charge_and_cost', 0) "
                "ON CONFLICT (series_digest) DO UPDATE SET customer = excluded.customer RETURNING series_id",
                (f"{customer}/{product}", customer, product),
            ).fetchone()
            assert series_id is not None
            connection.execute(
                "INSERT INTO usage_quarters SELECT %(at)s, %(series)s, coalesce(max(watermark_id), 0) + 1, "
                "1, 0, 0, 0, 0, %(tokens)s, 0, 0 FROM watermarks "
                "ON CONFLICT (quarter_start, series_id, interval_id) DO UPDATE "
                "SET output_tokens = usage_quarters.output_tokens + excluded.output_tokens",
                {"at": at, "series": series_id[0], "tokens": int(Decimal(millions) * 1_000_000)},
            )

    def complete(self, until: str | None) -> None:
        """Everything until this time has been read (the allowed lateness has passed since)."""
        with self.superuser() as connection:
            connection.execute("DELETE FROM stream_positions")
            connection.execute(
                "INSERT INTO stream_positions (kind, topic, topic_uuid, partition, next_offset, chain_head, "
                "seen_until) VALUES ('kafka', 't', gen_random_uuid(), 0, 0, %s, %s::timestamptz + '10 min')",
                (bytes(32), until),
            )

    def superuser(self) -> psycopg.Connection[Any]:
        url = self.settings.database_url.get_secret_value()
        return psycopg.connect(url, options="-c timezone=UTC")

    def evaluate(self) -> list[str]:
        """Evaluate until nothing changes; the alerts' whole history so far."""
        evaluate.run(self.settings, until_idle=True)
        return self.alerts()

    def alerts(self) -> list[str]:
        with self.superuser() as connection:
            rows = connection.execute(
                "SELECT scope, sequence, state, period, watermark_id FROM alerts ORDER BY changed_at, scope"
            )
            return [" ".join(map(str, row)) for row in rows]

    def details(self, scope: str, sequence: int) -> dict[str, Any]:
        with self.superuser() as connection:
            row = connection.execute(
                "SELECT details FROM alerts WHERE scope = %s AND sequence = %s", (scope, sequence)
            ).fetchone()
            assert row is not None
            found: dict[str, Any] = row[0]
            return found

    def messages(self) -> list[tuple[str, int, int]]:
        """(scope, sequence, count) of every outbox row."""
        with self.superuser() as connection:
            return connection.execute(
                "SELECT scope, sequence, (message->>'count')::int FROM outbox ORDER BY outbox_id"
            ).fetchall()

    def watermarks(self) -> int:
        with self.superuser() as connection:
            row = connection.execute("SELECT count(*) FROM watermarks").fetchone()
            assert row is not None
            return int(row[0])


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> World:
    return World(read_settings(database_url=database_url, deliver_interval_seconds=0.01), tmp_path)


def test_a_breach_opens_one_alert_with_its_message_and_only_once(world: World) -> None:
    world.agree("acme", "fine")
    world.use("acme", "cheap", "275", "2026-03-09T10:00Z")
    world.use("acme", "dear", "10", "2026-03-09T10:15Z")
    world.use("fine", "dear", "1", "2026-03-09T10:00Z")
    world.complete("2026-03-10T12:07Z")
    assert world.evaluate() == ["acme 1 opened 2026-03 1"]
    assert world.details("acme", 1) == {
        "alert": "margin_breach/acme/1",
        "name": "acme & Co",
        "period": "2026-03",
        "cut_until": "2026-03-10T12:00Z",
        "whole": False,
        "watermark_id": 1,
        "catalog_revision": 1,
        "currency": "USD",
        "revenue": "1875",
        "cost": "2850",
        "margin": "-975",
        "margin_ratio": "-0.52",
        "floor_ratio": "0.25",
        "below_floor": "1443.75",
        "charge_unrated": False,
        "cost_unrated": False,
        "parts": [
            {"what": ["cheap", "m", "on demand"], "cost": "2750", "revenue": "1375"},
            {"what": ["dear", "m", "on demand"], "cost": "100", "revenue": "500"},
        ],
        "command": "metering report margin --period 2026-03 --by customer,product --as-of 1",
    }
    assert world.messages() == [("acme", 1, 1)]
    assert world.evaluate() == ["acme 1 opened 2026-03 1"]
    assert world.messages() == [("acme", 1, 1)]
    assert world.watermarks() == 1


def test_it_stays_open_inside_the_band_then_resolves_and_may_open_again(world: World) -> None:
    world.agree("acme")
    world.complete("2026-03-10T12:00Z")
    history = []
    for product, millions in [
        ("cheap", "275"),
        ("dear", "62"),
        ("dear", "0.5"),  # 62.5: exactly at the floor
        ("dear", "1.5"),  # 64: above it, inside the band
        ("dear", "1"),  # 65: above the band
        ("cheap", "10"),  # 285: inside the band from above
        ("cheap", "10"),  # 295: below the floor
    ]:
        world.use("acme", product, millions, "2026-03-09T10:00Z")
        history.append(len(world.evaluate()))
    assert history == [1, 1, 1, 1, 2, 2, 3]
    assert world.alerts() == [
        "acme 1 opened 2026-03 1",
        "acme 2 resolved 2026-03 2",
        "acme 3 opened 2026-03 3",
    ]
    assert world.messages() == [("acme", 1, 1), ("acme", 2, 1), ("acme", 3, 1)]


def test_only_complete_quarter_hours_count(world: World) -> None:
    world.agree("acme")
    world.use("acme", "cheap", "1", "2026-03-10T11:45Z")
    assert world.evaluate() == []
    world.complete(None)
    assert world.evaluate() == []
    world.complete("2026-03-10T11:59:59Z")
    assert world.evaluate() == []
    assert world.watermarks() == 0
    world.complete("2026-03-10T12:00Z")
    assert world.evaluate() == ["acme 1 opened 2026-03 1"]


def test_the_numbers_are_those_of_the_watermark_for_ever(world: World) -> None:
    world.agree("acme")
    world.use("acme", "cheap", "1", "2026-03-09T10:00Z")
    world.complete("2026-03-10T12:00Z")
    world.evaluate()
    world.use("acme", "cheap", "7", "2026-03-09T10:00Z")
    world.complete("2026-03-10T13:00Z")
    assert world.evaluate() == ["acme 1 opened 2026-03 1"]
    with postgres.reading(world.settings) as connection:
        report = margin_report(connection, world.settings, parse_period("2026-03"), 1)
        row = report.summary.filter(pl.col("customer") == "acme").row(0, named=True)
    told = world.details("acme", 1)
    assert [Decimal(told[name]) for name in ("revenue", "cost", "margin", "margin_ratio")] == [
        row[name] for name in ("revenue", "cost", "margin", "margin_ratio")
    ]
    assert told["cut_until"] == f"{report.provenance.cut.until:%Y-%m-%dT%H:%MZ}"


def test_a_month_is_judged_to_its_end_and_for_three_days_more(world: World) -> None:
    world.agree("acme")
    world.use("acme", "cheap", "1", "2026-03-31T23:45Z")
    world.complete("2026-03-31T23:45Z")
    assert world.evaluate() == []
    world.complete("2026-04-01T09:00Z")
    assert world.evaluate() == ["acme 1 opened 2026-03 1"]
    assert world.details("acme", 1)["whole"] is True
    world.complete("2026-04-04T00:00Z")
    assert len(world.evaluate()) == 1
    world.complete("2026-04-04T00:15Z")
    assert world.evaluate()[1:] == ["acme 2 resolved 2026-04 2"]
    assert world.details("acme", 2)["revenue"] is None


def test_what_has_no_floor_any_more_resolves(world: World) -> None:
    world.agree("acme", "other")
    world.use("acme", "cheap", "1", "2026-03-09T10:00Z")
    world.complete("2026-03-10T12:00Z")
    assert len(world.evaluate()) == 1
    world.agree("acme", "other", floor="null")
    assert world.evaluate()[1:] == ["acme 2 resolved 2026-03 2"]


def test_more_than_the_limit_become_one_digest(world: World) -> None:
    world.settings = world.settings.model_copy(update={"alerts_per_rule_max": 3})
    world.agree("a", "b", "c", "d", "e", "f", "g")
    for millions, customer in enumerate("abc", start=1):
        world.use(customer, "cheap", str(millions), "2026-03-09T10:00Z")
    world.complete("2026-03-10T12:00Z")
    assert len(world.evaluate()) == 3
    assert world.messages() == [("c", 1, 1), ("b", 1, 1), ("a", 1, 1)]
    for millions, customer in enumerate("defg", start=1):
        world.use(customer, "cheap", str(millions), "2026-03-09T10:00Z")
    assert len(world.evaluate()) == 7
    assert world.messages()[3:] == [("*", 0, 4)]
    with world.superuser() as connection:
        message = connection.execute("SELECT message FROM outbox WHERE scope = '*'").fetchone()
    assert message is not None
    assert [fact["alert"] for fact in message[0]["alerts"]] == [f"margin_breach/{c}/1" for c in "gfed"]
    assert message[0]["impact"] == "62.5"


def at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Two evaluators judge the same, each pins its watermark, and only then both write."""
    both = threading.Barrier(2, timeout=30)

    def pin_then_meet(connection: Connection, settings: Settings, reason: str) -> Knowledge:
        pinned = pin(connection, settings, reason)
        both.wait()
        return pinned

    monkeypatch.setattr(evaluate, "pin", pin_then_meet)
    wrote: list[bool] = []
    evaluators = [
        threading.Thread(target=lambda: wrote.append(evaluate.step(world.settings, MonthToDate())))
        for _ in range(2)
    ]
    for evaluator in evaluators:
        evaluator.start()
    for evaluator in evaluators:
        evaluator.join()
    return wrote


@pytest.mark.parametrize("customers", ["a", "abcdef"])
def test_of_two_evaluators_one_writes_and_the_other_writes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, customers: str
) -> None:
    world.settings = world.settings.model_copy(update={"alerts_per_rule_max": 3})
    world.agree(*customers)
    for customer in customers:
        world.use(customer, "cheap", "1", "2026-03-09T10:00Z")
    world.complete("2026-03-10T12:00Z")
    assert sorted(at_once(world, monkeypatch)) == [False, True]
    assert [alert.split()[:3] for alert in world.alerts()] == [[c, "1", "opened"] for c in customers]
    assert world.messages() == ([("a", 1, 1)] if customers == "a" else [("*", 0, 6)])
    assert world.watermarks() == 2


def test_death_before_the_commit_leaves_nothing_and_the_next_finds_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.agree("acme")
    world.use("acme", "cheap", "1", "2026-03-09T10:00Z")
    world.complete("2026-03-10T12:00Z")

    def dies(*_: Any, **__: Any) -> None:
        raise Unavailable("the connection to Postgres broke off")

    with monkeypatch.context() as patched:
        patched.setattr(outbox, "append_message", dies)
        with pytest.raises(Unavailable):
            evaluate.run(world.settings, until_idle=True)
    assert world.alerts() == []
    assert world.messages() == []
    assert world.evaluate() == ["acme 1 opened 2026-03 2"]


def test_unrated_usage_is_said_and_unknown_cost_resolves_nothing(world: World) -> None:
    world.agree("acme")
    world.use("acme", "cheap", "1", "2026-03-09T10:00Z")
    world.use("acme", "unpriced", "1", "2026-03-09T10:00Z")
    world.complete("2026-03-10T12:00Z")
    world.evaluate()
    assert world.details("acme", 1)["charge_unrated"] is True
    world.use("acme", "dear", "100", "2026-03-09T10:00Z")
    with world.superuser() as connection:
        connection.execute("UPDATE series SET model_served = 'unknown' WHERE product = 'unpriced'")
    assert len(world.evaluate()) == 1
    with world.superuser() as connection:
        connection.execute("UPDATE series SET model_served = 'm' WHERE product = 'unpriced'")
    assert world.evaluate()[1:] == ["acme 2 resolved 2026-03 2"]


def test_the_message_arrives_and_its_command_names_the_watermark(world: World) -> None:
    world.agree("acme")
    world.use("acme", "cheap", "1", "2026-03-09T10:00Z")
    world.complete("2026-03-10T12:00Z")
    world.evaluate()
    with webhook() as slack:
        delivering = world.settings.model_copy(update={"slack_webhook_url": slack.url})
        deliver.run(delivering, until_idle=True)
        deliver.run(delivering, until_idle=True)
    assert len(slack.received) == 1
    text = read(deliver.Post(slack.received[0]["text"], slack.received[0]["blocks"]))
    assert "header: Margin below its floor: acme &amp; Co" in text
    assert "*Below the floor by* | USD 6.25" in text
    assert "`metering report margin --period 2026-03 --by customer,product --as-of 1`" in text


def test_terms_of_an_open_month_are_told_as_far_as_its_days_go(world: World) -> None:
    """10 of 31 days of March: of a minimum of 62 USD 20 are due; 5 of charges are credited."""
    terms = """\
    minimum_per_period: 62
    credits:
      - {credit: launch, kind: promotional, amount: 5, effective_from: 2026-03-01, effective_until: 2026-04-01}
    commitments:
      - commitment: march
        paid: ahead
        shortfall_rule: true_up
        tranches: [{effective_from: 2026-03-01, effective_until: 2026-04-01, amount: 3}]
"""
    world.agree("acme", terms=terms)
    world.use("acme", "cheap", "1", "2026-03-09T10:00Z")
    world.complete("2026-03-11T00:00Z")
    assert world.evaluate() == [], (
        "5 of charges and 15 of top-up, less a credit of 5, on a cost of 10: above 0.25"
    )
    world.use("acme", "cheap", "1", "2026-03-09T10:15Z")
    assert world.evaluate() == ["acme 1 opened 2026-03 1"]
    told = world.details("acme", 1)
    assert told["revenue_of"] == {"charge": "10", "top_up": "10", "promotional_credit": "5"}
    assert (told["revenue"], told["cost"], told["below_floor"]) == ("15", "20", "8.75")
    world.agree("acme", floor="null")
    assert world.evaluate()[1:] == ["acme 2 resolved 2026-03 2"]
    with webhook() as slack:
        deliver.run(world.settings.model_copy(update={"slack_webhook_url": slack.url}), until_idle=True)
    opened, resolved = (read(deliver.Post(said["text"], said["blocks"])) for said in slack.received)
    assert "• top-up to the minimum: USD 10.00 | • less promotional credits: USD 5.00 | Of fees" in opened
    assert "header: No margin floor to keep: acme &amp; Co" in resolved


def test_the_evaluator_can_only_append_alerts(world: World) -> None:
    for statement in (
        "UPDATE alerts SET state = 'resolved'",
        "DELETE FROM alerts",
        "UPDATE outbox SET message = '{}'",
        "DELETE FROM outbox",
        "INSERT INTO outbox_attempts (outbox_id, attempt, outcome, detail) VALUES (1, 1, 'delivered', '')",
        "INSERT INTO watermarks DEFAULT VALUES",
    ):
        with postgres.connect_driver(world.settings, "evaluate") as connection:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
            connection.rollback()
