"""The report of limits on a real ledger: seats and projects, refusals, what was taken back, exposure, knowledge."""
# ruff: noqa: E501  # tables are as wide as they need to be

from pathlib import Path

import pytest
from typer.testing import CliRunner

from metering.delivery.report import Report
from metering.errors import BadInput
from metering.periods import parse_period
from metering.settings import Settings, read_settings
from metering.store import postgres
from tests.ledger_builder import Event, Ledger
from tests.test_report_commands import apply
from tests.text_tables import check
from workers import fold, limit_reports

CATALOG = """
customers:
  - {customer: acme, name: Acme, dated: [{effective_from: 2026-01-01, kind: paying, segment: startup}]}
  - {customer: globex, name: Globex, dated: [{effective_from: 2026-01-01, kind: paying, segment: startup}]}
models:
  - {provider: own, model: large, name: Large}
price_books:
  - book: flat
    currency: USD
    prices:
      - {product: chat, effective_from: 2026-01-01, per_million: {uncached_input_tokens: 0, output_tokens: 0}}
plans:
  - plan: team
    name: Team
    price_book: flat
    limits:
      - limit: five hours
        holder: seat
        window: {anchored_minutes: 300}
        quantity: 100
        weights: {uncached_input_tokens: 1, output_tokens: 5}
contracts:
  - contract: acme-2026
    customer: acme
    plan: team
    effective_from: 2026-01-01
    fees:
      - {fee: seats, kind: seat, amount: 20.00, per: month, currency: USD, quantity: 4}
  - contract: globex-2026
    customer: globex
    plan: team
    effective_from: 2026-01-01
    limits:
      - limit: day of a project
        holder: project
        window: {fixed_minutes: 1440, anchor: 2026-01-01}
        quantity: 1000
        weights: {output_tokens: 1}
capacity_contracts:
  - pool: block
    supplier: northstar
    unit: accelerator
    currency: USD
    steps: [{effective_from: 2026-01-01, units: 2, fee_per_month: 30}]
    dimensions:
      - dimension: all
        unit_burn_per_minute: 50
        burndown:
          - {models: [large], effective_from: 2026-01-01, weights: {uncached_input_tokens: 1, output_tokens: 5, other_meters: 0}}
"""


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings(database_url=database_url)


def refuse(
    ledger: Ledger, at: str, request: str, seat: str, tokens: tuple[int, int], reason: str = "customer_limit"
) -> None:
    ledger.execute(
        "INSERT INTO refusals (event_key, source_id, batch_id, occurred_at, customer, request_id, attempt, reason, "
        "product, pool, seat, estimated_input_tokens, estimated_output_tokens) SELECT gen_random_uuid(), 1, "
        "min(batch_id), %s::timestamptz, 'acme', %s, 0, %s, 'chat', 'block', %s, %s, %s FROM ingest_batches",
        at + "Z", request, reason, seat, *tokens,
    )  # fmt: skip


def test_limits_from_the_ledger_to_the_tables(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(settings, tmp_path / "catalog", CATALOG)
    ledger = Ledger(settings)
    ledger.execute("INSERT INTO ledger_floor (floor_at) VALUES ('2026-11-01Z')")
    intake = ledger.intake(0, seen_until="2026-11-03T12:20:00")
    pooled = {"pool": "block", "ran_on": "pool"}
    events = [
        # the window of the night before runs into the day
        Event("2026-11-01T22:00:00", (60, 0), seat="a"),
        Event("2026-11-02T02:59:59", (50, 0), seat="a"),
        Event("2026-11-02T03:00:00", (10, 0), seat="a"),
        # a charge taken back gives room back; a retry was never charged
        Event("2026-11-02T10:07:00", (1, 0), seat="b", **pooled),
        Event("2026-11-02T14:50:00", (10, 10), seat="b", **pooled),
        Event("2026-11-02T14:51:00", (30, 0), seat="b", **pooled),
        Event(
            "2026-11-02T14:51:00",
            (30, 0),
            seat="b",
            counts_for="charge",
            compensates=True,
            event_type=5,
            **pooled,
        ),
        Event("2026-11-02T14:52:00", (77, 0), seat="b", counts_for="cost", **pooled),
        Event("2026-11-02T15:02:00", (10, 10), seat="b", **pooled),
        Event("2026-11-02T09:00:00", (0, 400), customer="globex", project="arm"),
        Event("2026-11-02T23:59:59", (0, 700), customer="globex", project="arm"),
        Event("2026-11-02T12:00:00", (0, 5)),
    ]
    ledger.batch(intake, events, until="2026-11-03T12:20:00")
    for at in ("2026-11-02T15:03:00", "2026-11-02T15:03:01"):
        refuse(ledger, at, "r1", "b", (10, 2))
    refuse(ledger, "2026-11-02T15:04:00", "r2", "b", (10, 2))
    refuse(ledger, "2026-11-02T15:05:00", "r3", "b", (10, 2), reason="pool_full")
    fold.run(until_idle=True, settings=settings)

    def report(by: str | None = None, as_of: int | None = None, period: str = "2026-11-02") -> Report:
        with postgres.reading(settings) as connection:
            return limit_reports.limits_report(connection, settings, parse_period(period), as_of, by=by)

    by_window = """
        customer | plan | contract    | limit            | holder  | held_by | window_start     | window_until     | quantity | used | headroom_ratio | binding | refused_requests | refused_tokens | refused
        acme     | team | acme-2026   | five hours       | seat    | a       | 2026-11-01 22:00 | 2026-11-02 03:00 | 100      | 110  | -0.1           | yes     | 0                | 0              | 0
        acme     | team | acme-2026   | five hours       | seat    | a       | 2026-11-02 03:00 | 2026-11-02 08:00 | 100      | 10   | 0.9            | no      | 0                | 0              | 0
        acme     | team | acme-2026   | five hours       | seat    | b       | 2026-11-02 10:07 | 2026-11-02 15:07 | 100      | 121  | -0.21          | yes     | 2                | 24             | 40
        globex   | -    | globex-2026 | day of a project | project | arm     | 2026-11-02       | 2026-11-03       | 1000     | 1100 | -0.1           | yes     | 0                | 0              | 0
    """
    check(report("window").rows, by_window)
    table = """
        plan | contract    | limit            | window   | window_minutes | holders | holders_binding | windows | windows_binding | binding_ratio | max_ratio | refused_requests | refused_tokens
        team | -           | five hours       | anchored | 300            | 2       | 2               | 3       | 2               | 0.666667      | 1.21      | 2                | 24
        -    | globex-2026 | day of a project | fixed    | 1440           | 1       | 1               | 1       | 1               | 1             | 1.1       | 0                | 0
    """
    check(report().rows, table)
    assert "windows are still open" not in " ".join(report().notes)
    with pytest.raises(BadInput, match="both plan and holder"):
        report("plan,holder")
    with pytest.raises(BadInput, match="'model' is not what limits can be grouped by"):
        report("model")
    # what is cut off is open; of a day that nothing is known of there is nothing
    check(report("window", period="2026-11-03").rows.select("held_by", "open"), "held_by | open")
    assert report(period="2026-12-01").rows.is_empty()

    with postgres.connect(settings, "fold") as connection:
        pinned = fold.pin(connection, settings, "test").watermark_id
    more = [Event("2026-11-02T16:00:00", (5, 0), seat="c"), Event("2026-11-03T13:00:00", (1, 1), seat="c")]
    ledger.batch(intake, more, until="2026-11-03T13:20:00")
    fold.run(until_idle=True, settings=settings)
    check(report("window", as_of=pinned).rows, by_window)
    assert report("holder").rows["held_by"].to_list() == ["a", "b", "c", "arm"]
    check(report("plan").rows, "plan | holders | windows\nteam | 3 | 4\n- | 1 | 1")

    # acme pays for 4 seats; of the plan's customers 206 and 5,500 used of it burned 228 of the block: 400 x 228 / 5,706.
    # seat b's minutes, each rounded down: 1 x 228 / 5,706, then twice 60 x 228 / 5,706
    with postgres.reading(settings) as connection:
        promised = limit_reports.exposure_report(
            connection, settings, parse_period("2026-11-02"), None, "block"
        )
    check(
        promised.rows,
        """
        plan | limit      | window_minutes | holders | exposure | available | exposure_ratio | peak_start       | peak
        team | five hours | 300            | 4       | 15       | 30000     | 0.0005         | 2026-11-02 10:03 | 4
        """,
    )
    from metering.cli import reports

    monkeypatch.setenv("METERING_DATABASE_URL", settings.database_url.get_secret_value())
    for words in (
        ["--by", "window", "--format", "csv"],
        ["--by", "customer"],
        ["--pool", "block", "--format", "json"],
    ):
        done = CliRunner().invoke(reports.app, ["limits", "--period", "2026-11-02", *words])
        assert done.exit_code == 0, done.output
    wrong = CliRunner().invoke(reports.app, ["limits", "--pool", "block", "--by", "plan"])
    assert isinstance(wrong.exception, BadInput)
    ledger.close()
