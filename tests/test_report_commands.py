"""`metering report` and `metering export` on a real ledger: exact, repeatable, clear where nothing is."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import cast

import polars as pl
import pytest
import typer
from typer.testing import CliRunner, Result

from metering.catalog import load_folder, plan
from metering.cli import reports as commands
from metering.delivery.now_page import to_json
from metering.errors import BadInput, MeteringError, Unavailable, WrongWorld
from metering.periods import parse_period
from metering.settings import Settings
from metering.store.books import append_revision, latest_revision, read_catalog
from metering.store.postgres import connect, reading
from metering.store.schema import upgrade
from tests.ledger_builder import Event, Ledger
from workers.fold import pin
from workers.now import now_report
from workers.reports import margin_report

CATALOG = """
customers:
  - customer: acme
    name: Acme
    dated: [{effective_from: 2026-01-01, kind: paying, segment: startup}]
models:
  - {provider: own, model: large, name: Large}
price_books:
  - book: standard
    currency: USD
    prices:
      - product: chat
        effective_from: 2026-01-01
        per_million: {uncached_input_tokens: 3, output_tokens: 15}
contracts:
  - contract: acme-standard
    customer: acme
    price_book: standard
    effective_from: 2026-01-01
    margin_floor_ratio: 0.2
capacity_contracts:
  - pool: block
    supplier: northstar
    unit: accelerator
    currency: USD
    idle_policy: none
    steps: [{effective_from: 2026-01-01, units: 2, fee_per_month: 30}]
    dimensions:
      - dimension: all
        unit_burn_per_minute: 50
        burndown:
          - {models: [large], effective_from: 2026-01-01, weights: {output_tokens: 1, other_meters: 0}}
"""
PERIOD = ("--period", "2026-11-21")


def apply(settings: Settings, folder: Path, text: str = CATALOG) -> None:
    """Make `text` the catalog of the database."""
    folder.mkdir(exist_ok=True)
    (folder / "catalog.yaml").write_text(text)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    objects = load_folder(folder)
    with connect(settings, "operator") as connection:
        newest = latest_revision(connection)
        shown = plan(read_catalog(connection, newest), objects, base_revision=newest, at=at)
        append_revision(
            connection, objects, shown=shown, at=at, applied_by="test", reason="test", program_version="0.1.0"
        )


@pytest.fixture
def ledger(settings: Settings, tmp_path: Path) -> Iterator[Ledger]:
    """A catalog, and a partition seen until 21:02:30, complete to the quarter hour 20:45."""
    apply(settings, tmp_path / "catalog")
    made = Ledger(settings)
    intake = made.intake(0, seen_until="2026-11-21T21:02:30")
    pooled = {"pool": "block", "ran_on": "pool"}
    made.batch(
        intake,
        [
            Event("2026-11-21T10:00:00", (1_000_000, 140), project="shop", **pooled),
            Event("2026-11-21T10:00:59.999999", (0, 10), **pooled),
            Event("2026-11-21T20:45:00", (7_000_000, 0), **pooled),  # beyond the cut
            Event("2026-11-21T12:00:00", (500_000, 0), customer="mystery-co"),
        ],
        duplicate=1,
        rejected=2,
        until="2026-11-21T21:02:30",
    )
    yield made
    made.close()


Run = Callable[..., Result]


@pytest.fixture
def run(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process with the settings of this test."""
    for name, value in environment.items():
        if name.startswith("METERING_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "160")
    root = typer.Typer()
    commands.mount(root)

    def invoke(*arguments: str, fails: bool = False) -> Result:
        result = CliRunner().invoke(root, arguments)
        if not fails:
            assert result.exception is None, result.exception
            assert result.exit_code == 0
        return result

    return invoke


def pinned(settings: Settings) -> int:
    with connect(settings, "fold") as connection:
        watermark_id = pin(connection, settings, "test").watermark_id
    assert watermark_id is not None
    return watermark_id


def test_plans_by_decile_tie_to_margin_by_plan(
    ledger: Ledger, settings: Settings, run: Run, tmp_path: Path
) -> None:
    pinned(settings)
    assert "no customer had a plan" in run("report", "plans", *PERIOD).stdout
    team = "plans:\n  - {plan: team, name: Team, price_book: standard}\ncontracts:"
    planned = CATALOG.replace("contracts:", team, 1).replace(
        "    price_book: standard\n    eff", "    plan: team\n    eff"
    )
    apply(settings, tmp_path / "catalog", planned)
    read = json.loads(run("report", "plans", *PERIOD, "--format", "json").stdout)
    (of_plan,) = read["rows"]
    assert (of_plan["plan"], of_plan["decile"], of_plan["customer"]) == ("team", 1, "acme")
    rows = json.loads(run("report", "margin", *PERIOD, "--by", "plan", "--format", "json").stdout)["rows"]
    (same,) = (row for row in rows if row["plan"] == "team")
    for name in ("revenue", "cost", "margin", "margin_ratio"):
        assert of_plan[name] == same[name] == read["total"][name], name
    # revenue $3.00225, a cost of $0.0007
    assert read["notes"][0].startswith("team: 1 customer, margin 3.00 USD (100.0 % of revenue), 0 lose money")
    assert "team" in run("report", "plans", *PERIOD).stdout


def test_projects_sum_to_the_customer(ledger: Ledger, settings: Settings, run: Run) -> None:
    """Of 1,000,150 tokens of acme that earned $3.00225, shop used all but 10."""
    pinned(settings)
    asked = ("report", "margin", *PERIOD, "--format", "json", "--by")
    read = json.loads(run(*asked, "customer,project").stdout)
    plain = json.loads(run(*asked, "customer").stdout)
    rows = {row["project"]: row for row in read["rows"] if row["customer"] == "acme"}
    assert {name: row["output_tokens"] for name, row in rows.items()} == {"shop": 140, "": 10}
    assert Decimal(rows["shop"]["revenue"]) == (Decimal("3.00225") * 1_000_140 / 1_000_150).quantize(
        Decimal("1E-12"), rounding="ROUND_HALF_UP"
    )
    assert {row["breach"] for row in read["rows"]} == {None}
    (whole,) = (row for row in plain["rows"] if row["customer"] == "acme")
    for name in ("revenue", "cost", "margin"):
        assert sum(Decimal(row[name]) for row in rows.values()) == Decimal(whole[name])
    assert read["total"] == {**plain["total"], "project": None}
    assert "(not said)" in run("report", "margin", *PERIOD, "--by", "customer,project").stdout
    with pytest.raises(BadInput, match="posted and project"):
        raise run("report", "margin", "--by", "posted,project", fails=True).exception


def test_margin_is_exact_and_cut_where_input_is_complete(
    ledger: Ledger, settings: Settings, run: Run
) -> None:
    watermark_id = pinned(settings)
    result = run("report", "margin", *PERIOD, "--as-of", str(watermark_id), "--format", "json")
    read = json.loads(result.stdout)
    assert (read["cut_at"], read["complete"], read["watermark_id"]) == ("2026-11-21T20:45Z", False, 1)
    rows = {row["customer"]: row for row in read["rows"]}
    # 1 M in at $3, 150 out at $15 a million; the minute of 10:00 burned 150 of 100
    assert Decimal(rows["acme"]["revenue"]) == Decimal("3.00225")
    assert rows["acme"]["requests"] == 2
    # of a quarter hour's $30 / 2880 the pool served 100 of 1,500
    quarter = [Decimal(30) * edge / 2880 for edge in (20 * 96 + 40, 20 * 96 + 41)]
    floors = [edge.quantize(Decimal("1E-12"), rounding="ROUND_FLOOR") for edge in quarter]
    served = ((floors[1] - floors[0]) / 15).quantize(Decimal("1E-12"), rounding="ROUND_FLOOR")
    assert Decimal(rows["acme"]["cost"]) == served
    whole = (Decimal(30) * (20 * 96 + 83) / 2880).quantize(Decimal("1E-12"), rounding="ROUND_FLOOR") - 20
    assert Decimal(rows[None]["cost"]) + served == whole
    assert rows["mystery-co"]["charge_unrated"] is True
    assert "mystery-co" in result.stderr
    assert (
        "cut at 2026-11-21T20:45Z: 20 h 45 min of 1 d are complete · as of watermark 1, catalog revision 1"
        in result.stderr
    )


def test_a_report_as_of_a_watermark_does_not_change_with_new_data(
    ledger: Ledger, settings: Settings, run: Run
) -> None:
    watermark_id = str(pinned(settings))
    asked = ("report", "margin", *PERIOD, "--by", "day,customer,product", "--format", "csv")
    before, live = run(*asked, "--as-of", watermark_id).stdout, run(*asked).stdout
    assert before == live
    ledger.batch(1, [Event("2026-11-21T10:05:00", (1_000_000, 0), pool="block", ran_on="pool")])
    pinned(settings)
    assert run(*asked, "--as-of", watermark_id).stdout == before
    assert run(*asked).stdout != before
    assert run(*asked).stdout == run(*asked, "--as-of", "2").stdout


def test_an_unknown_watermark_is_refused(ledger: Ledger, settings: Settings, run: Run) -> None:
    pinned(settings)
    error = run("report", "margin", "--as-of", "9", fails=True).exception
    assert isinstance(error, BadInput)
    assert "there is no watermark 9" in str(error)


def test_capacity_and_unrated(ledger: Ledger, settings: Settings, run: Run) -> None:
    pinned(settings)
    rows = json.loads(run("report", "capacity", *PERIOD, "--format", "json").stdout)["rows"]
    assert {
        name: rows[0][name]
        for name in ("pool", "contracted", "served", "overrun", "minutes_at_limit", "unit")
    } == {
        "pool": "block",
        "contracted": "124500.000000",
        "served": "100.000000",
        "overrun": "50.000000",
        "minutes_at_limit": 1,
        "unit": "accelerator",
    }
    table = run("report", "capacity", *PERIOD, "--by", "hour").stdout
    assert "2026-11-21T10:00Z" in table

    def rows_by(by: str, *more: str) -> list[dict[str, object]]:
        asked = ("report", "capacity", *PERIOD, "--by", by, "--pool", "block", "--format", "json", *more)
        before, again = run(*asked).stdout, run(*asked).stdout
        assert before == again
        found: list[dict[str, object]] = json.loads(before)["rows"]
        return found

    assert [
        (row["customer"], row["burn"], row["peak_minute"], row["peak_ratio"]) for row in rows_by("customer")
    ] == [("acme", "150.000000", "2026-11-21T10:00:00Z", "1.000000")]
    assert [(row["model_served"], row["requests"], row["burn"]) for row in rows_by("model")] == [
        ("large", 2, "150.000000")
    ]
    week = rows_by("hour_of_week", "--as-of", "1")
    assert len(week) == 168
    assert [row["hour_of_week"] for row in week if row["minutes_at_limit"]] == [5 * 24 + 10]
    picture = run("report", "capacity", *PERIOD, "--pool", "block", "--picture").stdout
    assert "Sat  .....................!" in picture
    assert "Sat" not in run("report", "capacity", *PERIOD, "--pool", "block").stdout  # not a terminal
    for refused, says in (
        (("--pool", "blok"), "no such pool; there are block"),
        (("--picture", "--format", "csv"), "--by hour_of_week --format csv"),
    ):
        assert says in str(run("report", "capacity", *PERIOD, *refused, fails=True).exception)
    unrated = json.loads(run("report", "unrated", *PERIOD, "--format", "json").stdout)["rows"]
    assert [(row["side"], row["reason"], row["customer"], row["quantity"]) for row in unrated] == [
        ("charge", "unknown_customer", "mystery-co", 500_000),
        ("cost", "no_cost_book", "mystery-co", 500_000),
    ]


def test_a_period_beyond_what_is_complete_is_empty_and_says_why(
    ledger: Ledger, settings: Settings, run: Run
) -> None:
    pinned(settings)
    for report in ("margin", "capacity", "unrated"):
        result = run("report", report, "--period", "2027-01")
        said = " ".join(result.stdout.split())
        assert "nothing of it is complete yet: input is complete until 2026-11-21T20:52:30Z" in said
    assert run("report", "margin", "--period", "2027-01", "--format", "csv").stdout.count("\n") == 1


def test_an_empty_database_says_what_is_missing(settings: Settings, run: Run) -> None:
    result = run("report", "margin")
    said = " ".join(result.stdout.split())
    assert "at least one partition was never read to its end and folded" in said
    assert "live, no catalog applied" in said
    assert "(no usage, fees or capacity in the complete part of the period)" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report", "margin", "--period", "2026-13"), "'2026-13' is not a period: there is no such month"),
        (("report", "margin", "--format", "xml"), "--format 'xml' is not one of table, csv, json, parquet"),
        (("report", "margin", "--format", "parquet"), "say where it goes with --output FILE"),
        (("report", "margin", "--by", "colour"), "--by 'colour' is not what margin can be grouped by"),
        (("report", "now", "--format", "csv"), "this page comes as table or json"),
        (("export", "there", "--period", "never"), "'never' is not a period"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    settings: Settings, run: Run, arguments: tuple[str, ...], message: str
) -> None:
    error = run(*arguments, fails=True).exception
    assert isinstance(error, BadInput)
    assert message in str(error)


def test_output_goes_to_a_file_in_every_format(
    ledger: Ledger, settings: Settings, run: Run, tmp_path: Path
) -> None:
    pinned(settings)
    for form in ("table", "csv", "json", "parquet"):
        path = tmp_path / "new" / f"margin.{form}"
        result = run("report", "margin", *PERIOD, "--as-of", "1", "--format", form, "--output", str(path))
        assert result.stdout == ""
        assert f"wrote {path}" in result.stderr
        if form != "parquet":
            assert (
                path.read_text() == run("report", "margin", *PERIOD, "--as-of", "1", "--format", form).stdout
            )
    assert pl.read_parquet(tmp_path / "new" / "margin.parquet")["revenue"].sum() == Decimal("3.00225")


def test_two_exports_at_one_watermark_are_the_same_bytes(
    ledger: Ledger, settings: Settings, run: Run, tmp_path: Path
) -> None:
    first = run("export", str(tmp_path / "a"), *PERIOD)
    ledger.batch(1, [Event("2026-11-21T10:05:00", (1_000_000, 0), pool="block", ran_on="pool")])
    pinned(settings)
    run("export", str(tmp_path / "b"), *PERIOD, "--as-of", "1")
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert {Path(line) for line in first.stdout.splitlines()} == set((tmp_path / "a").iterdir())
    manifest = json.loads(files["manifest.json"])
    assert manifest["watermark"]["positions"][0]["chain_head"] != "00" * 32
    assert {entry["file"] for entry in manifest["files"]} == files.keys() - {"manifest.json"}
    again = run("export", str(tmp_path / "a"), *PERIOD, "--as-of", "1")
    assert "holds these very files already; nothing was written" in again.stderr
    error = run("export", str(tmp_path / "a"), *PERIOD, "--as-of", "2", fails=True).exception
    assert "holds an export of 2026-11-21 as of watermark 1" in str(error)


def test_a_report_is_computed_in_one_snapshot(ledger: Ledger, settings: Settings) -> None:
    """What is committed while a report is read is not in it."""
    pinned(settings)
    from metering.periods import parse_period

    with reading(settings) as connection:
        before = margin_report(connection, settings, parse_period("2026-11-21"))
        ledger.batch(1, [Event("2026-11-21T10:05:00", (1_000_000, 0), pool="block", ran_on="pool")])
        pinned(settings)
        after = margin_report(connection, settings, parse_period("2026-11-21"))
    assert before.summary.equals(after.summary)
    assert before.provenance == after.provenance


def test_without_postgres_the_error_names_the_address(
    run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERING_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    error = run("report", "margin", fails=True).exception
    assert isinstance(error, Unavailable)
    assert "127.0.0.1:1/none" in str(error)


def test_a_database_without_tables_is_a_wrong_world(
    run: Run, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERING_DATABASE_URL", empty_database_url)
    error = run("report", "margin", fails=True).exception
    assert isinstance(error, WrongWorld)
    assert "run `metering init`" in str(error)


# ---- now -------------------------------------------------------------------------------------------------

AT = datetime(2026, 11, 21, 21, 3, tzinfo=UTC)


def page(settings: Settings, at: datetime = AT) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(to_json(now_report(settings, at)))
    return found


def test_now_on_an_empty_database_says_what_to_do(settings: Settings) -> None:
    found = now_report(settings, AT)
    says = {fact.name: (fact.state, fact.says) for fact in found.facts}
    assert says["complete until"] == ("bad", "unknown: no partition has a position; run `metering init`")
    assert says["catalog"] == ("bad", "none was applied: run `metering catalog apply FOLDER`")
    assert says["kafka"][0] == "bad"
    assert "partition 0 has no position" in says["kafka"][1]
    assert says["fold"][0] == "good"


def test_now_shows_what_is_unfolded_unrated_rejected_stopped_open_and_waiting(
    ledger: Ledger, settings: Settings, servers: object
) -> None:
    ledger.execute("UPDATE ingest_batches SET committed_at = %s", datetime(2026, 11, 21, 21, 0, tzinfo=UTC))
    before = page(settings)
    assert (before["fold"]["state"], before["fold"]["batches"], before["fold"]["events"]) == ("bad", 1, 4)
    assert before["complete_until"]["state"] == "bad", "nothing is folded yet"
    pinned(settings)
    ledger.execute(
        "INSERT INTO source_stops (source, stopped, reason, changed_at) "
        "VALUES ('gateway', true, 'half rejects', %s)",
        AT,
    )
    ledger.execute(
        "INSERT INTO alerts (rule, scope, sequence, state, changed_at, period, watermark_id, details) VALUES "
        "('margin_breach', 'acme', 1, 'opened', %s, '2026-11', 1, '{}'), "
        "('margin_breach', 'b', 1, 'opened', %s, '2026-11', 1, '{}'), "
        "('margin_breach', 'b', 2, 'resolved', %s, '2026-11', 1, '{}')",
        AT, AT, AT,
    )  # fmt: skip
    ledger.execute(
        "INSERT INTO findings (kind, subject, sequence, state, found_at, details) VALUES "
        "('double_billable', 'a', 1, 'opened', %s, '{}'), ('double_billable', 'b', 1, 'opened', %s, '{}'), "
        "('double_billable', 'b', 2, 'resolved', %s, '{}'), ('second_void', 'c', 1, 'opened', %s, '{}')",
        AT, AT, AT, AT,
    )  # fmt: skip
    ledger.execute(
        "INSERT INTO outbox (created_at, rule, scope, sequence, message) VALUES "
        "('2026-11-21T20:00Z', 'margin_breach', 'acme', 1, '{}'), "
        "('2026-11-21T20:00Z', 'margin_breach', 'b', 1, '{}')"
    )
    ledger.execute(
        "INSERT INTO outbox_attempts (outbox_id, attempt, outcome, detail) "
        "VALUES (1, 1, 'retry', 'HTTP 500'), (2, 1, 'delivered', 'ok')"
    )
    found = page(settings)
    assert found["fold"]["state"] == "good"
    assert found["complete_until"] == {
        "state": "good", "at": "2026-11-21T20:52:30Z", "held_back_by_topic": "events",
        "held_back_by_partition": 0, "held_back_by_source": None, "heard_until": None, "missing_heartbeats": None,
        "seen_until": "2026-11-21T21:02:30Z", "allowed_lateness_seconds": 600,
    }  # fmt: skip
    assert found["watermark"]["watermark_id"] == 1
    assert found["unrated_today"]["state"] == "watch"
    assert found["findings_open"] == {
        "state": "watch", "count": 2, "kinds": {"double_billable": 1, "second_void": 1},
    }  # fmt: skip
    assert found["alerts_open"] == {"state": "bad", "count": 1}
    assert [row["scope"] for row in found["alerts"]] == ["acme"]  # type: ignore[index]
    assert found["outbox"] == {
        "state": "bad", "waiting": 1, "oldest_at": "2026-11-21T20:00Z", "last_problem": "HTTP 500",
        "given_up": 0,
    }  # fmt: skip
    assert found["sources"]["stopped"] == [
        {"source": "gateway", "stopped_at": "2026-11-21T21:03Z", "reason": "half rejects"}
    ]
    hour, day = found["outcomes"]
    assert hour == day | {"name": "hour"}  # type: ignore[operator]
    assert {name: hour[name] for name in ("received", "accepted", "duplicate", "conflict", "rejected")} == {  # type: ignore[index]
        "received": 7, "accepted": 4, "duplicate": 1, "conflict": 0, "rejected": 2,
    }  # fmt: skip
    names = ("accepted", "duplicate", "conflict", "rejected")
    none = dict.fromkeys([*(f"hour_{name}" for name in names), *names], 0)
    assert found["by_source"] == [
        none | {"source": "", "hour_duplicate": 1, "hour_rejected": 2, "duplicate": 1, "rejected": 2},
        none | {"source": "gateway", "hour_accepted": 4, "accepted": 4},
    ]  # type: ignore[comparison-overlap]
    hours = ledger.execute(
        "SELECT hour, source, received, accepted, rejected FROM source_hours ORDER BY source"
    )
    assert hours == [(AT.replace(minute=0), "", 3, 0, 2), (AT.replace(minute=0), "gateway", 4, 4, 0)]
    assert page(settings) == found, "reading it moves nothing"


#: 25 USD paid ahead for a month; beyond it a book that has no price for what is used.
COMMITTED = CATALOG.replace(
    "contracts:\n",
    """  - book: overage
    currency: USD
    prices:
      - {product: chat, effective_from: 2026-01-01, per_million: {cache_read_tokens: 1}}
contracts:
""",
    1,
).replace(
    "    margin_floor_ratio: 0.2\n",
    """    margin_floor_ratio: 0.2
    commitments:
      - commitment: november
        paid: ahead
        shortfall_rule: true_up
        overage_book: overage
        tranches: [{effective_from: 2026-11-01, effective_until: 2026-12-01, amount: 25.00}]
""",
)


def test_now_knows_what_was_drawn_before_today(ledger: Ledger, settings: Settings, tmp_path: Path) -> None:
    apply(settings, tmp_path / "committed", COMMITTED)
    yesterday = Event("2026-11-20T10:00:00", (9_000_000, 0))
    ledger.batch(ledger.intake(1, "2026-11-21T21:02:30"), [yesterday], until="2026-11-21T21:02:30")
    pinned(settings)
    # 25 USD of the 27 of yesterday were drawn: nothing is left for today's 8,000,150 tokens, worth 24.00225
    unrated = page(settings)["unrated_today"]
    no_price = {"side": "charge", "reason": "no_price", "tokens": 8_000_150}
    assert no_price in unrated["reasons"]  # type: ignore[operator]
    with reading(settings) as connection:
        today = margin_report(connection, settings, parse_period("2026-11-21T00:00Z..2026-11-21T21:15Z"))
    assert today.provenance.cut.until == datetime(2026, 11, 21, 20, 45, tzinfo=UTC)
    told = today.computed.unrated.filter(reason="no_price")["quantity"].sum()
    assert told == 1_000_150, "the report stops at its cut, where the page goes on"


def test_now_names_the_partition_that_holds_back(ledger: Ledger, settings: Settings) -> None:
    pinned(settings)
    ledger.intake(1, seen_until="2026-11-21T20:00:00")
    facts = {fact.name: fact for fact in now_report(settings, AT).facts}
    # it never moves back: the watermark has said 20:52:30
    assert facts["complete until"].values["held_back_by_partition"] == 1
    later = {fact.name: fact for fact in now_report(settings, AT.replace(hour=22)).facts}["complete until"]
    assert later.state == "bad"
    assert "held back by partition 1 of events, seen until 2026-11-21T20:00Z" in later.says


def test_now_shows_a_full_pool(ledger: Ledger, settings: Settings) -> None:
    pinned(settings)
    ledger.execute("UPDATE stream_positions SET seen_until = '2026-11-21T10:20Z'")
    ledger.execute("UPDATE watermarks SET complete_until = '2026-11-21T10:10Z'")
    found = page(settings, datetime(2026, 11, 21, 10, 21, tzinfo=UTC))
    assert found["pools"] == [  # type: ignore[comparison-overlap]
        {
            "pool": "block",
            "dimension": "all",
            "served_of_available_ratio": "0.016667",
            "max_ratio": "1.500000",
            "minutes_at_limit": 1,
        }
    ]


def test_now_without_kafka_shows_everything_else(
    ledger: Ledger, settings: Settings, environment: dict[str, str]
) -> None:
    """In a process of its own: kafka-python leaves sockets open when no broker answers."""
    pinned(settings)
    away = environment | {"METERING_KAFKA_BOOTSTRAP": "127.0.0.1:1"}
    script = "import typer; from metering.cli import reports; app = typer.Typer(); reports.mount(app); app()"
    command = [sys.executable, "-c", script, "report", "now", "--format", "json"]
    ended = subprocess.run(command, env=away, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    found = json.loads(ended.stdout)
    assert found["kafka"]["state"] == "bad"
    assert "127.0.0.1:1" in found["kafka"]["problem"]
    assert found["complete_until"]["at"] == "2026-11-21T20:52:30Z"
    assert found["positions"][0]["lag"] is None


def test_now_says_that_a_topic_was_made_again(
    ledger: Ledger, settings: Settings, environment: dict[str, str]
) -> None:
    """The ledger's positions are of a topic of this name with another UUID."""
    ledger.execute("UPDATE stream_positions SET topic = %s", settings.kafka_topic)
    found = page(settings)
    assert found["kafka"]["state"] == "bad"
    assert f"topic {settings.kafka_topic} was deleted and made again" in str(found["kafka"]["problem"])
    positions = cast("list[dict[str, object]]", found["positions"])
    assert {row["end_offset"] for row in positions} == {None}


@pytest.mark.parametrize("width", [80, 100])
def test_now_on_a_narrow_screen_leaves_whole_columns_out(
    ledger: Ledger, settings: Settings, run: Run, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = run("report", "now").stdout
    assert max(map(len, text.splitlines())) <= width
    assert "lag (records)" in text
    assert "…" not in text.split("positions\n")[1].split("events by outcome")[0]


def test_an_export_that_cannot_be_pins_nothing(ledger: Ledger, run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    error = run("export", str(tmp_path), *PERIOD, fails=True).exception
    assert "holds files that are not this export; give a folder that does not exist yet" in str(error)
    assert ledger.execute("SELECT count(*) FROM watermarks") == [(0,)]


def test_now_fits_a_screen(ledger: Ledger, settings: Settings, run: Run) -> None:
    pinned(settings)
    text = run("report", "now").stdout
    assert len(text.splitlines()) <= 50
    assert "received" in text
    assert max(map(len, text.splitlines())) <= 160
    assert json.loads(run("report", "now", "--format", "json").stdout)["report"] == "now"


def test_a_database_of_a_newer_program_is_not_migrated(ledger: Ledger, settings: Settings) -> None:
    ledger.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(WrongWorld, match="at migration 9999, newer than this program knows"):
        upgrade(settings)


def test_an_error_has_its_exit_code(run: Run, settings: Settings) -> None:
    error = run("report", "margin", "--period", "x", fails=True).exception
    assert isinstance(error, MeteringError)
    assert error.exit_code == 2
