"""Watermarks: pinned points of knowledge. A report as of one never changes.

A watermark closes the interval of its number: its rollups are the sum over the intervals up to it. It holds
the position of every intake, read in the snapshot in which they were folded to their end, the catalog
revision, and the time before which no more input was expected. Watermarks are chained.
"""

import json
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, text

import metering
from metering.errors import BadInput
from metering.settings import Settings
from metering.settings import settings as process_settings
from metering.store.books import latest_revision
from metering.store.chain import GENESIS, head
from metering.store.heartbeats import SourceState, source_states
from metering.store.rollups import open_interval

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_POSITIONS: Final = (
    "SELECT intake_id, kind, topic, topic_uuid, partition, next_offset, next_sequence, "
    "encode(chain_head, 'hex') AS chain_head FROM stream_positions ORDER BY intake_id"
)
#: How far each partition in use was seen, least first. Where the fold lags behind, no further than what it
#: folded: rollups must not be called complete while committed batches wait for them.
_SEEN: Final = (
    "SELECT p.intake_id, p.topic, p.partition, CASE WHEN coalesce(f.next_sequence, 0) >= p.next_sequence "
    "THEN p.seen_until ELSE (SELECT b.appended_until FROM ingest_batches b WHERE b.intake_id = p.intake_id "
    "AND b.sequence < f.next_sequence AND b.appended_until IS NOT NULL ORDER BY b.sequence DESC LIMIT 1) END "
    "AS seen_until FROM stream_positions p LEFT JOIN fold_positions f USING (intake_id) "
    "WHERE p.kind = 'kafka' AND p.retired_at IS NULL "
    "ORDER BY seen_until NULLS FIRST, p.topic, p.partition LIMIT 1"
)


@dataclass(frozen=True)
class Knowledge:
    """What a report knows: a watermark, or the snapshot it is read in (`watermark_id` None: live)."""

    watermark_id: int | None
    catalog_revision: int  # 0: no catalog was applied
    complete_until: datetime | None  # None: nothing is known to be complete
    pinned_at: datetime | None


@dataclass(frozen=True)
class Watermark:
    """A watermark as it was pinned; `positions` are those of every intake, in order of intake_id."""

    watermark_id: int
    pinned_at: datetime
    positions: list[dict[str, Any]]
    catalog_revision: int
    program_version: str
    complete_until: datetime | None
    reason: str
    previous_head: bytes
    head: bytes

    @property
    def knowledge(self) -> Knowledge:
        """What a report as of this watermark knows."""
        return Knowledge(self.watermark_id, self.catalog_revision, self.complete_until, self.pinned_at)


_COLUMNS: Final = tuple(column.name for column in fields(Watermark))


@dataclass(frozen=True)
class HeldBack:
    """The partition that holds `complete_until` back; `seen_until` None: nothing of it was seen yet."""

    intake_id: int
    topic: str
    partition: int
    seen_until: datetime | None


def watermarks(connection: Connection, since: int = 1) -> list[Watermark]:
    """All watermarks from number `since` on, oldest first."""
    return _watermarks(connection, "watermark_id >= :id", since)


def read_watermark(connection: Connection, watermark_id: int) -> Watermark:
    """One watermark. Raises BadInput, naming those that there are, for one that was never pinned."""
    found = _watermarks(connection, "watermark_id = :id", watermark_id)
    if found:
        return found[0]
    last = open_interval(connection) - 1
    known = (
        f"there are watermarks 1 to {last}"
        if last
        else "none was pinned yet; `metering watermark pin` pins one"
    )
    raise BadInput(f"there is no watermark {watermark_id}: {known}")


def _watermarks(connection: Connection, condition: str, watermark_id: int) -> list[Watermark]:
    rows = connection.execute(
        text(f"SELECT {', '.join(_COLUMNS)} FROM watermarks WHERE {condition} ORDER BY watermark_id"),
        {"id": watermark_id},
    ).mappings()
    return [
        Watermark(**{**row, "previous_head": bytes(row["previous_head"]), "head": bytes(row["head"])})
        for row in rows
    ]


def read_knowledge(
    connection: Connection, as_of: int | None, *, settings: Settings | None = None
) -> Knowledge:
    """What is known as of a watermark or, with None, in the snapshot of `connection` (live).

    Live, `complete_until` is that of now or of the last watermark, whichever is later: it never moves back.
    Raises BadInput for a watermark that does not exist. `settings` gives the allowed lateness; the
    settings of the process where it is None.
    """
    if as_of is not None:
        return read_watermark(connection, as_of).knowledge
    return Knowledge(None, latest_revision(connection), complete_until(connection, settings), None)


def complete_until(connection: Connection, settings: Settings | None = None) -> datetime | None:
    """The time before which no more input is expected; None while that of any partition or source is unknown.

    The least `seen_until` over all partitions in use less the allowed lateness, no later than the last
    heartbeat of every registered source, and never before that of the last watermark. What was committed but
    not folded yet counts as not seen; a heartbeat counts once every partition is read as far as it.
    """
    configured = settings or process_settings()
    pinned: datetime | None = connection.execute(
        text("SELECT max(complete_until) FROM watermarks")
    ).scalar_one()
    now = reach(holding_back(connection, configured), configured)
    return max(filter(None, (pinned, now)), default=None)


def reach(held: HeldBack | SourceState | None, settings: Settings) -> datetime | None:
    """How far `complete_until` may go for what holds it back; None: not at all."""
    if isinstance(held, SourceState):
        return held.complete_until
    if held is None or held.seen_until is None:
        return None
    return held.seen_until - timedelta(seconds=settings.allowed_lateness_seconds)


def holding_back(connection: Connection, settings: Settings) -> HeldBack | SourceState | None:
    """What holds `complete_until` back: a partition in use or a registered source, whichever reaches least far.

    One that was never seen or heard comes first, a partition before a source. None without any partition.
    """
    row = connection.execute(text(_SEEN)).first()
    if row is None:
        return None
    unknown = datetime.min.replace(tzinfo=UTC)
    partition = HeldBack(*row)
    # the end of an idle partition is noted as seen at the time it was asked for less this
    skew = timedelta(seconds=settings.clock_skew_seconds)
    read_until = None if partition.seen_until is None else partition.seen_until + skew
    states = source_states(connection, folded=True, read_until=read_until)
    everything: list[HeldBack | SourceState] = [partition, *states]
    return min(everything, key=lambda held: reach(held, settings) or unknown)


def seconds_to_pin(connection: Connection, interval_seconds: int) -> float:
    """Until a watermark is due, one every `interval_seconds`; 0 when there is none. Ends the transaction."""
    since = connection.execute(
        text("SELECT extract(epoch FROM clock_timestamp() - max(pinned_at))::float8 FROM watermarks")
    ).scalar_one()
    connection.rollback()
    return 0.0 if since is None else max(0.0, interval_seconds - float(since))


def append_watermark(connection: Connection, settings: Settings, reason: str) -> Watermark:
    """Close the open interval: append the watermark of its number. For `workers.fold.pin` alone.

    The caller holds the lock KNOWLEDGE and has folded, in this same REPEATABLE READ transaction, every batch
    that the snapshot shows. It commits; if the process dies before that, the interval stays open.
    """
    watermark_id = open_interval(connection)
    previous = read_watermark(connection, watermark_id - 1).head if watermark_id > 1 else GENESIS
    positions = [
        {**row, "topic_uuid": row["topic_uuid"] and str(row["topic_uuid"])}
        for row in connection.execute(text(_POSITIONS)).mappings()
    ]
    # an intervention in the making is of before this watermark, or after it: never of before and not seen yet
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('interventions'))"))
    pinned_at = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    pinned = Watermark(
        watermark_id=watermark_id,
        pinned_at=pinned_at,
        positions=positions,
        catalog_revision=latest_revision(connection),
        program_version=metering.__version__,
        complete_until=complete_until(connection, settings),
        reason=reason,
        previous_head=previous,
        head=b"",
    )
    values = ", ".join(
        "CAST(:positions AS jsonb)" if name == "positions" else f":{name}" for name in _COLUMNS
    )
    connection.execute(
        text(f"INSERT INTO watermarks ({', '.join(_COLUMNS)}) VALUES ({values})"),
        {**vars(pinned), "positions": json.dumps(positions), "head": watermark_head(previous, pinned)},
    )
    return read_watermark(connection, watermark_id)


def watermark_head(previous_head: bytes, watermark: Watermark) -> bytes:
    """The head of the chain after a watermark: over all its columns; positions as JSON with sorted names."""
    return head(
        "metering watermark",
        previous_head,
        watermark.watermark_id,
        _microseconds(watermark.pinned_at),
        json.dumps(watermark.positions, sort_keys=True, separators=(",", ":")),
        watermark.catalog_revision,
        watermark.program_version,
        _microseconds(watermark.complete_until),
        watermark.reason,
    )


def _microseconds(instant: datetime | None) -> int | None:
    return None if instant is None else (instant - _EPOCH) // timedelta(microseconds=1)
