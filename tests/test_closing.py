"""What suppliers say against what we know, on a real ledger: reconcile, closure, obligations."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from metering.cli import bills, closing, reports
from metering.errors import BadInput
from metering.settings import Settings
from tests.ledger_builder import Event, Ledger
from tests.test_report_commands import CATALOG, apply, pinned

ON_DEMAND = """
cost_books:
  - book: own-list
    provider: own
    currency: USD
    prices:
      - model: large
        effective_from: 2026-01-01
        per_million: {uncached_input_tokens: 2, output_tokens: 10}
supplier_commitments:
  - commitment: spend
    supplier: own
    currency: USD
    draws: on_demand
    shortfall_rule: true_up
    shortfall_ratio: 0.5
    tranches:
      - {effective_from: 2026-11-01, effective_until: 2026-12-01, amount: 20}
"""


@pytest.fixture
def ledger(settings: Settings, tmp_path: Path) -> Iterator[Ledger]:
    """Two days of usage, complete until 2026-11-22 20:45."""
    catalog = CATALOG.replace("name: Large}", "name: Large, cost_book: own-list}")
    apply(settings, tmp_path / "catalog", catalog + ON_DEMAND)
    made = Ledger(settings)
    intake = made.intake(0, seen_until="2026-11-22T21:02:30")
    made.batch(
        intake,
        [
            Event("2026-11-20T23:30:00", (200_000, 0)),
            Event("2026-11-21T10:00:00", (1_000_000, 2_000)),
            Event("2026-11-21T10:00:01", (500_000, 0), counts_for="cost", nonbillable_reason=1),
            Event("2026-11-21T22:00:00", (40_000, 0), pool="block", ran_on="pool"),
            Event("2026-11-22T20:50:00", (9, 9)),  # beyond the cut
        ],
        until="2026-11-22T21:02:30",
    )
    pinned(settings)
    yield made
    made.close()


@pytest.fixture
def run(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> "Run":
    for name, value in environment.items():
        if name.startswith("METERING_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")
    return Run()


class Run:
    """Run a command in this process with the settings of this test."""

    def __init__(self) -> None:
        self.root = typer.Typer()
        reports.mount(self.root)
        closing.mount(self.root)
        self.root.add_typer(bills.app, name="bills")

    def __call__(self, *arguments: str | Path, code: int = 0) -> Result:
        result = CliRunner().invoke(self.root, [str(argument) for argument in arguments])
        assert result.exit_code == code, (result.output, result.exception)
        return result


def file(folder: Path, text: str) -> Path:
    path = folder / "theirs.csv"
    path.write_text("\n".join(line.strip() for line in text.strip().splitlines()) + "\n")
    return path


def test_a_suppliers_file_is_compared_with_the_ledger_by_day_model_and_unit(
    ledger: Ledger, run: Run, tmp_path: Path
) -> None:
    theirs = file(
        tmp_path,
        """
        day,model,unit,quantity,amount
        2026-11-20,large,total_input_tokens,200000,0.40
        2026-11-21,large,total_input_tokens,1040000,
        2026-11-21,large,total_output_tokens,2000,0.03
        2026-11-22,large,total_input_tokens,9,
        """,
    )
    result = run("reconcile", theirs, "--supplier", "own", "--format", "json", code=1)
    read = json.loads(result.stdout)
    told = [(row["time"], row["unit"], row["status"], row["ours"], row["reason"]) for row in read["rows"]]
    assert told == [
        ("2026-11-20", "total_input_tokens", "matched", 200_000, None),
        ("2026-11-21", "total_input_tokens", "differs", 1_540_000, "unbilled_attempts_left_out"),
        ("2026-11-21", "total_output_tokens", "differs", 2_000, "price"),
    ]
    assert read["rows"][2]["amount_ours"] == "0.020000000000"
    assert any(
        "1 of 3 hours or days of the file end after 2026-11-22T20:45Z" in note for note in read["notes"]
    )
    # the same day in the zone of Berlin begins an hour earlier, and holds what ran then
    berlin = file(tmp_path, "day,model,total_input_tokens\n2026-11-21,large,1740000\n")
    run("reconcile", berlin, "--supplier", "own", "--zone", "Europe/Berlin")
    utc = run("reconcile", berlin, "--supplier", "own", code=1)
    assert "+01:00" in utc.stdout
    later = file(tmp_path, "day,model,total_input_tokens\n2026-11-23,large,1\n")
    assert "nothing of it is complete yet" in run("reconcile", later, "--supplier", "own", code=1).output
    # the block's 40,000 tokens are none of a file that is about what ran on demand
    on_demand = file(tmp_path, "day,model,total_input_tokens\n2026-11-21,large,1500000\n")
    run("reconcile", on_demand, "--supplier", "own", "--ran-on", "on_demand,overflow")
    # within the tolerance it matches, and reads as a table
    near = file(tmp_path, "day,model,total_input_tokens\n2026-11-21,large,1541000\n")
    assert "1 match" in run("reconcile", near, "--supplier", "own", "--tolerance", "0.001").stdout
    for arguments, says in (
        (("--supplier", "ghost"), "--supplier 'ghost' serves no model of the catalog and no usage"),
        (
            ("--supplier", "own", "--ran-on", "moon"),
            "--ran-on 'moon' is not where usage runs; give any of pool,",
        ),
        (("--supplier", "own", "--tolerance", "nan"), "--tolerance 'nan' is not a ratio"),
        (("--supplier", "own", "--tolerance", "2"), "--tolerance '2' is not a ratio"),
        (("--supplier", "own", "--format", "xml"), "--format 'xml' is not one of"),
    ):
        refused = run("reconcile", near, *arguments, code=1).exception
        assert isinstance(refused, BadInput)
        assert says in str(refused)


BILL = """
supplier,document,currency,line,category,object_kind,object,amount,service_from,service_until,posted_month
own,inv-11,USD,1,charge,on_demand,large,3.20,2026-11-21,2026-11-22,2026-11
northstar,ns-11,USD,1,charge,pool,block,30.00,2026-11-01,2026-12-01,2026-11
northstar,ns-11,USD,2,charge,overhead,,9.00,2026-11-01,2026-12-01,2026-11
"""


def test_cost_closes_to_the_bills_and_says_what_is_missing(
    ledger: Ledger, run: Run, tmp_path: Path, settings: Settings
) -> None:
    """$1 of the block on the 21st; on demand 3.02 rated on the 21st and 0.40 on the 20th."""
    day = ("--period", "2026-11-21")
    before = pinned(settings)
    waiting = json.loads(run("report", "closure", *day, "--format", "json").stdout)
    told = {(row["supplier"], row["term"]): row for row in waiting["rows"]}
    assert told["own", "customers"]["usage"] == "3.020000000000"
    assert (told["own", "variance"]["usage"], told["own", "variance"]["estimated"]) == (None, True)
    assert told["northstar", "recognised_cost"]["loaded"] == "1.000000000000"
    assert any(note == "own: not billed yet, estimated: large 3.02 USD" for note in waiting["notes"])

    run("bills", "add", file(tmp_path, BILL))
    month = ("--period", "2026-11")
    rows = json.loads(run("report", "closure", *month, "--format", "json").stdout)["rows"]
    told = {(row["supplier"], row["term"], row["kind"]): Decimal(row["usage"]) for row in rows}
    own = {term: amount for (supplier, term, _), amount in told.items() if supplier == "own"}
    assert own == {
        "customers": Decimal("3.42"),
        "variance": Decimal("0.18"),
        "recognised_cost": Decimal("3.60"),
        "change_in_prepaid": Decimal("-0.40"),
        "billed": Decimal("3.20"),
    }
    # until the cut, 21 days and 20:45 hours of 30 days of 39 dollars
    north = [
        amount
        for (supplier, term, _), amount in told.items()
        if (supplier, term) == ("northstar", "recognised_cost")
    ]
    share = Decimal(21 * 96 + 83) / (30 * 96)
    assert abs(north[0] - 39 * share) < Decimal("0.0001")
    assert told["northstar", "billed", None] == 39
    assert told["northstar", "change_in_prepaid", None] == 39 - north[0]
    table = run("report", "closure", *day).stdout
    assert "own: on-demand usage rated 3.02, billed 3.20 USD: variance 0.18, capture rate 94.38 %" in table
    for part in ("Documents: billed", "On-demand usage as rated", "Closure: cost by supplier"):
        assert part in table
    parts = {
        part: run("report", "closure", *month, "--by", part, "--format", "csv", "--supplier", "own").stdout
        for part in ("document", "capture", "missing")
    }
    assert parts["document"].splitlines()[1:] == [
        "own,USD,document,inv-11,2026-11-01,3.200000000000,3.200000000000,0.000000000000,3.200000000000,"
        "0.000000000000,0.000000000000",
        "own,USD,not_billed,,,0.000000000000,0.000000000000,0.000000000000,0.400000000000,0.000000000000,"
        "-0.400000000000",
    ]
    assert "3.020000000000,3.200000000000,0.180000000000,0.943750" in parts["capture"]
    assert parts["missing"].splitlines()[1:] == ["own,not_billed,large,0.400000000000,USD,,"]
    # what was known before the bill came stays as it was
    as_of = ("--as-of", str(before), "--format", "csv")
    assert "variance,,,,true" in run("report", "closure", *day, *as_of).stdout
    for arguments, says in (
        (
            ("--by", "line"),
            "--by 'line' is not a part of a closure; give one of term, document, capture, missing",
        ),
        (
            ("--supplier", "ghost"),
            "--supplier 'ghost' is not known; the catalog and the bills name northstar, own",
        ),
    ):
        refused = run("report", "closure", *arguments, code=1).exception
        assert isinstance(refused, BadInput)
        assert says in str(refused)


def test_obligations_stand_at_the_cut(ledger: Ledger, run: Run) -> None:
    read = json.loads(run("report", "obligations", "--period", "2026-11", "--format", "json").stdout)
    row, spend = read["rows"]
    assert (row["supplier"], row["obligation"], row["kind"], row["state"]) == (
        "northstar",
        "block",
        "pool",
        "open",
    )
    # 3.42 rated in the three days that have usage: 1.14 a day until the end, rounded down
    drawn, left = Decimal("3.42"), 30 - Decimal(21 * 96 + 83) / 96
    projected = Decimal(spend["projected"])
    assert (Decimal(spend["drawn"]), Decimal(spend["run_rate_per_day"])) == (drawn, Decimal("1.14"))
    assert abs(projected - drawn - drawn / 3 * left) < Decimal("0.0001")
    assert Decimal(spend["shortfall_cost"]) == (20 - projected) / 2
    assert (
        "spend until 2026-12-01T00:00Z: at the present rate 7.31 USD short, which costs 3.65"
        in read["notes"][0]
    )
    # ten whole months, and the part of November up to the cut
    share = Decimal(21 * 96 + 83) / (30 * 96)
    assert abs(Decimal(row["drawn"]) - 300 - 30 * share) < Decimal("0.0001")
    assert row["remaining"] is None
    assert (
        "Obligations to suppliers at 2026-11-22T20:45Z"
        in run("report", "obligations", "--period", "2026-11").stdout
    )
    later = run("report", "obligations", "--period", "2027-01")
    assert "(nothing of the period is complete yet)" in later.stdout
