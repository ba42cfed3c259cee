"""Passes over closed days: requests that were billed more than once, attempts that came under different ids.

The pass of a day groups the events of that day and of the next by request: a request that began before
midnight may have ended after it. An event's day is that of its key; where the key is no time, of `occurred_at`.
A finding is of the day of its first event: a request with one event on a day and two on the next is one of each.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, text

from metering.store.findings import Finding, Recorded, record
from metering.store.partitions import hold, key_floor

KINDS: Final = ("double_billable", "repeated_attempt")
#: Events that the details of a finding name.
EVENTS_MAX: Final = 20

#: A closed day is due when it, the day before or the day after got usage since it was passed last. Only closed
#: days count: the day after is passed over once it is closed, not whenever it grows. Days below the ledger's
#: floor keep the findings that they have.
_NEXT_DAY: Final = """
    WITH pinned AS (
        SELECT watermark_id, (complete_until AT TIME ZONE 'UTC')::date AS open_day FROM watermarks
        WHERE complete_until IS NOT NULL ORDER BY watermark_id DESC LIMIT 1),
    changed AS (
        SELECT (q.quarter_start AT TIME ZONE 'UTC')::date AS day, max(q.interval_id) AS interval_id
        FROM usage_quarters q, pinned p
        WHERE q.interval_id <= p.watermark_id AND q.quarter_start < p.open_day::timestamp AT TIME ZONE 'UTC'
        GROUP BY 1),
    days AS (
        SELECT c.day + step AS day, max(c.interval_id) AS interval_id
        FROM changed c, generate_series(-1, 1) AS step GROUP BY 1)
    SELECT d.day, p.watermark_id FROM days d CROSS JOIN pinned p LEFT JOIN finding_passes f USING (day)
    WHERE d.day < p.open_day AND d.interval_id > coalesce(f.watermark_id, 0)
    AND d.day >= (SELECT (floor_at AT TIME ZONE 'UTC')::date FROM ledger_floor)
    ORDER BY 1 LIMIT 1"""

#: Usage and what took it back, of two days. Of 1 and 5: EVENT_TYPES.
_SPAN: Final = """
    span AS (
        SELECT {columns}, event_key < :next AS of_day FROM usage_events
        WHERE event_key >= :first AND event_key < :until AND event_type IN (1, 5)
        UNION ALL
        SELECT {columns}, occurred_at < :next_at FROM usage_events
        WHERE event_key >= '80000000-0000-0000-0000-000000000000'
        AND occurred_at >= :first_at AND occurred_at < :until_at AND event_type IN (1, 5))"""
#: A charge void takes back what was billed; only a void of both sides says that it never ran.
_SUSPECTS: Final = f"""
    WITH {_SPAN.format(columns="request_key, attempt, event_type, nonbillable_reason, series_id, occurred_at")},
    charge_series AS (SELECT series_id FROM series WHERE counts_for = 'charge'),
    counted AS (
        SELECT request_key, attempt, of_day,
            CASE WHEN nonbillable_reason <> 0 THEN 0 WHEN event_type = 1 THEN 1 ELSE -1 END AS billed,
            CASE WHEN event_type = 1 THEN 1 WHEN series_id IN (SELECT series_id FROM charge_series) THEN 0
                ELSE -1 END AS ran
        FROM span),
    attempts AS (
        SELECT request_key, attempt, sum(billed) AS billed, sum(billed) FILTER (WHERE of_day) AS billed_of_day,
            sum(ran) AS ran, sum(ran) FILTER (WHERE of_day) AS ran_of_day
        FROM counted GROUP BY 1, 2)
    SELECT request_key, sum(billed) > 1 AND sum(billed_of_day) > 0 AS double_billable,
        array_agg(attempt ORDER BY attempt) FILTER (WHERE ran > 1 AND ran_of_day > 0) AS repeated,
        count(*) OVER () AS requests
    FROM attempts GROUP BY 1
    HAVING (sum(billed) > 1 AND sum(billed_of_day) > 0) OR bool_or(ran > 1 AND ran_of_day > 0)
    ORDER BY 1 LIMIT :most"""
_EVENTS: Final = f"""
    WITH {_SPAN.format(columns="request_key, attempt, event_type, nonbillable_reason, series_id, occurred_at, event_key, source_id, event_id")},
    charge_series AS (SELECT series_id FROM series WHERE counts_for = 'charge'),
    back AS (
        SELECT event_key, -source_id AS source_id, series_id IN (SELECT series_id FROM charge_series) AS charge_only
        FROM span WHERE event_type = 5)
    SELECT u.request_key, u.attempt, u.occurred_at, n.source,
        coalesce(nullif(u.event_id, ''), u.event_key::text) AS event_id, r.customer,
        u.nonbillable_reason = 0 AND b.event_key IS NULL AS billed, coalesce(b.charge_only, true) AS ran
    FROM span u LEFT JOIN back b USING (event_key, source_id) LEFT JOIN sources n ON n.source_id = u.source_id
        LEFT JOIN series r ON r.series_id = u.series_id
    WHERE u.event_type = 1 AND u.request_key = ANY(:requests)
    ORDER BY 1, 3, 2, 4, 5"""  # noqa: E501


@dataclass(frozen=True)
class Due:
    """A closed day that is to be passed, and the last watermark when that was asked."""

    day: date
    watermark_id: int


def next_due(connection: Connection) -> Due | None:
    """The first closed day that is due for a pass, as of the last watermark; None when none is.

    In a REPEATABLE READ transaction, of which this is the beginning: the day stays there until its end, or its
    findings would resolve when it is archived meanwhile.
    """
    hold(connection)
    row = connection.execute(text(_NEXT_DAY)).one_or_none()
    return None if row is None else Due(*row)


def pass_day(connection: Connection, due: Due, findings_max: int, now: datetime) -> Recorded:
    """Find what is wrong in the requests of a day, and remember that it was passed. The caller commits.

    What is read is at least what the watermark of `due` holds: usage that comes later makes the day due again.
    At most `findings_max` requests are named; beyond that, one finding per kind says how many there are.
    """
    day = due.day
    # one sort or hash of two days of events: longer and larger than a worker's statement may be
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    connection.exec_driver_sql("SET LOCAL work_mem = '128MB'")
    first_at = datetime.combine(day, time(), UTC)
    next_at, until_at = first_at + timedelta(days=1), first_at + timedelta(days=2)
    span: dict[str, Any] = {
        "first_at": first_at, "next_at": next_at, "until_at": until_at,
        "first": key_floor(first_at), "next": key_floor(next_at), "until": key_floor(until_at),
    }  # fmt: skip
    suspects = connection.execute(text(_SUSPECTS), {**span, "most": findings_max}).all()
    found = _findings(connection, day, span, suspects) if suspects else []
    if suspects and suspects[0].requests > len(suspects):
        details = {"requests": suspects[0].requests, "named": len(suspects)}
        found += [
            Finding(kind, f"{day}/more", day, None, details) for kind in sorted({one.kind for one in found})
        ]
    recorded = record(connection, KINDS, found, now, day=day)
    connection.execute(
        text(
            "INSERT INTO finding_passes (day, watermark_id) VALUES (:day, :watermark) "
            "ON CONFLICT (day) DO UPDATE SET watermark_id = excluded.watermark_id, passed_at = clock_timestamp()"
        ),
        {"day": day, "watermark": due.watermark_id},
    )
    return recorded


def _findings(
    connection: Connection, day: date, span: dict[str, Any], suspects: Sequence[Row[Any]]
) -> list[Finding]:
    events: defaultdict[UUID, list[Row[Any]]] = defaultdict(list)
    requests = [suspect.request_key for suspect in suspects]
    for row in connection.execute(text(_EVENTS), {**span, "requests": requests}):
        events[row.request_key].append(row)
    found = []
    for suspect in suspects:
        its = events[suspect.request_key]
        if suspect.double_billable:
            billed = [row for row in its if row.billed]
            found.append(_finding("double_billable", f"{day}/{suspect.request_key}", day, billed))
        for attempt in suspect.repeated or ():
            ran = [row for row in its if row.ran and row.attempt == attempt]
            subject = f"{day}/{suspect.request_key}/{attempt}"
            found.append(_finding("repeated_attempt", subject, day, ran))
    return found


def _finding(kind: str, subject: str, day: date, rows: list[Row[Any]]) -> Finding:
    events = [
        {
            "source": row.source,
            "id": row.event_id,
            "attempt": row.attempt,
            "occurred_at": row.occurred_at.isoformat(),
        }
        for row in rows[:EVENTS_MAX]
    ]
    return Finding(
        kind, subject, day, rows[0].customer if rows else None, {"count": len(rows), "events": events}
    )
