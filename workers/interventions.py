"""Moving a position by hand, past what cannot be read or is gone: planned, shown, then recorded and done."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from metering.errors import BadInput
from metering.events import RecordBytes, decode
from metering.events.laws import DecodeLimits
from metering.settings import Settings
from metering.store import partitions, positions, postgres, schema
from metering.store.positions import Place
from metering.stream.consumer import Record
from metering.stream.lookback import Lookback
from metering.stream.topics import Admin
from workers.loop import database_errors

#: Records that are read to show what would be skipped, and those of them that are shown one by one.
_LOOKED_AT_MAX: Final = 1_000
_SHOWN_MAX: Final = 20


@dataclass(frozen=True)
class Move:
    """A position and where it would go: `kind` skip or gap, and what lies between, in lines for people."""

    at: Place
    to_offset: int
    kind: str
    lines: tuple[str, ...]


def plan_skip(settings: Settings, partition: int, to_offset: int) -> Move:
    """Skipping what lies between a position and `to_offset`, the first offset to be read again.

    Raises BadInput for an offset that does not lie ahead within the log.
    """
    at, first, end = _place_and_bounds(settings, partition)
    if not first <= at.next_offset <= end:
        raise BadInput(
            f"partition {partition}: the log holds offsets {first} to {end}, our position is {at.next_offset}; nothing is "
            f"there to skip. To go on with what the log holds: `metering stream gap {partition} --reason ...`"
        )
    if at.next_offset == end:
        raise BadInput(f"partition {partition} is read to its end, offset {end}: there is nothing to skip")
    if not at.next_offset < to_offset <= end:
        raise BadInput(
            f"--to {to_offset}: partition {partition} stands at offset {at.next_offset} and its log ends at {end}; "
            f"give {at.next_offset + 1} to {end}, the first offset to read again"
        )
    lines = [
        f"partition {partition} of {at.topic} would go on at offset {to_offset} in place of {at.next_offset}: "
        f"{to_offset - at.next_offset:,} offsets are skipped, for good",
        *_between(settings, at, to_offset),
    ]
    return Move(at, to_offset, "skip", tuple(lines))


def plan_gap(settings: Settings, partition: int, to_offset: int | None = None) -> Move:
    """Going on where the log no longer holds a position: at its first offset, or at its end.

    At the first where retention went past us, at the end where the log was truncated below us. `to_offset`
    is another offset of the log to go on at: what was read before is a duplicate and counts once. Raises
    BadInput when the log holds the position.
    """
    at, first, end = _place_and_bounds(settings, partition)
    if first <= at.next_offset <= end:
        raise BadInput(
            f"partition {partition}: the log holds our position {at.next_offset} (it has {first} to {end}); there is no "
            f"gap. To move past records: `metering stream skip {partition} --to OFFSET --reason ...`"
        )
    behind = at.next_offset < first
    if to_offset is None:
        to_offset = first if behind else end
    if not first <= to_offset <= end:
        raise BadInput(f"--to {to_offset}: the log of partition {partition} holds offsets {first} to {end}")
    known = (
        "" if at.appended_until is None else f"; what we read was appended until {_text(at.appended_until)}"
    )
    if behind:
        what = (
            f"records of {first - at.next_offset:,} offsets, {at.next_offset} to {first - 1}, were removed from the log "
            f"before they were read: they are lost unless their producers send them again{known}"
        )
    else:
        what = (
            f"the log ends at {end}, {at.next_offset - end:,} offsets below our position {at.next_offset}: it was truncated "
            f"or restored{known}. What was written since lies below {end}; `--to` reads it (what we have counts once)"
        )
    head = (
        f"partition {partition} of {at.topic} would go on at offset {to_offset} in place of {at.next_offset}"
    )
    lines = [head, what]
    if behind and to_offset > first:
        lines += [f"besides, {to_offset - first:,} offsets that the log holds are skipped, for good"]
    with Lookback(settings) as lookback:
        next_record = lookback.look(partition, to_offset, end, records_max=1).records
    if next_record:
        lines.append(
            f"the next record, at offset {next_record[0].offset}, was appended at {_text(next_record[0].appended_at)}"
        )
    return Move(at, to_offset, "gap", tuple(lines))


def apply(settings: Settings, move: Move, reason: str) -> str:
    """Record the intervention and move the position, in one transaction; the owner of the partition is fenced."""
    reason = positions.checked_reason(reason)
    with database_errors(), postgres.connect(settings, "operator") as connection, connection.begin():
        number = positions.move(
            connection, move.at, move.to_offset, move.kind, by=positions.operator_name(), reason=reason
        )
    return (
        f"partition {move.at.partition} goes on at offset {move.to_offset}; recorded as intervention {number}"
    )


def _place_and_bounds(settings: Settings, partition: int) -> tuple[Place, int, int]:
    """Where a partition stands, and the first offset and the end of its log."""
    with Admin(settings) as admin:
        topic = admin.get()
        with database_errors(), postgres.connect(settings, "read") as connection:
            schema.check_version(connection)
            at = positions.place(connection, topic.uuid, partition)
        first, end = admin.offsets(topic, earliest=True), admin.offsets(topic, undecided=True)
    return at, first[partition], end[partition]


def _between(settings: Settings, at: Place, to_offset: int) -> Sequence[str]:
    """What can be read between a position and `to_offset`: places, sizes, times, identities; never contents."""
    with Lookback(settings) as lookback:
        look = lookback.look(at.partition, at.next_offset, to_offset, records_max=_LOOKED_AT_MAX)
    with database_errors(), postgres.connect(settings, "read") as connection:
        floor = partitions.floor(connection)
    lines = []
    if look.records and floor is not None:
        size = sum(len(record.value or b"") for record in look.records)
        lines.append(
            f"{len(look.records):,} records of {size:,} bytes can be read, to offset {look.next_offset - 1}:"
        )
        limits = DecodeLimits.of(settings, floor)
        lines += [_line(record, limits) for record in look.records[:_SHOWN_MAX]]
        if len(look.records) > _SHOWN_MAX:
            lines.append(f"  and {len(look.records) - _SHOWN_MAX:,} more")
    if look.problem is not None:
        lines.append(f"the rest, from offset {look.next_offset} on, cannot be looked at: {look.problem}")
    elif look.next_offset < to_offset:
        lines.append(f"the rest, from offset {look.next_offset} on, was not looked at")
    elif not look.records:
        lines.append("there is no committed record between them")
    return lines


def _line(record: Record, limits: DecodeLimits) -> str:
    decoded = decode([RecordBytes(record.value, record.content_type, record.appended_at)], limits=limits)
    sources, ids = [], []
    for frame in (decoded.events, decoded.notices, decoded.rejects):
        sources += frame["source"].drop_nulls().to_list()
        ids += frame["event_id"].drop_nulls().to_list()
    names = ", ".join(sorted(set(sources))[:3]) or "no readable source"
    span = f", ids {ids[0]} to {ids[-1]}" if len(ids) > 1 else f", id {ids[0]}" if ids else ""
    return (
        f"  offset {record.offset}: {len(record.value or b''):,} bytes, appended {_text(record.appended_at)}, "
        f"{decoded.events.height + decoded.notices.height:,} events and {decoded.rejects.height:,} rejects of {names}{span}"
    )


def _text(at: object) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
