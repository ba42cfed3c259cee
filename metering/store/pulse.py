"""Pulse: whether the workers that should be at work are, as far as the database can tell."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from metering.store.postgres import FOLD


@dataclass(frozen=True)
class Moved:
    """When an intake of Kafka last moved or was confirmed as read to its end, and how long ago that is."""

    partition: int
    moved_at: datetime | None
    seconds_ago: float | None


def moves(connection: Connection) -> list[Moved]:
    """Every partition that has a position, by the clock of the database."""
    rows = connection.execute(
        text(
            "SELECT partition, moved_at, extract(epoch FROM clock_timestamp() - moved_at)::float FROM ("
            "SELECT p.partition, greatest(p.seen_until, b.committed_at) AS moved_at FROM stream_positions p "
            "LEFT JOIN ingest_batches b ON b.intake_id = p.intake_id AND b.sequence = p.next_sequence - 1 "
            "WHERE p.kind = 'kafka' AND p.retired_at IS NULL) AS moves ORDER BY partition"
        )
    )
    return [Moved(*row) for row in rows]


def unfolded_seconds(connection: Connection) -> float:
    """How long the oldest batch has waited for a fold that nobody runs; 0 while one is at work or none waits."""
    waits: float = connection.execute(
        text(
            "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - b.committed_at)), 0)::float "
            "FROM stream_positions p LEFT JOIN fold_positions f USING (intake_id) "
            "JOIN ingest_batches b ON b.intake_id = p.intake_id AND b.sequence = coalesce(f.next_sequence, 0) "
            "WHERE NOT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted "
            "AND l.classid = 0 AND l.objid = :lock AND l.objsubid = 1 "
            "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
        ),
        {"lock": FOLD},
    ).scalar_one()
    return waits
