"""The page for the person on call: the store in one snapshot, the ends of the topic, an hour of capacity."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import polars as pl
from sqlalchemy import Connection

from metering.core.capacity import capacity, summarise_capacity
from metering.core.costs import usage_basis
from metering.core.margin import margin
from metering.core.revenue import reach
from metering.core.series import united
from metering.delivery.now_page import Fact, NowPage, Section, State, ago, seconds_instant
from metering.delivery.report import Column, Kind
from metering.errors import MeteringError
from metering.frames.books import Books
from metering.meters import TOKEN_METERS
from metering.periods import DAY, MINUTE, Period, ceil_to_quarter
from metering.settings import Settings
from metering.store import now as store
from metering.store import partitions
from metering.store.books import read_books
from metering.store.findings import count_open
from metering.store.heartbeats import SourceState
from metering.store.postgres import address, reading
from metering.store.rollups import read_pool_usage, read_usage_by_series, read_usage_of
from metering.store.watermarks import HeldBack, Knowledge, holding_back, read_knowledge
from metering.stream.topics import Admin
from workers.loop import database_errors

HOUR: Final = timedelta(hours=1)
#: How much longer than the allowed lateness `complete_until` may lie back before it is worth a look, or bad.
_LATE_WATCH: Final = timedelta(minutes=2)
_LATE_BAD: Final = timedelta(minutes=15)
_FOLD_WATCH: Final = timedelta(seconds=10)
_FOLD_BAD: Final = timedelta(minutes=2)
_OUTBOX_BAD: Final = timedelta(minutes=5)
#: What is shown of a list on a page of one screen; --format json has all of it.
_ROWS_MAX: Final = 8


#: Per topic (its UUID) and partition: the offset after its last committed record.
Ends = Mapping[tuple[UUID, int], int]


def now_report(settings: Settings, at: datetime | None = None) -> NowPage:
    """Gather the page. `at`: the clock of the page (None: this machine's).

    Raises Unavailable without Postgres; without Kafka the page says so and lags are unknown. `now` looks at
    everything that is known: it is not cut at `complete_until`, except the hour of capacity.
    """
    at = at or datetime.now(UTC)
    ends, problem = _ends(settings)
    with database_errors(), reading(settings) as connection:
        knowledge = read_knowledge(connection, None, settings=settings)
        books = read_books(connection, knowledge.catalog_revision)
        intakes = store.intakes(connection)
        rejects = store.rejects_by_code(connection, at - DAY)
        alerts = store.open_alerts(connection)
        hour, hour_is_complete = _last_hour(at, knowledge)
        pools = summarise_capacity(
            capacity(read_pool_usage(connection, hour.start, hour.until, None), books, hour).utilization
        )
        facts = (
            _stream(settings, problem, intakes, ends),
            _complete(at, settings, knowledge, holding_back(connection, settings)),
            _folded(at, store.fold_lag(connection)),
            _watermark(at, store.last_watermark(connection)),
            _catalog(knowledge),
            _full(pools),
            _unrated(_unrated_today(connection, settings, books, at)),
            _stopped(at, store.stopped_sources(connection)),
            _findings(count_open(connection)),
            _alerts(alerts),
            _outbox(at, store.outbox(connection, at - DAY)),
            _partitions(at, settings, partitions.made_until(connection)),
        )
        outcomes = [
            store.outcomes(connection, name, at - span) for name, span in (("hour", HOUR), ("24 h", DAY))
        ]
        by_source = store.outcomes_by_source(connection, at - HOUR, at - DAY)
    when = f"{hour.start:%H:%M}-{hour.until:%H:%M} UTC" + ("" if hour_is_complete else ", not complete yet")
    sections = (
        _section(
            "positions",
            "positions",
            "no partition has a position: run `metering init`",
            [_position(intake, ends) for intake in intakes],
            ("kind", "text", "intake", "", 4),
            ("topic", "text", "topic", ""),
            ("partition", "count", "partition", ""),
            ("next_offset", "count", "next offset", "", 2),
            ("end_offset", "count", "end offset", ""),
            ("lag", "count", "lag", "records"),
            ("seen_until", "instant", "seen until", ""),
            ("owner", "text", "owner", "", 3),
        ),
        _section(
            "outcomes",
            "events by outcome (received = accepted + duplicate + conflict + rejected)",
            "",
            [asdict(counts) for counts in outcomes],
            ("name", "text", "last", ""),
            ("batches", "count", "batches", ""),
            ("received", "count", "received", ""),
            ("accepted", "count", "accepted", ""),
            ("duplicate", "count", "duplicate", ""),
            ("conflict", "count", "conflict", ""),
            ("rejected", "count", "rejected", ""),
            bad=("conflict", "rejected"),
        ),
        _section(
            "by_source",
            "events by source ('' has none that can be read)",
            "none",
            [asdict(counts) for counts in by_source],
            ("source", "text", "source", ""),
            ("hour_accepted", "count", "accepted", "1 h", 5),
            ("hour_duplicate", "count", "duplicate", "1 h", 8),
            ("hour_conflict", "count", "conflict", "1 h", 7),
            ("hour_rejected", "count", "rejected", "1 h", 6),
            ("accepted", "count", "accepted", "24 h"),
            ("duplicate", "count", "duplicate", "24 h", 4),
            ("conflict", "count", "conflict", "24 h", 3),
            ("rejected", "count", "rejected", "24 h"),
            bad=("hour_conflict", "hour_rejected", "conflict", "rejected"),
        ),
        _section(
            "pools",
            f"capacity {when}",
            "no capacity is contracted",
            pools.select(
                "pool", "dimension", "served_of_available_ratio", "max_ratio", "minutes_at_limit"
            ).to_dicts(),
            ("pool", "text", "pool", ""),
            ("dimension", "text", "dimension", "", 1),
            ("served_of_available_ratio", "ratio", "used", "of available"),
            ("max_ratio", "ratio", "highest minute", ""),
            ("minutes_at_limit", "count", "at limit", "minutes"),
            bars=("served_of_available_ratio",),
            bad=("minutes_at_limit",),
        ),
        _section(
            "rejects",
            "rejects of the last 24 h",
            "none",
            [asdict(reject) for reject in rejects],
            ("code", "text", "code", ""),
            ("source", "text", "source", ""),
            ("rejects", "count", "rejects", ""),
            ("last_at", "instant", "last", "", 1),
            ("last_detail", "text", "for example", ""),
        ),
        _section(
            "alerts",
            "open alerts",
            "none",
            [asdict(alert) for alert in alerts],
            ("rule", "text", "rule", ""),
            ("scope", "text", "scope", ""),
            ("opened_at", "instant", "opened", ""),
            ("period", "text", "period", ""),
            ("watermark_id", "count", "as of watermark", ""),
        ),
    )
    return NowPage(at, address(settings), settings.kafka_topic, facts, sections)


def _ends(settings: Settings) -> tuple[Ends, str | None]:
    """End offsets, and what is wrong where there are none. Asked before the snapshot is taken."""
    try:
        with Admin(settings) as admin:
            topic = admin.get()
            return {(topic.uuid, at): end for at, end in admin.offsets(topic).items()}, None
    except MeteringError as error:
        return {}, str(error)


def _section(
    name: str,
    title: str,
    empty: str,
    rows: Sequence[Mapping[str, Any]],
    *columns: tuple[str, Kind, str, str] | tuple[str, Kind, str, str, int],
    bars: tuple[str, ...] = (),
    bad: tuple[str, ...] = (),
) -> Section:
    """Columns are name, kind, heading, unit and rank: a narrow screen leaves out the largest rank first."""
    return Section(
        name, title, tuple(Column(*column) for column in columns), rows, empty, bars, bad, _ROWS_MAX
    )


def _position(intake: store.Intake, ends: Ends) -> dict[str, Any]:
    at = intake.topic_uuid, intake.partition
    end = None if at[0] is None or at[1] is None else ends.get((at[0], at[1]))
    lag = None if end is None else max(0, end - intake.next_offset)
    return {**asdict(intake), "end_offset": end, "lag": lag}


def _stream(settings: Settings, problem: str | None, intakes: Sequence[store.Intake], ends: Ends) -> Fact:
    if problem is not None:
        return Fact("kafka", problem, "bad", {"lag": None, "problem": problem})
    lag = sum(_position(intake, ends)["lag"] or 0 for intake in intakes)
    read = {(intake.topic_uuid, intake.partition) for intake in intakes}
    missing = sorted(partition for uuid, partition in ends if (uuid, partition) not in read)
    if missing:
        says = f"partition {missing[0]} has no position, so nothing reads it: run `metering init`"
        if len(missing) == len(ends) and settings.kafka_topic in {intake.topic for intake in intakes}:
            says = (
                f"topic {settings.kafka_topic} was deleted and made again, and nothing reads the new one: "
                "`metering init` says what to do"
            )
        return Fact("kafka", says, "bad", {"lag": lag, "problem": says})
    unowned = [
        intake.partition
        for intake in intakes
        if (intake.topic_uuid, intake.partition) in ends and intake.owner is None
    ]
    says = f"{lag:,} records of {settings.kafka_topic} are not read yet" if lag else "read to the end"
    if unowned:
        says += f"; no worker has ever claimed partition {', '.join(map(str, unowned))}"
    return Fact("kafka", says, "watch" if lag or unowned else "good", {"lag": lag, "problem": None})


def _complete(
    at: datetime, settings: Settings, knowledge: Knowledge, held: HeldBack | SourceState | None
) -> Fact:
    """`complete_until`, and the partition or source that reaches the least far: the others cannot move it."""
    complete = knowledge.complete_until
    partition = held if isinstance(held, HeldBack) else None
    source = held if isinstance(held, SourceState) else None
    seen_until = partition.seen_until if partition else None
    values = {
        "at": complete,
        "held_back_by_topic": partition.topic if partition else None,
        "held_back_by_partition": partition.partition if partition else None,
        "seen_until": seen_until,
        "held_back_by_source": source.source if source else None,
        "heard_until": source.complete_until if source else None,
        "missing_heartbeats": source.gap.numbers if source and source.gap else None,
        "allowed_lateness_seconds": settings.allowed_lateness_seconds,
    }
    if held is None:
        says = "unknown: no partition has a position; run `metering init`"
        return Fact("complete until", says, "bad", values)
    says = "unknown" if complete is None else f"{seconds_instant(complete)} ({ago(at, complete)})"
    if partition is not None and (complete is None or seen_until is None):
        says += f": nothing of partition {partition.partition} of {partition.topic} was seen and folded yet; "
        return Fact("complete until", says + "are `metering work ingest` and `fold` running?", "bad", values)
    if source is not None and (complete is None or source.complete_until is None):
        says += f": registered source {source.source} has "
        says += (
            "never sent a heartbeat"
            if source.last_at is None
            else "sent heartbeats, and not every partition is read as far as these"
        )
        return Fact("complete until", says, "bad", values)
    assert complete is not None, "what reaches somewhere has been seen"
    behind = at - complete - timedelta(seconds=settings.allowed_lateness_seconds)
    state: State = "bad" if behind > _LATE_BAD else "watch" if behind > _LATE_WATCH else "good"
    says += ", held back "
    if source is not None and source.gap is not None:
        says += (
            f"by source {source.source}: heartbeat {source.gap.numbers} is missing; it resends what is, or "
        )
        says += f"`metering stream gap --source {source.source} --reason ...` goes on without"
        return Fact("complete until", says, "bad", values)
    if source is not None:
        says += f"by the last heartbeat of source {source.source}"
        says += "; has it fallen silent?" if state == "bad" else ""
    elif state == "good":
        says += f"only by the allowed lateness of {settings.allowed_lateness_seconds} s"
    elif partition is not None and seen_until is not None:
        seen = seconds_instant(seen_until)
        says += f"by partition {partition.partition} of {partition.topic}, seen until {seen}"
        says += "; is `metering work ingest` running?" if state == "bad" else ""
    return Fact("complete until", says, state, values)


def _folded(at: datetime, lag: store.FoldLag) -> Fact:
    if not lag.batches or lag.oldest_at is None:
        return Fact("fold", "every batch is in the rollups", "good", asdict(lag))
    waiting = at - lag.oldest_at
    state: State = "bad" if waiting > _FOLD_BAD else "watch" if waiting > _FOLD_WATCH else "good"
    says = (
        f"batches that wait: {lag.batches:,} ({lag.events:,} events), "
        f"the oldest committed {ago(at, lag.oldest_at)}"
    )
    return Fact(
        "fold", says + ("; is `metering work fold` running?" if state == "bad" else ""), state, asdict(lag)
    )


def _watermark(at: datetime, pinned: store.Pinned | None) -> Fact:
    if pinned is None:
        return Fact("watermark", "none was pinned yet", "watch", {"watermark_id": None})
    says = f"{pinned.watermark_id}, pinned {ago(at, pinned.pinned_at)} ({pinned.reason})"
    return Fact("watermark", says, "good", asdict(pinned))


def _catalog(knowledge: Knowledge) -> Fact:
    values = {"catalog_revision": knowledge.catalog_revision}
    if not knowledge.catalog_revision:
        return Fact("catalog", "none was applied: run `metering catalog apply FOLDER`", "bad", values)
    return Fact("catalog", f"revision {knowledge.catalog_revision}", "good", values)


def _last_hour(at: datetime, knowledge: Knowledge) -> tuple[Period, bool]:
    """The last hour of whole minutes that is complete; before anything is, the hour up to now."""
    complete = knowledge.complete_until
    until = (complete or at).replace(second=0, microsecond=0)
    return Period("last hour", until - 60 * MINUTE, until), complete is not None


def _full(pools: pl.DataFrame) -> Fact:
    full = pools.filter(pl.col("minutes_at_limit") > 0).sort("minutes_at_limit", descending=True)
    names = [f"{pool} ({minutes} min)" for pool, minutes in full.select("pool", "minutes_at_limit").rows()]
    if not names:
        return Fact(
            "pools", "none was at its limit in the last hour of complete data", "good", {"at_limit": []}
        )
    says = f"at their limit in the last hour of complete data: {', '.join(names)}"
    return Fact("pools", says, "bad", {"at_limit": full["pool"].to_list()})


def _unrated_today(connection: Connection, settings: Settings, books: Books, at: datetime) -> pl.DataFrame:
    """results.UNRATED of the UTC day so far, complete or not.

    Of the days before it reads what was drawn from commitments alone whose overage has a book of its own: whether
    today's usage is overage, and that book has a price for it, hangs on them.
    """
    start = at.replace(hour=0, minute=0, second=0, microsecond=0)
    today = Period("today", start, max(ceil_to_quarter(at), start + 15 * MINUTE))
    usage = [read_usage_by_series(connection, today.start, today.until, None)]
    booked = books.commitments.filter(pl.col("overage_book").is_not_null())["customer"].unique()
    drew = reach(books, today, today.until).filter(pl.col("customer").is_in(booked.implode()))
    earlier = drew.filter(pl.col("effective_from") < start).sort("effective_from", "customer")
    for (since,), group in earlier.group_by("effective_from", maintain_order=True):
        assert isinstance(since, datetime)
        usage.append(read_usage_of(connection, since, start, None, group["customer"].to_list()))
    pool_usage = read_pool_usage(connection, today.start, today.until, None)
    done = margin(united(usage), pool_usage, usage_basis(books), today, settings.reporting_currency)
    return done.unrated


def _unrated(unrated: pl.DataFrame) -> Fact:
    if not unrated.height:
        return Fact("unrated today", "nothing", "good", {"reasons": []})
    groups = (
        unrated.group_by("side", "reason")
        .agg(pl.col("quantity").filter(pl.col("meter").is_in(TOKEN_METERS)).sum().alias("tokens"))
        .sort("tokens", "side", "reason", descending=[True, False, False])
        .with_columns(pl.col("tokens").cast(pl.Int64, strict=False))
    )
    parts = [
        f"{row['side']} {row['reason']} {row['tokens'] or 0:,} tokens" for row in groups.iter_rows(named=True)
    ]
    says = f"{'; '.join(parts)}: see `metering report unrated`"
    return Fact("unrated today", says, "watch", {"reasons": groups.to_dicts()})


def _stopped(at: datetime, stopped: Sequence[store.StoppedSource]) -> Fact:
    values = {"stopped": [asdict(source) for source in stopped]}
    if not stopped:
        return Fact("sources", "none is stopped", "good", values)
    names = [
        f"{source.source or 'the whole topic'} ({ago(at, source.stopped_at)}: {source.reason})"
        for source in stopped
    ]
    return Fact(
        "sources", f"stopped: {'; '.join(names)}: resume with `metering stream resume`", "bad", values
    )


def _findings(counts: Mapping[str, int]) -> Fact:
    says = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    values = {"count": sum(counts.values()), "kinds": dict(counts)}
    if not counts:
        return Fact("findings open", "none is open", "good", values)
    return Fact("findings open", f"{says}: see `metering findings list`", "watch", values)


def _alerts(alerts: Sequence[store.OpenAlert]) -> Fact:
    says = f"{len(alerts)} open" if alerts else "none is open"
    return Fact("alerts open", says, "bad" if alerts else "good", {"count": len(alerts)})


def _outbox(at: datetime, waiting: store.Outbox) -> Fact:
    says = "nothing waits"
    state: State = "good"
    if waiting.waiting and waiting.oldest_at is not None:
        says = f"messages that wait: {waiting.waiting}, the oldest written {ago(at, waiting.oldest_at)}"
        says += f"; the last attempt said: {waiting.last_problem}" if waiting.last_problem else ""
        state = "bad" if at - waiting.oldest_at > _OUTBOX_BAD else "watch"
    if waiting.given_up:
        says, state = f"{says}; {waiting.given_up} given up in the last 24 h", "bad"
    return Fact("outbox", says, state, asdict(waiting))


def _partitions(at: datetime, settings: Settings, until: date | None) -> Fact:
    """How far ahead there are partitions: an event of a day without one stops its worker."""
    if until is None:
        return Fact("partitions", "none is made for days ahead: run `metering init`", "bad", {"until": None})
    days = (until - at.date()).days
    says = f"made until {until}, {days} days ahead"
    if days < settings.partition_ahead_days_min:
        return Fact(
            "partitions", f"{says}; is `metering work tend` running?", "bad", {"until": until, "days": days}
        )
    return Fact("partitions", says, "good", {"until": until, "days": days})
