"""The synthetic day: repeatable, believable, and what the generator expects is what the decoder finds."""

import json
from datetime import UTC, date, datetime

import numpy as np
import polars as pl
import pytest

from metering.core.usage import meter
from metering.events import DecodeLimits, RecordBytes, decode
from metering.frames.usage import DIMENSIONS
from metering.meters import METERS
from sandbox.company import BLOCK_A_MINUTE, PTU_WEST_MINUTE
from sandbox.turned_away import turned_away
from sandbox.workload import SOURCES, TOTALS, UNKNOWN_CUSTOMER_EVENTS, Workload, synthetic_day

DAY = date(2026, 10, 31)
EVENTS = 20_000
#: Two sources, one every five minutes.
HEARTBEATS = 2 * 288
LIMITS = DecodeLimits(4 * 1024 * 1024, 10_000, 300, 86_400, datetime(2026, 10, 31, tzinfo=UTC))
APPENDED_AT = datetime(2026, 11, 1, 0, 10, tzinfo=UTC)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return Workload(DAY, EVENTS, seed=7)


@pytest.fixture(scope="module")
def lines(workload: Workload) -> list[bytes]:
    return list(workload.lines())


@pytest.fixture(scope="module")
def arrived(lines: list[bytes]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(events with duplicates, rejects), as the decoder and the meters see them."""
    records = [
        RecordBytes(b"\n".join(lines[start : start + 100]), "application/x-ndjson", APPENDED_AT)
        for start in range(0, len(lines), 100)
    ]
    decoded = decode(records, limits=LIMITS)
    assert decoded.unknown_fields == {}
    events, contradictions = meter(decoded.events)
    contradicted = contradictions.with_columns(code=pl.lit("counts_contradict"))
    return events, pl.concat([decoded.rejects.select("code"), contradicted.select("code")])


def test_the_same_arguments_give_the_same_bytes(workload: Workload, lines: list[bytes]) -> None:
    assert list(synthetic_day(DAY, EVENTS, 7)) == lines
    assert list(workload.lines()) == lines
    assert list(synthetic_day(DAY, EVENTS, 8)) != lines
    assert list(synthetic_day(date(2026, 10, 30), EVENTS, 7)) != lines


@pytest.mark.parametrize("events", [0, 1, 2, 50])
def test_small_days(events: int) -> None:
    small = Workload(DAY, events, seed=1)
    assert len(list(small.lines())) == small.expectation().lines
    assert small.expectation().accepted == events + HEARTBEATS


def test_what_is_expected_is_what_is_found(
    workload: Workload, lines: list[bytes], arrived: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    events, rejects = arrived
    expected = workload.expectation()
    once = events.unique(["source", "event_id"])
    assert expected.lines == len(lines)
    assert expected.lines == expected.accepted + expected.duplicates + sum(expected.rejected.values())
    assert (once.height, events.height - once.height) == (expected.accepted - HEARTBEATS, expected.duplicates)
    assert dict(rejects.group_by("code").len().sort("code").rows()) == expected.rejected
    totals = once.group_by("customer").agg(
        pl.len().alias("events"),
        (pl.col("counts_for") == "charge_and_cost").sum().alias("billable_events"),
        *(pl.col(name).cast(pl.Int64).sum() for name in METERS),
    )
    found = {row["customer"]: {name: row[name] for name in TOTALS} for row in totals.rows(named=True)}
    assert found == expected.customers


def test_duplicates_are_the_same_bytes(workload: Workload, lines: list[bytes]) -> None:
    assert len(lines) - len(set(lines)) == workload.expectation().duplicates == EVENTS * 5 // 1000


def test_it_holds_everything_that_a_day_brings(arrived: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    events, rejects = arrived
    once = events.unique(["source", "event_id"]).with_columns(pl.col("occurred_at").dt.date().alias("day"))
    assert once["day"].unique().to_list() == [DAY]
    assert rejects["code"].n_unique() >= 15
    assert once["customer"].n_unique() == 13
    assert once.filter(customer="mystery-co").height >= UNKNOWN_CUSTOMER_EVENTS
    assert set(once["product"]) == {"lumen-large", "lumen-small", "lumen-code", "lumen-preview", "atlas-mini"}
    assert set(once["tier_sold"]) == {"standard", "batch"}
    assert set(once["nonbillable_reason"].drop_nulls()) == {"failure", "retry"}
    assert set(once["context_breakpoint"]) >= {0, 128_000, 200_000}
    assert once.filter(pl.col("product") != pl.col("model_served")).height > 0
    assert once["seat"].n_unique() > 100
    ran = set(once.select("pool", "ran_on", "provider").unique().rows())
    assert ran >= {
        ("block-a", "pool", "own"),
        ("block-a", "overflow", "cirrus"),
        ("ptu-west", "pool", "cirrus"),
        (None, "on_demand", "cirrus"),
    }
    assert once.select(list(DIMENSIONS)).n_unique() < 2_000


def test_a_request_is_billed_once(arrived: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    events, _ = arrived
    once = events.unique(["source", "event_id"])
    billed = once.filter(counts_for="charge_and_cost").group_by("customer", "request_id").len()
    assert billed["len"].max() == 1
    assert billed.height == once.select("customer", "request_id").n_unique()
    assert once["attempt"].max() == 3


def test_late_events_come_hours_after_their_time(lines: list[bytes]) -> None:
    records = [RecordBytes(line, None, APPENDED_AT) for line in lines]
    times = meter(decode(records, limits=LIMITS).events)[0]["occurred_at"]
    late = (times.cum_max() - times).dt.total_hours()
    assert (late >= 2).sum() > EVENTS // 500
    assert (late >= 1).sum() < EVENTS // 50


def test_heartbeats_tell_the_truth(workload: Workload, lines: list[bytes]) -> None:
    """Whatever comes after a heartbeat ended no earlier than it said; its numbers have no gap."""
    said: dict[str, tuple[int, str]] = {}
    sent: set[bytes] = set()
    for line in [*lines, *workload.caught_up(APPENDED_AT)]:
        plain = json.loads(line) if line.startswith(b'{"specversion":"1.0","id":"01') else {}
        if plain.get("type") == "inference.heartbeat.v1":
            data, (sequence, _) = plain["data"], said.get(plain["source"], (0, ""))
            assert data["sequence"] == sequence + 1
            assert data["complete_until"] <= plain["time"]
            said[plain["source"]] = (data["sequence"], data["complete_until"])
        elif "data" in plain and "malformed" not in plain["data"]["request_id"] and line not in sent:
            sent.add(line)
            assert plain["time"].rstrip("Z") >= said.get(plain["source"], (0, ""))[1].rstrip("Z")
    assert said == dict.fromkeys(SOURCES, (289, "2026-11-01T00:10:00.000Z"))
    assert (
        decode([RecordBytes(line, None, APPENDED_AT) for line in lines], limits=LIMITS).notices.height
        == HEARTBEATS
    )


def test_pools_are_busy_and_sometimes_full() -> None:
    day = Workload(DAY, 300_000, seed=7)
    minute = day.ended_ms // 60_000
    on_block = pl.DataFrame({"minute": minute, "ms": day.accelerator_ms}).group_by("minute").sum()["ms"]
    assert 0.6 < on_block.sum() / (BLOCK_A_MINUTE * 1_440) < 0.78
    assert 20 < (on_block >= BLOCK_A_MINUTE).sum() < 400
    assert on_block.max() < BLOCK_A_MINUTE * 1.5
    burn = day.total_input - day.read - day.write_5m - day.write_1h + day.read // 10 + 4 * day.total_output
    ran = pl.DataFrame({"minute": minute, "burn": burn}).filter(day.meant_for_ptu & ~day.overflow)
    on_ptu = ran.group_by("minute").sum()["burn"]
    assert 0.45 < on_ptu.sum() / (PTU_WEST_MINUTE * 1_440) < 0.8
    assert 0.01 < day.overflow.mean() < 0.08


def test_a_seat_that_used_up_its_window_is_turned_away_once_more_each_time() -> None:
    """150,000 in five hours from a seat's first use, output counting five times; other customers have no limit."""
    harbor, acme, minute = 7, 0, 60_000
    used = [  # customer, seat, minute, uncached input, output
        (harbor, 1, 10, 100_000, 9_999),
        (harbor, 1, 200, 5, 0),
        (harbor, 1, 250, 7, 1),
        (harbor, 1, 310, 900_000, 0),
        (harbor, 2, 310, 149_999, 0),
        (acme, -1, 310, 900_000, 0),
    ]
    columns = (np.array([row[place] for row in used]) for place in range(5))
    customer, seat, ended, uncached, output = columns
    zero = np.zeros_like(seat)
    found = turned_away(
        customer, seat, ended * minute, zero, zero, uncached, uncached, output, day_ms=1440 * minute
    )
    assert [(each.customer, each.seat, each.at_ms) for each in found] == [
        (harbor, 1, 200 * minute + 40_000),
        (harbor, 1, 250 * minute + 40_000),
        (harbor, 1, 310 * minute + 40_000),
    ]
    refusal = json.loads(found[0].line("01", "2026-11-22T00:00:00", "req-1"))
    assert refusal["data"]["reason"] == "customer_limit"
    assert refusal["data"]["seat"] == "seat-001"
