"""Which index should find a batch's rows: a B-tree on batch_id, or a block range index (BRIN) on it."""

import statistics
import time
from dataclasses import replace
from typing import Any, Final

import psycopg

from bench.copying import Piece, copy_in, read_transactions
from bench.measures import Measure, Progress
from bench.servers import Ground
from metering.meters import METERS
from metering.settings import Settings
from metering.store.ledger_rows import copy_out

_BRIN: Final = (
    "CREATE INDEX usage_events_batch_id_idx ON usage_events USING brin (batch_id) "
    "WITH (autosummarize = on, pages_per_range = 32)"
)
_NEWEST_BATCHES: Final = 4
_READ: Final = {"occurred_at": "instant", "series_id": "int4", **dict.fromkeys(METERS, "int4")}
_INDEXES: Final = """
    SELECT indexrelid::regclass::text, amname, pg_total_relation_size(indexrelid) FROM pg_index
    JOIN pg_inherits ON inhrelid = indrelid AND inhparent = 'usage_events'::regclass
    JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
    WHERE NOT indisprimary AND pg_relation_size(indrelid) > 0"""


def batch_index_measures(ground: Ground, source: Settings, rounds: int, progress: Progress) -> list[Measure]:
    """COPY what the ledger of `source` holds into both shapes in turn, and read its newest batches back.

    A fold reads rows that are seconds old: they lie in block ranges that nobody has summarised yet, and all
    of those are read whole. Medians of the rounds; the BRIN's numbers are held against the B-tree's.
    """
    with psycopg.connect(source.database_url.get_secret_value()) as connection:
        transactions = read_transactions(connection)
        (rows,) = connection.execute("SELECT count(*) FROM usage_events").fetchone() or (0,)
    with ground.database("brin") as name:
        with psycopg.connect(ground.url(name)) as connection:
            connection.execute("DROP INDEX usage_events_batch_id_idx")
            connection.execute(_BRIN)
        shapes = {"B-tree": ground, "BRIN": replace(ground, template=name)}
        told: dict[str, list[dict[str, float]]] = {shape: [] for shape in shapes}
        for number in range(rounds):
            for shape, at in shapes.items():
                progress(f"batch index: {shape}, round {number + 1}")
                told[shape].append(_measured(at, transactions, rows))
    middle = {
        shape: {name: statistics.median(one[name] for one in rounds_told) for name in rounds_told[0]}
        for shape, rounds_told in told.items()
    }
    units = {"raw COPY": "rows/s", "bytes per event": "bytes"}
    return [
        Measure(
            f"batch index {shape}: {name}",
            value,
            units.get(name, "ms"),
            middle["B-tree"].get(name) if shape == "BRIN" else None,
        )
        for shape, values in middle.items()
        for name, value in values.items()
    ]


def _measured(ground: Ground, transactions: list[list[Piece]], rows: int) -> dict[str, float]:
    with ground.database("raw") as name:
        settings = ground.settings(name)
        ground.checkpoint()
        copied = copy_in(settings, transactions, rows)
        with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as connection:
            found = connection.execute(_INDEXES).fetchall()
            fresh = _read_newest(connection)
            began = time.perf_counter()
            for index, kind, _ in found:
                if kind == "brin":
                    connection.execute("SELECT brin_summarize_new_values(%s::regclass)", (index,))
            summarising = 1000 * (time.perf_counter() - began)
            summarised = _read_newest(connection)
            size = sum(held for _, _, held in connection.execute(_INDEXES).fetchall())
    told = {
        "raw COPY": rows / copied.seconds,
        "bytes per event": size / rows,
        "newest batches, just written": fresh,
    }
    brin = any(kind == "brin" for _, kind, _ in found)
    return told | ({"summarising all": summarising, "newest batches, summarised": summarised} if brin else {})


def _read_newest(connection: psycopg.Connection[Any]) -> float:
    """Milliseconds to read the newest batches as a fold does; the second time, so that all is in memory."""
    ids = connection.execute(
        "SELECT string_agg(batch_id::text, ', ') FROM (SELECT batch_id FROM ingest_batches "
        "ORDER BY batch_id DESC LIMIT %s)",
        (_NEWEST_BATCHES,),
    ).fetchone()
    assert ids is not None
    query = f"SELECT {', '.join(_READ)} FROM usage_events WHERE batch_id IN ({ids[0]})"
    connection.execute("SET enable_seqscan = off")
    took = 0.0
    for _ in range(2):
        began = time.perf_counter()
        for _rows in copy_out(connection, query, _READ):
            pass
        took = 1000 * (time.perf_counter() - began)
    return took
