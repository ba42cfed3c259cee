"""`metering report contracts` and `balances` on a real ledger."""

import json
from collections.abc import Callable, Iterator
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from metering.cli import standing
from metering.errors import BadInput
from metering.settings import Settings
from tests.ledger_builder import Event, Ledger
from tests.test_report_commands import CATALOG, apply, pinned

TERMS = """
    discounts:
      - {discount: loyalty, ratio: 0.10}
    minimum_per_period: 9.00
    fees:
      - {fee: plan, amount: 30.00, per: month, currency: USD}
    entitlements:
      - {pool: block, units: 1, unit: accelerator}
    commitments:
      - commitment: block
        paid: ahead
        shortfall_rule: forfeit
        tranches: [{effective_from: 2026-11-01, effective_until: 2026-12-01, amount: 20.00}]
    credits:
      - {credit: launch, kind: promotional, amount: 4.00, effective_from: 2026-11-01, effective_until: 2026-11-25}
"""
Run = Callable[..., Result]


@pytest.fixture
def ledger(settings: Settings, tmp_path: Path) -> Iterator[Ledger]:
    """Usage of the 20th and 21st of November, complete until 2026-11-21 20:45."""
    contract = "    margin_floor_ratio: 0.2\n"
    catalog = CATALOG.replace(contract, contract + TERMS.lstrip("\n"))
    trial = "  - customer: trial-co\n    name: Trial\n    dated: [{effective_from: 2026-01-01, kind: trial, segment: new}]\n"
    other = "  - {contract: try-out, customer: trial-co, price_book: standard, effective_from: 2026-11-20}\n"
    catalog = catalog.replace("models:\n", f"{trial}models:\n", 1)
    catalog = catalog.replace("capacity_contracts:\n", f"{other}capacity_contracts:\n")
    apply(settings, tmp_path / "catalog", catalog)
    made = Ledger(settings)
    intake = made.intake(0, seen_until="2026-11-21T21:02:30")
    made.batch(
        intake,
        [
            Event("2026-11-20T10:00:00", (1_000_000, 0)),
            Event("2026-11-21T10:00:00", (3_000_000, 30), pool="block", ran_on="pool"),
            Event("2026-11-21T11:00:00", (2_000_000, 0), customer="trial-co"),
            Event("2026-11-21T20:50:00", (9, 9)),  # beyond the cut
        ],
        until="2026-11-21T21:02:30",
    )
    pinned(settings)
    yield made
    made.close()


@pytest.fixture
def run(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process with the settings of this test."""
    for name, value in environment.items():
        if name.startswith("METERING_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")
    root = typer.Typer()
    app = typer.Typer()
    standing.mount(app)
    root.add_typer(app, name="report")

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(root, arguments)

    return invoke


def test_where_customers_stand_at_the_cut(ledger: Ledger, run: Run, tmp_path: Path) -> None:
    asked = ("--period", "2026-11")
    read = json.loads(run("report", "contracts", *asked, "--format", "json").stdout)
    commitment, entitlement, terms = read["rows"]
    # 4 million tokens at 3, and 30 at 15 a million, less a tenth
    drawn = (Decimal(12) + Decimal("0.00045")) * Decimal("0.9")
    assert (commitment["customer"], commitment["name"], commitment["state"]) == ("acme", "block", "open")
    assert (Decimal(commitment["committed"]), Decimal(commitment["drawn"])) == (20, drawn)
    # the two days that have usage go on until December: more than what is left
    assert Decimal(commitment["projected"]) == 20
    assert Decimal(commitment["shortfall_projected"]) == 0
    assert (entitlement["name"], entitlement["measure"], terms["contract"]) == (
        "block all",
        "accelerator",
        "try-out",
    )
    # 30 of 50 units of burn in one minute of all the minutes before the cut
    average = Decimal(30) / (50 * (20 * 96 + 83) * 15)
    assert Decimal(entitlement["drawn"]) == average.quantize(Decimal("1e-12"), ROUND_FLOOR)
    assert run("report", "contracts", *asked).stdout.count("block") == 2
    assert json.loads(run("report", "contracts", *asked, "--format", "json").stdout) == read
    file = tmp_path / "contracts.parquet"
    assert run("report", "contracts", *asked, "--format", "parquet", "--output", str(file)).exit_code == 0
    assert file.exists()

    read = json.loads(run("report", "balances", *asked, "--format", "json").stdout)
    acme, trial = read["rows"]
    fees = Decimal(30) * (20 * 96 + 83) / (30 * 96)
    assert abs(Decimal(acme["fees"]) - fees) < Decimal("0.000001")
    # all net charges were paid ahead: what is due is the fee
    assert Decimal(acme["unbilled"]) == Decimal(acme["fees"])
    assert (Decimal(acme["committed_left"]), Decimal(acme["promotional_left"])) == (20 - drawn, 4)
    assert (Decimal(acme["expiring"]), acme["expires_at"]) == (24 - drawn, "2026-11-25T00:00:00Z")
    # in the 28 days before the cut only October's top-ups, 9 a month, were left to pay: 7 d 3 h 15 min of them
    goes_on = Decimal(9) / 31 * (7 * 96 + 13) / 96 / 28 * (3 * 96 + 13) / 96
    assert abs(Decimal(acme["expected_lost"]) - (4 - goes_on)) < Decimal("0.000001")
    assert (trial["kind"], Decimal(trial["unbilled"])) == ("trial", 6)
    assert Decimal(read["total"]["unbilled"]) == Decimal(acme["unbilled"])
    table = run("report", "balances", *asked, "--customer", "trial-co").stdout
    assert "trial-co" in table
    assert "acme" not in table
    assert "nothing of the period is complete yet" in run("report", "balances", "--period", "2027-01").stdout
    unknown = run("report", "contracts", "--customer", "nobody")
    assert isinstance(unknown.exception, BadInput)
    assert "no such customer; there are acme, trial-co" in str(unknown.exception)
