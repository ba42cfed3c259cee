"""As of a watermark: every table as a query would have found it when the watermark was pinned."""

from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection

from metering.store.watermarks import read_watermark

#: A statement as it is, or reading what was there as of a watermark.
Scope = Callable[[str], str]

#: Each name stands for its table in the statement that follows; the later ones read the earlier.
_TABLES: Final = """
    pinned AS (
        SELECT (at->>'intake_id')::int AS intake_id, (at->>'next_offset')::bigint AS next_offset,
            (at->>'next_sequence')::bigint AS next_sequence, decode(at->>'chain_head', 'hex') AS chain_head
        FROM public.watermarks CROSS JOIN jsonb_array_elements(positions) AS at WHERE watermark_id = {id}),
    ingest_batches AS NOT MATERIALIZED (
        SELECT b.* FROM public.ingest_batches b JOIN pinned p USING (intake_id) WHERE b.sequence < p.next_sequence),
    {by_batch},
    stream_positions AS NOT MATERIALIZED (
        SELECT p.*, kind, topic, topic_uuid, partition, retired_at
        FROM pinned p JOIN public.stream_positions USING (intake_id)),
    fold_positions AS NOT MATERIALIZED (SELECT intake_id, next_sequence FROM pinned),
    {by_interval},
    watermarks AS NOT MATERIALIZED (SELECT * FROM public.watermarks WHERE watermark_id <= {id}),
    bill_lines AS NOT MATERIALIZED (
        SELECT * FROM public.bill_lines WHERE bill_id IN (SELECT bill_id FROM bills)),
    period_closes AS NOT MATERIALIZED (SELECT * FROM public.period_closes WHERE watermark_id <= {id}),
    interventions AS NOT MATERIALIZED (
        SELECT * FROM public.interventions WHERE intervened_at <=
            (SELECT pinned_at FROM public.watermarks WHERE watermark_id = {id}))"""
_BY_BATCH: Final = (
    "usage_events",
    "batch_sources",
    "voids",
    "refusals",
    "heartbeats",
    "adjustments",
    "settlements",
    "bills",
)
_BY_INTERVAL: Final = ("usage_quarters", "pool_minutes", "pool_customer_minutes", "limit_minutes")


def everything(statement: str) -> str:
    """The statement as it is."""
    return statement


def as_of(connection: Connection, watermark_id: int | None) -> Scope:
    """What makes a SELECT read the state as of a watermark (None: `everything`).

    A batch belongs to the state when it lies before the watermark's position of its intake; rollups do by
    their interval. What names hold (series, sources, ...) is never changed. Raises BadInput for a watermark
    that does not exist.
    """
    if watermark_id is None:
        return everything
    number = read_watermark(connection, watermark_id).watermark_id
    by_batch = ", ".join(
        f"{table} AS NOT MATERIALIZED (SELECT * FROM public.{table} WHERE batch_id IN (SELECT batch_id FROM ingest_batches))"
        for table in _BY_BATCH
    )
    by_interval = ", ".join(
        f"{table} AS NOT MATERIALIZED (SELECT * FROM public.{table} WHERE interval_id <= {number})"
        for table in _BY_INTERVAL
    )
    shadows = _TABLES.format(id=number, by_batch=by_batch, by_interval=by_interval)

    def scoped(statement: str) -> str:
        rest = statement.lstrip()
        return (
            f"WITH {shadows}, {rest.removeprefix('WITH ')}"
            if rest.startswith("WITH ")
            else f"WITH {shadows} {rest}"
        )

    return scoped
