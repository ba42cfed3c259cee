"""What was kept in place of ledger rows: rejects and conflicts, their bytes, and which rejects were replayed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import psycopg
from sqlalchemy import Connection, text

from metering.errors import BadInput
from metering.meters import FURTHER_METERS
from metering.store.ledger import EVENT_TYPES
from metering.store.ledger_rows import meter_sql

_BEFORE_ALL: Final = datetime(1970, 1, 1, tzinfo=UTC)
_WAITING: Final = "NOT EXISTS (SELECT FROM replays p WHERE p.reject_id = r.reject_id)"


@dataclass(frozen=True)
class Chosen:
    """Which rejects or conflicts: those of all the conditions that are given. Spans are [since, until)."""

    code: str | None = None
    source: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    ids: Sequence[int] = field(default=())

    def condition(self, at: str, identity: str) -> tuple[str, dict[str, Any]]:
        """A condition in SQL over the columns `at` and `identity`, and its values."""
        named = {
            "r.code = %(code)s": ("code", self.code),
            "r.source = %(source)s": ("source", self.source),
            f"r.{at} >= %(since)s": ("since", self.since),
            f"r.{at} < %(until)s": ("until", self.until),
            f"r.{identity} = ANY(%(ids)s)": ("ids", list(self.ids) or None),
        }
        given = {term: pair for term, pair in named.items() if pair[1] is not None}
        return " AND ".join(("true", *given)), dict(given.values())


@dataclass(frozen=True)
class Kept:
    """A reject as it is replayed. `payload` may be cut: `payload_bytes` says how long it was.

    `topic_uuid` and `partition` are those of the Kafka intake that brought it, else null.
    """

    reject_id: int
    rejected_at: datetime
    code: str
    index: int
    source: str | None
    record_offset: int
    content_type: str | None
    appended_at: datetime | None
    payload: bytes
    payload_bytes: int
    payload_sha256: bytes
    kind: str
    topic_uuid: UUID | None
    partition: int | None

    @property
    def is_cut(self) -> bool:
        """Whether fewer bytes are kept than came."""
        return len(self.payload) < self.payload_bytes


def waiting(
    connection: psycopg.Connection[tuple[Any, ...]], chosen: Chosen, *, records_max: int, bytes_target: int
) -> Iterator[list[Kept]]:
    """The chosen rejects that were not replayed yet, oldest first, in pieces that fit a batch.

    `connection` is in autocommit and works as a role that reads their bytes. What is rejected from now on is
    left out, so that a replay does not meet what it makes itself.
    """
    condition, values = chosen.condition("rejected_at", "reject_id")
    ((values["now"],),) = connection.execute("SELECT clock_timestamp()").fetchall()
    values["at"], values["after"], values["limit"] = _BEFORE_ALL, 0, records_max
    while True:
        places = connection.execute(
            "SELECT r.rejected_at, r.reject_id, octet_length(r.payload) FROM rejects r "
            f"WHERE {condition} AND {_WAITING} AND r.rejected_at <= %(now)s "
            "AND (r.rejected_at, r.reject_id) > (%(at)s, %(after)s) ORDER BY 1, 2 LIMIT %(limit)s",
            values,
        ).fetchall()
        if not places:
            return
        taken, size = 0, 0
        while taken < len(places) and (not taken or size + places[taken][2] <= bytes_target):
            size += places[taken][2]
            taken += 1
        values["at"], values["after"], _ = places[taken - 1]
        rows = connection.execute(
            "SELECT r.reject_id, r.rejected_at, r.code, r.index, r.source, r.record_offset, r.content_type, "
            "r.appended_at, r.payload, r.payload_bytes, r.payload_sha256, p.kind, p.topic_uuid, p.partition "
            "FROM rejects r JOIN stream_positions p USING (intake_id) "
            "WHERE r.rejected_at BETWEEN %s AND %s AND r.reject_id = ANY(%s) ORDER BY r.rejected_at, r.reject_id",
            (places[0][0], values["at"], [place[1] for place in places[:taken]]),
        ).fetchall()
        yield [Kept(*row) for row in rows]


def missing(connection: psycopg.Connection[tuple[Any, ...]], ids: Sequence[int]) -> list[int]:
    """Those of the numbers that no reject has."""
    rows = connection.execute(
        "SELECT reject_id FROM rejects WHERE reject_id = ANY(%s)", (list(ids),)
    ).fetchall()
    return sorted(set(ids) - {row[0] for row in rows}) if ids else []


def count_waiting(connection: psycopg.Connection[tuple[Any, ...]], chosen: Chosen) -> int:
    """How many of the chosen rejects were not replayed yet."""
    condition, values = chosen.condition("rejected_at", "reject_id")
    ((count,),) = connection.execute(
        f"SELECT count(*) FROM rejects r WHERE {condition} AND {_WAITING}", values
    ).fetchall()
    return int(count)


_DETAILS: Final = {
    EVENT_TYPES["void"]: "voids",
    EVENT_TYPES["refused"]: "refusals",
    EVENT_TYPES["heartbeat"]: "heartbeats",
}
_LISTED: Final = {
    "rejects": ("reject_id", "rejected_at", "code, source, event_id, field, detail, payload_bytes"),
    "conflicts": ("conflict_id", "conflicted_at", "source, event_id, payload_bytes"),
}


def listed(connection: Connection, table: str, chosen: Chosen, limit: int) -> list[dict[str, Any]]:
    """The last `limit` of the chosen rejects or conflicts, newest first; needs no right to their bytes."""
    identity, at, columns = _LISTED[table]
    condition, values = chosen.condition(at, identity)
    replayed = ", (SELECT replayed_at FROM replays p WHERE p.reject_id = r.reject_id) AS replayed_at"
    rows = connection.exec_driver_sql(
        f"SELECT r.{identity}, r.{at}, {columns}{replayed if table == 'rejects' else ''} FROM {table} r "
        f"WHERE {condition} ORDER BY r.{at} DESC, r.{identity} DESC LIMIT %(limit)s",
        {**values, "limit": limit},
    ).mappings()
    return [dict(row) for row in rows]


_PLACE: Final = (
    "r.batch_id, r.intake_id, p.kind, p.topic, p.partition, r.record_offset, r.index, "
    "r.source, r.event_id, r.payload_bytes, r.payload_sha256"
)


def read_reject(connection: Connection, reject_id: int) -> dict[str, Any]:
    """All that is known of a reject but its bytes. Raises BadInput when there is none of that number."""
    row = (
        connection.execute(
            text(
                f"SELECT r.reject_id, r.rejected_at, r.code, r.field, r.detail, {_PLACE}, "
                "y.replayed_at, y.batch_id AS replayed_in_batch "
                "FROM rejects r LEFT JOIN stream_positions p USING (intake_id) LEFT JOIN replays y USING (reject_id) "
                "WHERE r.reject_id = :id"
            ),
            {"id": reject_id},
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise BadInput(f"there is no reject {reject_id}; `metering rejects list` lists those that are kept")
    return dict(row)


def read_conflict(connection: Connection, conflict_id: int) -> dict[str, Any]:
    """All that is known of a conflict but its bytes. Raises BadInput when there is none of that number."""
    row = (
        connection.execute(
            text(
                f"SELECT r.conflict_id, r.conflicted_at, r.event_key, r.source_id, r.accepted_digest, r.refused_digest, "
                f"{_PLACE} FROM conflicts r LEFT JOIN stream_positions p USING (intake_id) WHERE r.conflict_id = :id"
            ),
            {"id": conflict_id},
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise BadInput(
            f"there is no conflict {conflict_id}; `metering conflicts list` lists those that are kept"
        )
    return dict(row)


def read_bytes(connection: Connection, table: str, identity: int) -> bytes:
    """The bytes kept of a reject or conflict; `connection` works as a role that may read them."""
    column = _LISTED[table][0]
    payload: bytes = connection.execute(
        text(f"SELECT payload FROM {table} WHERE {column} = :id"), {"id": identity}
    ).scalar_one()
    return bytes(payload)


_FURTHER: Final = ", ".join(f"{meter_sql(meter, 'u')} AS {meter}" for meter in FURTHER_METERS)


def read_accepted(connection: Connection, event_key: UUID, source_id: int) -> dict[str, Any] | None:
    """The ledger row of an identity with what its ids stand for, and `details` of one that is no usage.

    None where its day was archived.
    """
    row = (
        connection.execute(
            text(
                f"SELECT u.*, {_FURTHER}, s.customer, s.product, s.tier_sold, s.provider, s.model_served, s.tier_served, "
                "s.region, s.pool, s.ran_on, s.counts_for, s.context_breakpoint, o.source, j.project, e.seat, "
                "b.committed_at FROM usage_events u LEFT JOIN series s USING (series_id) "
                "LEFT JOIN sources o USING (source_id) "
                "LEFT JOIN projects j USING (project_id) LEFT JOIN seats e USING (seat_id) "
                "LEFT JOIN ingest_batches b USING (batch_id) WHERE u.event_key = :key AND u.source_id = :source"
            ),
            {"key": event_key, "source": source_id},
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        return None
    table = _DETAILS.get(row["event_type"])
    found = (
        None
        if table is None
        else connection.execute(
            text(f"SELECT d.* FROM {table} d WHERE event_key = :key AND source_id = :source"),
            {"key": event_key, "source": source_id},
        )
        .mappings()
        .one_or_none()
    )
    details = dict(found or {})
    if "target_source_id" in details:
        details["target_source"] = connection.execute(
            text("SELECT source FROM sources WHERE source_id = :id"), {"id": details["target_source_id"]}
        ).scalar_one_or_none()
    return {**row, "details": details}
