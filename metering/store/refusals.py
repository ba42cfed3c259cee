"""Requests that were turned away because a pool was full, once each, for who sizes pools."""

from datetime import datetime

import polars as pl
from sqlalchemy import Connection, text

from metering.frames import REFUSED_REQUESTS
from metering.store.as_of import as_of as scope_of

_REFUSED = """
    SELECT DISTINCT ON (customer, request_id) {columns}
    FROM refusals
    WHERE reason = 'pool_full' AND occurred_at >= :start AND occurred_at < :until
    ORDER BY customer, request_id, occurred_at, event_key, source_id"""


def read_refused_requests(
    connection: Connection, start: datetime, until: datetime, as_of: int | None
) -> pl.DataFrame:
    """The first `pool_full` refusal in [start, until) of every customer and request_id: REFUSED_REQUESTS.

    `as_of`: a watermark, or None for all that is in the snapshot of `connection`.
    """
    scope = scope_of(connection, as_of)
    statement = scope(_REFUSED.format(columns=", ".join(REFUSED_REQUESTS.columns)))
    rows = connection.execute(text(statement), {"start": start, "until": until}).all()
    return REFUSED_REQUESTS.conform(
        pl.DataFrame([tuple(row) for row in rows], schema=dict(REFUSED_REQUESTS.columns), orient="row")
    )
