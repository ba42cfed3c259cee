"""Costs on a real ledger: what a report reads beyond its period, who carries idle, and floors on that basis."""

from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from metering.core.summary import on_floor_basis
from metering.periods import parse_period
from metering.settings import Settings, read_settings
from metering.store import postgres
from tests.ledger_builder import Event, Ledger
from tests.test_report_commands import apply
from workers import fold
from workers.evaluate import judge_margins
from workers.month_to_date import MonthToDate
from workers.reports import MarginReport, margin_report

#: Each pool has 100 burn a minute. `shared` costs $300 in November, $10 a day; so does `promised`, of which half is
#: acme's and a quarter globex's.
CATALOG = """
customers:
  - {customer: acme, name: Acme, dated: [{effective_from: 2026-01-01, kind: paying, segment: startup}]}
  - {customer: globex, name: Globex, dated: [{effective_from: 2026-01-01, kind: trial, segment: startup}]}
models:
  - {provider: own, model: large, name: Large}
price_books:
  - book: standard
    currency: USD
    prices:
      - {product: chat, effective_from: 2026-01-01, per_million: {uncached_input_tokens: 1000}}
contracts:
  - contract: acme-standard
    customer: acme
    price_book: standard
    effective_from: 2026-01-01
    margin_floor_ratio: 0.5
    floor_basis: loaded
    entitlements: [{pool: promised, units: 1}]
  - contract: globex-trial
    customer: globex
    price_book: standard
    effective_from: 2026-01-01
    entitlements: [{pool: promised, units: 0.5}]
capacity_contracts:"""
POOL = """
  - pool: {pool}
    supplier: northstar
    unit: accelerator
    currency: USD
    idle_policy: {policy}
    steps: [{{effective_from: 2026-01-01, units: 2, fee_per_month: 300}}]
    dimensions:
      - dimension: all
        unit_burn_per_minute: 50
        burndown:
          - {{models: [large], effective_from: 2026-01-01, weights: {{other_meters: 1}}}}
"""
POOLS = POOL.format(pool="shared", policy="burn") + POOL.format(pool="promised", policy="entitlement")


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings(database_url=database_url)


def read(settings: Settings, period: str, as_of: int | None = None) -> MarginReport:
    with postgres.reading(settings) as connection:
        return margin_report(connection, settings, parse_period(period), as_of)


def cents(report: MarginReport) -> dict[str | None, tuple[Decimal, ...]]:
    """(cost, loaded cost, cost by cause) of each customer, to the cent."""
    names = ("cost", "cost_loaded", "cost_by_cause")
    rows = report.summary.select("customer", *(pl.col(name).round(2) for name in names)).rows()
    return {row[0]: tuple(amount.normalize() for amount in row[1:]) for row in rows}


def test_a_report_on_a_day_reads_the_month_so_far(settings: Settings, tmp_path: Path) -> None:
    apply(settings, tmp_path / "catalog", CATALOG + POOLS)
    ledger = Ledger(settings)
    ledger.execute("INSERT INTO ledger_floor (floor_at) VALUES ('2026-11-01Z')")
    intake = ledger.intake(0, seen_until="2026-11-03T12:20:00")
    shared = {"pool": "shared", "ran_on": "pool"}
    first = [
        Event("2026-11-01T10:00:00", (30, 0), event_id="a", **shared),
        Event("2026-11-02T10:00:00", (10, 0), event_id="b", customer="globex", **shared),
        Event("2026-11-02T11:00:00", (80, 0), event_id="c", pool="promised", ran_on="pool"),
    ]
    ledger.batch(intake, first, until="2026-11-03T12:20:00")
    fold.run(until_idle=True, settings=settings)

    # $25 until noon of the 3rd, all but 40 of 360,000 burn idle: 30 : 10 of it is acme's and globex's
    month = read(settings, "2026-11")
    # of `promised` 3/4 of what is idle is carried, all but acme's minute of 80: 2 : 1
    assert cents(month)["acme"][1] == Decimal("18.75") + Decimal("12.5")
    assert cents(month)["globex"][1] == Decimal("6.25") + Decimal("6.25")
    assert cents(month)[None][1] == Decimal("6.25")
    days = [read(settings, f"2026-11-0{day}") for day in (1, 2, 3)]
    assert pl.concat([day.computed.lines for day in days]).equals(month.computed.lines)
    assert cents(days[0])["acme"][1] == Decimal("18.75") + Decimal(5)

    # revenue 0.03 + 0.08, cost of usage a fraction of a cent: the floor is of the loaded margin
    row = on_floor_basis(month.summary).filter(pl.col("customer") == "acme").row(0, named=True)
    assert row["breach"]
    assert row["margin"] == row["revenue"] - row["cost_loaded"]
    with postgres.reading(settings) as connection:
        judged = judge_margins(connection, settings, None, MonthToDate())
    assert judged is not None
    assert set(judged.findings.filter(pl.col("holds"))["scope"]) == {"acme"}

    # what comes later changes who carries the first day's idle; as of a watermark nothing changes
    with postgres.connect(settings, "fold") as connection:
        pinned = fold.pin(connection, settings, "test").watermark_id
    before = read(settings, "2026-11-01", pinned)
    later = [Event("2026-11-03T11:00:00", (40, 0), event_id="d", customer="globex", **shared)]
    ledger.batch(intake, later, until="2026-11-03T12:30:00")
    fold.run(until_idle=True, settings=settings)
    assert read(settings, "2026-11-01", pinned).computed.lines.equals(before.computed.lines)
    # $25.104 until 12:15, 30 of 80 burned
    assert cents(read(settings, "2026-11-01"))["acme"][1] == Decimal("9.41") + Decimal(5)
    ledger.close()
