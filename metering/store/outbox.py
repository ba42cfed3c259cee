"""Alerts, the outbox and the attempts to deliver it: appended in one transaction, never changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, func, select, text
from sqlalchemy.dialects.postgresql import insert

from metering.store.tables import alerts, outbox, outbox_attempts

#: Session advisory lock of the one deliverer.
DELIVER: Final = 0x646C7672
#: Scope and sequence of an outbox row that tells of many alerts at once.
DIGEST_SCOPE: Final = "*"
DIGEST_SEQUENCE: Final = 0


@dataclass(frozen=True)
class AlertEntry:
    """One entry of an alert's history: odd sequences opened it, even ones resolved it."""

    rule: str
    scope: str
    sequence: int
    state: str
    period: str
    watermark_id: int | None
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Waiting:
    """A message that is due. `attempts` is how often it was tried before."""

    outbox_id: int
    rule: str
    scope: str
    message: Mapping[str, Any]
    attempts: int


@dataclass(frozen=True)
class Backlog:
    """What the outbox holds: `undelivered` messages, the first of them due `next_at`; `given_up` in all."""

    undelivered: int
    next_at: datetime | None
    given_up: int


def read_states(connection: Connection) -> list[tuple[str, str, int, str]]:
    """The last entry of every alert there ever was: (rule, scope, sequence, state)."""
    rows = connection.execute(
        text(
            "SELECT DISTINCT ON (rule, scope) rule, scope, sequence, state FROM alerts "
            "ORDER BY rule, scope, sequence DESC"
        )
    )
    return [tuple(row) for row in rows]


def append_alert(connection: Connection, entry: AlertEntry) -> bool:
    """Append `entry`; False when that (rule, scope, sequence) is already there: nothing is written.

    Waits for a transaction that is writing the same entry, so that the answer is final. The caller commits.
    """
    written = connection.execute(
        insert(alerts)
        .values(
            rule=entry.rule,
            scope=entry.scope,
            sequence=entry.sequence,
            state=entry.state,
            changed_at=func.clock_timestamp(),
            period=entry.period,
            watermark_id=entry.watermark_id,
            details=dict(entry.details),
        )
        .on_conflict_do_nothing(index_elements=["rule", "scope", "sequence"])
        .returning(alerts.c.sequence)
    )
    return written.first() is not None


def append_message(
    connection: Connection, rule: str, scope: str, sequence: int, message: Mapping[str, Any]
) -> None:
    """Put a message into the outbox, in the transaction of its alerts: neither may come alone."""
    connection.execute(
        insert(outbox).values(rule=rule, scope=scope, sequence=sequence, message=dict(message))
    )


def append_once_a_day(connection: Connection, rule: str, message: Mapping[str, Any]) -> bool:
    """Put a message into the outbox unless that rule has one of this day (UTC, by the database's clock).

    False: it has. Two at once wait for each other. The message gets the day as `day`. The caller commits.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:rule))"), {"rule": rule})
    day = connection.execute(text("SELECT to_char(clock_timestamp(), 'YYYY-MM-DD')")).scalar_one()
    if connection.execute(
        text("SELECT count(*) FROM outbox WHERE rule = :rule AND scope = :day"), {"rule": rule, "day": day}
    ).scalar_one():
        return False
    append_message(connection, rule, day, 1, {**message, "day": day})
    return True


def claim_delivery(connection: Connection) -> str | None:
    """Take the deliverer's lock for this session. None when it is ours, else who holds it, for people."""
    if connection.execute(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": DELIVER}).scalar_one():
        return None
    holder = connection.execute(
        text(
            "SELECT pid, backend_start FROM pg_locks JOIN pg_stat_activity USING (pid) "
            "WHERE locktype = 'advisory' AND classid = 0 AND objid = :lock AND granted "
            "AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ),
        {"lock": DELIVER},
    ).first()
    if holder is None:
        return "another deliverer"
    since = f" (connected since {holder.backend_start:%Y-%m-%dT%H:%M:%SZ})" if holder.backend_start else ""
    return f"the deliverer of Postgres backend {holder.pid}{since}"


#: The last attempt of every message; a message without one has nulls.
_PENDING: Final = """
    WITH pending AS (
        SELECT o.outbox_id, o.rule, o.scope, o.message,
               coalesce(last.attempt, 0) AS attempts, last.attempted_at, last.retry_at
        FROM outbox o
        LEFT JOIN LATERAL (
            SELECT attempt, attempted_at, outcome, retry_at FROM outbox_attempts a
            WHERE a.outbox_id = o.outbox_id ORDER BY attempt DESC LIMIT 1
        ) last ON true
        WHERE last.outcome IS NULL OR last.outcome = 'retry'
    ), channel AS (
        SELECT max(attempted_at) FILTER (WHERE outcome = 'delivered') AS open_at,
               max(retry_at) FILTER (WHERE status = 429) AS held_until
        FROM outbox_attempts
    )"""


def next_due(connection: Connection) -> Waiting | None:
    """The oldest message that is due, by the database's clock; None when none is.

    A message waits for its `retry_at`, unless another was delivered since it was last tried: then the channel
    is open again. It waits behind earlier messages of its alert, so that nothing is resolved before it was
    opened; and a 429 holds all messages back for as long as Slack said.
    """
    row = connection.execute(
        text(
            f"""{_PENDING}
            SELECT p.outbox_id, p.rule, p.scope, p.message, p.attempts FROM pending p, channel
            WHERE (p.retry_at IS NULL OR p.retry_at <= clock_timestamp() OR p.attempted_at < channel.open_at)
              AND coalesce(channel.held_until <= clock_timestamp(), true)
              AND NOT EXISTS (
                  SELECT FROM pending earlier
                  WHERE earlier.rule = p.rule AND earlier.scope = p.scope AND earlier.outbox_id < p.outbox_id
                    AND p.scope <> '{DIGEST_SCOPE}'
              )
            ORDER BY p.outbox_id LIMIT 1"""
        )
    ).first()
    return None if row is None else Waiting(*row)


def read_backlog(connection: Connection) -> Backlog:
    """What is undelivered and when it will be tried, and what was given up."""
    row = connection.execute(
        text(
            f"""{_PENDING}
            SELECT count(*), min(greatest(coalesce(p.retry_at, clock_timestamp()), channel.held_until)),
                   (SELECT count(*) FROM outbox_attempts WHERE outcome = 'given_up')
            FROM pending p, channel"""
        )
    ).one()
    return Backlog(*row)


def seconds_since_attempt(connection: Connection) -> float | None:
    """Seconds since the last attempt of any message, by the database's clock; None when there was none."""
    found: float | None = connection.execute(
        text("SELECT extract(epoch FROM clock_timestamp() - max(attempted_at))::float8 FROM outbox_attempts")
    ).scalar_one()
    return found


def append_attempt(
    connection: Connection,
    outbox_id: int,
    *,
    outcome: str,
    status: int | None,
    detail: str,
    retry_seconds: float | None = None,
) -> None:
    """Record what became of a post, after the answer: who dies in between posts again. The caller commits."""
    last = func.coalesce(func.max(outbox_attempts.c.attempt), 0)
    attempt = select(last + 1).where(outbox_attempts.c.outbox_id == outbox_id).scalar_subquery()
    after = None if retry_seconds is None else func.make_interval(0, 0, 0, 0, 0, 0, retry_seconds)
    connection.execute(
        insert(outbox_attempts).values(
            outbox_id=outbox_id,
            attempt=attempt,
            outcome=outcome,
            status=status,
            retry_at=None if after is None else func.clock_timestamp() + after,
            detail=detail,
        )
    )
