"""Service and posted months on a real ledger: what is learned of a closed month stands in the first open one."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metering.cli import bills, reports
from metering.errors import BadInput
from metering.periods import parse_period
from metering.settings import Settings, read_settings
from metering.store import postgres
from tests.ledger_builder import Event, Ledger
from tests.test_as_of import apply
from workers import fold, periods
from workers.posted import margin_by

#: A token of output costs acme one dollar; the block costs 70,000 a month, whoever uses it.
CATALOG = """
customers:
  - {customer: acme, name: Acme, dated: [{effective_from: 2025-01-01, kind: paying, segment: startup}]}
models:
  - {provider: own, model: large, name: Large}
price_books:
  - book: standard
    currency: USD
    prices: [{product: chat, effective_from: 2025-01-01, per_million: {output_tokens: 1000000}}]
contracts:
  - {contract: acme-1, customer: acme, price_book: standard, effective_from: 2025-01-01}
capacity_contracts:
  - pool: block
    supplier: northstar
    unit: accelerator
    currency: USD
    idle_policy: none
    steps: [{effective_from: 2025-01-01, units: 2, fee_per_month: 70000}]
    dimensions:
      - dimension: all
        unit_burn_per_minute: 50
        burndown: [{models: [large], effective_from: 2025-01-01, weights: {output_tokens: 1, other_meters: 0}}]
"""
CREDIT = """supplier,document,currency,line,category,object_kind,object,amount,service_from,service_until
northstar,N-9,USD,1,credit,pool,block,-8000,2025-03-01,2025-04-01
"""
POOLED = {"pool": "block", "ran_on": "pool"}


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings(database_url=database_url)


@pytest.fixture
def ledger(settings: Settings, tmp_path: Path) -> Iterator[Ledger]:
    apply(settings, tmp_path / "catalog", CATALOG)
    made = Ledger(settings)
    yield made
    made.close()


def close(settings: Settings, month: str) -> None:
    periods.close(settings, parse_period(month), by="ann", reason="done")


Rows = list[tuple[str | None, Decimal, Decimal]]


def margins(
    settings: Settings, period: str, by: str, as_of: int | None = None
) -> tuple[Rows, tuple[str, ...]]:
    """Month of service, revenue and margin of the rows and the total; and the notes."""
    with postgres.reading(settings) as connection:
        report = margin_by(connection, settings, parse_period(period), as_of, by)
    months = [name for name in report.rows.columns if name == "service_month"]
    rows = [
        *report.rows.select(*months, "revenue", "margin").rows(),
        *report.total.select("revenue", "margin").rows(),
    ]
    return [(row[0] if len(row) == 3 else None, *row[-2:]) for row in rows], report.notes


def test_what_is_learned_of_a_closed_month_is_posted_to_the_first_open_one(
    settings: Settings, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = ledger.intake(seen_until="2025-05-02T00:00:00")
    ledger.batch(intake, [Event("2025-03-30T10:00:00", (0, 100_000), **POOLED)])  # type: ignore[arg-type]
    # nothing is closed: posted is service
    with pytest.raises(BadInput, match="posted is by calendar months"):
        margins(settings, "2025-03-30", "posted")
    with pytest.raises(BadInput, match="both service and posted"):
        margins(settings, "2025-03", "posted,service")
    close(settings, "2025-03")
    close(settings, "2025-04")
    kept = [margins(settings, month, "posted,line") for month in ("2025-03", "2025-04")]
    # in May come 5,000 of late revenue and a credit of 8,000, both of March
    ledger.batch(intake, [Event("2025-03-31T10:00:00", (0, 5_000), **POOLED)])  # type: ignore[arg-type]
    fold.run(until_idle=True, settings=settings)
    late = [row for row in margins(settings, "2025-05", "posted,line")[0] if row[0] == "2025-03"]
    # a minute's cost of the block moves from idle to usage: 70,000 / 44,640 minutes
    assert [f"{row[2]:.2f}" for row in late] == ["1.57", "4998.43"]
    assert [sum(row[at] for row in late) for at in (1, 2)] == [5_000, 5_000]  # type: ignore[misc]
    monkeypatch.setenv("METERING_DATABASE_URL", settings.database_url.get_secret_value())
    (tmp_path / "credit.csv").write_text(CREDIT)
    entered = CliRunner().invoke(bills.app, ["add", str(tmp_path / "credit.csv")])
    assert "posted to 2025-05" in entered.stderr

    assert margins(settings, "2025-03", "service,line")[0][-1] == (None, 105_000, 43_000)
    rows, notes = margins(settings, "2025-03", "posted,line")
    assert rows[-1] == (None, 100_000, 30_000)
    assert notes == (
        "learned of 2025-03 after it was closed, posted later: revenue 5,000.00, cost -8,000.00, margin 13,000.00 USD",
        "2025-03 by service: revenue 105,000.00, cost 62,000.00, margin 43,000.00 USD",
        "2025-03 by posting: revenue 100,000.00, cost 70,000.00, margin 30,000.00 USD",
    )
    rows, notes = margins(settings, "2025-05", "posted")
    of_march = [row for row in rows if row[0] == "2025-03"]
    assert sum(row[1] for row in of_march) == 5_000
    assert sum(row[2] for row in of_march) == 13_000
    by_service = margins(settings, "2025-05", "service")[0][-1]
    assert rows[-1][2] - by_service[2] == 13_000
    assert notes[0] == (
        "learned of 2025-03 and posted here: revenue 5,000.00, cost -8,000.00, margin 13,000.00 USD"
    )
    # what was posted stands, at every point of knowledge
    assert [margins(settings, month, "posted,line")[0] for month in ("2025-03", "2025-04")] == [
        rows for rows, _ in kept
    ]
    assert [margins(settings, month, "posted,line", 2) for month in ("2025-03", "2025-04")] == kept

    printed = CliRunner().invoke(
        reports.app, ["margin", "--period", "2025-05", "--by", "posted,pool", "--format", "csv"]
    )
    assert printed.exit_code == 0, printed.exception
    assert printed.stdout.splitlines()[1].startswith("2025-03,block,")
    assert "learned of 2025-03 and posted here" in printed.stderr


def test_what_is_learned_of_a_month_before_the_first_closed_one_is_posted_after_it(
    settings: Settings, ledger: Ledger
) -> None:
    intake = ledger.intake(seen_until="2025-05-02T00:00:00")
    ledger.batch(intake, [Event("2025-03-30T10:00:00", (0, 100_000), **POOLED)])  # type: ignore[arg-type]
    close(settings, "2025-03")
    ledger.batch(intake, [Event("2025-02-27T10:00:00", (0, 5_000), **POOLED)])  # type: ignore[arg-type]
    fold.run(until_idle=True, settings=settings)
    posted = {
        month: margins(settings, month, "posted,line")[0][-1] for month in ("2025-02", "2025-03", "2025-04")
    }
    assert posted == {
        "2025-02": (None, 0, -70_000),
        "2025-03": (None, 100_000, 30_000),
        "2025-04": (None, 5_000, -65_000),
    }


def test_usage_after_a_closed_month_moves_it_where_a_contracts_period_holds_both(
    settings: Settings, ledger: Ledger, tmp_path: Path
) -> None:
    """$3,100 at least from March 15 to April 15: $2,100 on top of $1,000 of March, but $550 each of March and April
    once $1,000 of April are known: $1,550 of March are taken back, and stand in April."""
    agreed = CATALOG.replace(
        "price_book: standard, effective_from: 2025-01-01}",
        "price_book: standard, effective_from: 2025-03-15, effective_until: 2025-04-15,\n"
        "     billing: {anchor_day: 15}, minimum_per_period: 3100}",
    )
    apply(settings, tmp_path / "agreed", agreed)
    intake = ledger.intake(seen_until="2025-05-02T00:00:00")
    ledger.batch(intake, [Event("2025-03-20T10:00:00", (0, 1_000), **POOLED)])  # type: ignore[arg-type]
    close(settings, "2025-03")
    close(settings, "2025-04")
    assert [margins(settings, month, "service")[0][-1][1] for month in ("2025-03", "2025-04")] == [3_100, 0]
    ledger.batch(intake, [Event("2025-04-05T10:00:00", (0, 1_000), **POOLED)])  # type: ignore[arg-type]
    fold.run(until_idle=True, settings=settings)
    assert [margins(settings, month, "service")[0][-1][1] for month in ("2025-03", "2025-04")] == [
        1_550,
        1_550,
    ]
    posted = [margins(settings, month, "posted") for month in ("2025-03", "2025-04", "2025-05")]
    assert [rows[-1][1] for rows, _ in posted] == [3_100, 0, 0]
    of_march = [row[1] for row in posted[2][0] if row[0] == "2025-03"]
    assert sum(of_march) == -1_550
    assert "learned of 2025-03 after it was closed, posted later: revenue -1,550.00" in posted[0][1][0]
