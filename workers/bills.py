"""Suppliers' bills: a file becomes documents of the ledger by an intake of its own, whole or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import polars as pl
from sqlalchemy import Connection

from metering.bills import focus
from metering.bills.document import Bill, shortest
from metering.bills.reading import Known, read_bills
from metering.bills.revisions import Change, changes
from metering.catalog.documents import Fault
from metering.errors import BadInput, Fenced, Unavailable
from metering.frames.books import Books
from metering.periods import DAY, next_month_start
from metering.settings import Settings
from metering.store import bills, periods, positions, postgres
from metering.store.books import latest_revision, read_books
from workers.loop import database_errors

#: Faults of a file that a message names; the others are counted.
_FAULTS_SHOWN: Final = 20


@dataclass(frozen=True)
class Planned:
    """A document as it would be entered; `before`: the revision that it corrects."""

    bill: Bill
    revision: int
    posted_month: date
    before: bills.Entered | None = None

    @property
    def changes(self) -> list[Change]:
        """What differs, line by line, from the revision before; of a new document every line."""
        empty = Bill(self.bill.supplier, self.bill.document, self.bill.currency, ())
        return changes(self.before.bill if self.before else empty, self.bill)

    def caption(self) -> str:
        """One line about the document."""
        total = f"{shortest(self.bill.total):,f} {self.bill.currency}"
        if self.before is None:
            lines = f"{len(self.bill.lines):,} lines"
            return f"{self.bill.name}: new, {lines}, {total}, posted to {self.posted_month:%Y-%m}"
        if not self.changes:
            return f"{self.bill.name}: nothing differs from revision {self.before.revision}"
        was = f"{shortest(self.before.bill.total):,f} {self.before.bill.currency}"
        return (
            f"{self.bill.name}: revision {self.revision}, {len(self.changes):,} lines differ, {was} becomes {total}; "
            f"the difference is posted to {self.posted_month:%Y-%m}"
        )


@dataclass(frozen=True)
class BillPlan:
    """What entering a file would do; `refusals`: why it may not, in words, each naming its document."""

    planned: tuple[Planned, ...]
    refusals: tuple[str, ...]
    notes: tuple[str, ...]


def read_file(
    settings: Settings,
    books: Books,
    name: str,
    content: bytes,
    *,
    zone: ZoneInfo | None = None,
    mapping: tuple[str, bytes] | None = None,
) -> tuple[tuple[Bill, ...], tuple[str, ...]]:
    """The documents of a file, and notes on how it was read. `mapping`: name and content of a --map file.

    Raises BadInput that names file, line, column, value and what would be right.
    """
    names = focus.NO_MAPPING
    faults: list[Fault] = []
    if mapping is not None:
        names, faults = focus.read_mapping(*mapping)
    if not faults:
        found = read_bills(
            name, content, Known.of(books), zone=zone, mapping=names, lines_max=settings.bill_lines_max
        )
        if not found.faults:
            return found.bills, found.notes
        faults = list(found.faults)
    raise BadInput("\n".join((*_told(faults), "nothing was entered")))


def _told(faults: Sequence[Fault]) -> list[str]:
    lines = [str(fault) for fault in faults[:_FAULTS_SHOWN]]
    return lines + ([f"and {len(faults) - _FAULTS_SHOWN} more"] if len(faults) > _FAULTS_SHOWN else [])


def read_catalog_books(connection: Connection) -> Books:
    """The books of the catalog as it is."""
    return read_books(connection, latest_revision(connection))


def plan(
    connection: Connection,
    settings: Settings,
    books: Books,
    documents: Sequence[Bill],
    *,
    correction: bool,
    now: datetime,
) -> BillPlan:
    """Compare documents with what was entered; changes nothing."""
    planned, refusals, notes = [], [], []
    first_open = periods.first_open_month(connection)
    earliest = periods.first_month_of_usage(connection)
    if earliest is not None:
        for _ in range(settings.bill_months_before_max):
            earliest = (earliest - DAY).replace(day=1)
    for bill in documents:
        known = bills.revisions(connection, bill.supplier, bill.document)
        one, refused = _planned(bill, known, first_open, earliest, correction=correction, now=now)
        planned.append(one)
        refusals += refused
        notes += _missing_rates(bill, books, settings.reporting_currency)
    return BillPlan(tuple(planned), tuple(refusals), tuple(notes))


def _planned(
    bill: Bill,
    known: Sequence[bills.Entered],
    first_open: date | None,
    earliest: date | None,
    *,
    correction: bool,
    now: datetime,
) -> tuple[Planned, list[str]]:
    before = known[-1] if known else None
    if before is not None:
        default = before.posted_month
    else:
        # where the service of its latest line begins, but for what is billed ahead: never in a month yet to come
        default = min(max(line.service_from for line in bill.lines), now).date().replace(day=1)
    month = bill.posted_month or (max(default, first_open) if first_open else default)
    one = Planned(bill, len(known) + 1, month, before)
    refused = []
    if before is None and correction:
        refused.append(
            f"{bill.name}: it was never entered, so there is nothing to correct; leave --correction out"
        )
    if before is not None and before.bill.digest() == bill.digest():
        refused.append(
            f"{bill.name}: the same content was entered {before.added_at:%Y-%m-%d %H:%M:%S} UTC by "
            f"{before.added_by} from {before.file} (revision {before.revision})"
        )
    elif before is not None and not correction:
        refused.append(
            f"{bill.name}: it was entered {before.added_at:%Y-%m-%d %H:%M:%S} UTC with other content; if this one is "
            "right, give --correction and --reason"
        )
    if month > now.date():
        refused.append(
            f"{bill.name}: posted_month {month:%Y-%m} is yet to come; a bill is posted when it is known"
        )
    elif first_open is not None and month < first_open:
        refused.append(
            f"{bill.name}: posted_month {month:%Y-%m} is closed, and takes no postings; the first open month is "
            f"{first_open:%Y-%m}"
        )
    elif before is None and earliest is not None and month < earliest:
        # months are closed one after the other from the first with a bill: a wrong year is years of closing
        refused.append(
            f"{bill.name}: posted_month {month:%Y-%m} lies before {earliest:%Y-%m}, and there is no usage until later "
            "(METERING_BILL_MONTHS_BEFORE_MAX): correct the year of posted_month or of the service, or give the month "
            "in which the bill came as posted_month"
        )
    elif before is not None and month < before.posted_month:
        refused.append(
            f"{bill.name}: posted_month {month:%Y-%m} lies before {before.posted_month:%Y-%m}, to which revision "
            f"{before.revision} is posted; a correction is posted to that month or a later one"
        )
    return one, refused


def _missing_rates(bill: Bill, books: Books, reporting_currency: str) -> list[str]:
    """Months of the document's service without an exchange rate into the currency of the reports."""
    if bill.currency == reporting_currency:
        return []
    rates = books.exchange_rates.filter(
        pl.col("currency") == bill.currency,
        pl.col("into") == reporting_currency,
        pl.col("kind") == "month_average",
    )
    spans = rates.select("effective_from", "effective_until").rows()
    month = min(line.service_from for line in bill.lines).replace(day=1, hour=0, minute=0)
    until = max(line.service_until for line in bill.lines)
    missing = []
    while month < until:
        after = next_month_start(month.date())
        if not any(start < after and (end is None or end > month) for start, end in spans):
            missing.append(f"{month:%Y-%m}")
        month = after
    if not missing:
        return []
    months = missing[0] if len(missing) == 1 else f"{missing[0]} to {missing[-1]}"
    return [
        f"{bill.name}: the catalog has no month_average rate from {bill.currency} into {reporting_currency} for "
        f"{months}: it closes in {bill.currency}, in {reporting_currency} it is unrated until there is one"
    ]


def append(
    settings: Settings,
    books: Books,
    made: BillPlan,
    *,
    file: str,
    correction: bool,
    by: str,
    reason: str,
    now: datetime,
) -> list[int]:
    """Append the documents of a plan in one transaction; returns their numbers.

    Raises BadInput, with nothing written, when the plan would now be another one. If the process dies in the
    middle nothing was written; once it is written, the same file again is refused as entered.
    """
    with database_errors(), postgres.connect_driver(settings, "operator") as connection:
        connection.autocommit = True
        role = f"{settings.role_prefix}operator"
        claim = positions.claim_intake(connection, "bills", role=role, owner=positions.operator_name())
        # from here on whoever else enters something fences this claim, or is fenced by it
        with postgres.reading(settings) as reading:
            documents = [one.bill for one in made.planned]
            again = plan(reading, settings, books, documents, correction=correction, now=now)
        if again.planned != made.planned or again.refusals:
            raise BadInput("somebody else entered bills, or closed a month, meanwhile; run the command again")
        entries = [
            bills.Entry(one.bill, one.revision, one.posted_month, file, reason) for one in made.planned
        ]
        try:
            return bills.append(connection, claim, entries, by=by)
        except Fenced:
            raise Unavailable(
                "somebody else enters bills at the same time; nothing was entered. Run the command again"
            ) from None


def change_rows(bill: Bill, differences: Sequence[Change]) -> list[dict[str, Any]]:
    """Differences for a reader: a row a line, what it was before and what it is now."""
    rows = []
    for change in differences:
        before, after = change.before, change.after
        # of something else now: what was given for the old terms goes, and comes for the new ones
        pairs = [(before, after)]
        if before is not None and after is not None and before.terms != after.terms:
            pairs = [(before, None), (None, after)]
        for was, now in pairs:
            line = now or was
            assert line is not None
            rows.append(
                {
                    "supplier": bill.supplier,
                    "document": bill.document,
                    "line": line.line,
                    "category": line.category,
                    "object_kind": line.object_kind,
                    "object": line.object,
                    "service_from": line.service_from,
                    "service_until": line.service_until,
                    "before": None if was is None else shortest(was.amount),
                    "amount": None if now is None else shortest(now.amount),
                    "currency": bill.currency,
                    "split_of": line.split_of,
                    "description": line.description,
                }
            )
    return rows


def line_rows(entered: bills.Entered) -> list[dict[str, Any]]:
    """The lines of a document for a reader, in order of their names."""
    blank = replace(entered.bill, lines=())
    return [
        {name: value for name, value in row.items() if name != "before"}
        for row in change_rows(entered.bill, changes(blank, entered.bill))
    ]
