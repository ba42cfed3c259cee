"""The closing of months: what is known is pinned, and from then on the month takes no postings."""

from datetime import UTC, datetime

from metering.errors import BadInput
from metering.periods import Period, next_month_start
from metering.settings import Settings
from metering.store import periods, postgres, schema
from workers import fold


def close(settings: Settings, month: Period, *, by: str, reason: str) -> periods.Close:
    """Pin a watermark and close a month at it, in one transaction; waits for a fold, pin or bill at work.

    Raises BadInput, with nothing written, for a month that is not over or not complete, is closed already, or
    has an open one before it. If the process dies in the middle nothing was written.
    """
    first = month.start.date()
    if month.until > datetime.now(UTC):
        raise BadInput(f"{month.name} is not over; it ends {month.until:%Y-%m-%d %H:%M} UTC")
    with postgres.connect(settings, "fold") as connection:
        schema.check_version(connection)
        with postgres.knowledge(connection):
            closed = {one.month: one for one in periods.closes(connection)}
            if first in closed:
                one = closed[first]
                raise BadInput(
                    f"{month.name} was closed {one.closed_at:%Y-%m-%d %H:%M:%S} UTC by {one.closed_by} "
                    f"at watermark {one.watermark_id}; a month is closed once"
                )
            watermark = fold.pin_within(connection, settings, f"close of {month.name}")
            due = periods.first_open_month(connection) or periods.first_month(connection)
            if due is None:
                raise BadInput("there is nothing to close: neither usage nor bills were entered yet")
            if first != due:
                when = (
                    "comes first: close it before"
                    if due < first
                    else "is the first month with anything in it"
                )
                raise BadInput(f"{month.name} cannot be closed: {due:%Y-%m} {when}")
            until = watermark.complete_until
            if until is None or until < next_month_start(first):
                told = "unknown" if until is None else f"{until:%Y-%m-%d %H:%M:%S} UTC"
                raise BadInput(
                    f"{month.name} cannot be closed yet: input is complete until {told}; `metering report now` shows "
                    "what holds it back"
                )
            return periods.append_close(connection, first, watermark.watermark_id, by=by, reason=reason)
