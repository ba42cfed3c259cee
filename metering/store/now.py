"""What the person on call wants to know, in one snapshot: positions, counts, rejects, alerts, outbox."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text


@dataclass(frozen=True)
class Intake:
    """How far one intake has been read. Its lag is the stream's end offset less `next_offset`."""

    kind: str
    topic: str | None
    topic_uuid: UUID | None
    partition: int | None
    next_offset: int
    seen_until: datetime | None
    owner: str | None


@dataclass(frozen=True)
class Outcomes:
    """Counts of the batches committed in a span. received = accepted + duplicate + conflict + rejected."""

    name: str
    batches: int
    records: int
    received: int
    accepted: int
    duplicate: int
    conflict: int
    rejected: int


@dataclass(frozen=True)
class SourceOutcomes:
    """How the events of one source ended in the last hour, and in all of the span asked for; '': none readable."""

    source: str
    hour_accepted: int
    hour_duplicate: int
    hour_conflict: int
    hour_rejected: int
    accepted: int
    duplicate: int
    conflict: int
    rejected: int


@dataclass(frozen=True)
class FoldLag:
    """Committed batches that no rollup holds yet, their accepted events, and since when the oldest waits."""

    batches: int
    events: int
    oldest_at: datetime | None


@dataclass(frozen=True)
class Pinned:
    """The last watermark."""

    watermark_id: int
    pinned_at: datetime
    reason: str
    complete_until: datetime | None


@dataclass(frozen=True)
class RejectCount:
    """Rejects of one code and source; the last one's detail as an example."""

    code: str
    source: str | None
    rejects: int
    last_at: datetime
    last_detail: str


@dataclass(frozen=True)
class StoppedSource:
    """A source whose events become rejects until it is resumed."""

    source: str
    stopped_at: datetime
    reason: str


@dataclass(frozen=True)
class OpenAlert:
    """A condition that holds: opened and not resolved."""

    rule: str
    scope: str
    opened_at: datetime
    period: str
    watermark_id: int | None
    details: dict[str, Any]


@dataclass(frozen=True)
class Outbox:
    """Messages that wait for the webhook, and those given up in the span asked for."""

    waiting: int
    oldest_at: datetime | None
    last_problem: str | None
    given_up: int


def intakes(connection: Connection) -> list[Intake]:
    """Every intake in use, Kafka's by topic and partition first."""
    rows = connection.execute(
        text(
            "SELECT kind, topic, topic_uuid, partition, next_offset, seen_until, owner FROM stream_positions "
            "WHERE retired_at IS NULL ORDER BY kind <> 'kafka', topic, partition, intake_id"
        )
    )
    return [Intake(*row) for row in rows]


def outcomes(connection: Connection, name: str, since: datetime) -> Outcomes:
    """Counts by outcome of the batches committed at or after `since`."""
    row = connection.execute(
        text(
            "SELECT count(*), coalesce(sum(records), 0), coalesce(sum(received), 0), "
            "coalesce(sum(accepted), 0), coalesce(sum(duplicate), 0), coalesce(sum(conflict), 0), "
            "coalesce(sum(rejected), 0) "
            "FROM ingest_batches WHERE committed_at >= :since"
        ),
        {"since": since},
    ).one()
    return Outcomes(name, *(int(count) for count in row))


def outcomes_by_source(connection: Connection, hour: datetime, since: datetime) -> list[SourceOutcomes]:
    """Outcomes per source of the batches committed since `hour` and since `since`; the most refused first.

    The view `source_hours` has the same by the hour of commit, for all time.
    """
    names = ("accepted", "duplicate", "conflict", "rejected")
    last_hour = ", ".join(
        f"coalesce(sum(o.{name}) FILTER (WHERE committed_at >= :hour), 0)::bigint" for name in names
    )
    all_of_it = ", ".join(f"sum(o.{name})::bigint AS {name}" for name in names)
    rows = connection.execute(
        text(
            f"SELECT coalesce(s.source, '') AS source, {last_hour}, {all_of_it} FROM "
            "(SELECT batch_id, committed_at FROM ingest_batches WHERE committed_at >= :since) b "
            "JOIN batch_sources o USING (batch_id) LEFT JOIN sources s USING (source_id) GROUP BY 1 "
            "ORDER BY sum(o.rejected + o.conflict) DESC, sum(o.accepted) DESC, 1"
        ),
        {"hour": hour, "since": since},
    )
    return [SourceOutcomes(*row) for row in rows]


def fold_lag(connection: Connection) -> FoldLag:
    """Batches beyond the fold's position of their intake."""
    row = connection.execute(
        text(
            "SELECT count(*) AS batches, coalesce(sum(b.accepted), 0) AS events, "
            "min(b.committed_at) AS oldest_at "
            "FROM stream_positions p LEFT JOIN fold_positions f USING (intake_id) "
            "JOIN ingest_batches b ON b.intake_id = p.intake_id "
            "AND b.sequence >= coalesce(f.next_sequence, 0)"
        )
    ).one()
    return FoldLag(int(row.batches), int(row.events), row.oldest_at)


def last_watermark(connection: Connection) -> Pinned | None:
    """The newest watermark; None when none was ever pinned."""
    row = connection.execute(
        text(
            "SELECT watermark_id, pinned_at, reason, complete_until FROM watermarks "
            "ORDER BY watermark_id DESC LIMIT 1"
        )
    ).one_or_none()
    return None if row is None else Pinned(*row)


def rejects_by_code(connection: Connection, since: datetime) -> list[RejectCount]:
    """Rejects at or after `since` by code and source, most first. Needs no right to their bytes."""
    rows = connection.execute(
        text(
            "SELECT code, source, count(*) AS rejects, max(rejected_at) AS last_at, "
            "(array_agg(detail ORDER BY rejected_at DESC, reject_id DESC))[1] AS last_detail "
            "FROM rejects WHERE rejected_at >= :since GROUP BY code, source ORDER BY 3 DESC, 1, 2 NULLS FIRST"
        ),
        {"since": since},
    )
    return [RejectCount(*row) for row in rows]


def stopped_sources(connection: Connection) -> list[StoppedSource]:
    """Sources whose last change is a stop, the longest first."""
    rows = connection.execute(
        text(
            "SELECT source, changed_at, reason FROM (SELECT DISTINCT ON (source) * FROM source_stops "
            "ORDER BY source, source_stop_id DESC) AS last WHERE stopped ORDER BY changed_at, source"
        )
    )
    return [StoppedSource(*row) for row in rows]


def open_alerts(connection: Connection) -> list[OpenAlert]:
    """Alerts whose last entry says opened, the oldest first."""
    rows = connection.execute(
        text(
            "SELECT rule, scope, changed_at, period, watermark_id, details "
            "FROM (SELECT DISTINCT ON (rule, scope) * "
            "FROM alerts ORDER BY rule, scope, sequence DESC) AS last WHERE state = 'opened' "
            "ORDER BY changed_at, rule, scope"
        )
    )
    return [OpenAlert(*row) for row in rows]


def outbox(connection: Connection, since: datetime) -> Outbox:
    """Messages without a last word (delivered, given up), and how many were given up at or after `since`."""
    waiting = connection.execute(
        text(
            "SELECT count(*) AS waiting, min(o.created_at) AS oldest_at, "
            "(array_agg(a.detail ORDER BY a.attempted_at DESC) "
            "FILTER (WHERE a.detail IS NOT NULL))[1] AS problem "
            "FROM outbox o LEFT JOIN LATERAL (SELECT detail, attempted_at FROM outbox_attempts t "
            "WHERE t.outbox_id = o.outbox_id ORDER BY attempt DESC LIMIT 1) a ON true "
            "WHERE NOT EXISTS (SELECT FROM outbox_attempts t WHERE t.outbox_id = o.outbox_id "
            "AND t.outcome IN ('delivered', 'given_up'))"
        )
    ).one()
    given_up = connection.execute(
        text("SELECT count(*) FROM outbox_attempts WHERE outcome = 'given_up' AND attempted_at >= :since"),
        {"since": since},
    ).scalar_one()
    return Outbox(int(waiting.waiting), waiting.oldest_at, waiting.problem, int(given_up))
