"""Declared frames of events, between the decoder and the ledger."""

from typing import Final

import polars as pl

from metering.frames.frame import INSTANT, Frame
from metering.frames.usage import DIMENSIONS
from metering.meters import FURTHER_METERS, METERS

#: One row per event as the producer sent it: counts by the producer's convention.
REPORTED_EVENTS: Final = Frame(
    "REPORTED_EVENTS",
    {
        "record": pl.Int32,  # index of the record within the poll
        "index": pl.Int32,  # index of the event within its record
        "event_id": pl.String,
        "source": pl.String,
        "occurred_at": INSTANT,
        "customer": pl.String,
        "request_id": pl.String,
        "attempt": pl.Int16,
        "product": pl.String,
        "tier_sold": pl.String,
        "provider": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "pool": pl.String,
        "ran_on": pl.String,
        "billable": pl.Boolean,
        "nonbillable_reason": pl.String,
        "project": pl.String,
        "seat": pl.String,
        "usage_convention": pl.String,
        "usage_source": pl.String,
        "duration_ms": pl.Int32,
        "input_tokens": pl.Int64,
        "cache_read_tokens": pl.Int64,
        "cache_write_5m_tokens": pl.Int64,
        "cache_write_1h_tokens": pl.Int64,
        "total_output_tokens": pl.Int64,
        "reported_reasoning_tokens": pl.Int64,
        "accelerator_ms": pl.Int64,
        **dict.fromkeys(FURTHER_METERS, pl.Int64),
        "context_tokens": pl.Int64,  # the largest input of one sampling; null: all of the input is one
    },
    key=("record", "index"),
    nullable=frozenset({"pool", "nonbillable_reason", "project", "seat", "duration_ms", "context_tokens"}),
)
#: One row per acceptable event, counts as disjoint meters.
EVENTS: Final = Frame(
    "EVENTS",
    {
        "record": pl.Int32,
        "index": pl.Int32,
        "event_id": pl.String,
        "source": pl.String,
        "occurred_at": INSTANT,
        **DIMENSIONS,
        "request_id": pl.String,
        "attempt": pl.Int16,
        "nonbillable_reason": pl.String,
        "project": pl.String,
        "seat": pl.String,
        "usage_source": pl.String,
        "duration_ms": pl.Int32,
        **dict.fromkeys(METERS, pl.Int32),
    },
    key=("record", "index"),
    nullable=frozenset({"pool", "nonbillable_reason", "project", "seat", "duration_ms"}),
    laws={"meters are not negative": pl.min_horizontal([pl.col(meter) for meter in METERS]) >= 0},
)
#: One row per acceptable event that is no usage; what its kind does not have is null.
NOTICES: Final = Frame(
    "NOTICES",
    {
        "record": pl.Int32,
        "index": pl.Int32,
        "event_id": pl.String,
        "source": pl.String,
        "occurred_at": INSTANT,
        "kind": pl.String,  # void | refused | heartbeat
        "reason": pl.String,  # void: free, may be null; refused: customer_limit | pool_full
        "target_source": pl.String,  # void: the event that it takes back
        "target_id": pl.String,
        "side": pl.String,  # charge | both
        "customer": pl.String,  # refused, from here on
        "request_id": pl.String,
        "attempt": pl.Int16,
        "product": pl.String,
        "tier_sold": pl.String,
        "provider": pl.String,  # null: not chosen yet
        "model": pl.String,
        "region": pl.String,
        "pool": pl.String,
        "project": pl.String,
        "seat": pl.String,
        "estimated_input_tokens": pl.Int32,
        "estimated_output_tokens": pl.Int32,
        "sequence": pl.Int64,  # heartbeat
        "complete_until": INSTANT,
    },
    key=("record", "index"),
    nullable=frozenset(
        {
            *("reason", "target_source", "target_id", "side", "customer", "request_id", "attempt", "product"),
            *("tier_sold", "provider", "model", "region", "pool", "project", "seat", "sequence"),
            *("estimated_input_tokens", "estimated_output_tokens", "complete_until"),
        }
    ),
)
#: One row per record or event that cannot be accepted. `index` -1: the whole record.
REJECTS: Final = Frame(
    "REJECTS",
    {
        "record": pl.Int32,
        "index": pl.Int32,
        "code": pl.String,
        "field": pl.String,  # the first offending field
        "detail": pl.String,  # what is wrong and what would be right; never the value of an unknown field
        "source": pl.String,
        "event_id": pl.String,
        "payload": pl.Binary,  # the bytes of the event, or of the whole record
    },
    key=("record", "index"),
    nullable=frozenset({"field", "source", "event_id"}),
)
