"""Rehash: the root of every batch computed again from its ledger rows, for `verify` to compare."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, Row, text

from metering.events.identity import series_digest
from metering.frames import DIMENSIONS
from metering.store.chain import aligned, batch_root, text_digest
from metering.store.ledger_rows import LEDGER_COLUMNS, Rows, select_rows
from metering.store.postgres import driver

#: Ledger rows that are hashed at a time: it bounds memory.
_ROWS_AT_ONCE: Final = 250_000


def series(connection: Connection) -> tuple[str, str | None]:
    """Every series is named by the digest of its dimensions, for the chain hashes that name alone.

    Returns how many were seen, and the first difference.
    """
    columns = ", ".join(DIMENSIONS)
    count, difference = 0, None
    query = text(f"SELECT series_id, series_digest, {columns} FROM series ORDER BY series_id")
    for row in connection.execute(query.execution_options(yield_per=10_000)):
        count += 1
        if difference is None and series_digest(row[2:]) != row.series_digest.bytes:
            difference = (
                f"series {row.series_id} {tuple(row[2:])} does not match its digest {row.series_digest}"
            )
    return f"{count:,} digests", difference


class _Names(dict[int, bytes]):
    """Digests by id; an id that stands for nothing has one that no text has."""

    def __missing__(self, key: int) -> bytes:
        return bytes(16)


def batch_roots(connection: Connection, progress: Callable[[str], None]) -> tuple[str, str | None]:
    """The root of every batch again, from its ledger rows; how many were seen, and the first difference."""
    raw = driver(connection)
    known = select_rows(
        raw, "SELECT series_id, series_digest FROM series", {"series_id": "int4", "digest": "uuid"}
    )
    digests = known["digest"].tobytes()
    named = {
        "series": _Names(
            (number, digests[16 * at : 16 * at + 16]) for at, number in enumerate(known["series_id"].tolist())
        )
    }
    for table, column in (("sources", "source"), ("projects", "project"), ("seats", "seat")):
        rows = connection.execute(text(f"SELECT {column}_id, {column} FROM {table}"))
        named[table] = _Names({0: text_digest(""), **{row[0]: text_digest(row[1]) for row in rows}})
    batches = connection.execute(
        text("SELECT batch_id, intake_id, sequence, accepted, root FROM ingest_batches ORDER BY batch_id")
    ).all()
    total, hashed, difference = sum(batch.accepted for batch in batches), 0, None
    at = 0
    while at < len(batches):
        group: list[Row[Any]] = []
        events = 0
        while at < len(batches) and (not group or events + batches[at].accepted <= _ROWS_AT_ONCE):
            group.append(batches[at])
            events += batches[at].accepted
            at += 1
        difference = difference or _root_difference(connection, group, named)
        hashed += events
        progress(f"hashed {hashed:,} of {total:,} ledger rows")
    return f"{hashed:,} rows in {len(batches):,} roots", difference


def _root_difference(connection: Connection, group: list[Row[Any]], named: dict[str, _Names]) -> str | None:
    numbers = ", ".join(str(batch.batch_id) for batch in group)
    columns = ", ".join(f"coalesce({name}, -1)" if name == "duration_ms" else name for name in LEDGER_COLUMNS)
    rows = select_rows(
        driver(connection),
        f"SELECT {columns} FROM usage_events WHERE batch_id IN ({numbers})",
        LEDGER_COLUMNS,
    )
    texts: dict[int, dict[int, str]] = {}
    with_text = f"SELECT batch_id, ordinal, event_id FROM usage_events WHERE batch_id IN ({numbers})"
    for row in connection.execute(text(f"{with_text} AND event_id <> ''")):
        texts.setdefault(row.batch_id, {})[row.ordinal] = row.event_id
    rows = rows[np.lexsort((rows["ordinal"], rows["batch_id"]))]
    for batch in group:
        start, end = np.searchsorted(rows["batch_id"], [batch.batch_id, batch.batch_id + 1])
        own = rows[start:end]
        name = f"batch {batch.batch_id} (intake {batch.intake_id}, sequence {batch.sequence})"
        repeated = np.flatnonzero(np.diff(own["ordinal"]) == 0)
        if len(repeated):
            return f"{name} holds two ledger rows of ordinal {own['ordinal'][repeated[0]]}"
        if _root(own, texts.get(batch.batch_id, {}), named) != bytes(batch.root):
            return f"{name}: its {len(own):,} ledger rows do not give its root {batch.root.hex()[:16]}"
    return None


def _root(rows: Rows, texts: dict[int, str], named: dict[str, _Names]) -> bytes:
    return batch_root(
        rows,
        series=aligned(rows["series_id"], named["series"]),
        sources=aligned(np.abs(rows["source_id"]), named["sources"]),
        projects=aligned(rows["project_id"], named["projects"]),
        seats=aligned(rows["seat_id"], named["seats"]),
        event_ids=[texts.get(ordinal, "") for ordinal in rows["ordinal"].tolist()] if texts else None,
    )
