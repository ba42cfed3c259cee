"""Events as they travel: the typed shape of one event, the forms of a record, what is wrong with bytes."""

import re
import sys
from typing import Annotated, Any, Final, Literal, get_args

import msgspec

from metering.events.rejects import Fault, RejectCode, cleaned, keepable, quoted
from metering.meters import QUANTITY_MAX

USAGE_TYPE: Final = "inference.usage.v1"


#: A count as it travels.
Quantity = Annotated[int, msgspec.Meta(ge=0, le=QUANTITY_MAX)]
_Attempt = Annotated[int, msgspec.Meta(ge=1, le=2**15 - 1)]
_RanOn = Literal["pool", "overflow", "on_demand"]
_Reason = Literal["retry", "failure", "refund", "internal", "test", "other"]
#: Why an attempt is not charged for.
NONBILLABLE_REASONS: Final[tuple[str, ...]] = get_args(_Reason)


class Counts(msgspec.Struct, gc=False, kw_only=True):
    """The producer's counts; null or missing means none, but the two totals must be said."""

    input_tokens: Quantity
    output_tokens: Quantity
    cache_read_tokens: Quantity | None = None
    cache_write_tokens: Quantity | None = None
    cache_write_5m_tokens: Quantity | None = None
    cache_write_1h_tokens: Quantity | None = None
    reasoning_tokens: Quantity | None = None
    audio_input_tokens: Quantity | None = None
    audio_output_tokens: Quantity | None = None
    image_input_tokens: Quantity | None = None
    image_output_tokens: Quantity | None = None
    tool_calls: Quantity | None = None
    context_tokens: Quantity | None = None


class Data(msgspec.Struct, gc=False, kw_only=True):
    """What was sold, what was served, where it ran."""

    request_id: str
    attempt: _Attempt | None = None
    provider: str
    product: str | None = None
    tier_sold: str | None = None
    model_served: str
    tier_served: str
    region: str | None = None
    capacity_pool: str | None = None
    ran_on: _RanOn | None = None
    billable: bool | None = None
    nonbillable_reason: _Reason | None = None
    project: str | None = None
    seat: str | None = None
    usage_format: None = None  # said: of another shape, `events.providers` has it
    usage_convention: Literal["inclusive", "disjoint"]
    usage_source: Literal["provider", "estimated", "partial"] | None = None
    duration_ms: Quantity | None = None
    accelerator_ms: Quantity | None = None
    usage: Counts


class Event(msgspec.Struct, gc=False, kw_only=True):
    """One usage event, its CloudEvents attributes around its data. Unknown fields are dropped."""

    specversion: Literal["1.0"]
    id: str
    source: str
    type: Literal["inference.usage.v1"]
    subject: str
    time: str
    datacontenttype: str | None = None
    dataschema: str | None = None
    data: Data


class _StrictCounts(Counts, forbid_unknown_fields=True, gc=False):
    pass


class _StrictData(Data, forbid_unknown_fields=True, gc=False, kw_only=True):
    usage: _StrictCounts


class _StrictEvent(Event, forbid_unknown_fields=True, gc=False, kw_only=True):
    data: _StrictData


# The rows of both shapes are read as tuples in this order.
EVENT_FIELDS: Final = Event.__struct_fields__
DATA_FIELDS: Final = Data.__struct_fields__
COUNT_FIELDS: Final = Counts.__struct_fields__
assert _StrictEvent.__struct_fields__ == EVENT_FIELDS, "the two shapes of an event have one order"
assert _StrictData.__struct_fields__ == DATA_FIELDS, "the two shapes of data have one order"

_EVENT_FIELDS: Final = frozenset(EVENT_FIELDS)
_DATA_FIELDS: Final = frozenset(DATA_FIELDS)
_COUNT_FIELDS: Final = frozenset(COUNT_FIELDS)

decode_strict = msgspec.json.Decoder(_StrictEvent).decode
_decode_dropping = msgspec.json.Decoder(Event).decode
decode_any = msgspec.json.Decoder().decode
decode_strict_array = msgspec.json.Decoder(list[_StrictEvent]).decode
decode_dropping_array = msgspec.json.Decoder(list[Event]).decode
_decode_raw_array = msgspec.json.Decoder(list[msgspec.Raw]).decode

#: What msgspec, JSON and the interpreter may raise on bytes that are merely bad.
BAD_BYTES: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def unknown_fields(event: bytes) -> int:
    """How many fields of an event are not in its shape (at least 1 where that cannot be told)."""
    try:
        return count_unknown(decode_any(event))
    except BAD_BYTES:
        return 1


def unknown_fields_of(value: bytes, count: int) -> list[int]:
    """The same for each of the `count` events of an array that could be read."""
    try:
        return [count_unknown(event) for event in decode_any(value)]
    except BAD_BYTES:
        pieces = elements_of(value) or []
        assert len(pieces) == count, "the outline and the typed reading of an array agree"
        return [unknown_fields(piece) for piece in pieces]


def count_unknown(event: Any) -> int:
    """The same of an event that is read into plain objects."""
    data = event["data"]
    return (
        len(event.keys() - _EVENT_FIELDS)
        + len(data.keys() - _DATA_FIELDS)
        + len(data["usage"].keys() - _COUNT_FIELDS)
    )


def decode_event(piece: bytes) -> tuple[Event, int] | Fault:
    """Read one event: (event, number of unknown fields dropped), or what is wrong with it."""
    try:
        return decode_strict(piece), 0
    except BAD_BYTES:
        pass
    try:
        return _decode_dropping(piece), unknown_fields(piece)
    except BAD_BYTES as failed:
        error: Exception = failed
    try:
        plain = decode_any(piece)
    except BAD_BYTES as failed:
        # not JSON at all says more than the field at which the typed reading stopped
        return _fault(error if isinstance(failed, msgspec.ValidationError) else failed)
    if (fault := envelope_fault(plain)) is not None:
        return fault
    try:
        # The last of duplicate keys wins, also where an earlier one has the wrong type.
        return msgspec.convert(plain, Event), count_unknown(plain)
    except BAD_BYTES as failed:
        return fault_of(failed, plain)


def fault_of(failed: Exception, plain: Any) -> Fault:
    """The reject that a failed reading of an event means, which `plain` holds as plain objects."""
    return _with_number(_fault(failed), plain)


def _with_number(fault: Fault, plain: Any) -> Fault:
    """Say which number is wrong. A text is not repeated: it may be what must never be kept in a table."""
    if fault.code not in (RejectCode.QUANTITY_OUT_OF_RANGE, RejectCode.WRONG_TYPE) or fault.field is None:
        return fault
    value = plain
    for name in fault.field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, int) and value.bit_length() > 64:
        return fault._replace(detail=f"{fault.detail}; it has more than 64 bits")
    if isinstance(value, bool | int | float):
        return fault._replace(detail=f"{fault.detail}; it is {str(value).lower()}")
    return fault


def envelope_fault(plain: Any) -> Fault | None:
    """What says that these are not bytes of a usage event at all, before its fields are looked at."""
    if not isinstance(plain, dict):
        return Fault(RejectCode.NOT_AN_EVENT, None, "an event is a JSON object")
    version, kind = plain.get("specversion"), plain.get("type")
    if isinstance(version, str) and version != "1.0":
        return Fault(
            RejectCode.SPEC_VERSION_UNSUPPORTED,
            "specversion",
            f"specversion is {quoted(version)}; it must be '1.0'",
        )
    if isinstance(kind, str) and kind != USAGE_TYPE:
        return Fault(
            RejectCode.TYPE_NOT_SUPPORTED,
            "type",
            f"type is {quoted(kind)}, not '{USAGE_TYPE}'",
        )
    return None


_MISSING = re.compile(r"Object missing required field `([\w.]+)`(?: - at `\$\.?(.*)`)?")
_PLACED = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)


def _fault(error: Exception) -> Fault:
    """The reject that an exception of the decoder means."""
    message = str(error)
    if isinstance(error, RecursionError):
        return Fault(RejectCode.DECODER_FAILED, None, "nested too deeply")
    if not isinstance(error, msgspec.ValidationError):
        return Fault(RejectCode.NOT_JSON, None, cleaned(f"not JSON in UTF-8: {message}"))
    if match := _MISSING.fullmatch(message):
        field = ".".join(part for part in (match[2], match[1]) if part)
        return Fault(RejectCode.MISSING_FIELD, field, f"{field} is missing; it is required")
    match = _PLACED.fullmatch(message)
    assert match is not None, message
    problem, field = str(match[1]), str(match[2] or "")
    if not field and "Expected `object`" in problem:
        return Fault(RejectCode.NOT_AN_EVENT, None, "an event is a JSON object")
    if problem.endswith("got `null`"):
        return Fault(RejectCode.MISSING_FIELD, field, f"{field} is null; it is required")
    if "Invalid enum value" in problem:
        return Fault(RejectCode.VALUE_UNKNOWN, field, cleaned(f"{field}: {problem}; {_allowed(field)}"))
    if "<=" in problem or ">=" in problem or "out of range" in problem:
        return Fault(RejectCode.QUANTITY_OUT_OF_RANGE, field, cleaned(f"{field}: {problem}"))
    return Fault(RejectCode.WRONG_TYPE, field, cleaned(f"{field}: {problem}"))


_CLOSED_LISTS: Final = {
    "data.ran_on": "pool, overflow or on_demand",
    "data.nonbillable_reason": ", ".join(NONBILLABLE_REASONS),
    "data.usage_convention": "inclusive or disjoint",
    "data.usage_source": "provider, estimated or partial",
    "data.side": "charge or both",
    "data.reason": "customer_limit or pool_full",
}


def _allowed(field: str) -> str:
    return (
        f"it must be {_CLOSED_LISTS[field]}"
        if field in _CLOSED_LISTS
        else "see docs/events.md for its values"
    )


def named(piece: bytes) -> tuple[str | None, str | None]:
    """The (source, id) that an event claims to have, each None where it cannot be read or kept."""
    try:
        plain = decode_any(piece)
    except BAD_BYTES:
        return None, None
    if not isinstance(plain, dict):
        return None, None
    return keepable(plain.get("source")), keepable(plain.get("id"))


# ---- forms of a record --------------------------------------------------------------------------------

WHITE: Final = b" \t\r\n"
Form = Literal["event", "array", "lines", "open", "nothing"]
_FORMS: Final[dict[str, Form]] = {
    "application/cloudevents+json": "event",
    "application/cloudevents-batch+json": "array",
    "application/x-ndjson": "lines",
    "application/json": "open",
}


def form_of(content_type: str | None) -> Form | None:
    """The form that a content-type header names; without one `open`, the bytes decide; None if unknown."""
    if content_type is None or not content_type.strip():
        return "open"
    name, _, parameters = content_type.partition(";")
    for parameter in parameters.split(";"):
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "charset" and value.strip().strip('"').lower() not in (
            "utf-8",
            "utf8",
            "us-ascii",
        ):
            return None
    return _FORMS.get(name.strip().lower())


def settled(value: bytes) -> Form:
    """The form of a record without a header: `[` opens an array, a line with `{` makes it lines."""
    if value.lstrip(WHITE)[:1] == b"[":
        return "array"
    if value.lstrip(WHITE)[:1] == b"{" or any(line.lstrip(WHITE)[:1] == b"{" for line in value.split(b"\n")):
        return "lines"
    return "nothing"


def outline_fault(value: bytes) -> Fault:
    """What is wrong with a record in which no events can be told apart."""
    try:
        decode_any(value)
    except msgspec.ValidationError:
        # a number beyond every range stopped the reading: it is not what is wrong with the outline
        return Fault(RejectCode.NOT_JSON, None, "no events can be told apart in it")
    except BAD_BYTES as error:
        return _fault(error)
    return Fault(
        RejectCode.NOT_AN_EVENT, None, "the record is JSON, but not the form of one that holds events"
    )


def lines_of(value: bytes) -> list[bytes]:
    """The lines of a record that hold anything. The carriage return of a line stays: JSON skips it."""
    return [line for line in value.split(b"\n") if line and not line.isspace()]


_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},"]', re.DOTALL)


#: An array with more commas may hold more elements than anybody wants to see at once in memory.
_COMMAS_MAX: Final = 400_000


def elements_of(value: bytes, elements_max: int = sys.maxsize) -> list[bytes] | None:
    """The elements of a JSON array, each as its bytes; None if the bytes are not an array in outline.

    A reader of brackets and strings only: it neither recurses nor looks inside, so that an element that is
    not JSON, or nested without end, leaves its neighbours alone. A long array is read no further than to the
    element that is one too many.
    """
    if value.count(b",") <= _COMMAS_MAX:
        try:
            return [bytes(element) for element in _decode_raw_array(value)]
        except BAD_BYTES:
            pass
    elements, depth, start, closed = [], 0, 0, -1
    for token in _TOKENS.finditer(value):
        sign = token.group()
        if closed >= 0 or sign == b'"':
            return None
        if sign in (b"[", b"{"):
            depth += 1
            if depth == 1:
                if sign != b"[" or value[: token.start()].strip(WHITE):
                    return None
                start = token.end()
        elif sign in (b"]", b"}"):
            depth -= 1
            if depth == 0:
                closed = token.end()
                elements.append(value[start : token.start()].strip(WHITE))
        elif sign == b"," and depth == 1:
            elements.append(value[start : token.start()].strip(WHITE))
            start = token.end()
            if len(elements) > elements_max:
                return elements
        if depth < 0:
            return None
    if closed < 0 or value[closed:].strip(WHITE):
        return None
    return elements
