"""Positions: how far each intake has been read, who may move it, and which records were moved past by hand."""

import getpass
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, text

from metering.errors import BadInput, Unavailable, WrongWorld
from metering.store.chain import GENESIS, head
from metering.store.postgres import KNOWLEDGE

_CLAIM_ATTEMPTS: Final = 5


@dataclass(frozen=True)
class Claim:
    """The right to append what an intake brings, from a position on, until somebody claims it anew.

    `topic_uuid` and `partition` are those of a Kafka intake, else null. The offsets of the other kinds count
    what was taken in: their own numbering, without gaps.
    """

    intake_id: int
    topic_uuid: UUID | None
    partition: int | None
    epoch: int
    next_offset: int
    next_sequence: int
    chain_head: bytes
    kind: str = "kafka"

    @property
    def name(self) -> str:
        """What a message calls this intake."""
        return f"partition {self.partition}" if self.kind == "kafka" else f"the intake of {self.kind}"


def register(
    connection: Connection, topic: str, topic_uuid: UUID, first_offsets: Mapping[int, int]
) -> list[int]:
    """Give every partition of a topic a position, where it has none; returns the partitions that got one.

    A partition begins at the first offset that the log still holds. Raises WrongWorld when positions of
    another topic exist: it was deleted and made again, or the settings name another one than before.
    """
    others = connection.execute(
        text(
            "SELECT DISTINCT topic, topic_uuid FROM stream_positions "
            "WHERE kind = 'kafka' AND topic_uuid <> :uuid AND retired_at IS NULL"
        ),
        {"uuid": topic_uuid},
    ).all()
    for other in others:
        if other.topic == topic:
            raise WrongWorld(remade(topic, other.topic_uuid, topic_uuid))
        raise WrongWorld(
            f"this database reads topic '{other.topic}', METERING_KAFKA_TOPIC is '{topic}': a ledger has one topic. "
            "Correct the setting or, if the other topic takes its place, run `metering stream adopt --reason ...`"
        )
    return _insert(connection, topic, topic_uuid, first_offsets)


def remade(topic: str, stored: object, found: object) -> str:
    """The message for a topic that is not the one whose positions are stored."""
    return (
        f"topic '{topic}' was deleted and made again: positions are stored for the topic with UUID {stored}, the broker "
        f"now has {found}. Records that were not read are gone with the old one. If that is understood, run "
        "`metering stream adopt --reason ...` to begin with the new topic"
    )


def _insert(
    connection: Connection, topic: str, topic_uuid: UUID, first_offsets: Mapping[int, int]
) -> list[int]:
    added = []
    for partition, offset in sorted(first_offsets.items()):
        made = connection.execute(
            text(
                "INSERT INTO stream_positions (kind, topic, topic_uuid, partition, next_offset, chain_head) "
                "VALUES ('kafka', :topic, :uuid, :partition, :offset, :genesis) "
                "ON CONFLICT (topic_uuid, partition) DO NOTHING RETURNING intake_id"
            ),
            {
                "topic": topic,
                "uuid": topic_uuid,
                "partition": partition,
                "offset": offset,
                "genesis": GENESIS,
            },
        ).scalar_one_or_none()
        if made is not None:
            added.append(partition)
    return added


def topic_uuid(connection: Connection, topic: str) -> UUID | None:
    """The UUID of the topic whose positions are in use; None where it has none."""
    found: UUID | None = connection.execute(
        text(
            "SELECT DISTINCT topic_uuid FROM stream_positions "
            "WHERE kind = 'kafka' AND topic = :topic AND retired_at IS NULL"
        ),
        {"topic": topic},
    ).scalar_one_or_none()
    return found


def adopt(
    connection: Connection,
    topic: str,
    topic_uuid: UUID,
    first_offsets: Mapping[int, int],
    *,
    by: str,
    reason: str,
) -> list[int]:
    """Begin with another topic: retire the old positions, give the new partitions theirs.

    Recorded as an intervention, chained. Raises BadInput without a reason or when there is nothing to adopt.
    The caller commits; if the process dies before that, nothing has changed.
    """
    if not reason.strip():
        raise BadInput("--reason is empty; say why the new topic takes the place of the old one")
    old = connection.execute(
        text(
            "UPDATE stream_positions SET retired_at = clock_timestamp(), epoch = epoch + 1 "
            "WHERE kind = 'kafka' AND topic_uuid <> :uuid AND retired_at IS NULL "
            "RETURNING intake_id, topic_uuid, partition, next_offset"
        ),
        {"uuid": topic_uuid},
    ).all()
    if not old:
        raise BadInput(
            f"there is nothing to adopt: the stored positions are those of topic '{topic}' as it is now"
        )
    added = _insert(connection, topic, topic_uuid, first_offsets)
    details = {
        "topic": topic,
        "topic_uuid": str(topic_uuid),
        "retired": [
            [row.intake_id, str(row.topic_uuid), row.partition, row.next_offset] for row in sorted(old)
        ],
        "first_offsets": {str(partition): first_offsets[partition] for partition in added},
    }
    intervene(connection, "adopt", by=by, reason=reason, details=details)
    return added


@dataclass(frozen=True)
class Place:
    """Where the intake of a partition stands, and until when its last batches were appended to the log."""

    intake_id: int
    topic: str
    topic_uuid: UUID
    partition: int
    next_offset: int
    next_sequence: int
    appended_until: datetime | None


def place(connection: Connection, topic_uuid: UUID, partition: int) -> Place:
    """Where a partition in use stands. Raises BadInput for one that has no position."""
    row = connection.execute(
        text(
            "SELECT intake_id, topic, topic_uuid, partition, next_offset, next_sequence, "
            "(SELECT appended_until FROM ingest_batches b WHERE b.intake_id = p.intake_id "
            "AND appended_until IS NOT NULL ORDER BY sequence DESC LIMIT 1) AS appended_until "
            "FROM stream_positions p "
            "WHERE topic_uuid = :uuid AND partition = :partition AND retired_at IS NULL"
        ),
        {"uuid": topic_uuid, "partition": partition},
    ).one_or_none()
    if row is None:
        known = connection.execute(
            text("SELECT min(partition), max(partition) FROM stream_positions WHERE topic_uuid = :uuid"),
            {"uuid": topic_uuid},
        ).one()
        raise BadInput(
            f"partition {partition} of the topic has no position"
            + ("" if known[0] is None else f"; there are {known[0]} to {known[1]}")
        )
    return Place(*row)


def move(connection: Connection, at: Place, to_offset: int, kind: str, *, by: str, reason: str) -> int:
    """Move a position by hand, from where it was seen to `to_offset`; returns the intervention's number.

    Whoever holds the claim is fenced: what it has read and not appended is not appended any more. The
    intervention names the batch before which the position jumps, and both offsets: `verify` accepts this
    jump and no other. The caller commits; if the process dies before that, nothing has changed. Raises
    BadInput when the position has moved since it was seen. Waits for a fold or pin at work.
    """
    # a move within a pin would be older than its watermark, and not in the positions that it pinned
    connection.exec_driver_sql("SET LOCAL lock_timeout = '60s'")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({KNOWLEDGE})")
    moved = connection.execute(
        text(
            "UPDATE stream_positions SET next_offset = :to, epoch = epoch + 1 WHERE intake_id = :intake_id "
            "AND next_offset = :next_offset AND next_sequence = :next_sequence AND retired_at IS NULL"
        ),
        {"to": to_offset, **vars(at)},
    ).rowcount
    if moved != 1:
        raise BadInput(
            f"the position of partition {at.partition} has moved since offset {at.next_offset} was seen; nothing was "
            "done. Look again: a worker may have got past it by itself"
        )
    details = {
        "intake_id": at.intake_id,
        "topic": at.topic,
        "partition": at.partition,
        "sequence": at.next_sequence,
        "from_offset": at.next_offset,
        "to_offset": to_offset,
    }
    return intervene(connection, kind, by=by, reason=reason, details=details)


@dataclass(frozen=True)
class Jump:
    """A position moved by hand, before the batch of `sequence`."""

    intervention_id: int
    sequence: int
    from_offset: int
    to_offset: int


def jumps(connection: Connection, scope: Callable[[str], str]) -> dict[int, list[Jump]]:
    """The recorded moves of every intake, in the order in which they were made; `scope` as of `as_of.as_of`."""
    rows = connection.execute(
        text(
            scope(
                "SELECT (details->>'intake_id')::int AS intake_id, intervention_id, "
                "(details->>'sequence')::bigint AS sequence, (details->>'from_offset')::bigint AS from_offset, "
                "(details->>'to_offset')::bigint AS to_offset FROM interventions "
                "WHERE kind IN ('skip', 'gap') AND details ? 'to_offset' ORDER BY intervention_id"
            )
        )
    )
    found: dict[int, list[Jump]] = {}
    for intake_id, *jump in rows:
        found.setdefault(intake_id, []).append(Jump(*jump))
    return found


def checked_reason(reason: str) -> str:
    """A reason that can stand in the record. Raises BadInput for an empty one or one of several lines."""
    if not reason.strip() or not reason.isprintable():
        raise BadInput("--reason must be one line of printable text that says why; it is kept for good")
    return reason.strip()


def intervene(connection: Connection, kind: str, *, by: str, reason: str, details: Mapping[str, Any]) -> int:
    """Append an intervention: who did what, why, to which offsets; chained to the one before."""
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('interventions'))"))
    last = connection.execute(
        text("SELECT intervention_id, head FROM interventions ORDER BY intervention_id DESC LIMIT 1")
    ).one_or_none()
    number, previous = (last.intervention_id + 1, bytes(last.head)) if last else (1, GENESIS)
    content = json.dumps(details, sort_keys=True, separators=(",", ":"))
    connection.execute(
        text(
            "INSERT INTO interventions (intervention_id, kind, by, reason, details, previous_head, head) "
            "VALUES (:number, :kind, :by, :reason, CAST(:details AS jsonb), :previous, :head)"
        ),
        {
            "number": number,
            "kind": kind,
            "by": by,
            "reason": reason,
            "details": json.dumps(details),
            "previous": previous,
            "head": head("metering intervention", previous, number, kind, by, reason, content),
        },
    )
    return number


def operator_name() -> str:
    """Who is at work, for the record of an intervention or a catalog revision."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return f"unknown@{socket.gethostname()}"


def worker_name() -> str:
    """This worker, as it appears as the owner of a partition."""
    return f"{socket.gethostname()}:{os.getpid()}"


def claim(
    connection: psycopg.Connection[tuple[Any, ...]],
    topic_uuid: UUID,
    partition: int,
    *,
    role: str,
    owner: str,
) -> Claim:
    """Take a partition over: from here on every older claim is fenced.

    Raises WrongWorld when the partition has no position. Commits; see `_take_over`.
    """
    found = _take_over(
        connection,
        "topic_uuid = %s AND partition = %s AND retired_at IS NULL",
        (topic_uuid, partition),
        name=f"partition {partition}",
        role=role,
        owner=owner,
    )
    if found is None:
        raise WrongWorld(
            f"partition {partition} of the topic has no position; nothing enters without one. "
            "Run `metering init` (the topic may have been given more partitions)"
        )
    return found


def claim_intake(
    connection: psycopg.Connection[tuple[Any, ...]], kind: str, *, role: str, owner: str
) -> Claim:
    """Take over the one intake of a kind that is not Kafka's, made at its first use. Commits; see `_take_over`."""
    assert kind != "kafka", "Kafka has an intake per partition: see claim"
    connection.execute(
        "INSERT INTO stream_positions (kind, next_offset, chain_head) VALUES (%s, 0, %s) "
        "ON CONFLICT (kind) WHERE kind <> 'kafka' DO NOTHING",
        (kind, GENESIS),
    )
    found = _take_over(connection, "kind = %s", (kind,), name=f"the intake of {kind}", role=role, owner=owner)
    assert found is not None, "the row was just made, and positions are never removed"
    return found


def _take_over(
    connection: psycopg.Connection[tuple[Any, ...]],
    where: str,
    values: tuple[Any, ...],
    *,
    name: str,
    role: str,
    owner: str,
) -> Claim | None:
    """Count the epoch of a position up and become its owner; None when there is no such position.

    A row lock that does not come within `lock_timeout` is held by a stalled owner (no timeout of Postgres
    reaches a client that stands still inside COPY): if the stored backend is still that process, it is
    terminated and the claim tried again. Commits.
    """
    with _login_user(connection, role):
        ((started_at,),) = connection.execute(
            "SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        ).fetchall()
    for _ in range(_CLAIM_ATTEMPTS):
        try:
            row = connection.execute(
                "UPDATE stream_positions SET epoch = epoch + 1, owner = %s, owner_pid = pg_backend_pid(), "
                f"owner_started_at = %s WHERE {where} RETURNING intake_id, topic_uuid, partition, epoch, "
                "next_offset, next_sequence, chain_head, kind",
                (owner, started_at, *values),
            ).fetchone()
        except LockNotAvailable:
            _terminate_owner(connection, where, values, role)
            continue
        if row is None:
            return None
        return Claim(row[0], row[1], row[2], row[3], row[4], row[5], bytes(row[6]), row[7])
    raise Unavailable(f"{name}: its position stays locked by another session")


def _terminate_owner(
    connection: psycopg.Connection[tuple[Any, ...]], where: str, values: tuple[Any, ...], role: str
) -> None:
    """End the backend that stands in the row as its owner, if it is still the same one."""
    with _login_user(connection, role):
        connection.execute(
            "SELECT pg_terminate_backend(a.pid, 2000) FROM stream_positions p JOIN pg_stat_activity a "
            "ON a.pid = p.owner_pid AND a.backend_start = p.owner_started_at AND a.pid <> pg_backend_pid() "
            f"WHERE {where}",
            values,
        )


@contextmanager
def _login_user(connection: psycopg.Connection[tuple[Any, ...]], role: str) -> Iterator[None]:
    """Work as the login user: its sessions' starts, and ending them, are closed to the worker's role."""
    connection.execute("SET ROLE NONE")
    try:
        yield
    finally:
        connection.execute(f"SET ROLE {role}")


def seen(connection: psycopg.Connection[tuple[Any, ...]], held: Claim, seen_until: datetime) -> bool:
    """Note that an idle partition has been read to its end as of `seen_until`; False when fenced."""
    return (
        connection.execute(
            "UPDATE stream_positions SET seen_until = greatest(seen_until, %s) "
            "WHERE intake_id = %s AND epoch = %s AND next_offset = %s",
            (seen_until, held.intake_id, held.epoch, held.next_offset),
        ).rowcount
        == 1
    )
