"""Verify: the ledger against its batches, the rollups against the ledger, every chain against what it hashes.

A second implementation on purpose: the rollups are recomputed in SQL, not by the fold's code. Everything is
read in one snapshot by the role `read`; nothing is changed. Each check names the first difference it finds.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, text

from metering.frames.usage import SUMS
from metering.meters import FURTHER_METERS, METERS
from metering.store import (
    archived_sums,
    archives,
    bills,
    books,
    periods,
    positions,
    published,
    rehash,
    watermarks,
)
from metering.store.as_of import Scope, as_of, everything
from metering.store.chain import CHAIN_VERSION, GENESIS, batch_head, head
from metering.store.details import details
from metering.store.ledger_rows import meter_sql
from metering.store.rollups import COUNTS, REQUESTS, open_interval, unfilled

Progress = Callable[[str], None]

_BATCHES: Final = (
    "SELECT b.*, p.kind, p.topic_uuid, p.partition FROM ingest_batches b "
    "LEFT JOIN stream_positions p USING (intake_id) ORDER BY b.intake_id, b.sequence"
)


@dataclass(frozen=True)
class Check:
    """One thing that was compared: how much of it was seen, and the first difference, in words."""

    name: str
    seen: str
    difference: str | None


def verify(
    connection: Connection,
    *,
    roots: bool,
    watermark_id: int | None = None,
    against: Sequence[tuple[str, Mapping[str, Any]]] = (),
    progress: Progress = lambda message: None,
) -> Iterator[Check]:
    """Compare everything, check by check; `roots` also hashes every ledger row again.

    With `watermark_id` only what was there as of that watermark is looked at: the chains up to it, and the
    rollups of its intervals. BadInput for one that does not exist. `against` are heads that left the database
    earlier: (name, what `published.heads` gave).
    """
    scope = as_of(connection, watermark_id)
    # one sort or hash of the whole ledger: more memory than a worker's statement may have
    connection.exec_driver_sql("SET LOCAL work_mem = '128MB'")
    connection.exec_driver_sql("SET LOCAL jit = off")
    archived = archives.archives(connection)
    unread = None
    if archived:
        progress("reading the archived days")
        unread = archived_sums.stage(connection, archived)
        yield Check("archives", f"{len(archived):,} days", unread)
    if unread is None:
        progress("counting the ledger rows of every batch")
        yield _batch_counts(connection, _through(scope, archived))
    else:
        yield _unread("batch counts")
    yield Check("details", *details(connection, scope))
    progress("walking the chain of every intake")
    yield _batch_heads(connection, scope)
    if roots:
        yield Check("series", *rehash.series(connection))
        if unread is None:
            yield Check("ledger rows", *rehash.batch_roots(connection, progress, scope))
        else:
            yield _unread("ledger rows")
    if unread is None:
        progress("summing the ledger, to compare it with the rollups")
        yield from _rollups(connection, _through(scope, archived))
    else:
        yield from map(_unread, _ROLLUP_KEYS)
    progress("walking the chains of watermarks, catalogs, interventions, bills and closed months")
    yield _watermarks(connection, scope)
    revision = (
        books.latest_revision(connection)
        if watermark_id is None
        else watermarks.read_watermark(connection, watermark_id).catalog_revision
    )
    difference = books.first_difference(connection, None if watermark_id is None else revision)
    yield Check("catalog revisions", f"{revision:,} revisions", difference)
    yield _interventions(connection, scope)
    yield Check("bills", *bills.first_difference(connection, scope))
    yield Check("period closes", *periods.first_difference(connection, scope))
    if against:
        yield Check(
            "published heads", f"{len(against):,} manifests", published.difference(connection, against)
        )


def _unread(name: str) -> Check:
    return Check(name, "not compared", "needs every archived day, and one of them cannot be read")


#: Marks in a statement for `_through`.
_IN_POSTGRES: Final = "/* in Postgres */ true"
_ARCHIVED_ROWS: Final = "/* and archived rows */"
_ARCHIVED_MINUTES: Final = "/* and archived minutes */"


def _through(scope: Scope, archived: Sequence[archives.Archive]) -> Scope:
    """The scope, reading archived days from what `archived_sums.stage` made of them."""
    if not archived:
        return scope
    # as of a watermark only the batches of then; else also those that no batch row names
    known = "" if scope is everything else "WHERE batch_id IN (SELECT batch_id FROM ingest_batches)"
    marks = {
        _IN_POSTGRES: archives.in_postgres(archived),
        _ARCHIVED_ROWS: f"UNION ALL SELECT batch_id, source_id, rows FROM archived_batches {known}",
        _ARCHIVED_MINUTES: f"UNION ALL SELECT minute, series_id, project_id, seat_id, interval_id, {', '.join(SUMS)} "
        "FROM archived_minutes JOIN folded USING (batch_id)",
    }

    def scoped(statement: str) -> str:
        for mark, stands_for in marks.items():
            statement = statement.replace(mark, stands_for)
        return scope(statement)

    return scoped


#: What a batch says of itself, its sources say of it, and the ledger holds of it; in one pass over the ledger. The
#: source of a compensating entry is that of its target. Outcomes per source are kept since the first batch of them.
_COUNTED: Final = f"""
    WITH counted AS MATERIALIZED (
        SELECT batch_id, source_id, sum(rows)::bigint AS rows FROM (
            SELECT batch_id, abs(source_id) AS source_id, count(*) AS rows FROM usage_events
            WHERE {_IN_POSTGRES} GROUP BY 1, 2 {_ARCHIVED_ROWS}) parts GROUP BY 1, 2),
    held AS (SELECT batch_id, sum(rows)::bigint AS rows FROM counted GROUP BY 1),
    said AS (
        SELECT batch_id, sum(accepted)::bigint AS accepted, sum(duplicate)::bigint AS duplicate,
            sum(conflict)::bigint AS conflict, sum(rejected)::bigint AS rejected FROM batch_sources GROUP BY 1),
    first AS (SELECT min(batch_id) AS batch_id FROM batch_sources)
    (SELECT 1 AS kind, to_jsonb(d) AS found FROM (
        SELECT batch_id, b.intake_id, b.sequence, b.received, b.accepted, b.duplicate, b.conflict, b.rejected,
            coalesce(h.rows, 0) AS rows
        FROM ingest_batches b FULL JOIN held h USING (batch_id)
        WHERE b.accepted IS DISTINCT FROM coalesce(h.rows, 0)
            OR b.received <> b.accepted + b.duplicate + b.conflict + b.rejected
        ORDER BY 1 LIMIT 1) d)
    UNION ALL (SELECT 2, to_jsonb(d) FROM (
        SELECT batch_id, s.accepted, s.duplicate, s.conflict, s.rejected, to_jsonb(b) AS batch
        FROM (SELECT batch_id, accepted, duplicate, conflict, rejected FROM ingest_batches) b
        FULL JOIN said s USING (batch_id)
        WHERE batch_id >= (SELECT batch_id FROM first)
            AND ROW(coalesce(b.accepted, 0), coalesce(b.duplicate, 0), coalesce(b.conflict, 0), coalesce(b.rejected, 0))
                <> ROW(coalesce(s.accepted, 0), coalesce(s.duplicate, 0), coalesce(s.conflict, 0),
                    coalesce(s.rejected, 0))
        ORDER BY 1 LIMIT 1) d)
    UNION ALL (SELECT 3, to_jsonb(d) FROM (
        SELECT batch_id, source_id, coalesce(o.accepted, 0) AS accepted, coalesce(c.rows, 0) AS rows
        FROM counted c FULL JOIN batch_sources o USING (batch_id, source_id)
        WHERE batch_id >= (SELECT batch_id FROM first) AND coalesce(o.accepted, 0) <> coalesce(c.rows, 0)
        ORDER BY 1, 2 LIMIT 1) d)
    ORDER BY kind LIMIT 1"""


def _batch_counts(connection: Connection, scope: Scope = everything) -> Check:
    """received = accepted + duplicate + conflict + rejected, and accepted = ledger rows, per batch and source."""
    difference = connection.execute(text(scope(_COUNTED))).one_or_none()
    seen = connection.execute(
        text(scope("SELECT count(*) AS batches, coalesce(sum(accepted), 0) AS events FROM ingest_batches"))
    ).one()
    return Check(
        "batch counts",
        f"{seen.batches:,} batches, {seen.events:,} accepted events",
        None if difference is None else _count_difference(difference.kind, difference.found),
    )


def _count_difference(kind: int, found: dict[str, Any]) -> str:
    name = f"batch {found['batch_id']}"
    if kind == 1 and found["intake_id"] is None:
        return f"{found['rows']:,} ledger rows name {name}, which does not exist"
    if kind == 1:
        name = f"{name} (intake {found['intake_id']}, sequence {found['sequence']})"
        if found["accepted"] != found["rows"]:
            return f"{name} accepted {found['accepted']:,} events, the ledger holds {found['rows']:,} of it"
        return (
            f"{name} received {found['received']:,}, but accepted {found['accepted']:,} + duplicate "
            f"{found['duplicate']:,} + conflict {found['conflict']:,} + rejected {found['rejected']:,} are another number"
        )
    if kind == 3:
        return (
            f"{name} accepted {found['accepted']:,} events of source {found['source_id']}, "
            f"the ledger holds {found['rows']:,} of it"
        )
    outcomes = ("accepted", "duplicate", "conflict", "rejected")
    of_sources = ", ".join(f"{outcome} {found[outcome] or 0:,}" for outcome in outcomes)
    own = (
        ", ".join(f"{outcome} {found['batch'][outcome]:,}" for outcome in outcomes)
        if found["batch"]
        else "not there"
    )
    return f"{name}: the outcomes of its sources sum to {of_sources}; its own are {own}"


def _batch_heads(connection: Connection, scope: Scope = everything) -> Check:
    """Per intake: sequences without gaps, heads that follow, up to the intake's position.

    Offsets without gaps too, but for those that an intervention names, each once and in order.
    """
    walked: dict[int, tuple[int, int | None, bytes]] = {}
    jumps = positions.jumps(connection, scope)
    count, difference = 0, None
    for row in connection.execute(text(scope(_BATCHES)).execution_options(yield_per=10_000)):
        count += 1
        sequence, offset, last = walked.get(row.intake_id, (0, None, GENESIS))
        offset, astray = _jumped(jumps, row.intake_id, sequence, offset)
        difference = difference or astray or _head_difference(row, sequence, offset, last)
        walked[row.intake_id] = (row.sequence + 1, row.next_offset, bytes(row.head))
    for position in connection.execute(text(scope("SELECT * FROM stream_positions ORDER BY intake_id"))):
        sequence, offset, last = walked.get(position.intake_id, (0, None, GENESIS))
        offset, astray = _jumped(jumps, position.intake_id, sequence, offset)
        difference = difference or astray
        found = (position.next_sequence, position.next_offset, bytes(position.chain_head))
        if difference is None and found != (
            sequence,
            position.next_offset if offset is None else offset,
            last,
        ):
            difference = (
                f"intake {position.intake_id} stands at sequence {found[0]}, offset {found[1]}, head "
                f"{found[2].hex()[:16]}; its batches end at {sequence}, {offset}, {last.hex()[:16]}"
            )
    for intake_id, left in sorted(jumps.items()):
        if left:
            difference = difference or (
                f"intervention {left[0].intervention_id} moves intake {intake_id} at sequence {left[0].sequence} from "
                f"offset {left[0].from_offset} to {left[0].to_offset}, which its batches do not show"
            )
    return Check("batch chain", f"{count:,} heads of {len(walked):,} intakes", difference)


def _jumped(
    jumps: dict[int, list[positions.Jump]], intake_id: int, sequence: int, offset: int | None
) -> tuple[int | None, str | None]:
    """The offset after the recorded moves before a batch, which are taken out of `jumps`, and what is wrong."""
    left = jumps.get(intake_id, [])
    difference = None
    while left and left[0].sequence == sequence:
        jump = left.pop(0)
        if offset is not None and jump.from_offset != offset:
            difference = difference or (
                f"intervention {jump.intervention_id} moves intake {intake_id} from offset {jump.from_offset} on; "
                f"before batch {sequence} it stood at {offset}"
            )
        offset = jump.to_offset
    return offset, difference


def _head_difference(row: Row[Any], sequence: int, offset: int | None, previous: bytes) -> str | None:
    name = f"batch {row.batch_id} (intake {row.intake_id}, sequence {row.sequence})"
    if row.kind is None:
        return f"{name}: there is no such intake"
    if row.sequence != sequence:
        return (
            f"intake {row.intake_id}: batch of sequence {sequence} is missing; the next one is {row.sequence}"
        )
    if offset is not None and row.first_offset != offset:
        return f"{name} begins at offset {row.first_offset}; the one before ended at {offset}"
    if bytes(row.previous_head) != previous:
        return f"{name} follows head {row.previous_head.hex()[:16]}; the one before has {previous.hex()[:16]}"
    if row.chain_version != CHAIN_VERSION:
        return f"{name} is encoded in version {row.chain_version}; this program knows {CHAIN_VERSION}"
    counts = ("records", "received", "accepted", "duplicate", "conflict", "rejected")
    told = batch_head(
        previous,
        kind=row.kind,
        topic_uuid=row.topic_uuid,
        partition=row.partition,
        sequence=row.sequence,
        first_offset=row.first_offset,
        next_offset=row.next_offset,
        root=bytes(row.root),
        **{count: getattr(row, count) for count in counts},
    )
    if told != bytes(row.head):
        return f"{name} has head {row.head.hex()[:16]}; its offsets, counts and root give {told.hex()[:16]}"
    return None


_POOL_KEY: Final = "pool, ran_on, model_served, tier_served, region, context_breakpoint"
#: A further meter that sums to 0 is null in a rollup.
_SUMMED: Final = ", ".join(
    f"nullif(sum({name}), 0) AS {name}" if name in FURTHER_METERS else f"sum({name}) AS {name}"
    for name in SUMS
)
_COUNTED_METERS: Final = ", ".join(f"{meter_sql(meter)} AS {meter}" for meter in METERS)
#: The sums that the rollups must hold: per minute, series, project, seat and interval, then per series, per quarter
#: hour and per pool.
#: A batch belongs to the first watermark whose position lies beyond it, else to the open interval.
_RECOMPUTED: Final = f"""
    WITH bounds AS (
        SELECT (at->>'intake_id')::int AS intake_id,
            array_agg((at->>'next_sequence')::bigint ORDER BY watermark_id) AS ends,
            array_agg(watermark_id ORDER BY watermark_id) AS ids
        FROM watermarks, jsonb_array_elements(positions) AS at GROUP BY 1),
    folded AS MATERIALIZED (
        SELECT batch_id, coalesce(ids[width_bucket(sequence, ends) + 1], :open_interval) AS interval_id
        FROM ingest_batches JOIN fold_positions f USING (intake_id) LEFT JOIN bounds USING (intake_id)
        WHERE sequence < f.next_sequence),
    holders AS MATERIALIZED (
        SELECT minute, series_id, project_id, seat_id, interval_id, {_SUMMED} FROM (
            SELECT date_bin('1 minute', occurred_at, 'epoch') AS minute, series_id, project_id, seat_id,
                interval_id, {REQUESTS} AS requests, {_COUNTED_METERS}
            FROM usage_events JOIN folded USING (batch_id) WHERE {COUNTS} AND {_IN_POSTGRES}
            {_ARCHIVED_MINUTES}) counted
        GROUP BY 1, 2, 3, 4, 5),
    minutes AS MATERIALIZED (
        SELECT minute, series_id, interval_id, {_SUMMED} FROM holders GROUP BY 1, 2, 3),
    quarters AS (
        SELECT date_bin('15 minutes', minute, 'epoch') AS quarter_start, series_id, interval_id, {_SUMMED}
        FROM minutes GROUP BY 1, 2, 3),
    customers AS NOT MATERIALIZED (
        SELECT minutes.* FROM minutes JOIN series USING (series_id)
        WHERE pool IS NOT NULL AND counts_for IN ('charge_and_cost', 'cost')),
    pools AS (
        SELECT minute, {_POOL_KEY}, interval_id, {_SUMMED} FROM customers JOIN series USING (series_id)
        GROUP BY minute, {_POOL_KEY}, interval_id)"""
#: Of every rollup what tells its rows apart, and the recomputed sums that it must hold.
_ROLLUP_KEYS: Final = {
    "usage_quarters": "quarter_start, series_id",
    "pool_minutes": f"minute, {_POOL_KEY}",
    "pool_customer_minutes": "minute, series_id",
    "limit_minutes": "minute, series_id, project_id, seat_id",
}
_RECOMPUTED_AS: Final = dict(zip(_ROLLUP_KEYS, ("quarters", "pools", "customers", "holders"), strict=True))


def compared(recomputed: str, rollup: str, key: str) -> str:
    """The query for the first row in which a rollup differs from what was computed again."""
    told, kept = (", ".join(f"{side}.{name}" for name in SUMS) for side in ("l", "r"))
    return (
        f"(SELECT '{rollup}' AS rollup, to_jsonb(l) AS ledger, to_jsonb(r) AS kept "
        f"FROM {recomputed} l FULL JOIN {rollup} r USING ({key}, interval_id) "
        f"WHERE ROW({told}) IS DISTINCT FROM ROW({kept}) ORDER BY {key}, interval_id LIMIT 1)"
    )


def _rollups(connection: Connection, scope: Scope) -> Iterator[Check]:
    """Every rollup row, interval by interval, against the ledger rows of the batches folded into it."""
    parts = (compared(_RECOMPUTED_AS[rollup], rollup, key) for rollup, key in _ROLLUP_KEYS.items())
    query = f"{_RECOMPUTED} {' UNION ALL '.join(parts)}"
    found = connection.execute(text(scope(query)), {"open_interval": open_interval(connection)}).all()
    differences = {
        row.rollup: rollup_difference(row.ledger, row.kept, _ROLLUP_KEYS[row.rollup]) for row in found
    }
    differences |= unfilled(connection)
    for rollup in _ROLLUP_KEYS:
        count = connection.execute(text(scope(f"SELECT count(*) FROM {rollup}"))).scalar_one()
        yield Check(rollup, f"{count:,} rows", differences.get(rollup))
    ahead = connection.execute(
        text(
            scope(
                "SELECT intake_id, f.next_sequence "
                "FROM fold_positions f LEFT JOIN stream_positions p USING (intake_id) "
                "WHERE p.next_sequence IS NULL OR f.next_sequence > p.next_sequence ORDER BY 1 LIMIT 1"
            )
        )
    ).one_or_none()
    batches = connection.execute(
        text(
            scope(
                "SELECT count(*) FROM ingest_batches JOIN fold_positions f USING (intake_id) "
                "WHERE sequence < f.next_sequence"
            )
        )
    ).scalar_one()
    yield Check(
        "fold positions",
        f"{batches:,} batches folded",
        None
        if ahead is None
        else f"intake {ahead.intake_id} is folded to {ahead.next_sequence}, beyond what it committed",
    )


def rollup_difference(ledger: dict[str, Any] | None, kept: dict[str, Any] | None, key: str) -> str:
    """In words, what `compared` found."""
    row = ledger or kept or {}
    place = ", ".join(f"{name} {row[name]}" for name in (*key.split(", "), "interval_id"))
    if kept is None:
        return f"{place}: the ledger has usage there, the rollup has no row"
    if ledger is None:
        return f"{place}: the rollup has a row there, the ledger no usage"
    name = next(name for name in SUMS if ledger[name] != kept[name])
    return f"{place}: {name} sum to {ledger[name] or 0:,} in the ledger, the rollup says {kept[name] or 0:,}"


def _watermarks(connection: Connection, scope: Scope = everything) -> Check:
    """Numbers without gaps, heads that follow, `complete_until` that never moves back, heads of batches."""
    last = connection.execute(
        text(scope("SELECT coalesce(max(watermark_id), 0) FROM watermarks"))
    ).scalar_one()
    found = [one for one in watermarks.watermarks(connection) if one.watermark_id <= last]
    previous, until, difference = GENESIS, None, None
    for number, one in enumerate(found, 1):
        if one.watermark_id != number:
            difference = f"watermark {number} is missing; the next one is {one.watermark_id}"
        elif one.previous_head != previous:
            difference = f"watermark {number} does not follow the head of the one before"
        elif watermarks.watermark_head(previous, one) != one.head:
            difference = f"watermark {number} does not match its head {one.head.hex()[:16]}"
        elif until is not None and (one.complete_until is None or one.complete_until < until):
            difference = (
                f"watermark {number} is complete until {one.complete_until}, the one before until {until}"
            )
        if difference is not None:
            break
        previous, until = one.head, one.complete_until
    stray = connection.execute(
        text(
            scope(
                "SELECT watermark_id, at->>'intake_id' AS intake_id, at->>'chain_head' AS told "
                "FROM watermarks CROSS JOIN jsonb_array_elements(positions) AS at LEFT JOIN ingest_batches b "
                "ON b.intake_id = (at->>'intake_id')::int AND b.sequence = (at->>'next_sequence')::bigint - 1 "
                "WHERE at->>'chain_head' <> encode(coalesce(b.head, :genesis), 'hex') ORDER BY 1, 2 LIMIT 1"
            )
        ),
        {"genesis": GENESIS},
    ).one_or_none()
    if difference is None and stray is not None:
        difference = (
            f"watermark {stray.watermark_id} pins intake {stray.intake_id} at head {stray.told[:16]}, "
            "which its batches do not have at that sequence"
        )
    return Check("watermarks", f"{len(found):,} heads", difference)


def _interventions(connection: Connection, scope: Scope = everything) -> Check:
    """Numbers without gaps and heads that follow."""
    previous, count, difference = GENESIS, 0, None
    for row in connection.execute(text(scope("SELECT * FROM interventions ORDER BY intervention_id"))):
        count += 1
        content = json.dumps(row.details, sort_keys=True, separators=(",", ":"))
        number = row.intervention_id
        told = head("metering intervention", previous, number, row.kind, row.by, row.reason, content)
        if difference is None and (number, bytes(row.previous_head), bytes(row.head)) != (
            count,
            previous,
            told,
        ):
            difference = f"intervention {number} ({row.kind} by {row.by}) does not follow from the one before"
        previous = bytes(row.head)
    return Check("interventions", f"{count:,} heads", difference)
