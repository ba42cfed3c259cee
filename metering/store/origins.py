"""Origins: which batches of which intakes the usage behind a figure came in by."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, text

from metering.errors import BadInput
from metering.frames.usage import DIMENSIONS
from metering.periods import DAY
from metering.store.as_of import as_of as scope_of
from metering.store.partitions import key_floor
from metering.store.rollups import REQUESTS

_BATCHES: Final = f"""
    SELECT p.kind, p.topic, p.partition, b.batch_id, b.first_offset, b.next_offset, count(*) AS events,
        coalesce(sum({REQUESTS}), 0) AS requests
    FROM usage_events u JOIN ingest_batches b USING (batch_id) JOIN stream_positions p USING (intake_id)
        JOIN fold_positions f USING (intake_id)
    WHERE u.occurred_at >= :start AND u.occurred_at < :until AND u.series_id = ANY(:series)
        AND b.sequence < f.next_sequence AND {{keys}}
    GROUP BY p.kind, p.topic, p.partition, b.batch_id, b.first_offset, b.next_offset
    ORDER BY p.kind, p.topic, p.partition, b.first_offset, b.batch_id"""
_REQUESTS: Final = """
    SELECT coalesce(sum(requests), 0) FROM usage_quarters
    WHERE quarter_start >= :start AND quarter_start < :until AND series_id = ANY(:series)"""
#: How far from the time of an event its id is looked for first: ids are minted when an attempt starts.
ID_NEAR: Final = DAY
#: Keys of ids that carry no time begin here.
_UNORDERED: Final = UUID(int=1 << 127)


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
    """The batches of the folded ledger rows in [start, until) of series with these dimensions (None: null).

    Compensating entries count as events: a void is in the batch that settled it. Days that were archived are in
    no ledger table. A key carries the time of its id, so the days around the span are looked through, and all others
    only where these lack requests that the rollups have; an event and its void that both lie elsewhere cancel, and
    may be left out.
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
    values = {name: value for name, value in about.items() if value is not None}
    found = connection.execute(text(f"SELECT series_id FROM series WHERE {where}"), values).scalars()
    said = {"start": start, "until": until, "series": list(found)}
    scope = scope_of(connection, as_of)
    wanted = connection.execute(text(scope(_REQUESTS)), said).scalar_one()
    near = (
        f"(u.event_key >= '{key_floor(start - ID_NEAR)}' AND u.event_key < '{key_floor(until + ID_NEAR)}' "
        f"OR u.event_key >= '{_UNORDERED}')"
    )
    for keys in (near, "true"):
        rows = connection.execute(text(scope(_BATCHES.format(keys=keys))), said).all()
        if sum(row.requests for row in rows) == wanted:
            break
    return [Origin(*row[:-1]) for row in rows]
