"""Suppliers' bills: documents with every revision, appended by the intake `bills`, never changed.

A document is a batch of its intake without events; the batch's root covers the document and its lines, so
that the chain of the intake, watermarks and published heads cover them too.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import polars as pl
import psycopg
from sqlalchemy import Connection, text

from metering.bills.document import Bill, BillLine
from metering.bills.revisions import Revision, postings
from metering.errors import BadInput, Fenced
from metering.frames.frame import INSTANT
from metering.frames.supply import BILL_LINES
from metering.store.as_of import Scope, everything
from metering.store.chain import CHAIN_VERSION, batch_head, head
from metering.store.ledger_rows import copy_stream
from metering.store.positions import Claim
from metering.store.postgres import KNOWLEDGE, driver

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LINE: Final = (
    *("line", "category", "object_kind", "object", "amount", "service_from", "service_until"),
    *("description", "split_of"),
)
_BILL: Final = (
    *("bill_id", "supplier", "document", "revision", "currency", "posted_month", "file", "added_at"),
    *("added_by", "reason"),
)


@dataclass(frozen=True)
class Entered:
    """A revision of a document as it stands: who entered it, when, from which file and why."""

    bill_id: int
    revision: int
    bill: Bill
    posted_month: date
    file: str
    added_at: datetime
    added_by: str
    reason: str

    def root(self) -> bytes:
        """What the chain of the intake covers: the digest of the content, and all that was said beside it."""
        return head(
            "metering bill",
            self.bill.digest(),
            self.bill_id,
            self.revision,
            self.posted_month.isoformat(),
            self.file,
            (self.added_at - _EPOCH) // timedelta(microseconds=1),
            self.added_by,
            self.reason,
        )


@dataclass(frozen=True)
class Entry:
    """A revision to be appended: `revision` is one more than the last of its document."""

    bill: Bill
    revision: int
    posted_month: date
    file: str
    reason: str


def read_bill_lines(connection: Connection, as_of: int | None) -> pl.DataFrame:
    """What every document posts to each month, as its last revision leaves it: BILL_LINES.

    `as_of`: the documents whose position the watermark had pinned, or None for all.
    """
    several = connection.execute(
        text(
            "SELECT supplier, document FROM bills WHERE bill_id <= :until GROUP BY 1, 2 "
            "HAVING min(posted_month) < max(posted_month) ORDER BY 1, 2"
        ),
        {"until": (until := _until(connection, as_of))},
    ).all()
    rows = []
    for supplier, document in several:
        found = [one for one in revisions(connection, supplier, document) if one.bill_id <= until]
        for posting in postings([Revision(one.revision, one.posted_month, one.bill) for one in found]):
            line = posting.line
            rows.append(
                (
                    *(
                        supplier,
                        document,
                        line.line,
                        line.category,
                        line.object_kind,
                        line.object,
                        line.amount,
                    ),
                    *(
                        posting.currency,
                        line.service_from,
                        line.service_until,
                        posting.month,
                        line.description,
                    ),
                )
            )
    over_months = pl.DataFrame(rows, schema=dict(BILL_LINES.columns), orient="row")
    return BILL_LINES.conform(pl.concat([_of_one_month(connection, until), over_months]))


def _until(connection: Connection, as_of: int | None) -> int:
    """The number of the last bill as of a watermark (None: of all)."""
    query = (
        "SELECT coalesce(max(bill_id), 0) FROM bills"
        if as_of is None
        else "SELECT coalesce(max((at->>'next_sequence')::bigint), 0) FROM watermarks, "
        "jsonb_array_elements(positions) AS at WHERE watermark_id = :watermark AND at->>'kind' = 'bills'"
    )
    last: int = connection.execute(text(query), {"watermark": as_of}).scalar_one()
    return last


def _of_one_month(connection: Connection, until: int) -> pl.DataFrame:
    """Lines of documents all of whose revisions are posted to one month: as the last revision says."""
    instants = [name for name, dtype in BILL_LINES.columns.items() if dtype == INSTANT]
    texts = [name for name, dtype in BILL_LINES.columns.items() if dtype == pl.String]
    columns = ", ".join(
        f"(extract(epoch FROM {name}) * 1000000)::bigint" if name in instants else name
        for name in BILL_LINES.columns
    )
    query = (
        f"SELECT {columns} FROM bill_lines JOIN (SELECT *, max(revision) OVER of_document AS last_revision, "
        "min(posted_month) OVER of_document AS first_month, max(posted_month) OVER of_document AS last_month "
        f"FROM bills WHERE bill_id <= {until} WINDOW of_document AS (PARTITION BY supplier, document)) b "
        "USING (bill_id) WHERE revision = last_revision AND first_month = last_month"
    )
    # CSV quotes every text, so that '' is not taken for a missing one
    stream = b"".join(copy_stream(driver(connection), query, f"FORMAT csv, FORCE_QUOTE ({', '.join(texts)})"))
    schema = {name: pl.Int64() if name in instants else dtype for name, dtype in BILL_LINES.columns.items()}
    lines = pl.read_csv(stream, has_header=False, schema=schema) if stream else pl.DataFrame(schema=schema)
    return lines.with_columns(pl.col(name).cast(INSTANT) for name in instants)


def revisions(connection: Connection, supplier: str, document: str) -> list[Entered]:
    """Every revision of a document, oldest first; none where it was never entered."""
    return list(
        _entered(
            connection,
            "supplier = :supplier AND document = :document",
            {"supplier": supplier, "document": document},
        )
    )


def suppliers_of(connection: Connection, document: str) -> list[str]:
    """The suppliers of whom a document of this name was entered."""
    rows = connection.execute(
        text("SELECT DISTINCT supplier FROM bills WHERE document = :document ORDER BY 1"),
        {"document": document},
    )
    return list(rows.scalars())


def listed(connection: Connection) -> list[dict[str, Any]]:
    """Every revision, the newest first: what it is, its sum, when and by whom it was entered."""
    rows = connection.execute(
        text(
            "SELECT supplier, document, revision, currency, sum(amount) AS amount, count(*) AS lines, "
            "min(service_from) AS service_from, max(service_until) AS service_until, posted_month, added_at, "
            "added_by, file, reason FROM bills JOIN bill_lines USING (bill_id) GROUP BY bill_id "
            "ORDER BY bill_id DESC"
        )
    ).mappings()
    return [dict(row) for row in rows]


def _entered(
    connection: Connection,
    condition: str = "true",
    values: dict[str, Any] | None = None,
    scope: Scope = everything,
) -> Iterator[Entered]:
    """Revisions in the order in which they were entered."""
    lines: dict[int, list[BillLine]] = defaultdict(list)
    query = f"SELECT bill_id, {', '.join(_LINE)} FROM bill_lines JOIN bills USING (bill_id) WHERE {condition}"
    for bill_id, *values_of_line in connection.execute(text(scope(query)), values or {}):
        lines[bill_id].append(BillLine(*values_of_line))
    query = f"SELECT {', '.join(_BILL)} FROM bills WHERE {condition} ORDER BY bill_id"
    for row in connection.execute(text(scope(query)), values or {}):
        of_bill = tuple(sorted(lines[row.bill_id], key=lambda line: line.line))
        bill = Bill(row.supplier, row.document, row.currency, of_bill, row.posted_month)
        yield Entered(
            row.bill_id,
            row.revision,
            bill,
            row.posted_month,
            row.file,
            row.added_at,
            row.added_by,
            row.reason,
        )


def append(
    connection: psycopg.Connection[tuple[Any, ...]], claim: Claim, entries: Sequence[Entry], *, by: str
) -> list[int]:
    """Append revisions in one transaction, each as a batch of the intake; returns their numbers.

    `connection` is in autocommit. Raises Fenced when somebody else claimed the intake since, BadInput when a
    month was closed since; nothing is written then. If the process dies before COMMIT nothing was written.
    Waits for a pin or close at work: a closed month takes no postings.
    """
    with connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '60s'")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (KNOWLEDGE,))
        ((last_closed,),) = connection.execute("SELECT max(month) FROM period_closes").fetchall()
        if last_closed is not None and any(entry.posted_month <= last_closed for entry in entries):
            raise BadInput(
                f"{last_closed:%Y-%m} was closed meanwhile; nothing was entered. Run the command again"
            )
        previous, numbers = claim.chain_head, []
        batches = []
        for number, entry in enumerate(entries, claim.next_offset + 1):
            added_at = connection.execute("SELECT clock_timestamp()").fetchall()[0][0]
            entered = Entered(
                number, entry.revision, entry.bill, entry.posted_month, entry.file, added_at, by, entry.reason
            )
            root = entered.root()
            batches.append((entered, previous, root, _head(previous, number, root)))
            previous = batches[-1][3]
            numbers.append(number)
        moved = connection.execute(
            "UPDATE stream_positions SET next_offset = %s, next_sequence = %s, chain_head = %s "
            "WHERE intake_id = %s AND epoch = %s AND next_offset = %s AND next_sequence = %s",
            (
                numbers[-1], numbers[-1], previous,
                claim.intake_id, claim.epoch, claim.next_offset, claim.next_sequence,
            ),
        ).rowcount  # fmt: skip
        if moved != 1:
            raise Fenced(f"{claim.name} was claimed by somebody else since; nothing was written")
        for entered, before, root, after in batches:
            _insert(connection, claim, entered, before, root, after)
    return numbers


def _head(previous: bytes, number: int, root: bytes) -> bytes:
    counts = dict.fromkeys(("received", "accepted", "duplicate", "conflict", "rejected"), 0)
    return batch_head(
        previous,
        kind="bills",
        topic_uuid=None,
        partition=None,
        sequence=number - 1,
        first_offset=number - 1,
        next_offset=number,
        records=1,
        root=root,
        **counts,
    )


def _insert(
    connection: psycopg.Connection[tuple[Any, ...]],
    claim: Claim,
    entered: Entered,
    previous: bytes,
    root: bytes,
    after: bytes,
) -> None:
    ((batch_id,),) = connection.execute(
        "INSERT INTO ingest_batches (batch_id, intake_id, sequence, epoch, first_offset, next_offset, records, "
        "received, accepted, duplicate, conflict, rejected, unknown_fields, chain_version, root, previous_head, head) "
        "VALUES (nextval('ingest_batches_batch_id_seq'), %s, %s, %s, %s, %s, 1, 0, 0, 0, 0, 0, 0, %s, %s, %s, %s) "
        "RETURNING batch_id",
        (
            claim.intake_id, entered.bill_id - 1, claim.epoch, entered.bill_id - 1, entered.bill_id,
            CHAIN_VERSION, root, previous, after,
        ),
    ).fetchall()  # fmt: skip
    connection.execute(
        "INSERT INTO bills (bill_id, batch_id, supplier, document, revision, currency, posted_month, file, digest, "
        "added_at, added_by, reason) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            entered.bill_id, batch_id, entered.bill.supplier, entered.bill.document, entered.revision,
            entered.bill.currency, entered.posted_month, entered.file, entered.bill.digest(),
            entered.added_at, entered.added_by, entered.reason,
        ),
    )  # fmt: skip
    columns = ", ".join(("bill_id", *_LINE))
    with connection.cursor() as cursor, cursor.copy(f"COPY bill_lines ({columns}) FROM STDIN") as copy:
        for line in entered.bill.lines:
            copy.write_row((entered.bill_id, *(getattr(line, name) for name in _LINE)))


def first_difference(connection: Connection, scope: Scope = everything) -> tuple[str, str | None]:
    """Every document against the root of its batch; how many were seen, and the first difference in words."""
    roots = {
        row.sequence + 1: (row.batch_id, bytes(row.root))
        for row in connection.execute(
            text(
                scope(
                    "SELECT sequence, batch_id, root FROM ingest_batches JOIN stream_positions USING (intake_id) "
                    "WHERE kind = 'bills'"
                )
            )
        )
    }
    kept = {
        row.bill_id: row
        for row in connection.execute(text(scope("SELECT bill_id, batch_id, digest FROM bills")))
    }
    lines = connection.execute(text(scope("SELECT count(*) FROM bill_lines"))).scalar_one()
    seen = 0
    difference = None
    for entered in _entered(connection, scope=scope):
        row = kept[entered.bill_id]
        seen += len(entered.bill.lines)
        name = f"bill {entered.bill_id} ({entered.bill.name}, revision {entered.revision})"
        batch = roots.get(entered.bill_id)
        if difference is not None:
            continue
        if batch is None or batch[0] != row.batch_id:
            difference = f"{name} is not of the batch that it names"
        elif entered.bill.digest() != bytes(row.digest):
            difference = f"{name}: its {len(entered.bill.lines)} lines do not match its digest"
        elif entered.root() != batch[1]:
            difference = f"{name} does not match the root {batch[1].hex()[:16]} of its batch"
    missing = min(roots.keys() - kept.keys(), default=None)
    if difference is None and missing is not None:
        difference = f"bill {missing} is missing: batch {roots[missing][0]} brought it"
    if difference is None and seen != lines:
        difference = f"{lines - seen:,} bill lines are of no bill"
    return f"{len(kept):,} documents, {lines:,} lines", difference
