"""What the types of an event cannot say: bounds of texts and times, and fields that contradict each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

import polars as pl

from metering.events.rejects import SOURCE_OF_ADJUSTMENTS, TEXT_BYTES_MAX, RejectCode
from metering.events.wire import NONBILLABLE_REASONS
from metering.frames.frame import INSTANT
from metering.settings import Settings

_TEXTS: Final = {  # column -> name on the wire, in the order in which they are looked at
    "id": "id",
    "source": "source",
    "subject": "subject",
    **{
        name: f"data.{name}"
        for name in (
            *("request_id", "provider", "product", "tier_sold", "model_served", "tier_served", "region"),
            *("capacity_pool", "project", "seat"),
        )
    },
}
_TEXT_CODES: Final = {"id": RejectCode.ID_INVALID, "source": RejectCode.SOURCE_INVALID}
BILLABLE: Final = pl.col("billable").fill_null(True)
_SPLIT: Final = pl.sum_horizontal("cache_write_5m_tokens", "cache_write_1h_tokens")
IS_SPLIT: Final = (
    pl.col("cache_write_5m_tokens").is_not_null() | pl.col("cache_write_1h_tokens").is_not_null()
)


@dataclass(frozen=True)
class DecodeLimits:
    """The bounds of a record and of the times in it. `ledger_floor`: the ledger takes nothing before it."""

    record_bytes_max: int
    record_events_max: int
    event_ahead_seconds_max: int
    id_ahead_seconds_max: int
    ledger_floor: datetime

    @classmethod
    def of(cls, settings: Settings, ledger_floor: datetime) -> "DecodeLimits":
        """The limits that the settings name, over a ledger with this floor."""
        return cls(
            settings.record_bytes_max,
            settings.record_events_max,
            settings.event_ahead_seconds_max,
            settings.id_ahead_seconds_max,
            ledger_floor,
        )


class Law(NamedTuple):
    """A rule on every event: where `broken` holds the event is a reject with this code, field and detail."""

    code: RejectCode
    field: str
    broken: pl.Expr
    detail: pl.Expr


def laws(limits: DecodeLimits, *, nul: bool) -> list[Law]:
    """The laws in the order in which they are looked at: the first that is broken names the reject."""
    ran_on, pool = pl.col("ran_on"), pl.col("capacity_pool")
    return [
        *(text_law(column, name, nul=nul) for column, name in _TEXTS.items()),
        *time_laws(limits),
        Law(
            RejectCode.POOL_MISSING,
            "data.capacity_pool",
            ran_on.is_in(["pool", "overflow"]) & pool.is_null(),
            pl.format(
                "ran_on is {}, so capacity_pool must name the pool that the request was meant for", ran_on
            ),
        ),
        Law(
            RejectCode.MISSING_FIELD,
            "data.ran_on",
            ran_on.is_null() & pool.is_not_null(),
            pl.lit("data.ran_on is missing; beside a capacity_pool it must be pool, overflow or on_demand"),
        ),
        Law(
            RejectCode.REASON_CONTRADICTS,
            "data.nonbillable_reason",
            ~BILLABLE & pl.col("nonbillable_reason").is_null(),
            pl.lit(
                f"billable is false, so nonbillable_reason must be one of {', '.join(NONBILLABLE_REASONS)}"
            ),
        ),
        Law(
            RejectCode.REASON_CONTRADICTS,
            "data.nonbillable_reason",
            BILLABLE & pl.col("nonbillable_reason").is_not_null(),
            pl.format("nonbillable_reason is {}, but billable is not false", pl.col("nonbillable_reason")),
        ),
        Law(
            RejectCode.COUNTS_CONTRADICT,
            "data.usage.cache_write_tokens",
            IS_SPLIT & (pl.col("cache_write_tokens") != _SPLIT),
            pl.format(
                "cache_write_tokens is {}, but cache_write_5m_tokens + cache_write_1h_tokens is {}",
                *(pl.col("cache_write_tokens"), _SPLIT),
            ),
        ),
    ]


def time_laws(limits: DecodeLimits) -> list[Law]:
    """The laws on the time of any event, and on the time inside its id."""
    floor = pl.lit(limits.ledger_floor, dtype=INSTANT)
    occurred_at, id_at, appended_at = pl.col("occurred_at"), pl.col("id_at"), pl.col("appended_at")
    return [
        instant_law("time", "occurred_at", "time"),
        Law(
            RejectCode.TIME_FROM_FUTURE,
            "time",
            occurred_at > appended_at + pl.duration(seconds=limits.event_ahead_seconds_max),
            pl.format(
                "time is {}, more than {} s after the record was appended at {}",
                *(_start("time"), pl.lit(limits.event_ahead_seconds_max), _instant("appended_at")),
            ),
        ),
        Law(
            RejectCode.ID_FROM_FUTURE,
            "id",
            id_at > appended_at + pl.duration(seconds=limits.id_ahead_seconds_max),
            pl.format(
                "the time inside the id is {}, more than {} s after the record was appended at {}",
                *(_instant("id_at"), pl.lit(limits.id_ahead_seconds_max), _instant("appended_at")),
            ),
        ),
        Law(
            RejectCode.TOO_OLD,
            "time",
            occurred_at < floor,
            pl.format(
                "time is {}, before the ledger's floor {}", _start("time"), pl.lit(_iso(limits.ledger_floor))
            ),
        ),
        Law(
            RejectCode.TOO_OLD,
            "id",
            id_at < floor,
            pl.format(
                "the time inside the id is {}, before the ledger's floor {}",
                *(_instant("id_at"), pl.lit(_iso(limits.ledger_floor))),
            ),
        ),
    ]


def instant_law(column: str, instant: str, name: str) -> Law:
    """The law that a text (`column`) could be read as an `instant`; `name` is that on the wire."""
    return Law(
        RejectCode.TIME_INVALID,
        name,
        pl.col(column).is_not_null() & pl.col(instant).is_null(),
        pl.format(
            "{} is '{}'; it must be RFC 3339 with a zone: 2026-10-31T23:59:59.123456Z",
            pl.lit(name),
            _start(column),
        ),
    )


def text_law(column: str, name: str, *, nul: bool) -> Law:
    """The law on the size of a text; `nul` also looks for a NUL in it."""
    text = pl.col(column)
    size = text.str.len_bytes()
    broken = (size < 1) | (size > TEXT_BYTES_MAX)
    if nul:
        broken = broken | text.str.contains("\0", literal=True)
    if column == "source":
        broken = broken | (text == SOURCE_OF_ADJUSTMENTS)
    detail = (
        pl.when(size < 1)
        .then(pl.lit(f"{name} is empty; leave it out or name it"))
        .when(size > TEXT_BYTES_MAX)
        .then(
            pl.format("{} has {} bytes, at most {} are allowed", pl.lit(name), size, pl.lit(TEXT_BYTES_MAX))
        )
        .when(text == SOURCE_OF_ADJUSTMENTS)
        .then(pl.lit(f"{name} is '{SOURCE_OF_ADJUSTMENTS}', which is that of entries by hand; send another"))
        .otherwise(pl.lit(f"{name} holds a NUL"))
    )
    return Law(_TEXT_CODES.get(column, RejectCode.TEXT_INVALID), name, broken, detail)


def _start(column: str) -> pl.Expr:
    return pl.col(column).str.slice(0, 64)


def _instant(column: str) -> pl.Expr:
    return pl.col(column).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")


def _iso(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%dT%H:%M:%SZ")


_NAMED: Final = {
    "record": pl.Int32,
    "index": pl.Int32,
    **dict.fromkeys(("code", "field", "detail", "source", "event_id"), pl.String),
}


def put_to_laws(events: pl.DataFrame, laws: Sequence[Law]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The events that keep every law, and what is wrong with the others (as `refuse` wants it)."""
    if not events.select(pl.any_horizontal(law.broken.any() for law in laws)).item():
        return events, pl.DataFrame(schema=_NAMED)
    first = pl.coalesce(
        pl.when(law.broken).then(pl.lit(place, dtype=pl.Int16)) for place, law in enumerate(laws)
    ).alias("law")
    events = events.with_columns(first)
    broken = events.filter(pl.col("law").is_not_null())
    parts = [
        broken.filter(pl.col("law") == place).select(
            "record",
            "index",
            pl.lit(str(laws[place].code)).alias("code"),
            pl.lit(laws[place].field).alias("field"),
            laws[place].detail.alias("detail"),
            _keepable("source").alias("source"),
            _keepable("id").alias("event_id"),
        )
        for place in broken["law"].unique().to_list()
    ]
    return events.filter(pl.col("law").is_null()), pl.concat(parts)


def _keepable(column: str) -> pl.Expr:
    text = pl.col(column)
    fits = text.str.len_bytes().is_between(1, TEXT_BYTES_MAX) & ~text.str.contains("\0", literal=True)
    return pl.when(fits).then(text)
