"""Events in: bytes of records -> typed events and rejects, per event, strictly, without a clock."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple, Protocol

import polars as pl

from metering.events import wire
from metering.events.columns import EventColumns, reported
from metering.events.laws import DecodeLimits, laws, put_to_laws
from metering.events.notices import Notice, NoticeRows, decode_notice, notice_laws
from metering.events.providers import decode_provider_event
from metering.events.rejects import Fault, RejectCode, cleaned
from metering.frames.events import NOTICES, REJECTS

#: Headers of a record that may be one event; others take the longer way.
_LONE_FORMS: Final = frozenset({"application/cloudevents+json", "application/x-ndjson", "application/json"})


class RawRecord(Protocol):
    """A record as Kafka hands it over: its value, its content-type header, the broker's append time (UTC)."""

    @property
    def value(self) -> bytes | None: ...
    @property
    def content_type(self) -> str | None: ...
    @property
    def appended_at(self) -> datetime: ...


class RecordBytes(NamedTuple):
    """A record that comes from elsewhere than the topic."""

    value: bytes | None
    content_type: str | None
    appended_at: datetime


@dataclass(frozen=True)
class Decoded:
    """What some records held: every event of them is a row of `events`, `notices` or `rejects`, of one only.

    `events` is a frames.REPORTED_EVENTS, `notices` a frames.NOTICES, `rejects` a frames.REJECTS; `record` is
    the position of the record in what was given. `unknown_fields`: per source, how many fields were dropped
    from events that were kept.
    """

    events: pl.DataFrame
    notices: pl.DataFrame
    rejects: pl.DataFrame
    unknown_fields: dict[str, int]


def decode(records: Sequence[RawRecord], *, limits: DecodeLimits) -> Decoded:
    """Read every event of some records. Never raises for what the bytes hold: that becomes a reject.

    First each record is read whole into typed events; only where that fails, event by event, so that one bad
    event never harms its neighbours. Then the columns are put to the laws that types cannot say.
    """
    read = _Read()
    for number, record in enumerate(records):
        if not _read_lone_event(read, number, record, limits):
            _read_record(read, number, record, limits)
    appended_at = [record.appended_at for record in records]
    events, refused = put_to_laws(read.columns.frame(appended_at), laws(limits, nul=read.nul))
    rejects = [_reject_frame(read.rejects), refuse(records, events=refused, refused=refused)]
    notices = NOTICES.empty()
    if len(read.notices):
        lawful, refused = put_to_laws(read.notices.frame(appended_at), notice_laws(limits))
        rejects.append(refuse(records, events=refused, refused=refused))
        notices = NOTICES.conform(lawful)
    return Decoded(reported(events), notices, REJECTS.conform(pl.concat(rejects)), read.unknown)


def refuse(records: Sequence[RawRecord], *, events: pl.DataFrame, refused: pl.DataFrame) -> pl.DataFrame:
    """Rejects (frames.REJECTS) of events that were decoded from `records` but cannot be accepted after all.

    `refused` has the columns record, index, code, field, detail; `events` is any frame that names source and
    event_id by record and index. The payload is cut out of the record again, so that nobody has to keep it.
    """
    named = events.select("record", "index", "source", "event_id").unique(["record", "index"])
    rows = refused.select("record", "index", "code", "field", "detail").join(
        named, on=["record", "index"], how="left", validate="1:1"
    )
    pieces: dict[int, list[bytes]] = {}
    rejects = []
    for record, index, code, field_name, detail, source, event_id in rows.iter_rows():
        if record not in pieces:
            pieces[record] = pieces_of(records[record])
        fault = Fault(RejectCode(code), field_name, cleaned(detail))
        rejects.append(_Reject(record, index, fault, source, event_id, pieces[record][index]))
    return REJECTS.conform(_reject_frame(rejects))


class _Reject(NamedTuple):
    record: int
    place: int
    fault: Fault
    source: str | None
    event_id: str | None
    payload: bytes


@dataclass
class _Read:
    """What has been read so far: events with their places, rejects, fields dropped by source."""

    columns: EventColumns = field(default_factory=EventColumns)
    notices: NoticeRows = field(default_factory=NoticeRows)
    rejects: list[_Reject] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    nul: bool = False

    def drop(self, source: str, unknown: int) -> None:
        if unknown:
            self.unknown[source] = self.unknown.get(source, 0) + unknown


def _read_lone_event(read: _Read, number: int, record: RawRecord, limits: DecodeLimits) -> bool:
    """Read a record that is one lawful event and nothing else; False leaves it for `_read_record`.

    Only speed: where a record holds one event, what `_read_record` finds out costs more than the event.
    """
    value, content_type = record.value, record.content_type
    if content_type is not None and content_type not in _LONE_FORMS:
        return False
    if not value or value[:1] != b"{" or b"\n" in value or not 0 < len(value) <= limits.record_bytes_max:
        return False
    try:
        event = wire.decode_strict(value)
    except wire.BAD_BYTES:
        return False
    read.columns.add_lone(number, event)
    read.nul = read.nul or _may_hold_nul(value)
    return True


def _read_record(read: _Read, number: int, record: RawRecord, limits: DecodeLimits) -> None:
    fault = _record_fault(record, limits)
    if fault is None:
        value = record.value or b""
        read.nul = read.nul or _may_hold_nul(value)
        form = _form(record)
        if form == "array":
            fault = _read_array(read, number, value, limits)
        elif form == "nothing":
            fault = wire.outline_fault(value)
        else:
            fault = _read_lines(read, number, [value] if form == "event" else wire.lines_of(value), limits)
    if fault is not None:
        read.rejects.append(_Reject(number, -1, fault, None, None, record.value or b""))


def _may_hold_nul(value: bytes) -> bool:
    """Whether an escaped NUL is in the bytes; most records hold no escape, which one byte tells much faster."""
    return b"\\" in value and b"\\u0000" in value


def _record_fault(record: RawRecord, limits: DecodeLimits) -> Fault | None:
    """What is wrong with the record as a whole, before it is read."""
    value = record.value
    if not value or value.isspace():
        return Fault(RejectCode.EMPTY_RECORD, None, "the record holds no event")
    if len(value) > limits.record_bytes_max:
        detail = (
            f"the record has {len(value)} bytes, at most {limits.record_bytes_max} are allowed; send less"
        )
        return Fault(RejectCode.RECORD_TOO_LARGE, None, detail)
    if wire.form_of(record.content_type) is None:
        detail = f"content-type is {record.content_type!r}; see docs/events.md for the forms of a record"
        return Fault(RejectCode.CONTENT_TYPE_UNKNOWN, None, cleaned(detail))
    return None


def _form(record: RawRecord) -> wire.Form:
    """The form of a record that has bytes and a known content type; `open` is settled by its bytes."""
    form = wire.form_of(record.content_type)
    assert form is not None, "asked after _record_fault"
    return wire.settled(record.value or b"") if form == "open" else form


def pieces_of(record: RawRecord) -> list[bytes]:
    """The bytes of each event of a record whose form is known, by its index."""
    value, form = record.value or b"", _form(record)
    if form == "array":
        return wire.elements_of(value) or []
    return [value] if form == "event" else wire.lines_of(value)


def _too_many(count: int, limits: DecodeLimits) -> Fault | None:
    if count <= limits.record_events_max:
        return None
    detail = f"the record holds more than {limits.record_events_max} events; send smaller ones"
    return Fault(RejectCode.TOO_MANY_EVENTS, None, detail)


def _read_array(read: _Read, number: int, value: bytes, limits: DecodeLimits) -> Fault | None:
    for decode_array in (wire.decode_strict_array, wire.decode_dropping_array):
        try:
            events = decode_array(value)
        except wire.BAD_BYTES:
            continue
        if (fault := _too_many(len(events), limits)) is not None:
            return fault
        if decode_array is wire.decode_dropping_array:
            for event, unknown in zip(events, wire.unknown_fields_of(value, len(events)), strict=True):
                read.drop(event.source, unknown)
        read.columns.add(number, events, range(len(events)))
        return None
    pieces = wire.elements_of(value, limits.record_events_max)
    if pieces is None:
        return wire.outline_fault(value)
    if (fault := _too_many(len(pieces), limits)) is None:
        _read_pieces(read, number, pieces)
    return fault


def _read_lines(read: _Read, number: int, lines: list[bytes], limits: DecodeLimits) -> Fault | None:
    if (fault := _too_many(len(lines), limits)) is not None:
        return fault
    decode_strict = wire.decode_strict
    try:
        events = [decode_strict(line) for line in lines]
    except wire.BAD_BYTES:
        _read_pieces(read, number, lines)
    else:
        read.columns.add(number, events, range(len(events)))
    return None


def _read_pieces(read: _Read, number: int, pieces: list[bytes]) -> None:
    """Read event by event: each becomes an event or a reject."""
    events, indexes = [], []
    for index, piece in enumerate(pieces):
        found: tuple[wire.Event | Notice, int] | Fault
        try:
            found = _read_event(piece)
            if isinstance(found, Fault) and found.code is RejectCode.TYPE_NOT_SUPPORTED:
                found = decode_notice(piece)
        except Exception as error:  # any exception of the decoder is a reject of that event
            found = Fault(RejectCode.DECODER_FAILED, None, f"the decoder broke with {type(error).__name__}")
        if isinstance(found, Fault):
            read.rejects.append(_Reject(number, index, found, *wire.named(piece), piece))
        else:
            event, unknown = found
            if isinstance(event, wire.Event):
                events.append(event)
                indexes.append(index)
            else:
                read.notices.add(number, index, event)
            read.drop(event.source, unknown)
    read.columns.add(number, events, indexes)


def _read_event(piece: bytes) -> tuple[wire.Event, int] | Fault:
    """An event of usage, in whichever shape its usage has; other types of event are a fault here."""
    likely = b'"usage_format"' in piece
    if likely and (found := decode_provider_event(piece)) is not None:
        return found
    plain = wire.decode_event(piece)
    # the name may be written with escapes
    if isinstance(plain, Fault) and not likely and b"\\u" in piece:
        return decode_provider_event(piece) or plain
    return plain


def _reject_frame(rejects: list[_Reject]) -> pl.DataFrame:
    rows = [
        (
            row.record,
            row.place,
            str(row.fault.code),
            row.fault.field,
            row.fault.detail,
            row.source,
            row.event_id,
            row.payload,
        )
        for row in rejects
    ]
    return pl.DataFrame(rows, schema=dict(REJECTS.columns), orient="row")
