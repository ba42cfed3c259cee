"""Origins: which batches of which intakes the usage behind a figure came in by."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from metering.errors import BadInput
from metering.frames import DIMENSIONS
from metering.store.as_of import as_of as scope_of

_BATCHES = """
    SELECT p.kind, p.topic, p.partition, b.batch_id, b.first_offset, b.next_offset, count(*) AS events
    FROM usage_events u JOIN ingest_batches b USING (batch_id) JOIN stream_positions p USING (intake_id)
    WHERE u.occurred_at >= :start AND u.occurred_at < :until
        AND u.series_id IN (SELECT series_id FROM series WHERE {about})
    GROUP BY p.kind, p.topic, p.partition, b.batch_id, b.first_offset, b.next_offset
    ORDER BY p.kind, p.topic, p.partition, b.first_offset, b.batch_id"""


@dataclass(frozen=True)
class Origin:
    """A batch, and how many of its events are behind the figure; topic and partition are null but for Kafka."""

    kind: str
    topic: str | None
    partition: int | None
    batch_id: int
    first_offset: int
    next_offset: int
    events: int


def read_origins(
    connection: Connection, start: datetime, until: datetime, as_of: int | None, about: Mapping[str, Any]
) -> list[Origin]:
    """The batches of the ledger rows in [start, until) of series with these dimensions (None: null).

    Compensating entries count as events: a void is in the batch that settled it. Days that were archived are in
    no ledger table. Reads the ledger, which takes its time where that is large.
    """
    unknown = [name for name in about if name not in DIMENSIONS]
    if unknown or not about:
        raise BadInput(
            f"batches are of usage: name any of {', '.join(DIMENSIONS)}"
            + (f", not {unknown[0]}" if unknown else "")
        )
    where = " AND ".join(
        f"{name} IS NULL" if value is None else f"{name} = :{name}" for name, value in about.items()
    )
    statement = scope_of(connection, as_of)(_BATCHES.format(about=where))
    values = {name: value for name, value in about.items() if value is not None}
    rows = connection.execute(text(statement), {"start": start, "until": until, **values})
    return [Origin(*row) for row in rows]
