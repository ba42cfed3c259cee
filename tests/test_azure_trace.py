"""The public Azure trace through the real servers, against plain Python over the CSV file: equal to the last digit."""

import csv
import subprocess
import sys
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from metering.periods import parse_period
from metering.settings import Settings
from metering.store import postgres
from workers import provision, reports
from workers.azure_trace import customer_of

CHECKOUT = Path(__file__).resolve().parent.parent
TRACE = CHECKOUT.parent / "shared" / "data" / "azure_llm_2023" / "AzureLLMInferenceTrace_conv.csv"
#: What examples/azure-trace says, written out again by hand.
INPUT_PRICE, OUTPUT_PRICE = Decimal("2.50"), Decimal("10.00")
PTU, PTU_BURN, OUTPUT_WEIGHT, FEE_PER_MONTH = 600, 2_500, 4, Decimal(60_000)


class Expected:
    """The totals of the file, by csv, int and Decimal alone."""

    def __init__(self) -> None:
        self.events = 0
        self.tokens: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        self.burn: dict[datetime, int] = defaultdict(int)
        with TRACE.open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file), start=1):
                self.events += 1
                at = datetime.strptime(row["TIMESTAMP"][:19], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
                read, written = int(row["ContextTokens"]), int(row["GeneratedTokens"])
                totals = self.tokens[customer_of(number)]
                totals[0] += 1
                totals[1] += read
                totals[2] += written
                self.burn[at.replace(second=0)] += read + OUTPUT_WEIGHT * written

    def charge(self, customer: str) -> Decimal:
        _, read, written = self.tokens[customer]
        return (read * INPUT_PRICE + written * OUTPUT_PRICE) / 1_000_000


def run(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "metering", *arguments],
        env=environment,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not TRACE.exists(), reason="the trace is not part of the repository; see docs/events.md")
def test_reports_of_the_trace_equal_plain_python(settings: Settings, environment: dict[str, str]) -> None:
    list(provision.provision(settings))
    run(environment, "catalog", "apply", "examples/azure-trace", "--yes")
    run(environment, "partitions", "ensure", "2023-11-16", "2023-11-17")
    # twice: the second import is all duplicates
    for _ in range(2):
        run(environment, "import", "azure-trace", str(TRACE))
        run(environment, "work", "ingest", "--until-idle")
    run(environment, "work", "fold", "--until-idle")
    expected = Expected()
    assert expected.events == 19_366

    with postgres.reading(settings) as connection:
        counts = connection.exec_driver_sql(
            "SELECT sum(accepted)::int, sum(duplicate)::int, sum(rejected)::int FROM ingest_batches"
        ).one()
        assert tuple(counts) == (19_366, 19_366, 0)
        report = reports.margin_report(connection, settings, parse_period("2023-11"))
    assert report.computed.unrated.is_empty()
    rows = {row["customer"]: row for row in report.summary.iter_rows(named=True)}
    for customer, (requests, read, written) in expected.tokens.items():
        row = rows[customer]
        assert row["requests"] == requests
        assert row["uncached_input_tokens"] == read
        assert row["output_tokens"] == written
        assert row["revenue"] == expected.charge(customer)
    paying = pl.DataFrame(list(rows.values()), infer_schema_length=None).filter(
        pl.col("customer").is_not_null()
    )
    assert paying["requests"].sum() == 19_366
    # customers and idle are the pool's fee of the month, to the last of twelve places
    assert sum(row["cost"] for row in rows.values()) == FEE_PER_MONTH

    minutes = {row["minute"]: row for row in report.computed.capacity.utilization.iter_rows(named=True)}
    assert len(minutes) == 30 * 1440
    for at in (datetime(2023, 11, 1, tzinfo=UTC) + timedelta(minutes=n) for n in range(30 * 1440)):
        row = minutes[at]
        denominator = row["denominator"]
        assert row["burn"] == expected.burn.get(at, 0) * denominator
        assert row["contracted"] == PTU * PTU_BURN * denominator
        assert row["served"] + row["idle"] == row["contracted"]
    assert date(2023, 11, 16) in {at.date() for at in expected.burn}
    run(environment, "verify", "--chain")
