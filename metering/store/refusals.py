"""Requests that were turned away, once each: by full pools for who sizes them, by limits for who raises them."""

from datetime import datetime

import polars as pl
from sqlalchemy import Connection, text

from metering.frames.frame import Frame
from metering.frames.usage import LIMIT_REFUSED, REFUSED_REQUESTS
from metering.store.as_of import as_of as scope_of

_REFUSED = """
    SELECT DISTINCT ON (customer, request_id) {columns}
    FROM refusals
    WHERE reason = :reason AND occurred_at >= :start AND occurred_at < :until
    ORDER BY customer, request_id, occurred_at, event_key, source_id"""


def read_refused_requests(
    connection: Connection, start: datetime, until: datetime, as_of: int | None
) -> pl.DataFrame:
    """The first `pool_full` refusal in [start, until) of every customer and request_id: REFUSED_REQUESTS.

    `as_of`: a watermark, or None for all that is in the snapshot of `connection`.
    """
    return _first(connection, REFUSED_REQUESTS, "pool_full", start, until, as_of)


def read_limit_refused(
    connection: Connection, start: datetime, until: datetime, as_of: int | None
) -> pl.DataFrame:
    """The first `customer_limit` refusal in [start, until) of every customer and request_id: LIMIT_REFUSED.

    `as_of` as above.
    """
    return _first(connection, LIMIT_REFUSED, "customer_limit", start, until, as_of)


def _first(
    connection: Connection, frame: Frame, reason: str, start: datetime, until: datetime, as_of: int | None
) -> pl.DataFrame:
    scope = scope_of(connection, as_of)
    statement = scope(_REFUSED.format(columns=", ".join(frame.columns)))
    said = {"reason": reason, "start": start, "until": until}
    rows = connection.execute(text(statement), said).all()
    return frame.conform(pl.DataFrame([tuple(row) for row in rows], schema=dict(frame.columns), orient="row"))
