"""Bills and closed months by the commands of an operator, on a real database."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from metering.cli import bills as commands
from metering.cli import periods as period_commands
from metering.errors import BadInput
from metering.settings import Settings, read_settings
from metering.store import postgres, published
from metering.store.bills import read_bill_lines
from metering.store.verify import verify
from tests.ledger_builder import Event, Ledger
from tests.test_as_of import apply
from workers import fold

CATALOG = """
models:
  - {provider: cirrus, model: large, name: Large, cost_book: cirrus}
cost_books:
  - book: cirrus
    provider: cirrus
    currency: EUR
    prices:
      - {model: large, effective_from: 2025-01-01, per_million: {output_tokens: 5}}
capacity_contracts:
  - pool: block
    supplier: northstar
    unit: accelerator
    currency: USD
    steps: [{effective_from: 2025-01-01, units: 2, fee_per_month: 70000}]
    dimensions:
      - dimension: all
        unit_burn_per_minute: 50
        burndown:
          - {models: [large], effective_from: 2025-01-01, weights: {output_tokens: 1, other_meters: 0}}
"""
HEADER = "supplier,document,currency,line,category,object_kind,object,amount,service_from,service_until"
MARCH = "northstar,{},USD,{},{},pool,block,{},2025-03-01,2025-04-01"
Run = Callable[..., Result]


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings(database_url=database_url)


@pytest.fixture
def ledger(settings: Settings, tmp_path: Path) -> Iterator[Ledger]:
    apply(settings, tmp_path / "catalog", CATALOG)
    made = Ledger(settings)
    yield made
    made.close()


@pytest.fixture
def run(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Add a file of these rows, or run another command, in this process with the settings of this test."""
    monkeypatch.setenv("METERING_DATABASE_URL", settings.database_url.get_secret_value())

    def invoke(*arguments: str, rows: tuple[str, ...] = (), app: object = commands.app) -> Result:
        file = tmp_path / "bills.csv"
        if rows:
            file.write_text(HEADER + "".join(row if row.startswith(",") else f"\n{row}" for row in rows))
            arguments = ("add", str(file), "--author", "ann", *arguments)
        return CliRunner().invoke(app, list(arguments))  # type: ignore[arg-type]

    return invoke


def told(result: Result) -> str:
    """What a refused command says; nothing else went wrong."""
    assert isinstance(result.exception, BadInput), result.exception
    return str(result.exception)


def state(ledger: Ledger) -> list[object]:
    tables = ("bills", "bill_lines", "ingest_batches", "watermarks", "period_closes")
    return [sorted(ledger.execute(f"SELECT * FROM {table}"), key=str) for table in tables]


def test_a_document_enters_once_is_corrected_by_revisions_and_a_closed_month_takes_none(
    settings: Settings, ledger: Ledger, run: Run
) -> None:
    charge, credit = MARCH.format("N-1", 1, "charge", "70000"), MARCH.format("N-1", 2, "credit", "-8000")
    euros = "cirrus,C-1,EUR,1,charge,on_demand,large,9.5,2025-03-01,2025-04-01"
    shown = run("--dry-run", rows=(charge, euros))
    assert shown.exit_code == 0
    assert "northstar N-1: new, 1 lines, 70,000.00 USD, posted to 2025-03" in shown.stderr
    assert (
        "C-1: the catalog has no month_average rate from EUR into USD for 2025-03: it closes in"
        in shown.stderr
    )
    assert shown.stdout.splitlines()[1].split("\t")[:8] == [
        *("northstar", "N-1", "1", "charge", "pool", "block"),
        *("2025-03-01T00:00:00.000000Z", "2025-04-01T00:00:00.000000Z"),
    ]
    assert "the catalog has no such pool" in told(run(rows=(charge.replace("block", "blok"), euros)))
    empty = state(ledger)
    assert "is not printable text and is kept: rename it" in told(run("add", "bad\udcff.csv"))

    assert run(rows=(charge, euros)).exit_code == 0
    entered = state(ledger)
    assert entered != empty
    # again, whole or in part, or with other content: refused by name, and nothing moves
    again = told(run(rows=(charge, euros)))
    assert "northstar N-1: the same content was entered 20" in again
    assert "UTC by ann from bills.csv (revision 1)" in again
    other = run(rows=(charge, credit))
    assert "with other content; if this one is right, give --correction and --reason" in told(other)
    assert "northstar N-1: revision 2, 1 lines differ, 70,000.00 USD becomes 62,000.00 USD" in other.stderr
    assert "--reason must be one line" in told(run("--correction", rows=(charge, credit)))
    unknown = run("--correction", "--reason", "r", rows=(charge.replace("N-1", "N-9"),))
    assert "northstar N-9: it was never entered, so there is nothing to correct" in told(unknown)
    assert state(ledger) == entered
    assert (
        run("--correction", "--reason", "wrong price", rows=(charge.replace("70000", "71000"),)).exit_code
        == 0
    )

    # ---- closing: in order, over, complete, once
    def close(month: str) -> Result:
        return run("close", month, "--reason", "the books are done", app=period_commands.app)

    intake = ledger.intake(seen_until="2025-04-02T00:00:00")
    ledger.batch(intake, [Event("2025-02-28T10:00:00", (0, 10))])
    fold.run(until_idle=True, settings=settings)
    # a wrong year would have to be closed month by month: the month before the first usage is the first to post to
    for month, taken in (("2024-12", False), ("2025-01", True)):
        typo = ",posted_month\n" + credit.replace("N-1", "N-0") + f",{month}"
        said = told(run("--dry-run", rows=(typo,))) if not taken else run("--dry-run", rows=(typo,)).stderr
        assert taken != (
            f"posted_month {month} lies before 2025-01, and there is no usage until later" in said
        )
    before = state(ledger)
    assert "2025-03 cannot be closed: 2025-02 comes first" in told(close("2025-03"))
    assert "2025-01 cannot be closed: 2025-02 is the first month with anything in it" in told(
        close("2025-01")
    )
    assert "2125-01 is not over" in told(close("2125-01"))
    assert "'March' is not a month" in told(close("March"))
    assert state(ledger) == before
    assert close("2025-02").exit_code == close("2025-03").exit_code == 0
    assert "2025-03 was closed 20" in told(close("2025-03"))
    early = told(close("2025-04"))
    assert "2025-04 cannot be closed yet: input is complete until 2025-04-01 23:50:00 UTC" in early
    listed = run("list", app=period_commands.app)
    assert [row.split("\t")[:2] for row in listed.stdout.splitlines()[1:]] == [
        ["2025-03", "2"],
        ["2025-02", "1"],
    ]

    # ---- a bill for the closed month is posted to the first open one; a correction, its differences
    assert "posted to 2025-04" in run(rows=(credit.replace("N-1", "N-2"),)).stderr
    for month, why in (
        ("2025-03", "is closed, and takes no postings; the first open month is 2025-04"),
        ("2125-01", "is yet to come"),
    ):
        posted = ",posted_month\n" + credit.replace("N-1", "N-3") + f",{month}"
        assert f"N-3: posted_month {month} {why}" in told(run(rows=(posted,)))
    corrected = run("--correction", "--reason", "as agreed", rows=(charge, credit))
    assert "the difference is posted to 2025-04" in corrected.stderr
    with postgres.reading(settings) as connection:
        lines = read_bill_lines(connection, None)
        closed_lines = read_bill_lines(connection, 2)
        checks = [check for check in verify(connection, roots=True) if check.difference]
    assert checks == []
    found = [(row[0], row[1], int(row[2]), f"{row[3]:%m}") for row in
             lines.select("document", "line", "amount", "posted_month").rows()]  # fmt: skip
    assert found == [
        ("C-1", "1", 9, "03"),
        ("N-1", "1", 71000, "03"),
        ("N-1", "1 (revision 3)", -1000, "04"),
        ("N-1", "2", -8000, "04"),
        ("N-2", "2", -8000, "04"),
    ]
    assert closed_lines["amount"].to_list() == [lines["amount"][0], 71000]

    page = run("show", "N-1")
    assert "revision 2: 71,000.00 USD, posted to 2025-03" in page.stderr
    assert "because: as agreed" in page.stderr
    assert [row.split("\t")[8] for row in page.stdout.splitlines()[1:]] == ["70000.00", "-8000.00"]
    differences = run("show", "N-1", "--changes").stdout.splitlines()
    assert [row.split("\t")[i] for row in differences[1:] for i in (0, 3, 9, 10)] == [
        *("2", "1", "70000.00", "71000.00"),
        *("3", "1", "71000.00", "70000.00"),
        *("3", "2", "", "-8000.00"),
    ]
    assert "no document 'N-7' was entered" in told(run("show", "N-7"))
    assert len(run("list").stdout.splitlines()) == 6

    # ---- verify sees a closed month that was moved
    ledger.execute("UPDATE period_closes SET reason = 'never mind' WHERE month = '2025-02-01'")
    with postgres.reading(settings) as connection:
        changed = {check.name: check.difference for check in verify(connection, roots=False)}
    assert changed["period closes"] == "the close of 2025-02 does not follow from the one before"
    # and what was published of closes and bills is held against it
    for change, told_of_it in (
        ("UPDATE period_closes SET head = sha256('x')", "month 2025-03-01 has head"),
        ("UPDATE ingest_batches SET head = sha256('x') WHERE received = 0", "the batch of sequence 2"),
    ):
        with postgres.connect(settings, None) as connection:
            facts = published.heads(connection, 2)
            assert published.difference(connection, [("march", facts)]) is None
            connection.exec_driver_sql(change)
            assert told_of_it in str(published.difference(connection, [("march", facts)]))
            connection.rollback()
