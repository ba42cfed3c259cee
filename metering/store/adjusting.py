"""Adjustments in the ledger: which ids stand there already, and all that were entered. Reads only."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, text

from metering.events.rejects import SOURCE_OF_ADJUSTMENTS
from metering.frames.usage import DIMENSIONS
from metering.meters import METERS
from metering.store.ledger_rows import meter_sql

_NUMBERS: Final = [meter_sql(meter, "u") for meter in METERS]
_NAMED: Final = ", ".join(f"{number} AS {meter}" for meter, number in zip(METERS, _NUMBERS, strict=True))
#: The source of every adjustment.
SOURCE: Final = SOURCE_OF_ADJUSTMENTS


@dataclass(frozen=True)
class Held:
    """What the ledger holds of an id: whether it adds (1) or takes away (-1), and the digest of its content."""

    sign: int
    digest: int


def held(connection: Connection, event_keys: Sequence[UUID]) -> dict[UUID, list[Held]]:
    """Those of the keys that stand in the ledger under the source of adjustments, with either sign."""
    rows = connection.execute(
        text(
            # OFFSET 0: a look-up of each key, whatever the planner believes of partitions without statistics
            "SELECT u.event_key, sign(u.source_id)::int AS sign, u.digest FROM sources s "
            "CROSS JOIN unnest(CAST(:keys AS uuid[])) AS k (event_key) CROSS JOIN LATERAL "
            "(SELECT * FROM usage_events e WHERE e.event_key = k.event_key "
            "AND e.source_id IN (s.source_id, -s.source_id) OFFSET 0) u "
            "WHERE s.source = :source ORDER BY 1, 2"
        ),
        {"keys": list(event_keys), "source": SOURCE},
    )
    found: dict[UUID, list[Held]] = {}
    for row in rows:
        found.setdefault(row.event_key, []).append(Held(row.sign, row.digest))
    return found


def added_to_pools(
    connection: Connection, series_digests: Sequence[UUID]
) -> dict[tuple[datetime, UUID], tuple[int, ...]]:
    """What adjustments add up to by minute and series, of these series: sums in the order of METERS."""
    rows = connection.execute(
        text(
            "SELECT date_bin('1 minute', u.occurred_at, 'epoch') AS minute, s.series_digest, "
            f"{', '.join(f'sum({number})::bigint' for number in _NUMBERS)} "
            "FROM adjustments a JOIN usage_events u USING (event_key, source_id) JOIN series s USING (series_id) "
            "WHERE s.series_digest = ANY(:digests) GROUP BY 1, 2"
        ),
        {"digests": list(series_digests)},
    )
    return {(minute, digest): tuple(sums) for minute, digest, *sums in rows}


def entered(connection: Connection, *, customer: str | None = None, limit: int) -> list[dict[str, Any]]:
    """The newest adjustments: id, when and by whom they were entered, series, quantities, reason.

    Of one in a day that was archived the series and quantities are null: they stand in the archive.
    """
    dimensions = ", ".join(f"s.{name}" for name in DIMENSIONS)
    rows = connection.execute(
        text(
            "SELECT coalesce(nullif(u.event_id, ''), a.event_key::text) AS id, b.committed_at AS entered_at, "
            f"a.author, u.occurred_at, {dimensions}, {_NAMED}, a.reason "
            "FROM adjustments a JOIN ingest_batches b USING (batch_id) "
            "LEFT JOIN usage_events u USING (event_key, source_id) LEFT JOIN series s USING (series_id) "
            "WHERE CAST(:customer AS text) IS NULL OR s.customer = :customer "
            "ORDER BY a.batch_id DESC, u.ordinal LIMIT :limit"
        ),
        {"customer": customer, "limit": limit},
    ).mappings()
    return [dict(row) for row in rows]
