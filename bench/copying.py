"""The reference: raw COPY of the rows that a ledger holds, into a fresh database of the same shape.

The same bytes into the same tables with the same constraints and indexes, in transactions of the same sizes
and in the same order, on one connection, by the role that ingests; nothing else is done.
"""

import time
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from bench.measures import Progress
from bench.servers import Ground
from metering.settings import Settings
from metering.store import postgres
from metering.store.ledger_rows import COPY_COLUMNS, copy_stream

_EVENT_COLUMNS: Final = ", ".join(COPY_COLUMNS)
_NAMES: Final = ("sources", "projects", "seats", "series")


@dataclass(frozen=True)
class Piece:
    """The bytes of one COPY in binary format."""

    target: str
    data: bytes


@dataclass(frozen=True)
class Copied:
    """What COPY took in: rows of the usage ledger, in how many transactions and in what time."""

    rows: int
    transactions: int
    seconds: float
    copy_seconds: float
    commit_seconds: float


def read_transactions(connection: psycopg.Connection[Any]) -> list[list[Piece]]:
    """What each transaction of the ingest wrote, in the order of their commits; names of ids first."""
    found = connection.execute(
        "SELECT array_agg(batch_id ORDER BY batch_id) FROM ingest_batches "
        "GROUP BY xmin::text ORDER BY max(committed_at)"
    ).fetchall()
    first = [_piece(connection, table, f"SELECT * FROM {table}") for table in _NAMES]
    return [first, *(_transaction(connection, ", ".join(map(str, ids))) for (ids,) in found)]


def _transaction(connection: psycopg.Connection[Any], ids: str) -> list[Piece]:
    # sorted by key, as a worker writes them
    rows = (
        f"SELECT {_EVENT_COLUMNS} FROM usage_events WHERE batch_id IN ({ids}) ORDER BY event_key, source_id"
    )
    pieces = [_piece(connection, f"usage_events ({_EVENT_COLUMNS})", rows)]
    pieces.append(
        _piece(connection, "ingest_batches", f"SELECT * FROM ingest_batches WHERE batch_id IN ({ids})")
    )
    return pieces


def _piece(connection: psycopg.Connection[Any], target: str, query: str) -> Piece:
    return Piece(target, b"".join(copy_stream(connection, query, "FORMAT binary")))


def copy_in(settings: Settings, transactions: list[list[Piece]], rows: int) -> Copied:
    """COPY everything into the database of `settings`, as the role that ingests; checks that all is there."""
    copying = committing = 0.0
    with postgres.connect_driver(settings, "ingest") as connection:
        began = time.perf_counter()
        for pieces in transactions:
            with connection.cursor() as cursor:
                at = time.perf_counter()
                for piece in pieces:
                    with cursor.copy(f"COPY {piece.target} FROM STDIN (FORMAT binary)") as copy:
                        copy.write(piece.data)
            copying += time.perf_counter() - at
            at = time.perf_counter()
            connection.commit()
            committing += time.perf_counter() - at
        seconds = time.perf_counter() - began
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        (held,) = connection.execute("SELECT count(*) FROM usage_events").fetchone() or (0,)
    assert held == rows, f"COPY left {held} rows, {rows} were given"
    return Copied(rows, len(transactions), seconds, copying, committing)


def raw_copy(ground: Ground, source: Settings, progress: Progress) -> Copied:
    """Read what the ledger of `source` holds, then COPY it into a database of its own."""
    progress("  reading back what was ingested")
    with psycopg.connect(source.database_url.get_secret_value()) as connection:
        transactions = read_transactions(connection)
        (rows,) = connection.execute("SELECT count(*) FROM usage_events").fetchone() or (0,)
    with ground.database("raw") as name:
        ground.checkpoint()
        progress(f"  raw COPY of {rows:,} rows in {len(transactions)} transactions")
        return copy_in(ground.settings(name), transactions, rows)
