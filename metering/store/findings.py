"""Findings: what is wrong in what was accepted. Append-only: one entry opens a finding, the next resolves it.

Everything here works inside the caller's transaction and commits nothing.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, text

#: What each kind of finding says.
KINDS: Final[Mapping[str, str]] = {
    "double_billable": "more than one billable event of one customer and request",
    "repeated_attempt": "one attempt of a request under different ids",
    "unmatched_void": "a void whose event has not come",
    "second_void": "a void of what another void has taken back already",
    "void_of_void": "a void of a void",
    "void_of_other": "a void of a refusal, a heartbeat or an adjustment",
    "nonbillable_charge": "a charge void of an event that is not billable",
    "target_archived": "a void of an event in a day that was archived",
    "source_silent": "a registered source that sent no heartbeat for too long",
    "sequence_gap": "a registered source of whose heartbeats some are missing",
}
#: Outcomes of a settlement that are findings: the void took nothing back, and nothing will change that.
OF_SETTLEMENTS: Final = (
    "second_void",
    "void_of_void",
    "void_of_other",
    "nonbillable_charge",
    "target_archived",
)


@dataclass(frozen=True)
class Finding:
    """Something wrong. `subject` names it within its kind: the same again is the same finding.

    `day` is the day whose pass found it, `customer` whom it concerns; null where there is none.
    """

    kind: str
    subject: str
    day: date | None
    customer: str | None
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One entry of a finding's history: odd sequences opened it, even ones resolved it."""

    kind: str
    subject: str
    sequence: int
    state: str
    found_at: datetime
    day: date | None
    customer: str | None
    details: Mapping[str, Any]

    def event_ids(self) -> list[str]:
        """The ids of the events that it names."""
        places = [self.details.get("void"), self.details.get("target"), *self.details.get("events", ())]
        return [place["id"] for place in places if place]


@dataclass(frozen=True)
class Recorded:
    """How many findings were opened and resolved."""

    opened: int
    resolved: int


_COLUMNS: Final = "kind, subject, sequence, state, found_at, day, customer, details"
_STAGE: Final = (
    "CREATE TEMPORARY TABLE IF NOT EXISTS found_now (kind text NOT NULL, subject text NOT NULL, day date, "
    "customer text, details jsonb NOT NULL) ON COMMIT DELETE ROWS"
)
_OPEN: Final = f"""
    INSERT INTO findings ({_COLUMNS})
    SELECT DISTINCT ON (f.kind, f.subject) f.kind, f.subject, coalesce(last.sequence, 0) + 1, 'opened',
        CAST(:now AS timestamptz), f.day, f.customer, f.details
    FROM found_now f LEFT JOIN LATERAL (SELECT sequence FROM findings l
        WHERE l.kind = f.kind AND l.subject = f.subject ORDER BY sequence DESC LIMIT 1) last ON true
    WHERE coalesce(last.sequence, 0) % 2 = 0"""
_RESOLVE: Final = f"""
    INSERT INTO findings ({_COLUMNS})
    SELECT kind, subject, sequence + 1, 'resolved', CAST(:now AS timestamptz), day, customer, details
    FROM (SELECT DISTINCT ON (kind, subject) * FROM findings WHERE kind = ANY(:kinds)
        AND (CAST(:day AS date) IS NULL OR day = :day) ORDER BY kind, subject, sequence DESC) last
    WHERE sequence % 2 = 1 AND NOT EXISTS
        (SELECT FROM found_now f WHERE f.kind = last.kind AND f.subject = last.subject)"""


def record(
    connection: Connection,
    kinds: Collection[str],
    found: Iterable[Finding],
    now: datetime,
    *,
    day: date | None = None,
) -> Recorded:
    """Open what is found and not open yet; resolve what is open and no longer found.

    `found` is all that holds now of `kinds` (with `day`: of that day alone; only its findings are resolved).
    A finding that is open, found again, stays as it was opened. The same call again changes nothing.
    """
    connection.exec_driver_sql(_STAGE)
    rows = [
        {
            "kind": one.kind,
            "subject": one.subject,
            "day": one.day,
            "customer": one.customer,
            "details": json.dumps(one.details, default=_json),
        }
        for one in found
    ]
    assert {row["kind"] for row in rows} <= set(kinds), "what is found is of the kinds that are recorded"
    if rows:
        connection.execute(
            text("INSERT INTO found_now VALUES (:kind, :subject, :day, :customer, CAST(:details AS jsonb))"),
            rows,
        )
    return _record_staged(connection, kinds, now, day)


def _record_staged(
    connection: Connection, kinds: Collection[str], now: datetime, day: date | None
) -> Recorded:
    resolved = connection.execute(text(_RESOLVE), {"kinds": list(kinds), "now": now, "day": day}).rowcount
    opened = connection.execute(text(_OPEN), {"now": now}).rowcount
    connection.exec_driver_sql("DELETE FROM found_now")
    return Recorded(opened, resolved)


def _json(value: object) -> str:
    if isinstance(value, datetime | date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not kept in the details of a finding")


# ---- of voids ------------------------------------------------------------------------------------------

_VOID: Final = (
    "jsonb_build_object('source', s.source, 'id', coalesce(nullif(u.event_id, ''), v.event_key::text), "
    "'occurred_at', v.occurred_at, 'side', v.side, 'reason', v.reason)"
)
#: A void of a day that was archived has its row in `voids` still, and what is wrong with it stands.
_VOID_JOINS: Final = (
    "LEFT JOIN usage_events u ON u.event_key = v.event_key AND u.source_id = v.source_id "
    "JOIN sources s ON s.source_id = v.source_id "
    "LEFT JOIN sources ts ON ts.source_id = v.target_source_id"
)
_VOID_SUBJECT: Final = "v.source_id || '/' || coalesce(nullif(u.event_id, ''), v.event_key::text)"


def record_voids(connection: Connection, unmatched_seconds: int, now: datetime) -> Recorded:
    """Findings of voids: those that settled without effect, and those whose event has not come.

    A void is unmatched when it was committed more than `unmatched_seconds` before `now` and is not settled
    yet; the finding resolves when it is. The others stay: what they tell of does not change any more.
    """
    connection.exec_driver_sql(_STAGE)
    connection.execute(
        text(
            f"INSERT INTO found_now SELECT o.outcome, {_VOID_SUBJECT}, NULL, t.customer, "
            f"jsonb_build_object('void', {_VOID}, 'target', jsonb_build_object('source', ts.source, "
            "'id', v.target_id, 'occurred_at', t.occurred_at), 'settled_at', o.settled_at) "
            "FROM settlements o JOIN voids v ON v.event_key = o.void_key AND v.source_id = o.void_source_id "
            f"{_VOID_JOINS} LEFT JOIN LATERAL (SELECT e.occurred_at, r.customer FROM usage_events e "
            "LEFT JOIN series r USING (series_id) WHERE e.event_key = v.target_key "
            "AND e.source_id = v.target_source_id OFFSET 0) t ON true "
            "WHERE o.outcome = ANY(:outcomes)"
        ),
        {"outcomes": list(OF_SETTLEMENTS)},
    )
    settled = connection.execute(text(_OPEN), {"now": now}).rowcount
    connection.exec_driver_sql("DELETE FROM found_now")
    connection.execute(
        text(
            f"INSERT INTO found_now SELECT 'unmatched_void', {_VOID_SUBJECT}, NULL, NULL, "
            f"jsonb_build_object('void', {_VOID}, 'target', jsonb_build_object('source', ts.source, "
            "'id', v.target_id), 'committed_at', b.committed_at) "
            f"FROM voids v JOIN ingest_batches b ON b.batch_id = v.batch_id {_VOID_JOINS} "
            "WHERE b.committed_at < CAST(:before AS timestamptz) AND NOT EXISTS (SELECT FROM settlements o "
            "WHERE o.void_key = v.event_key AND o.void_source_id = v.source_id)"
        ),
        {"before": now - timedelta(seconds=unmatched_seconds)},
    )
    waiting = _record_staged(connection, ("unmatched_void",), now, None)
    return Recorded(settled + waiting.opened, waiting.resolved)


# ---- reading -------------------------------------------------------------------------------------------


def entries(
    connection: Connection,
    *,
    kind: str | None = None,
    customer: str | None = None,
    resolved: bool = False,
) -> list[Entry]:
    """The last entry of every finding that is open (with `resolved`: of every one), oldest first."""
    rows = connection.execute(
        text(
            f"SELECT {_COLUMNS} FROM (SELECT DISTINCT ON (kind, subject) * FROM findings "
            "WHERE CAST(:kind AS text) IS NULL OR kind = :kind ORDER BY kind, subject, sequence DESC) last "
            "WHERE (:resolved OR state = 'opened') "
            "AND (CAST(:customer AS text) IS NULL OR customer = :customer) ORDER BY found_at, kind, subject"
        ),
        {"kind": kind, "customer": customer, "resolved": resolved},
    )
    return [Entry(*row) for row in rows]


def history(connection: Connection, kind: str, subject: str) -> list[Entry]:
    """Every entry of one finding, oldest first."""
    rows = connection.execute(
        text(f"SELECT {_COLUMNS} FROM findings WHERE kind = :kind AND subject = :subject ORDER BY sequence"),
        {"kind": kind, "subject": subject},
    )
    return [Entry(*row) for row in rows]


def count_open(connection: Connection) -> dict[str, int]:
    """How many findings are open, by kind."""
    rows = connection.execute(
        text(
            "SELECT kind, count(*) AS findings FROM (SELECT DISTINCT ON (kind, subject) kind, state FROM findings "
            "ORDER BY kind, subject, sequence DESC) last WHERE state = 'opened' GROUP BY 1 ORDER BY 1"
        )
    )
    return {row.kind: int(row.findings) for row in rows}
