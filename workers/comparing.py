"""Looking at what was refused: the bytes of a reject for people, and the two contents of a conflict side by side."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any, Final

import polars as pl

from metering.core.usage import meter
from metering.errors import MeteringError
from metering.events import RecordBytes, decode
from metering.events.identity import request_keys
from metering.events.laws import DecodeLimits
from metering.events.notices import CONTENT
from metering.meters import METERS
from metering.settings import Settings
from metering.store import refused
from metering.store.ledger import EVENT_TYPES, NONBILLABLE_REASONS, USAGE_SOURCES
from metering.store.partitions import floor
from metering.store.postgres import reading
from workers.loop import database_errors

#: What is compared of usage, by its name in the ledger; of a notice it is its content.
_USAGE: Final = (
    *("customer", "product", "tier_sold", "provider", "model_served", "tier_served", "region"),
    *("pool", "ran_on", "counts_for", "nonbillable_reason", "project", "seat", "request", "attempt"),
    *("usage_source", "duration_ms", *METERS),
)
_TYPES: Final = {number: name for name, number in EVENT_TYPES.items()}


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
    accepted = {} if row is None else _accepted(row)
    if row is None:
        notes.append("the accepted event is not in the ledger: its day was archived")
    other: dict[str, Any] = {}
    try:
        with database_errors(), reading(settings, "rejects") as connection:
            payload = refused.read_bytes(connection, "conflicts", conflict_id)
        if len(payload) < place["payload_bytes"]:
            notes.append(
                f"only {len(payload):,} of the {place['payload_bytes']:,} bytes of the refused event are kept"
            )
        else:
            other = _refused(payload, place["conflicted_at"], limits)
            if not other:
                notes.append(f"this program cannot read the refused content any more: {pretty(payload)}")
    except MeteringError as error:
        notes.append(f"the refused content is not shown: {error}")
    if row is not None and other.get("type") == "usage":
        # the ledger keeps a key of customer and request, not the request's name
        request = request_keys(pl.Series([other["customer"]]), pl.Series([other["request"]])).tobytes()
        same = request == row["request_key"].bytes
        accepted["request"] = other["request"] if same else f"another ({row['request_key']})"
    kinds = {accepted.get("type"), other.get("type")}
    contents = [CONTENT[kind] for kind in CONTENT if kind in kinds]
    fields = dict.fromkeys(("type", "occurred_at", *(_USAGE if "usage" in kinds else ()), *chain(*contents)))
    lines = [Line(name, accepted.get(name), other.get(name)) for name in fields if accepted or other]
    return Comparison(
        {name: value for name, value in place.items() if name != "payload_sha256"}, tuple(lines), tuple(notes)
    )


def _accepted(row: Mapping[str, Any]) -> dict[str, Any]:
    reasons = {number: name for name, number in NONBILLABLE_REASONS.items()}
    sources = {number: name for name, number in USAGE_SOURCES.items()}
    return {
        **row,
        "type": _TYPES[row["event_type"]],
        "nonbillable_reason": reasons.get(row["nonbillable_reason"]),
        "usage_source": sources.get(row["usage_source"]),
        **row["details"],
    }


def _refused(payload: bytes, at: datetime, limits: DecodeLimits) -> dict[str, Any]:
    record = RecordBytes(payload, "application/cloudevents+json", at)
    decoded = decode([record], limits=limits)
    if decoded.notices.height:
        row = decoded.notices.row(0, named=True)
        return {**row, "type": row["kind"]}
    events, _ = meter(decoded.events)
    if not events.height:
        return {}
    row = events.row(0, named=True)
    return {**row, "type": "usage", "request": row["request_id"]}
