"""The benchmarks tell what they measured: every function, with small numbers, without a look at the clock."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import psycopg
import pytest

from bench import capacity, ingesting, ledger, margin
from bench.__main__ import main
from bench.copying import read_transactions
from bench.measures import Measure, write_json
from bench.sampling import sampled
from bench.servers import Ground, prepared
from bench.stream import Stream
from metering.errors import BadInput
from metering.frames.usage import USAGE
from sandbox import postgres, servers

EVENTS = 700


def quiet(line: str) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def ground(servers: servers.Addresses) -> Iterator[Ground]:
    with prepared(servers.kafka_bootstrap, postgres.url(servers.folder, postgres.USER)) as made:
        yield made


def stream(events_per_record: int, resent_ratio: float = 0.0) -> Stream:
    return Stream(EVENTS, events_per_record, resent_ratio, datetime.now(UTC))


@pytest.mark.parametrize(("events_per_record", "records"), [(100, 8), (1, 714)])
def test_a_stream_holds_its_events_and_resends(events_per_record: int, records: int) -> None:
    given = stream(events_per_record, 0.02)
    values = list(given.records())
    assert values == list(given.records())
    assert len(values) == records
    read = [json.loads(value) for value in values]
    events = [event for each in read for event in (each if isinstance(each, list) else [each])]
    ids = [event["id"] for event in events]
    assert (len(ids), len(set(ids)), given.resent) == (714, EVENTS, 14)


def test_ingest_is_measured_beside_raw_copy(ground: Ground) -> None:
    with ground.intake("test") as settings:
        comparison = ingesting.compare(ground, settings, stream(100), quiet)
        with psycopg.connect(settings.database_url.get_secret_value()) as connection:
            transactions = read_transactions(connection)
        assert comparison.ingested.accepted == comparison.copied.rows == EVENTS
        assert comparison.copied.transactions == len(transactions) > 1
        rate = ingesting.rate_measure("ingest", [comparison], 0.6)
        assert rate.reference is not None
        assert rate.ratio == pytest.approx(rate.value / rate.reference)
        stages = ingesting.stage_measures("ingest", [comparison])
        assert [one.measure for one in stages][:3] == ["ingest: poll", "ingest: decode", "ingest: meter"]
        assert all(
            one.value > 0 for one in stages if one.measure.endswith((": decode", ": copy", ": commit"))
        )
        assert ingesting.memory_measure("100 events a record", [comparison]).value > 0
        *places, total = ingesting.size_measures(settings)
        assert total.value == pytest.approx(sum(place.value for place in places))
        folds = ledger.fold_measures(ground, settings, quiet)
        assert [one.measure for one in folds] == ["fold", "rebuild from zero"]
        assert [one.measure for one in ledger.verify_measures(ground, settings, quiet)] == ["verify --chain"]


def test_resends_are_counted_and_a_worker_is_profiled(ground: Ground) -> None:
    with ground.intake("test") as settings:
        given = stream(1, 0.02)
        ingested = ingesting.ingest_stream(ground, settings, given, quiet, workers=1, profile=True)
    assert (ingested.received, ingested.accepted, ingested.duplicates) == (714, EVENTS, 14)
    (told,) = ingested.told
    assert any("Ingest.step" in name for name, _ in told.functions)


def test_a_margin_report_is_measured(tmp_path: Path) -> None:
    margin.write_rollups(tmp_path, rows=2_000, customers=20, period=margin.month())
    told = margin.report(tmp_path, customers=20, period=margin.month())
    assert (told.rows, told.customers) == (2_000, 20)
    assert told.lines > 0
    assert told.peak_bytes > 0
    # DuckDB tells at the end of a process what it did not let go of: in one of its own
    summed = margin.in_child("bench.aggregation", str(tmp_path))
    assert summed["rows"] == 2_000
    assert min(summed["seconds"], summed["duckdb_seconds"]) > 0


def test_a_capacity_report_is_measured(tmp_path: Path) -> None:
    capacity.write_rollups(tmp_path, pools=1, customers=3)
    told = capacity.report(tmp_path, pools=1, customers=3)
    minutes = 31 * 1_440
    assert (told.pool_rows, told.customer_rows) == (3 * minutes, 3 * (minutes // capacity.ACTIVE_IN - 1))
    assert min(told.capacity_seconds, told.cost_seconds) > 0
    assert min(told.capacity_peak_bytes, told.cost_peak_bytes) > 0


def test_pool_minutes_hold_what_the_quarters_hold() -> None:
    usage = margin.synthetic_usage(2_000, 20, margin.month())
    minutes = margin.pool_usage_of(usage)
    meant = usage.told(USAGE).filter(pl.col("pool").is_not_null())
    assert minutes["accelerator_ms"].sum() == meant["accelerator_ms"].sum()


def test_samples_name_the_lines_of_the_program() -> None:
    with sampled() as samples:
        total = sum(len(str(number)) for number in range(400_000))
    assert total > 0
    assert samples.total == sum(samples.lines.values())
    assert any("test_bench.py" in name for name, _ in samples.shares(samples.functions, 5))


def test_latest_json_is_a_list_of_measures(tmp_path: Path) -> None:
    path = tmp_path / "bench" / "latest.json"
    write_json(path, [Measure("ingest", 3.0, "events/s", 4.0, 0.6), Measure("poll", 1.5, "us/event")])
    first, second = json.loads(path.read_text())
    assert first == {
        "measure": "ingest",
        "value": 3.0,
        "unit": "events/s",
        "reference": 4.0,
        "ratio": 0.75,
        "goal_ratio": 0.6,
        "goal": "at least",
    }
    assert (second["reference"], second["ratio"], second["goal_ratio"]) == (None, None, None)
    assert Measure("report", 6.0, "s", 5.0, 1.0, "at most").reached is False


@pytest.mark.parametrize(
    ("given", "said"), [(["--only", "ingets"], "--only ingets"), (["--events", "-1"], "--events -1")]
)
def test_what_cannot_be_measured_is_refused_by_name(given: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        main(given)
