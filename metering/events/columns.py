"""Typed events, one struct each, gathered into columns; and the columns with every default said."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import polars as pl
from msgspec.structs import astuple

from metering.events import wire
from metering.events.identity import event_keys
from metering.events.instants import parse_instants
from metering.events.laws import BILLABLE, IS_SPLIT
from metering.frames.events import REPORTED_EVENTS
from metering.frames.frame import INSTANT
from metering.meters import FURTHER_METERS

#: Where a producer names no region.
REGION_DEFAULT: Final = "global"
#: Events turned into columns at a time: while their texts are still warm in the processor's cache, and few
#: enough that the garbage collector is never called to look at them.
_CHUNK_EVENTS: Final = 1_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_DTYPES: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "attempt": pl.Int16,
    "duration_ms": pl.Int32,
    "accelerator_ms": pl.Int64,
    "billable": pl.Boolean,
    **dict.fromkeys(wire.COUNT_FIELDS, pl.Int64),
}
_SHAPES: Final = ((wire.EVENT_FIELDS, "data"), (wire.DATA_FIELDS, "usage"), (wire.COUNT_FIELDS, None))
_UNUSED: Final = frozenset(
    {"specversion", "type", "datacontenttype", "dataschema", "data", "usage", "usage_format"}
)


class EventColumns:
    """Events with their places (record, index), growing record by record."""

    def __init__(self) -> None:
        self._waiting: list[wire.Event] = []
        self._tables: list[pl.DataFrame] = [_table([])]
        self._records: list[int] = []
        self._sizes: list[int] = []
        self._indexes: list[int] = []

    def add_lone(self, record: int, event: wire.Event) -> None:
        """Add the only event of a record."""
        self._waiting.append(event)
        self._indexes.append(0)
        self._records.append(record)
        self._sizes.append(1)
        if len(self._waiting) >= _CHUNK_EVENTS:
            self._settle()

    def add(self, record: int, events: Sequence[wire.Event], indexes: Sequence[int]) -> None:
        """Add events of a record, each with its index there."""
        self._waiting.extend(events)
        self._indexes.extend(indexes)
        self._records.append(record)
        self._sizes.append(len(events))
        if len(self._waiting) >= _CHUNK_EVENTS:
            self._settle()

    def _settle(self) -> None:
        self._tables.append(_table(self._waiting))
        self._waiting = []

    def frame(self, appended_at: Sequence[datetime]) -> pl.DataFrame:
        """All events under their names on the wire, and record, index, occurred_at, id_at, appended_at.

        `appended_at` is that of each record. `occurred_at` and `id_at` are null where there is none.
        """
        self._settle()
        events = pl.concat(self._tables, rechunk=True)
        instants = {at: (at - _EPOCH) // _MICROSECOND for at in set(appended_at)}
        appended_us = [instants[appended_at[record]] for record in self._records]
        records = np.repeat(np.array(self._records, dtype=np.int32), self._sizes)
        appended = np.repeat(np.array(appended_us, dtype=np.int64), self._sizes)
        return events.with_columns(
            pl.Series("record", records, dtype=pl.Int32),
            pl.Series("index", self._indexes, dtype=pl.Int32),
            parse_instants(events["time"]).alias("occurred_at"),
            event_keys(events["id"]).id_at.alias("id_at"),
            pl.Series("appended_at", appended).cast(INSTANT),
        )


def _table(events: list[wire.Event]) -> pl.DataFrame:
    series = []
    rows: Sequence[Any] = events
    for fields, inner in (
        (wire.EVENT_FIELDS, "data"),
        (wire.DATA_FIELDS, "usage"),
        (wire.COUNT_FIELDS, None),
    ):
        columns: list[Sequence[Any]] = list(zip(*map(astuple, rows), strict=True)) or [()] * len(fields)
        series += [
            pl.Series(name, values, dtype=_DTYPES.get(name, pl.String))
            for name, values in zip(fields, columns, strict=True)
            if name not in _UNUSED
        ]
        rows = columns[fields.index(inner)] if inner else ()
    return pl.DataFrame(series)


def reported(events: pl.DataFrame) -> pl.DataFrame:
    """Lawful events with every default said, as frames.REPORTED_EVENTS."""
    split_5m = pl.when(IS_SPLIT).then(pl.col("cache_write_5m_tokens")).otherwise(pl.col("cache_write_tokens"))
    return REPORTED_EVENTS.conform(
        events.with_columns(
            pl.col("id").alias("event_id"),
            pl.col("subject").alias("customer"),
            pl.col("attempt").fill_null(1),
            pl.coalesce("product", "model_served").alias("product"),
            pl.coalesce("tier_sold", "tier_served").alias("tier_sold"),
            pl.col("region").fill_null(REGION_DEFAULT),
            pl.col("capacity_pool").alias("pool"),
            pl.col("ran_on").fill_null("on_demand"),
            BILLABLE,
            pl.col("usage_source").fill_null("provider"),
            pl.col("cache_read_tokens").fill_null(0),
            split_5m.fill_null(0).alias("cache_write_5m_tokens"),
            pl.col("cache_write_1h_tokens").fill_null(0),
            pl.col("output_tokens").alias("total_output_tokens"),
            pl.col("reasoning_tokens").fill_null(0).alias("reported_reasoning_tokens"),
            pl.col("accelerator_ms", *FURTHER_METERS).fill_null(0),
        )
    )
