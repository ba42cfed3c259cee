"""The usage ledger: append a batch exactly once, or not at all.

This module speaks psycopg directly: on this path the order of statements, the savepoint and every SQLSTATE
count. One transaction moves the positions and appends rows, rejects, conflicts and batch rows.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Final

import numpy as np
import psycopg
from psycopg.errors import UniqueViolation

from metering.errors import Fenced
from metering.store.batch import Appended, Batch, Indexes, Outcomes, Part, Refused
from metering.store.chain import CHAIN_VERSION
from metering.store.ledger_rows import COPY_COLUMNS

#: How the closed lists of an event stand in its row.
EVENT_TYPES: Final[Mapping[str, int]] = {
    "usage": 1,
    "void": 2,
    "refused": 3,
    "heartbeat": 4,
    "compensation": 5,
    "adjustment": 6,
}
USAGE_SOURCES: Final[Mapping[str, int]] = {"provider": 1, "estimated": 2, "partial": 3}
NONBILLABLE_REASONS: Final[Mapping[str | None, int]] = {
    None: 0, "retry": 1, "failure": 2, "refund": 3, "internal": 4, "test": 5, "other": 6,
}  # fmt: skip

#: Batches that are appended with care after one met rows that the ledger holds already.
CAREFUL_BATCHES: Final = 100
#: Rows that a careful batch copies under one savepoint: a row that is held costs only its piece.
PIECE_ROWS: Final = 2_000
#: Share of the pieces with held rows above which the batches after are looked up whole before they are copied.
LOOK_UP_FIRST_RATIO: Final = 0.3

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass
class Ledger:
    """One worker's way into the ledger. `connection` is in autocommit; each append is one transaction."""

    connection: Connection
    reject_bytes_max: int
    _careful: int = 0
    _look_up_first: bool = False
    _batch_ids: list[int] = field(default_factory=list)

    def _batch_id(self) -> int:
        if not self._batch_ids:
            rows = self.connection.execute(
                "SELECT nextval('ingest_batches_batch_id_seq') FROM generate_series(1, 64)"
            ).fetchall()
            self._batch_ids = [row[0] for row in reversed(rows)]
        return self._batch_ids.pop()

    def append(self, parts: list[Part]) -> list[Appended]:
        """Append what the parts bring, in one transaction whose first statement moves every position.

        Raises Fenced, with nothing written, when a position is no longer ours or not where we believed.
        If the process dies before COMMIT nothing happened; after it, everything did; when the reply is lost
        the position row tells which. Bytes for COPY are complete in memory before BEGIN.
        """
        parts = sorted(parts, key=lambda part: part.claim.intake_id)
        batch_ids = [self._batch_id() for _ in parts]
        batch = Batch(parts, batch_ids)
        fresh = batch.distinct
        pieces = self._pieces(fresh)
        copied = [batch.encode(piece) for piece in pieces]
        # where rows are likely held already the heads are known only at the end
        planned = not batch.repeats and not self._careful
        heads = batch.planned_heads(fresh) if planned else batch.unmoved_heads()
        with self.connection.transaction():
            for part, (_, head) in zip(parts, heads, strict=True):
                self._advance(part, head)
            accepted, held = self._copy_new(batch, pieces, copied)
            outcomes = batch.outcomes(accepted, held)
            final = heads if planned and not held else batch.final_heads(accepted, outcomes)
            for part, (_, head), (_, written) in zip(parts, final, heads, strict=True):
                if head != written:
                    self.connection.execute(
                        "UPDATE stream_positions SET chain_head = %s WHERE intake_id = %s",
                        (head, part.claim.intake_id),
                    )
            for part, batch_id in zip(parts, batch_ids, strict=True):
                self._write_rejects(part, batch_id)
            self._write_conflicts(batch, outcomes)
            self._write_companions(batch, outcomes)
            self._write_sources(batch, outcomes)
            appended = [
                self._write_batch_row(part, batch_id, outcome, root, head)
                for part, batch_id, outcome, (root, head) in zip(
                    parts, batch_ids, outcomes.counts, final, strict=True
                )
            ]
        self._learn(fresh, held)
        return appended

    def _pieces(self, fresh: Indexes) -> list[Indexes]:
        """What is copied under one savepoint each: everything at once, where no held rows are expected."""
        if not self._careful or self._look_up_first or not len(fresh):
            return [fresh]
        return [fresh[start : start + PIECE_ROWS] for start in range(0, len(fresh), PIECE_ROWS)]

    def _learn(self, fresh: Indexes, held: Mapping[int, int]) -> None:
        """How the next batches are appended, after one of which some rows were held already."""
        if not held:
            self._careful = max(0, self._careful - 1)
            return
        places = np.flatnonzero(np.isin(fresh, np.fromiter(held, np.intp, len(held))))
        self._careful = CAREFUL_BATCHES
        met, pieces = len(np.unique(places // PIECE_ROWS)), -(-len(fresh) // PIECE_ROWS)
        self._look_up_first = met > max(1, LOOK_UP_FIRST_RATIO * pieces)

    def _advance(self, part: Part, head: bytes) -> None:
        moved = self.connection.execute(
            "UPDATE stream_positions SET next_offset = %s, next_sequence = %s, chain_head = %s, "
            "seen_until = greatest(seen_until, %s) "
            "WHERE intake_id = %s AND epoch = %s AND next_offset = %s AND next_sequence = %s AND retired_at IS NULL",
            (
                part.next_offset, part.claim.next_sequence + 1, head, part.seen_until,
                part.claim.intake_id, part.claim.epoch, part.claim.next_offset, part.claim.next_sequence,
            ),
        ).rowcount  # fmt: skip
        if moved != 1:
            raise Fenced(
                f"{part.claim.name} was claimed by another worker since epoch {part.claim.epoch}; "
                "nothing was written"
            )

    def _copy_new(
        self, batch: Batch, pieces: list[Indexes], copied: list[bytes]
    ) -> tuple[Indexes, dict[int, int]]:
        """COPY the rows that the ledger does not hold; also row -> digest of those that it does."""
        accepted: list[Indexes] = []
        held: dict[int, int] = {}
        for piece, encoded in zip(pieces, copied, strict=True):
            entered, found = self._copy_piece(batch, piece, encoded)
            accepted.append(entered)
            held |= found
        return np.concatenate(accepted), held

    def _copy_piece(self, batch: Batch, fresh: Indexes, copied: bytes) -> tuple[Indexes, dict[int, int]]:
        held: dict[int, int] = {}
        if self._careful and self._look_up_first:
            held = self._lookup(batch, fresh)
            if held:
                fresh = _without(fresh, held)
                copied = batch.encode(fresh)
        while len(fresh):
            try:
                with self.connection.transaction(), self.connection.cursor() as cursor:
                    columns = ", ".join(COPY_COLUMNS)
                    with cursor.copy(f"COPY usage_events ({columns}) FROM STDIN (FORMAT binary)") as copy:
                        copy.write(copied)
                return fresh, held
            except UniqueViolation:
                # another worker may append the same keys between two attempts: look again, ever fewer are left
                found = self._lookup(batch, fresh)
                assert found, "COPY meets a key that a look-up does not find"
                held |= found
                fresh = _without(fresh, found)
                copied = batch.encode(fresh)
        return fresh, held

    def _lookup(self, batch: Batch, chosen: Indexes) -> dict[int, int]:
        """Those of the chosen rows whose (event_key, source_id) the ledger holds: row -> digest held."""
        keys = batch.rows["event_key"][chosen].tobytes().hex()
        texts = [keys[start : start + 32] for start in range(0, len(keys), 32)]
        with self.connection.transaction():
            # without statistics of today's partition the planner would read it whole
            for path in ("hashjoin", "mergejoin", "seqscan", "bitmapscan"):
                self.connection.execute(f"SET LOCAL enable_{path} = off")
            found = self.connection.execute(
                "SELECT k.n, u.digest FROM unnest(%s::uuid[], %s::int[]) WITH ORDINALITY AS k (event_key, source_id, n) "
                "JOIN usage_events u ON u.event_key = k.event_key AND u.source_id = k.source_id",
                (texts, batch.rows["source_id"][chosen].tolist()),
            ).fetchall()
        return {int(chosen[number - 1]): digest for number, digest in found}

    def _kept(self, refused: Refused) -> tuple[Any, ...]:
        payload = refused.payload
        digest = hashlib.sha256(payload).digest()
        return (
            refused.record_offset, refused.index, refused.source, refused.event_id,
            payload[: self.reject_bytes_max], len(payload), digest,
        )  # fmt: skip

    def _write_rejects(self, part: Part, batch_id: int) -> None:
        if not part.rejects:
            return
        with (
            self.connection.cursor() as cursor,
            cursor.copy(
                "COPY rejects (batch_id, intake_id, record_offset, index, source, event_id, payload, payload_bytes, "
                "payload_sha256, code, field, detail, content_type, appended_at) FROM STDIN"
            ) as copy,
        ):
            for reject in part.rejects:
                copy.write_row(
                    (
                        batch_id,
                        part.claim.intake_id,
                        *self._kept(reject),
                        reject.code,
                        reject.field,
                        reject.detail,
                        reject.content_type,
                        reject.appended_at,
                    )
                )

    def _write_conflicts(self, batch: Batch, outcomes: Outcomes) -> None:
        if not outcomes.conflicts:
            return
        with (
            self.connection.cursor() as cursor,
            cursor.copy(
                "COPY conflicts (batch_id, intake_id, record_offset, index, source, event_id, payload, payload_bytes, "
                "payload_sha256, event_key, source_id, accepted_digest, refused_digest) FROM STDIN"
            ) as copy,
        ):
            # in order of row, so that those of a part follow each other
            for number, conflicts in groupby(outcomes.conflicts, lambda conflict: batch.part_of[conflict[0]]):
                part, (rows, held) = batch.parts[number], zip(*conflicts, strict=True)
                start = int(batch.starts[number])
                for row, digest, refused in zip(
                    rows, held, part.refused([row - start for row in rows]), strict=True
                ):
                    # a slice: a lone element of S16 loses its trailing zeros
                    key = batch.rows["event_key"][row : row + 1].tobytes().hex()
                    copy.write_row(
                        (
                            int(batch.rows["batch_id"][row]), part.claim.intake_id, *self._kept(refused), key,
                            int(batch.rows["source_id"][row]), digest, int(batch.rows["digest"][row]),
                        )
                    )  # fmt: skip

    def _write_companions(self, batch: Batch, outcomes: Outcomes) -> None:
        for number, part in enumerate(batch.parts):
            ended = outcomes.ended[batch.starts[number] : batch.starts[number + 1]]
            for companion in part.companions:
                rows = (
                    companion.rows
                    if companion.of is None
                    else [row for at, row in zip(companion.of, companion.rows, strict=True) if not ended[at]]
                )
                if not rows:
                    continue
                columns = ", ".join(("batch_id", *companion.columns))
                with (
                    self.connection.cursor() as cursor,
                    cursor.copy(f"COPY {companion.table} ({columns}) FROM STDIN") as copy,
                ):
                    for row in rows:
                        copy.write_row((batch.batch_ids[number], *row))

    def _write_sources(self, batch: Batch, outcomes: Outcomes) -> None:
        rows = batch.by_source(outcomes)
        if not rows:
            return
        self.connection.execute(
            "INSERT INTO batch_sources (batch_id, source_id, accepted, duplicate, conflict, rejected) "
            "SELECT * FROM unnest(%s::bigint[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[])",
            [list(column) for column in zip(*rows, strict=True)],
        )

    def _write_batch_row(
        self, part: Part, batch_id: int, counts: tuple[int, int, int], root: bytes, head: bytes
    ) -> Appended:
        accepted, duplicate, conflict = counts
        rejected = len(part.rejects)
        claim = part.claim
        self.connection.execute(
            "INSERT INTO ingest_batches (batch_id, intake_id, sequence, epoch, first_offset, next_offset, records, "
            "received, accepted, duplicate, conflict, rejected, unknown_fields, appended_until, chain_version, root, "
            "previous_head, head) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                batch_id, claim.intake_id, claim.next_sequence, claim.epoch, claim.next_offset, part.next_offset,
                part.records, len(part.rows) + rejected, accepted, duplicate, conflict, rejected, part.unknown_fields,
                part.appended_until, CHAIN_VERSION, root, claim.chain_head, head,
            ),
        )  # fmt: skip
        after = replace(
            claim, next_offset=part.next_offset, next_sequence=claim.next_sequence + 1, chain_head=head
        )
        return Appended(after, accepted, duplicate, conflict, rejected)


def _without(chosen: Indexes, held: dict[int, int]) -> Indexes:
    return chosen[~np.isin(chosen, np.fromiter(held, np.intp, len(held)))] if held else chosen
