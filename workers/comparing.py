"""Looking at what was refused: the bytes of a reject for people, and the two contents of a conflict side by side."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import polars as pl

from metering.core.usage import meter
from metering.errors import MeteringError
from metering.events import RecordBytes, decode
from metering.events.identity import request_keys
from metering.events.laws import DecodeLimits
from metering.meters import METERS
from metering.settings import Settings
from metering.store import refused
from metering.store.ledger import EVENT_TYPES, NONBILLABLE_REASONS, USAGE_SOURCES
from metering.store.partitions import floor
from metering.store.postgres import reading
from workers.loop import database_errors

#: What is compared, by its name in the ledger.
_FIELDS: Final = (
    *("occurred_at", "customer", "product", "tier_sold", "provider", "model_served", "tier_served", "region"),
    *("pool", "ran_on", "counts_for", "nonbillable_reason", "project", "seat", "request", "attempt"),
    *("usage_source", "duration_ms", *METERS),
)


@dataclass(frozen=True)
class Line:
    """A field as it was accepted and as it was refused."""

    field: str
    accepted: Any
    refused: Any

    @property
    def differs(self) -> bool:
        """Whether the two are not the same."""
        return bool(self.accepted != self.refused)


@dataclass(frozen=True)
class Comparison:
    """A conflict: its place, its fields side by side, and what could not be compared and why."""

    place: Mapping[str, Any]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def pretty(payload: bytes) -> str:
    """Bytes for people: JSON with its structure shown, else the text with control characters escaped."""
    try:
        return json.dumps(json.loads(payload), ensure_ascii=False, indent=1)
    except ValueError:
        return payload.decode("utf-8", "backslashreplace")


def compare(settings: Settings, conflict_id: int) -> Comparison:
    """The accepted content of an identity, from the ledger, and the refused one, from the bytes kept of it.

    What this user may not read, or what is not there any more, is left empty and said in `notes`.
    """
    notes: list[str] = []
    with database_errors(), reading(settings) as connection:
        place = refused.read_conflict(connection, conflict_id)
        row = refused.read_accepted(connection, place["event_key"], place["source_id"])
        limits = DecodeLimits.of(settings, floor(connection) or place["conflicted_at"])
    if row is None:
        notes.append("the accepted event is not in the ledger: its day was archived")
    accepted = {} if row is None else _accepted(row)
    other: dict[str, Any] = {}
    payload = b""
    try:
        with database_errors(), reading(settings, "rejects") as connection:
            payload = refused.read_bytes(connection, "conflicts", conflict_id)
        if len(payload) < place["payload_bytes"]:
            notes.append(
                f"only {len(payload):,} of the {place['payload_bytes']:,} bytes of the refused event are kept"
            )
        else:
            other = _refused(payload, place["conflicted_at"], limits)
    except MeteringError as error:
        notes.append(f"the refused content is not shown: {error}")
    lines = (
        [Line(name, accepted.get(name), other.get(name)) for name in _FIELDS] if accepted and other else []
    )
    if row is not None and other and row["event_type"] == EVENT_TYPES["usage"]:
        request = request_keys(pl.Series([other["customer"]]), pl.Series([other["request"]]))
        # the ledger keeps a key of customer and request, not the request's name
        same = request.tobytes() == row["request_key"].bytes
        at = _FIELDS.index("request")
        lines[at] = Line(
            "request", other["request"] if same else f"another ({row['request_key']})", other["request"]
        )
    if not other and not notes:
        notes.append(f"only usage is compared field by field; the refused content is {pretty(payload)}")
    return Comparison(
        {name: value for name, value in place.items() if name != "payload_sha256"}, tuple(lines), tuple(notes)
    )


def _accepted(row: Mapping[str, Any]) -> dict[str, Any]:
    reasons = {number: name for name, number in NONBILLABLE_REASONS.items()}
    sources = {number: name for name, number in USAGE_SOURCES.items()}
    return {
        **row,
        "nonbillable_reason": reasons.get(row["nonbillable_reason"]),
        "usage_source": sources.get(row["usage_source"]),
    }


def _refused(payload: bytes, at: datetime, limits: DecodeLimits) -> dict[str, Any]:
    record = RecordBytes(payload, "application/cloudevents+json", at)
    events, _ = meter(decode([record], limits=limits).events)
    if not events.height:
        return {}
    row = events.row(0, named=True)
    return {**row, "request": row["request_id"]}
