"""Voids that wait, with what they name: what the settle step reads before it appends compensating entries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

import psycopg

from metering.frames.usage import DIMENSIONS
from metering.meters import METERS
from metering.store.ledger import EVENT_TYPES
from metering.store.ledger_rows import meter_sql
from metering.store.partitions import key_floor

Connection = psycopg.Connection[tuple[Any, ...]]

#: What a compensating entry repeats of its target, in order of LEDGER_ROW. `occurred_at` in microseconds.
REPEATED: Final = (
    "request_key", "occurred_at", "digest", "series_id", "project_id", "seat_id", *METERS, "attempt",
    "usage_source", "nonbillable_reason", "digest_version",
)  # fmt: skip
_TARGET: Final = ("event_id", *REPEATED)
_TYPE_NAMES: Final = {number: name for name, number in EVENT_TYPES.items()}


@dataclass(frozen=True)
class Target:
    """The event that a void names, as it stands in the ledger; `values` are those of REPEATED."""

    event_type: str
    event_id: str
    values: tuple[Any, ...]
    source: str
    project: str
    seat: str
    series_digest: bytes
    dimensions: tuple[str | int | None, ...]

    def __getitem__(self, column: str) -> Any:
        return self.values[REPEATED.index(column)]


@dataclass(frozen=True)
class OpenVoid:
    """A void without a settlement whose target is there, or can never come. `taken_back`: a void did before."""

    void_key: UUID
    void_source_id: int
    side: Literal["charge", "both"]
    target_key: UUID
    target_source_id: int
    taken_back: bool
    target: Target | None


def _selected(name: str, table: str) -> str:
    value = f"{table}.{name}"
    return f"(extract(epoch FROM {value}) * 1000000)::bigint" if name == "occurred_at" else value


def _stored(name: str) -> str:
    return f"{meter_sql(name)} AS {name}" if name in METERS else name


#: What lies below the floor is as good as dropped already: its partition takes no compensating entry any more.
#: OFFSET 0 keeps each look-up a look-up of one key: without statistics of today's partition the planner
#: would read it whole. Unmatched voids are left out before the limit, so that they keep nothing waiting.
_READY: Final = f"""
    WITH ready AS (
        SELECT v.batch_id, v.occurred_at AS voided_at, v.event_key, v.source_id, v.side, v.target_key, v.target_source_id,
            b.event_type AS back_type, t.*
        FROM voids v
        LEFT JOIN LATERAL (SELECT event_type, {", ".join(map(_stored, _TARGET))} FROM usage_events u
            WHERE u.event_key = v.target_key AND u.source_id = v.target_source_id
            AND v.target_key >= %(floor)s OFFSET 0) t ON true
        LEFT JOIN LATERAL (SELECT event_type FROM usage_events u
            WHERE u.event_key = v.target_key AND u.source_id = -v.target_source_id
            AND v.target_key >= %(floor)s OFFSET 0) b ON true
        WHERE NOT EXISTS (SELECT FROM settlements s
            WHERE s.void_key = v.event_key AND s.void_source_id = v.source_id)
        AND (t.event_type IS NOT NULL OR b.event_type IS NOT NULL OR v.target_key < %(floor)s)
        ORDER BY v.batch_id, v.occurred_at, v.event_key, v.source_id LIMIT %(most)s)
    SELECT r.event_key, r.source_id, r.side, r.target_key, r.target_source_id, r.back_type, r.event_type, r.event_id,
        coalesce(n.source, ''), coalesce(p.project, ''), coalesce(e.seat, ''),
        coalesce(decode(replace(s.series_digest::text, '-', ''), 'hex'), ''),
        {", ".join(f"s.{name}" for name in DIMENSIONS)}, {", ".join(_selected(name, "r") for name in REPEATED)}
    FROM ready r LEFT JOIN sources n ON n.source_id = r.target_source_id
        LEFT JOIN projects p USING (project_id) LEFT JOIN seats e USING (seat_id)
        LEFT JOIN series s USING (series_id)
    ORDER BY r.batch_id, r.voided_at, r.event_key, r.source_id"""  # fmt: skip


def read_ready(connection: Connection, voids_max: int) -> list[OpenVoid]:
    """The voids that can be settled now, in the order in which they were committed, at most `voids_max`.

    A void whose target is not there waits, unless the target's key lies below the ledger's floor: then it can
    never come. Of two voids of one event the one that was committed first is the first, in one batch the
    one that occurred first.
    """
    floor = connection.execute("SELECT floor_at FROM ledger_floor").fetchone()
    least = UUID(int=0) if floor is None else key_floor(floor[0])
    return [
        _open_void(row) for row in connection.execute(_READY, {"floor": least, "most": voids_max}).fetchall()
    ]


def _open_void(row: Sequence[Any]) -> OpenVoid:
    key, source_id, side, target_key, target_source_id, back_type, event_type, event_id = row[:8]
    source, project, seat, digest = row[8:12]
    dimensions, values = row[12 : 12 + len(DIMENSIONS)], row[12 + len(DIMENSIONS) :]
    target = None
    # an adjustment downwards stands alone, under the source's negative id
    if event_type is not None or back_type is not None:
        kind = _TYPE_NAMES[back_type if event_type is None else event_type]
        target = Target(
            kind, event_id or "", tuple(values), source, project, seat, bytes(digest), tuple(dimensions)
        )
    # whatever stands under the target's negative id leaves no room for an entry that takes it back
    taken_back = back_type is not None
    return OpenVoid(key, source_id, side, target_key, target_source_id, taken_back, target)


def committed(connection: Connection) -> int:
    """How many batches were ever committed: while it stands still, no void and no target has come."""
    row = connection.execute(
        "SELECT coalesce(sum(next_sequence), 0)::bigint FROM stream_positions"
    ).fetchone()
    assert row is not None, "an aggregate has a row"
    return int(row[0])
