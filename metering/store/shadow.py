"""Shadow: rollups made again from zero, beside those that are kept, to compare them and to swap them in.

The shadow is temporary tables of one connection. A batch belongs to the interval of the first watermark whose
position lies beyond it, else to the open one, and stays there: a pin leaves no committed batch behind.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl
from sqlalchemy import Connection, text

from metering.errors import WrongWorld
from metering.frames.usage import SUMS
from metering.store.rollups import KEYS, add_sums, mark_rebuilt, open_interval
from metering.store.verify import compared, rollup_difference
from metering.store.watermarks import watermarks

_SHADOW: Final = "rebuilt_"


@dataclass(frozen=True)
class Folded:
    """A batch that the rollups hold, with the interval that it belongs to."""

    batch_id: int
    intake_id: int
    sequence: int
    accepted: int
    interval_id: int


@dataclass(frozen=True)
class Difference:
    """In how many rows a rollup differs from its shadow, and the first of them in words."""

    rollup: str
    rows: int
    differing: int
    first: str | None


def begin(connection: Connection) -> None:
    """Make an empty shadow. Commits; the tables go with the connection."""
    for rollup in KEYS:
        connection.exec_driver_sql(
            f"CREATE TEMPORARY TABLE {_SHADOW}{rollup} (LIKE {rollup} INCLUDING INDEXES)"
        )
    connection.commit()


def add(connection: Connection, interval_id: int, sums: Sequence[pl.DataFrame]) -> None:
    """Add the sums of a fold to the shadow, in the caller's transaction."""
    add_sums(connection, interval_id, sums, beside=_SHADOW)


def folded(connection: Connection, done: dict[int, int]) -> list[Folded]:
    """The batches that the rollups hold, from those in `done` on (intake -> sequence), by interval.

    Raises WrongWorld when a batch is missing between two others: the ledger was tampered with.
    """
    positions = [(at["intake_id"], at["next_sequence"], one.watermark_id)
                 for one in watermarks(connection) for at in one.positions]  # fmt: skip
    ends: dict[int, tuple[list[int], list[int]]] = {}
    for intake_id, next_sequence, watermark_id in positions:
        at, ids = ends.setdefault(intake_id, ([], []))
        at.append(next_sequence)
        ids.append(watermark_id)
    opened = open_interval(connection)
    rows = connection.execute(
        text(
            "SELECT b.batch_id, b.intake_id, b.sequence, b.accepted FROM ingest_batches b "
            "JOIN fold_positions f USING (intake_id) JOIN stream_positions p USING (intake_id) "
            "LEFT JOIN unnest(CAST(:intakes AS int[]), CAST(:sequences AS bigint[])) d (intake_id, sequence) "
            "USING (intake_id) "
            "WHERE b.sequence >= coalesce(d.sequence, 0) "
            "AND b.sequence < least(f.next_sequence, p.next_sequence) ORDER BY b.intake_id, b.sequence"
        ),
        {"intakes": list(done), "sequences": list(done.values())},
    )
    expected, found = dict(done), []
    for batch_id, intake_id, sequence, accepted in rows:
        if sequence != expected.setdefault(intake_id, 0):
            raise WrongWorld(
                f"intake {intake_id}: batch {expected[intake_id]} is missing, the next one there is {sequence}; "
                "nothing was changed. Run `metering verify` and find out who removed it"
            )
        expected[intake_id] += 1
        at, ids = ends.get(intake_id, ([], []))
        beyond = bisect_right(at, sequence)
        interval_id = ids[beyond] if beyond < len(ids) else opened
        found.append(Folded(batch_id, intake_id, sequence, accepted, interval_id))
    return sorted(found, key=lambda batch: (batch.interval_id, batch.batch_id))


def differences(connection: Connection) -> list[Difference]:
    """Compare every rollup with its shadow, which holds all that the snapshot says is folded."""
    connection.exec_driver_sql("SET LOCAL work_mem = '128MB'")
    found = []
    for rollup, key in KEYS.items():
        connection.exec_driver_sql(f"ANALYZE {_SHADOW}{rollup}")
        names = ", ".join(key)
        told, kept = (", ".join(f"{side}.{name}" for name in SUMS) for side in ("l", "r"))
        rows, differing = connection.execute(
            text(
                f"SELECT count(l), count(*) FILTER (WHERE ROW({told}) IS DISTINCT FROM ROW({kept})) "
                f"FROM {_SHADOW}{rollup} l FULL JOIN {rollup} r USING ({names}, interval_id)"
            )
        ).one()
        first = None
        if differing:
            row = connection.execute(text(compared(f"{_SHADOW}{rollup}", rollup, names))).one()
            first = rollup_difference(row.ledger, row.kept, names)
        found.append(Difference(rollup, rows, differing, first))
    return found


def swap(connection: Connection) -> None:
    """Make the rollups what their shadow is, row by row where they differ, in the caller's transaction.

    The caller holds the lock KNOWLEDGE, and the shadow holds all that is folded. A fold position beyond what
    its intake committed goes back to it. A rollup that an upgrade left to be filled is whole then.
    """
    for rollup, key in KEYS.items():
        columns = ", ".join((*key, "interval_id", *SUMS))
        same = " AND ".join(f"s.{name} = {rollup}.{name}" for name in (*key, "interval_id"))
        connection.exec_driver_sql(
            f"DELETE FROM {rollup} WHERE NOT EXISTS (SELECT FROM {_SHADOW}{rollup} s WHERE {same})"
        )
        old, new = (", ".join(f"{side}.{name}" for name in SUMS) for side in (rollup, "excluded"))
        connection.exec_driver_sql(
            f"INSERT INTO {rollup} ({columns}) SELECT {columns} FROM {_SHADOW}{rollup} "
            f"ON CONFLICT ({', '.join(key)}, interval_id) DO UPDATE "
            f"SET {', '.join(f'{name} = excluded.{name}' for name in SUMS)} "
            f"WHERE ROW({old}) IS DISTINCT FROM ROW({new})"
        )
    connection.exec_driver_sql(
        "UPDATE fold_positions f SET next_sequence = p.next_sequence FROM stream_positions p "
        "WHERE p.intake_id = f.intake_id AND f.next_sequence > p.next_sequence"
    )
    connection.exec_driver_sql("DELETE FROM unfilled_rollups")
    mark_rebuilt(connection)
