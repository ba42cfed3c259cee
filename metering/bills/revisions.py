"""Revisions of a document: what a correction changes, and to which month each part of it is posted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal

from metering.bills.document import Bill, BillLine


@dataclass(frozen=True)
class Change:
    """A line that differs between two revisions; None: it is not in that one."""

    line: str
    before: BillLine | None
    after: BillLine | None

    @property
    def amount(self) -> Decimal:
        """After less before."""
        return (self.after.amount if self.after else Decimal(0)) - (
            self.before.amount if self.before else Decimal(0)
        )


def changes(before: Bill, after: Bill) -> list[Change]:
    """Line by line, in order of their names, what a document says now and said before; equal lines left out."""
    old, new = ({line.line: line for line in bill.lines} for bill in (before, after))
    return [
        Change(name, old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


@dataclass(frozen=True)
class Revision:
    """A document as it was entered for the `number`th time (from 1), posted to a month."""

    number: int
    month: date
    bill: Bill


@dataclass(frozen=True)
class Posting:
    """A line as it is posted: to a month, in a currency."""

    line: BillLine
    currency: str
    month: date


def postings(revisions: Sequence[Revision]) -> list[Posting]:
    """What the revisions of one document, oldest first, post to each month; months never go back.

    The amounts of one line, over all its postings, sum to what the last revision says of it. A revision of the
    month of the one before replaces it. One of a later month leaves what stood and posts the difference there:
    a changed amount as `LINE (revision N)`; a line that is now of something else (category, object, span,
    currency) is taken back and given anew. What was taken back is a true-up, as posted and as reversed: the
    pair sums to 0 and covers no time.
    """
    last_of_month = {revision.month: revision for revision in revisions}
    standing: dict[str, list[Posting]] = {}
    settled: list[Posting] = []
    for revision in last_of_month.values():
        lines = {line.line: line for line in revision.bill.lines}
        for name in sorted(standing.keys() | lines.keys()):
            standing[name] = _revised(standing.get(name), lines.get(name), revision, settled)
    return [posting for name in sorted(standing) for posting in standing[name]] + settled


def _revised(
    before: list[Posting] | None, line: BillLine | None, revision: Revision, settled: list[Posting]
) -> list[Posting]:
    """What stands of one line after a revision that says `line` (None: nothing); pairs that sum to 0 are settled.

    `before` is None of a line that was never posted, and empty of one that was taken back: its name is in use.
    """
    currency, month = revision.bill.currency, revision.month
    if before and line is not None and before[0].line.terms == line.terms and before[0].currency == currency:
        rest = line.amount - sum((posting.line.amount for posting in before), Decimal(0))
        if not rest:
            return before
        more = replace(line, line=f"{line.line} (revision {revision.number})", amount=rest)
        return [*before, Posting(more, currency, month)]
    for posting in before or ():
        taken_back = replace(posting.line, category="true_up")
        name = f"{taken_back.line} (reversed by revision {revision.number})"
        settled.append(replace(posting, line=taken_back))
        settled.append(
            replace(posting, line=replace(taken_back, line=name, amount=-taken_back.amount), month=month)
        )
    if line is None:
        return []
    given = replace(line, line=f"{line.line} (revision {revision.number})") if before is not None else line
    return [Posting(given, currency, month)]
