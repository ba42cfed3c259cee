"""Rehash: the root of every batch computed again from its ledger rows, for `verify` to compare."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Row, text

from metering.events.identity import series_digest
from metering.frames.usage import DIMENSIONS
from metering.store.archives import read_batches, read_texts
from metering.store.as_of import Scope
from metering.store.chain import ROW, encode_rows, further_of, root_of, text_digest
from metering.store.ledger_rows import FURTHER_COLUMNS, LEDGER_COLUMNS, Rows

#: Ledger rows that are fetched at a time: it bounds memory.
_ROWS_AT_ONCE: Final = 100_000
#: Rows encoded at once: they stay in the processor's cache.
_CHUNK: Final = 1_000

Names = npt.NDArray[np.bytes_]


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


def _names(digests: dict[int, bytes]) -> Names:
    """Digests by id, in an array; an id that stands for nothing has one that no text has: zeros."""
    names = np.zeros(max(digests, default=0) + 2, "S16")
    names[list(digests)] = list(digests.values())
    return names


def _named(names: Names, ids: npt.NDArray[np.integer]) -> Names:
    # the last one stands for all that are unknown; below zero becomes far above it
    return names.take(ids.astype(np.uint32), mode="clip")


def batch_roots(
    connection: Connection, progress: Callable[[str], None], scope: Scope
) -> tuple[str, str | None]:
    """The root of every batch again, from its ledger rows; how many were seen, and the first difference."""
    none = {0: text_digest("")}
    known = connection.execute(text("SELECT series_id, series_digest FROM series"))
    names = {"series": _names(none | {row.series_id: row.series_digest.bytes for row in known})}
    for table, column in (("sources", "source"), ("projects", "project"), ("seats", "seat")):
        rows = connection.execute(text(f"SELECT {column}_id, {column} FROM {table}"))
        names[table] = _names(none | {row[0]: text_digest(row[1]) for row in rows})
    batches = connection.execute(
        text(
            scope(
                # the root of a bill is that of its document: `bills.first_difference`
                "SELECT batch_id, intake_id, sequence, accepted, root FROM ingest_batches "
                "JOIN stream_positions USING (intake_id) WHERE kind <> 'bills' ORDER BY batch_id"
            )
        )
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
        difference = difference or _root_difference(connection, group, names)
        hashed += events
        progress(f"hashed {hashed:,} of {total:,} ledger rows")
    return f"{hashed:,} rows in {len(batches):,} roots", difference


def _root_difference(connection: Connection, group: list[Row[Any]], names: dict[str, Names]) -> str | None:
    numbers = [batch.batch_id for batch in group]
    found = read_batches(connection, numbers, {**LEDGER_COLUMNS, **FURTHER_COLUMNS})
    texts = read_texts(connection, numbers)
    for batch in group:
        rows = found.get(batch.batch_id)
        encoded = np.empty(0, ROW) if rows is None else _encoded(rows, names)
        further = b"" if rows is None else further_of(rows[np.argsort(rows["ordinal"], kind="stable")])
        name = f"batch {batch.batch_id} (intake {batch.intake_id}, sequence {batch.sequence})"
        repeated = np.flatnonzero(np.diff(encoded["ordinal"]) == 0)
        if len(repeated):
            return f"{name} holds two ledger rows of ordinal {encoded['ordinal'][repeated[0]]}"
        own = texts.get(batch.batch_id)
        event_ids = [own.get(at, "") for at in encoded["ordinal"].tolist()] if own else None
        if root_of(encoded, event_ids, further) != bytes(batch.root):
            return f"{name}: its {len(encoded):,} ledger rows do not give its root {batch.root.hex()[:16]}"
    return None


def _encoded(rows: Rows, names: dict[str, Names]) -> Rows:
    """The ROWs of a batch in ordinal order."""
    encoded = np.empty(len(rows), ROW)
    for at in range(0, len(rows), _CHUNK):
        chunk = rows[at : at + _CHUNK]
        encode_rows(
            chunk,
            encoded[at : at + _CHUNK],
            series=_named(names["series"], chunk["series_id"]),
            sources=_named(names["sources"], np.abs(chunk["source_id"])),
            projects=_named(names["projects"], chunk["project_id"]),
            seats=_named(names["seats"], chunk["seat_id"]),
        )
    order = np.argsort(rows["ordinal"], kind="stable")
    # as plain bytes, or numpy would copy field by field
    return encoded.view(f"V{ROW.itemsize}")[order].view(ROW)
