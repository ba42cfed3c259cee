"""What suppliers say against what we know, on a real ledger: reconcile, closure, obligations."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from metering.cli import closing, reports
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
    # within the tolerance it matches, and reads as a table
    near = file(tmp_path, "day,model,total_input_tokens\n2026-11-21,large,1541000\n")
    assert "1 match" in run("reconcile", near, "--supplier", "own", "--tolerance", "0.001").stdout
    for arguments, says in (
        (("--supplier", "ghost"), "--supplier 'ghost' serves no model of the catalog and no usage"),
        (("--supplier", "own", "--tolerance", "2"), "--tolerance '2' is not a ratio"),
        (("--supplier", "own", "--format", "xml"), "--format 'xml' is not one of"),
    ):
        refused = run("reconcile", near, *arguments, code=1).exception
        assert isinstance(refused, BadInput)
        assert says in str(refused)
