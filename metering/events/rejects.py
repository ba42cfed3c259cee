"""Why a record or event cannot be accepted: the closed list of codes, each with its meaning."""

from enum import StrEnum
from typing import Final, NamedTuple

#: Longest id, source, customer or other text of an event, in bytes of UTF-8.
TEXT_BYTES_MAX: Final = 200
#: The source under which quantities are entered by hand; no producer may use it.
SOURCE_OF_ADJUSTMENTS: Final = "adjustments"
#: Longest detail of a reject, in characters.
DETAIL_CHARACTERS_MAX: Final = 500


class RejectCode(StrEnum):
    """Why a record or event cannot be accepted. The meaning of each is what docs/events.md prints."""

    meaning: str

    def __new__(cls, code: str, meaning: str = "") -> "RejectCode":
        member = str.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    EMPTY_RECORD = "empty_record", "the record has no bytes, or nothing but white space"
    RECORD_TOO_LARGE = "record_too_large", "the record is larger than METERING_RECORD_BYTES_MAX, decompressed"
    TOO_MANY_EVENTS = "too_many_events", "the record holds more events than METERING_RECORD_EVENTS_MAX"
    CONTENT_TYPE_UNKNOWN = (
        "content_type_unknown",
        "the content-type header names no form of record that is known",
    )
    NOT_JSON = "not_json", "the bytes are not JSON in UTF-8 (also NaN, Infinity, half a surrogate pair)"
    NOT_AN_EVENT = (
        "not_an_event",
        "the JSON is not an object, or not the form that the content-type header names",
    )
    SPEC_VERSION_UNSUPPORTED = "spec_version_unsupported", "specversion is not 1.0"
    TYPE_NOT_SUPPORTED = "type_not_supported", "the type of event is not handled"
    MISSING_FIELD = "missing_field", "a required field is missing or null"
    WRONG_TYPE = (
        "wrong_type",
        "a field has another JSON type than it must have (an integer is never 1.0, 1e3 or true)",
    )
    VALUE_UNKNOWN = "value_unknown", "a field with a closed list of values has one that is not in it"
    QUANTITY_OUT_OF_RANGE = "quantity_out_of_range", "a number is negative or larger than it may be"
    ID_INVALID = "id_invalid", "the id is empty, longer than 200 bytes, or holds a NUL"
    SOURCE_INVALID = (
        "source_invalid",
        "the source is empty, longer than 200 bytes, holds a NUL, or is `adjustments`, which is that of entries by hand",
    )
    TEXT_INVALID = "text_invalid", "another text is empty, longer than 200 bytes, or holds a NUL"
    TIME_INVALID = (
        "time_invalid",
        "time, or a heartbeat's complete_until, is not an RFC 3339 date and time with a zone",
    )
    TIME_FROM_FUTURE = (
        "time_from_future",
        "time, or a heartbeat's complete_until, lies more than METERING_EVENT_AHEAD_SECONDS_MAX after the append time",
    )
    ID_FROM_FUTURE = (
        "id_from_future",
        "the time inside the id lies more than METERING_ID_AHEAD_SECONDS_MAX after the append time",
    )
    TOO_OLD = "too_old", "time, or the time inside the id, lies before the ledger's floor"
    POOL_MISSING = (
        "pool_missing",
        "ran_on is pool or overflow, or a refusal's reason is pool_full, and no capacity_pool is named",
    )
    REASON_CONTRADICTS = (
        "reason_contradicts",
        "billable is false without a nonbillable_reason, or true with one",
    )
    COUNTS_CONTRADICT = "counts_contradict", "two counts cannot both be true: a part is larger than its whole"
    DECODER_FAILED = "decoder_failed", "the decoder broke on these bytes (for example nested too deeply)"
    STORE_REFUSED = "store_refused", "the database refused this event alone"
    SOURCE_STOPPED = "source_stopped", "the source was stopped; its events are replayed when it is resumed"


class Fault(NamedTuple):
    """What is wrong with one event or record, where, and what would be right."""

    code: RejectCode
    field: str | None
    detail: str


def quoted(text: str) -> str:
    """A value as a message shows it: in quotes, escaped, its beginning only."""
    return repr(text if len(text) <= 64 else text[:61] + "...")


def cleaned(text: str) -> str:
    """A detail that any table and terminal can hold: no control characters, bounded."""
    kept = "".join(
        character if character.isprintable() else "\ufffd" for character in text[: DETAIL_CHARACTERS_MAX + 1]
    )
    return kept if len(kept) <= DETAIL_CHARACTERS_MAX else kept[: DETAIL_CHARACTERS_MAX - 3] + "..."


def keepable(text: object) -> str | None:
    """A text that may be stored as the name of a reject, else None."""
    if isinstance(text, str) and 0 < len(text.encode()) <= TEXT_BYTES_MAX and "\0" not in text:
        return text
    return None
