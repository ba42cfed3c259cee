"""Details: every event without usage has its row in `voids`, `refusals` or `heartbeats`, with the content of its digest."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, text

from metering.events.notices import CONTENT, notice_digest
from metering.store.as_of import Scope, everything
from metering.store.ledger import EVENT_TYPES
from metering.store.partitions import floor, key_floor

_TABLES: Final[Mapping[str, str]] = {"void": "voids", "refused": "refusals", "heartbeat": "heartbeats"}
_KINDS: Final = {EVENT_TYPES[kind]: kind for kind in _TABLES}


def _columns(kind: str, table: str) -> str:
    """The columns of a table of details, named `<kind>_<column>`; where the content is an id, its text."""
    names = {"batch_id": f"{table}.batch_id", "occurred_at": f"{table}.occurred_at"}
    names |= {name: f"{table}.{name}" for name in CONTENT[kind]}
    if kind == "void":
        names["target_source"] = "(SELECT source FROM sources s WHERE s.source_id = voids.target_source_id)"
    return ", ".join(f"{place} AS {kind}_{name}" for name, place in names.items())


#: One pass over the ledger, whatever the number of kinds.
_EVENTS: Final = (
    "SELECT event_key, source_id, u.batch_id, u.event_id, u.occurred_at, u.digest, u.event_type, "
    f"{', '.join(_columns(kind, table) for kind, table in _TABLES.items())} "
    f"FROM (SELECT * FROM usage_events WHERE event_type IN ({', '.join(map(str, _KINDS))}) "
    "AND event_key >= :above) u "
    + " ".join(f"LEFT JOIN {table} USING (event_key, source_id)" for table in _TABLES.values())
)


def details(connection: Connection, scope: Scope = everything) -> tuple[str, str | None]:
    """Every such event against its details, and the other way round; how many were seen, the first difference.

    Details of an archived day are passed over: their events stand in its file.
    """
    seen: Counter[str] = Counter()
    difference = None
    floor_at = floor(connection)
    above = UUID(int=0) if floor_at is None else key_floor(floor_at)
    events = text(scope(_EVENTS)).execution_options(yield_per=10_000)
    for row in connection.execute(events, {"above": above}):
        kind = _KINDS[row.event_type]
        seen[kind] += 1
        difference = difference or _difference(kind, row)
    for kind, table in _TABLES.items():
        count = connection.execute(
            text(scope(f"SELECT count(*) FROM {table} WHERE event_key >= :above")), {"above": above}
        ).scalar_one()
        if difference is None and count != seen[kind]:
            difference = _stray(connection, scope, kind, table, above)
    return f"{seen.total():,} voids, refusals and heartbeats", difference


def _difference(kind: str, row: Row[Any]) -> str | None:
    table = _TABLES[kind]
    name = f"{kind} {row.event_id or row.event_key} of source {row.source_id} (batch {row.batch_id})"
    found = {field: getattr(row, f"{kind}_{field}") for field in ("batch_id", "occurred_at", *CONTENT[kind])}
    if found["batch_id"] is None:
        return f"{name} has no row in {table}"
    if (found["batch_id"], found["occurred_at"]) != (row.batch_id, row.occurred_at):
        return f"{name}: batch or time of its row in {table} are not those of the ledger"
    content = [found[field] for field in CONTENT[kind]]
    if notice_digest(kind, row.event_id or str(row.event_key), row.occurred_at, content) != row.digest:
        return f"{name}: its row in {table} does not give its digest"
    return None


def _stray(connection: Connection, scope: Scope, kind: str, table: str, above: UUID) -> str:
    row = connection.execute(
        text(
            scope(
                f"SELECT event_key, source_id, batch_id FROM {table} d WHERE event_key >= :above AND NOT EXISTS "
                "(SELECT FROM usage_events u WHERE u.event_key = d.event_key AND u.source_id = d.source_id "
                "AND u.event_type = :type) ORDER BY batch_id, event_key LIMIT 1"
            )
        ),
        {"above": above, "type": EVENT_TYPES[kind]},
    ).one()
    name = f"event {row.event_key} of source {row.source_id} (batch {row.batch_id})"
    return f"{table} names {name}, the ledger has no such {kind}"
