"""The quota report on a real ledger: what ran on demand at a provider against what it allows in a minute."""

from pathlib import Path

import polars as pl
import pytest

from metering.errors import BadInput
from metering.periods import parse_period
from metering.settings import Settings, read_settings
from metering.store import postgres
from tests.ledger_builder import Event, Ledger
from tests.test_report_commands import apply
from tests.text_tables import check
from workers import fold
from workers.quota_report import quota_report

CATALOG = """
customers:
  - {customer: acme, name: Acme, dated: [{effective_from: 2026-01-01, kind: paying, segment: startup}]}
models:
  - {provider: own, model: large, name: Large}
quotas:
  - quota: own-tokens
    provider: own
    weights:
      tokens: {uncached_input_tokens: 1, output_tokens: 5, other_meters: 0}
      requests: {requests: 1}
    steps:
      - {effective_from: 2026-01-01, per_minute: {tokens: 200, requests: 10}}
"""


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings(database_url=database_url)


def test_everything_that_ran_on_demand_counts_in_the_quota(settings: Settings, tmp_path: Path) -> None:
    apply(settings, tmp_path / "catalog", CATALOG)
    ledger = Ledger(settings)
    ledger.execute("INSERT INTO ledger_floor (floor_at) VALUES ('2026-11-01Z')")
    intake = ledger.intake(0, seen_until="2026-11-01T12:20:00")
    events = [
        Event("2026-11-01T10:00:01", (100, 10), event_id="a"),
        Event("2026-11-01T10:00:02", (60, 10), event_id="b", counts_for="cost"),  # a retry counts too
        Event("2026-11-01T10:02:00", (50, 0), event_id="c", pool="block", ran_on="overflow"),
        Event("2026-11-01T10:02:00", (9_000, 0), event_id="d", pool="block", ran_on="pool"),
    ]
    ledger.batch(intake, events, until="2026-11-01T12:20:00")
    fold.run(until_idle=True, settings=settings)

    def report(by: str | None = None, as_of: int | None = None) -> pl.DataFrame:
        with postgres.reading(settings) as connection:
            return quota_report(connection, settings, parse_period("2026-11-01"), as_of, by).rows

    table = """
        quota      | dimension | provider | minutes | contracted | burn | overrun | max_ratio | minutes_at_limit
        own-tokens | requests  | own      | 720     | 7_200      | 3    | 0       | 0.2       | 0
        own-tokens | tokens    | own      | 720     | 144_000    | 310  | 60      | 1.3       | 1
    """
    check(report(), table)
    check(
        report("hour").filter(report("hour")["burn"] > 0),
        """
        dimension | window_start     | burn | minutes_at_limit
        requests  | 2026-11-01 10:00 | 3    | 0
        tokens    | 2026-11-01 10:00 | 310  | 1
        """,
    )
    with postgres.connect(settings, "fold") as connection:
        pinned = fold.pin(connection, settings, "test").watermark_id
    ledger.batch(intake, [Event("2026-11-01T10:05:00", event_id="e")], until="2026-11-01T12:30:00")
    fold.run(until_idle=True, settings=settings)
    check(report(as_of=pinned), table)
    with pytest.raises(BadInput, match="both day and hour"):
        report("day,hour")
    ledger.close()
