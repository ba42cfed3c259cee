"""Notices: events that are no usage. A void takes an event back, a refusal turned a request away, a heartbeat
says how far a source has sent. Their shape on the wire, their laws, and the digest of their content.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
import polars as pl
import xxhash

from metering.events import wire
from metering.events.columns import REGION_DEFAULT
from metering.events.identity import DIGEST_VERSION, event_keys, length_prefixed
from metering.events.instants import parse_instants
from metering.events.laws import DecodeLimits, Law, instant_law, text_law, time_laws
from metering.events.rejects import Fault, RejectCode, quoted
from metering.frames.events import NOTICES
from metering.frames.frame import INSTANT
from metering.meters import QUANTITY_MAX

_Quantity = Annotated[int, msgspec.Meta(ge=0, le=QUANTITY_MAX)]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class VoidData(msgspec.Struct, gc=False, kw_only=True):
    """The event to take back, and whether its cost stays (`charge`) or goes too (`both`)."""

    source: str
    id: str
    side: Literal["charge", "both"] | None = None
    reason: str | None = None


class RefusedData(msgspec.Struct, gc=False, kw_only=True):
    """What was asked for, why it was turned away, and how large it was guessed to be."""

    request_id: str
    attempt: Annotated[int, msgspec.Meta(ge=1, le=2**15 - 1)] | None = None
    reason: Literal["customer_limit", "pool_full"]
    product: str | None = None
    tier_sold: str
    provider: str | None = None
    model: str
    region: str | None = None
    capacity_pool: str | None = None
    project: str | None = None
    seat: str | None = None
    estimated_input_tokens: _Quantity | None = None
    estimated_output_tokens: _Quantity | None = None


class HeartbeatData(msgspec.Struct, gc=False, kw_only=True):
    """The number of this heartbeat, and the time before which everything has been sent."""

    sequence: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    complete_until: str


class _Attributes(msgspec.Struct, gc=False, kw_only=True):
    specversion: Literal["1.0"]
    id: str
    source: str
    time: str
    datacontenttype: str | None = None
    dataschema: str | None = None


class Void(_Attributes, gc=False, kw_only=True):
    """A void; who the customer was stands in the event that it names, so `subject` is ignored."""

    type: Literal["inference.void.v1"]
    subject: Any = None
    data: VoidData


class Refused(_Attributes, gc=False, kw_only=True):
    """A refusal: it counts as no usage."""

    type: Literal["inference.refused.v1"]
    subject: str
    data: RefusedData


class Heartbeat(_Attributes, gc=False, kw_only=True):
    """A heartbeat of a source; `subject` is ignored."""

    type: Literal["inference.heartbeat.v1"]
    subject: Any = None
    data: HeartbeatData


Notice = Void | Refused | Heartbeat


class _Kind(NamedTuple):
    name: str
    event: type[Notice]
    data: type[VoidData | RefusedData | HeartbeatData]
    #: the columns of frames.NOTICES that are its content, in the order of the digest
    content: tuple[str, ...]


_KINDS: Final[Mapping[str, _Kind]] = {
    "inference.void.v1": _Kind("void", Void, VoidData, ("target_source", "target_id", "side", "reason")),
    "inference.refused.v1": _Kind(
        "refused",
        Refused,
        RefusedData,
        (
            *("customer", "request_id", "attempt", "reason", "product", "tier_sold", "provider", "model"),
            *("region", "pool", "project", "seat", "estimated_input_tokens", "estimated_output_tokens"),
        ),
    ),
    "inference.heartbeat.v1": _Kind("heartbeat", Heartbeat, HeartbeatData, ("sequence", "complete_until")),
}
#: kind of notice -> its content in the order of the digest
CONTENT: Final[Mapping[str, tuple[str, ...]]] = {kind.name: kind.content for kind in _KINDS.values()}
_TYPES: Final = {kind.name: name for name, kind in _KINDS.items()}
#: Every type of event, for messages.
TYPES: Final = (wire.USAGE_TYPE, *_KINDS)


def decode_notice(piece: bytes) -> tuple[Notice, int] | Fault:
    """Read one event that is no usage: (notice, unknown fields dropped), or what is wrong with it.

    For pieces that wire.decode_event found to be a JSON object with a `type` that is not usage.
    """
    plain = wire.decode_any(piece)
    named = plain["type"]
    kind = _KINDS.get(named)
    if kind is None:
        detail = f"type is {quoted(named)}; it must be one of {', '.join(TYPES)}"
        return Fault(RejectCode.TYPE_NOT_SUPPORTED, "type", detail)
    try:
        notice: Notice = msgspec.convert(plain, kind.event)
    except wire.BAD_BYTES as failed:
        return wire.fault_of(failed, plain)
    attributes, data = kind.event.__struct_fields__, kind.data.__struct_fields__
    return notice, len(plain.keys() - set(attributes)) + len(plain["data"].keys() - set(data))


class NoticeRows:
    """Notices with their places (record, index), growing one by one."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(self, record: int, index: int, notice: Notice) -> None:
        """Add a notice of a record, with its index there."""
        data = notice.data
        row: dict[str, Any] = {"record": record, "index": index, "kind": _KINDS[notice.type].name}
        row |= {"id": notice.id, "source": notice.source, "time": notice.time}
        if isinstance(data, VoidData):
            row |= {"target_source": data.source, "target_id": data.id, "reason": data.reason}
            row["side"] = data.side or "charge"
        elif isinstance(data, RefusedData):
            row |= msgspec.structs.asdict(data)
            row |= {"customer": notice.subject, "attempt": data.attempt or 1, "pool": data.capacity_pool}
            row["product"] = data.model if data.product is None else data.product
            row["region"] = REGION_DEFAULT if data.region is None else data.region
        else:
            row |= {"sequence": data.sequence, "complete_until_text": data.complete_until}
        self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def frame(self, appended_at: Sequence[datetime]) -> pl.DataFrame:
        """All notices, to be put to the laws. `appended_at` is that of each record."""
        found = pl.DataFrame([{**row, "appended_at": appended_at[row["record"]]} for row in self._rows], _ROW)
        return found.with_columns(
            parse_instants(found["time"]).alias("occurred_at"),
            event_keys(found["id"]).id_at.alias("id_at"),
            parse_instants(found["complete_until_text"]).alias("complete_until"),
            pl.col("id").alias("event_id"),
        )


#: What `frame` is made of.
_ROW: Final = {
    **{name: dtype for name, dtype in NOTICES.columns.items() if name not in ("event_id", "occurred_at")},
    **dict.fromkeys(("id", "time", "complete_until_text"), pl.String),
    "appended_at": INSTANT,
}
_TEXTS: Final = {  # column -> name on the wire, in the order in which they are looked at
    "id": "id",
    "source": "source",
    "customer": "subject",
    "target_source": "data.source",
    "target_id": "data.id",
    "pool": "data.capacity_pool",
    **{
        name: f"data.{name}"
        for name in (
            *("reason", "request_id", "product", "tier_sold", "provider", "model", "region"),
            *("project", "seat"),
        )
    },
}


def notice_laws(limits: DecodeLimits) -> list[Law]:
    """The laws of notices, in the order in which they are looked at."""
    complete_until = pl.col("complete_until_text")
    return [
        *(text_law(column, name, nul=True) for column, name in _TEXTS.items()),
        *time_laws(limits),
        instant_law("complete_until_text", "complete_until", "data.complete_until"),
        Law(
            RejectCode.TIME_FROM_FUTURE,
            "data.complete_until",
            pl.col("complete_until")
            > pl.col("appended_at") + pl.duration(seconds=limits.event_ahead_seconds_max),
            pl.format(
                "data.complete_until is {}, more than {} s after the record was appended",
                *(complete_until.str.slice(0, 64), pl.lit(limits.event_ahead_seconds_max)),
            ),
        ),
        Law(
            RejectCode.POOL_MISSING,
            "data.capacity_pool",
            (pl.col("reason") == "pool_full") & (pl.col("kind") == "refused") & pl.col("pool").is_null(),
            pl.lit("reason is pool_full, so capacity_pool must name the pool that was full"),
        ),
    ]


def notice_digest(kind: str, event_id: str, occurred_at: datetime, content: Sequence[Any]) -> int:
    """The signed 64-bit xxh3 of a notice: of its type, id, time and CONTENT, each field length-prefixed.

    Instants are microseconds since 1970. The seed is DIGEST_VERSION; the source is half of the identity and
    therefore no content, as of usage.
    """
    fields = (_TYPES[kind], event_id, occurred_at, *content)
    encoded = b"".join(
        length_prefixed((field - _EPOCH) // _MICROSECOND if isinstance(field, datetime) else field)
        for field in fields
    )
    digest = xxhash.xxh3_64_intdigest(encoded, DIGEST_VERSION)
    return digest - 2**64 if digest >= 2**63 else digest


def notice_digests(notices: pl.DataFrame) -> list[int]:
    """The digest of every row of a frames.NOTICES."""
    return [
        notice_digest(
            row["kind"], row["event_id"], row["occurred_at"], [row[name] for name in CONTENT[row["kind"]]]
        )
        for row in notices.iter_rows(named=True)
    ]
