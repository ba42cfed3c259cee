"""Sizes and scenarios by the commands of a planner, on a real ledger; and on an hour of the public Azure trace."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import polars as pl
import pytest
import typer
from typer.testing import CliRunner, Result

from metering.catalog import load_folder
from metering.catalog.books import books as books_of
from metering.catalog.scenarios import read_scenario
from metering.cli import planning
from metering.core.capacity import capacity
from metering.core.planning import DEMAND, break_even, demand, mix_cost, refused_burn, size_pool
from metering.core.recognition import recognised
from metering.errors import BadInput
from metering.frames.usage import POOL_USAGE, REFUSED_REQUESTS, SUMS, USAGE
from metering.periods import Period, parse_period
from metering.settings import Settings
from tests.core import example_books
from tests.ledger_builder import Event, Ledger
from tests.test_report_commands import CATALOG, apply, pinned
from tests.text_tables import instant
from workers.planning import past_order, runway, used_share

CHECKOUT = Path(__file__).resolve().parent.parent
TRACE = CHECKOUT.parent / "shared" / "data" / "azure_llm_2023" / "AzureLLMInferenceTrace_conv.csv"
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
    """One minute in the pool, one that spilled, one refused twice under one request id."""
    catalog = CATALOG.replace("name: Large}", "name: Large, cost_book: own-list}")
    apply(settings, tmp_path / "catalog", catalog + ON_DEMAND)
    made = Ledger(settings)
    intake = made.intake(0, seen_until="2026-11-22T21:02:30")
    made.batch(
        intake,
        [
            Event("2026-11-21T10:00:00", (0, 90), pool="block", ran_on="pool"),
            Event("2026-11-21T10:00:10", (0, 60), pool="block", ran_on="overflow"),
            Event("2026-11-21T10:00:20", (0, 7), pool="nobody-knows", ran_on="overflow"),
        ],
        until="2026-11-22T21:02:30",
    )
    for key, attempt in ((1, 1), (2, 2)):
        made.execute(
            "INSERT INTO refusals (event_key, source_id, batch_id, occurred_at, customer, request_id, attempt, "
            "reason, tier_sold, model, region, pool, estimated_input_tokens, estimated_output_tokens) "
            f"SELECT '00000000-0000-7000-8000-00000000000{key}', 1, min(batch_id), '2026-11-21T10:00:30Z', 'acme', "
            f"'r-1', {attempt}, 'pool_full', 'standard', 'large', 'eu', 'block', 1000, 10 FROM ingest_batches"
        )
    pinned(settings)
    yield made
    made.close()


@pytest.fixture
def run(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> "Run":
    for name, value in environment.items():
        if name.startswith("METERING_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "220")
    return Run()


class Run:
    """Run a command in this process with the settings of this test."""

    def __init__(self) -> None:
        self.root = typer.Typer()
        planning.mount(self.root)

    def __call__(self, *arguments: str | Path) -> Result:
        result = CliRunner().invoke(self.root, [str(argument) for argument in arguments])
        if isinstance(result.exception, BadInput):
            raise result.exception
        assert result.exit_code == 0, (result.output, result.exception)
        return result

    def rows(self, *arguments: str | Path) -> list[dict[str, object]]:
        read = json.loads(self(*arguments, "--format", "json").stdout)
        rows: list[dict[str, object]] = read["rows"]
        return rows


def scenario(folder: Path, text: str) -> Path:
    path = folder / "scenario.yaml"
    path.write_text(text)
    return path


def test_sizes_and_scenarios_by_command(ledger: Ledger, run: Run, tmp_path: Path) -> None:
    (plan,) = run.rows("plan", "capacity", "--period", "2026-11-21")
    shown = run("plan", "capacity", "--period", "2026-11-21")
    assert "a forecast needs 3 whole ones" in shown.output.replace("\n", " ")
    assert plan["pool"] == "block"
    assert plan["refused_requests"] == 1
    # one minute of 90 + 60 + 10 output tokens against 100: $1 a day, and 60 at $10 a million
    assert (plan["cost_today"], plan["spill_ratio"]) == ("1.000600000000", "0.375000")
    assert (plan["break_even_ratio"], plan["units_best"]) == ("0.694444", 0)
    assert plan["runway_date"] is None
    curve = run.rows("plan", "capacity", "--period", "2026-11-21", "--by", "size")
    assert sum(row["best"] is True for row in curve) == 1
    assert run.rows("plan", "capacity", "--period", "2026-11-21") == [plan]

    doubled = scenario(tmp_path, "scenario: Twice\nchanges:\n  - resize: {pool: block, factor: 2}\n")
    (pool,) = run.rows("what-if", doubled, "--period", "2026-11-21")
    company = {
        row["measure"]: row
        for row in run.rows("what-if", doubled, "--period", "2026-11-21", "--by", "company")
    }
    # 200 a minute: the 60 that spilled fit
    assert (pool["served"], pool["served_after"]) == ("90.000000", "150.000000")
    assert (pool["spill"], pool["spill_after"]) == ("60.000000", "0.000000")
    assert (pool["cost_pool"], pool["cost_pool_after"]) == ("1.000000000000", "2.000000000000")
    assert company["cost"]["change"] == "0.999400000000"
    assert company["revenue"]["change"] == "0.000000000000"
    table = run("what-if", doubled, "--period", "2026-11-21").output
    assert "Twice: company, before and after" in table
    assert "Twice: pool, before and after" in table
    grown = scenario(tmp_path, "changes:\n  - scale_traffic: {factor: 2}\n")
    company = {
        row["measure"]: row for row in run.rows("what-if", grown, "--period", "2026-11-21", "--by", "company")
    }
    # 157 tokens at $15 a million, those of a pool that the catalog does not know included
    assert company["charge"]["change"] == "0.002355000000"
    every = scenario(
        tmp_path,
        """
scenario: All of it
changes:
  - buy:
      pool: second
      supplier: northstar
      unit: accelerator
      currency: USD
      steps: [{effective_from: 2026-11-01, units: 2, fee_per_month: 60}]
      dimensions:
        - dimension: all
          unit_burn_per_minute: 1000
          burndown:
            - {models: [large], effective_from: 2026-01-01, weights: {output_tokens: 1, other_meters: 0}}
  - move_traffic: {pool: block, share: 0.5, to_pool: second}
  - scale_traffic: {factor: 2, customer: acme}
  - replace_fee: {pool: block, amount: 9}
  - replace_burndown:
      pool: second
      tables:
        - {models: [large], effective_from: 2026-01-01, weights: {output_tokens: 0.5, other_meters: 0}}
  - delay: {pool: second, days: 1}
  - drop: {pool: block, effective_from: 2026-11-21T12:00}
""",
    )
    pools = {str(row["pool"]): row for row in run.rows("what-if", every, "--period", "2026-11-21")}
    assert set(pools) == {"block", "second"}
    # half of 90 and of 60 moved, all of it doubled, at half the weight; block at $9 a month for half a day
    assert (pools["second"]["served_after"], pools["second"]["cost_pool_after"]) == (
        "75.000000",
        "2.000000000000",
    )
    assert (pools["block"]["served_after"], pools["block"]["spill_after"]) == ("90.000000", "60.000000")
    assert pools["block"]["cost_pool_after"] == "0.150000000000"
    with pytest.raises(BadInput, match="'blok': there is no such pool; there are block"):
        run("plan", "capacity", "--period", "2026-11-21", "--pool", "blok")
    with pytest.raises(BadInput, match="must be above 0"):
        run("plan", "capacity", "--period", "2026-11-21", "--unit-price", "0")


REFUSED = [
    ("resize: {pool: blok, units: 3}", "scenario.yaml:3: changes[0].resize.pool: 'blok': is not a pool"),
    ("scale_traffic: {customer: acmee, factor: 2}", "'acmee': is not a customer of the catalog"),
    ("move_traffic: {model: large, to_model: huge}", "'huge': is not a model of the catalog"),
    ("move_traffic: {model: large}", "give to_model, to_provider or to_pool"),
    ("resize: {pool: block}", "give units or factor, one of them"),
    ("resize: {pool: block, unit: 3}", "did you mean units?"),
    (
        "replace_fee: {pool: block, fee: lease, amount: 1}",
        "'lease': is not a fee of pool block; there are step",
    ),
    ("delay: {pool: block, days: 999999999}", "delay.days: '999999999': is longer than 3650 days"),
    (
        "replace_burndown: {pool: block, tables: [{models: [huge], effective_from: 2026-01-01, "
        "weights: {other_meters: 1}}]}",
        "replace_burndown.tables[0].models[0]: 'huge': is not a model of the catalog; there are",
    ),
    (
        "replace_burndown: {pool: block, tables: [{models: [large], effective_from: 2026-01-01, weights: "
        "{other_meters: 1}}, {models: [large], effective_from: 2026-02-01, weights: {other_meters: 2}}]}",
        "overlaps",
    ),
    (
        "buy: {pool: new, supplier: own, unit: u, currency: USD, on_demand_book: no-book, steps: [{effective_from: "
        "2026-01-01, units: 1, fee_per_month: 1}], dimensions: [{dimension: all, unit_burn_per_minute: 1, "
        "burndown: [{models: [huge], effective_from: 2026-01-01, weights: {other_meters: 1}}]}]}",
        "scenario.yaml:3: changes[0].buy.dimensions[0].burndown[0].models[0]: 'huge': is not a model of the catalog; "
        "there are large\nscenario.yaml:3: changes[0].buy.on_demand_book: 'no-book': is not a cost book of the catalog",
    ),
    ("sell: {pool: block}", "must be one change: one of buy, resize"),
]


def test_a_scenario_is_refused_by_file_and_line(ledger: Ledger, run: Run, tmp_path: Path) -> None:
    for change, says in REFUSED:
        with pytest.raises(BadInput) as refused:
            run(
                "what-if",
                scenario(tmp_path, f"scenario: x\nchanges:\n  - {change}\n"),
                "--period",
                "2026-11-21",
            )
        assert says in str(refused.value)


def test_the_example_scenarios_can_be_read() -> None:
    files = sorted((CHECKOUT / "examples" / "scenarios").glob("*.yaml"))
    assert len(files) == 6
    assert all(read_scenario(file).changes for file in files)


@pytest.mark.skipif(not TRACE.exists(), reason="the Azure trace is not here")
def test_the_cost_curve_on_an_hour_of_the_azure_trace() -> None:
    """59 whole minutes of real demand; on demand at $2.50 and $10 a million, as the trace's customers pay."""
    minutes: dict[datetime, list[int]] = defaultdict(lambda: [0, 0, 0])
    with TRACE.open(newline="") as file:
        for row in csv.DictReader(file):
            at = datetime.strptime(row["TIMESTAMP"][:16], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
            for place, count in enumerate((1, int(row["ContextTokens"]), int(row["GeneratedTokens"]))):
                minutes[at][place] += count
    period = parse_period("2023-11-16T18:15..2023-11-16T19:15")
    books = books_of(load_folder(CHECKOUT / "examples" / "azure-trace"), 1)
    listed = books.price_books.with_columns(pl.lit("list").alias("book"), pl.lit("*").alias("region"))
    books = replace(
        books, cost_books=listed, models=books.models.with_columns(pl.lit("list").alias("cost_book"))
    )
    served = {"pool": "ptu-chat", "ran_on": "pool", "model_served": "chat-large", "tier_served": "standard"}
    served |= {"region": "eastus"}
    rows = pl.DataFrame(
        [
            {"minute": at, "requests": count, "uncached_input_tokens": read, "output_tokens": written}
            for at, (count, read, written) in minutes.items()
        ]
    ).with_columns(
        *(pl.lit(value).alias(name) for name, value in served.items()),
        pl.lit(0, dtype=pl.Int32).alias("context_breakpoint"),
        pl.col("minute").cast(pl.Datetime("us", "UTC")),
    )
    rows = rows.with_columns(
        (pl.col(name) if name in rows.columns else pl.lit(0)).cast(pl.Int128).alias(name) for name in SUMS
    )
    sold = {"customer": "trace-01", "product": "chat-large", "tier_sold": "standard", "provider": "azure"}
    usage = rows.with_columns(
        *(pl.lit(value).alias(name) for name, value in sold.items()),
        pl.lit("charge_and_cost").alias("counts_for"),
        pl.col("minute").dt.truncate("15m").alias("quarter_start"),
    )
    usage = usage.group_by(USAGE.key).agg(pl.col(*SUMS).sum()).select(*USAGE.columns)
    used = capacity(POOL_USAGE.conform(rows.select(*POOL_USAGE.columns)), books, period)
    burned, _ = refused_burn(REFUSED_REQUESTS.empty(), books)
    wanted = demand(used.utilization, burned)
    sized = size_pool(
        "ptu-chat",
        wanted,
        mix_cost(usage, books, period),
        recognised(books, period),
        books,
        period,
        sizes_max=40,
    )
    assert sized is not None
    even = break_even(sized.sizing)
    # $100 a PTU and month of 43,200 minutes x 2,500 = $0.926 a million; on demand $2.50
    assert even is not None
    assert round(even, 6) == round(Decimal(100) / (43_200 * 2_500) * 1_000_000 / Decimal("2.5"), 6)
    best = sized.row("best")
    asked = sorted(wanted["demand"].to_list())
    # the cheapest size: the share of minutes above it is the last one below c / p
    units = int(str(best["units"]))
    above = sum(1 for amount in asked if amount > units * 2_500)
    before = sum(1 for amount in asked if amount > (units - 1) * 2_500)
    assert above <= even * len(asked) < before
    # docs/planning.md says so
    assert (units, above, len(asked)) == (276, 22, 60)
    assert round(Decimal(str(best["cost"])), 2) == Decimal("44.72")
    assert round(Decimal(str(sized.row("today")["cost"])), 2) == Decimal("83.33")


def test_a_pool_is_full_in_the_week_that_growth_of_a_tenth_brings() -> None:
    """50,000 a minute and a tenth more each week: 73,205 in the fifth, 97,436 in the eighth, 107,179 in the ninth."""
    start = instant("2026-06-01")
    demands = [50_000, 55_000, 60_500, 66_550, 73_205]
    none = {"pool": "block", "dimension": "all", "denominator": 1, "carved_out": 0, "spill": 0, "refused": 0}
    rows = DEMAND.conform(
        pl.DataFrame(
            [
                {
                    **none,
                    "minute": start + timedelta(hours=hour),
                    "available": 100_000,
                    **dict.fromkeys(("served", "burn", "demand"), demands[hour // 168]),
                }
                for hour in range(5 * 168)
            ],
            schema=dict(DEMAND.columns),
        )
    )
    books = example_books.books(
        **example_books.bought("units | unit_burn_per_minute | fee_per_month\n 100 | 1_000 | 0")
    )
    cut = Period("weeks", start, start + timedelta(weeks=5))
    full = runway(rows, books, "block", cut, Decimal("0.05"), 365)
    assert full.full_on == date(2026, 7, 27)  # the ninth week begins
    assert runway(rows, books, "block", cut, Decimal("0.05"), 20).full_on is None
    # with 30 days of lead time ordered on 27 June at the latest, and it is 6 July already
    order_by = date(2026, 6, 27)
    assert list(past_order("block", order_by, cut.until.date())) == [
        "block: the day to order by, 2026-06-27, is past: ordered on 2026-07-06, units come 9 days after the pool "
        "is full; until then it spills"
    ]
    assert not list(past_order("block", order_by, order_by))


def test_used_is_of_all_that_is_contracted_in_the_fullest_dimension() -> None:
    """Input: 60 of 100, of which 20 were never delivered; output: 5 of 50. 60 %, not 60 / 80 nor 65 / 150."""
    utilization = pl.DataFrame(
        {
            "pool": ["block", "block", "other"],
            "dimension": ["input", "output", "all"],
            "served": [60, 5, 9],
            "contracted": [100, 50, 9],
        }
    )
    assert used_share(utilization, "block") == Fraction(60, 100)
    assert used_share(utilization, "nothing") is None
