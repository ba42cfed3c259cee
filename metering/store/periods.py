"""Closed months: each closed once, in order, at a watermark of its own; chained, never opened again."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, text

from metering.periods import next_month_start
from metering.store.as_of import Scope, everything
from metering.store.chain import GENESIS, head

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Close:
    """A month that takes no postings any more, and what was known when it was closed."""

    month: date
    watermark_id: int
    closed_at: datetime
    closed_by: str
    reason: str


def closes(connection: Connection, as_of: int | None = None, scope: Scope = everything) -> list[Close]:
    """The closed months, oldest first; those of up to a watermark, where one is given."""
    rows = connection.execute(
        text(
            scope(
                "SELECT month, watermark_id, closed_at, closed_by, reason FROM period_closes "
                "WHERE CAST(:as_of AS bigint) IS NULL OR watermark_id <= :as_of ORDER BY month"
            )
        ),
        {"as_of": as_of},
    )
    return [Close(*row) for row in rows]


def first_open_month(connection: Connection) -> date | None:
    """The month after the last closed one; None where none was closed yet: every month is open."""
    last = connection.execute(text("SELECT max(month) FROM period_closes")).scalar_one()
    return None if last is None else next_month_start(last).date()


def first_month(connection: Connection) -> date | None:
    """The first month with usage or bills; None where there is nothing yet."""
    first = connection.execute(
        text(
            "SELECT least((SELECT min(quarter_start) AT TIME ZONE 'UTC' FROM usage_quarters)::date, "
            "(SELECT min(posted_month) FROM bills))"
        )
    ).scalar_one()
    return None if first is None else date(first.year, first.month, 1)


def first_month_of_usage(connection: Connection) -> date | None:
    """The first month with usage; None where there is none yet."""
    first = connection.execute(
        text("SELECT (min(quarter_start) AT TIME ZONE 'UTC')::date FROM usage_quarters")
    ).scalar_one()
    return None if first is None else date(first.year, first.month, 1)


def months_before(connection: Connection, month: date) -> list[date]:
    """The months before this one from the first with usage, or with service that a bill is for."""
    first = connection.execute(
        text(
            "SELECT least((SELECT min(quarter_start) FROM usage_quarters), (SELECT min(service_from) FROM bill_lines)) "
            "AT TIME ZONE 'UTC'"
        )
    ).scalar_one()
    found = []
    at = month if first is None else first.date().replace(day=1)
    while at < month:
        found.append(at)
        at = next_month_start(at).date()
    return found


def learned(connection: Connection, start: datetime, until: datetime, before: int, after: int | None) -> bool:
    """Whether anything was learned between two watermarks (None: all that there is) that can move [start, until).

    That is usage of that time, another catalog, or any bill. Input of that time was complete at the first.
    """
    query = (
        "SELECT EXISTS (SELECT FROM usage_quarters WHERE quarter_start >= :start AND quarter_start < :until "
        "AND interval_id > :before AND (CAST(:after AS bigint) IS NULL OR interval_id <= :after)) OR "
        f"{_KNOWN.format(watermark=':before')} IS DISTINCT FROM "
    ) + (
        "ROW((SELECT max(catalog_revision) FROM catalog_revisions), (SELECT count(*) FROM bills))"
        if after is None
        else _KNOWN.format(watermark=":after")
    )
    values = {"start": start, "until": until, "before": before, "after": after}
    found: bool = connection.execute(text(query), values).scalar_one()
    return found


#: Catalog revision and number of bills as of a watermark.
_KNOWN: Final = (
    "(SELECT ROW(catalog_revision, (SELECT coalesce(sum((at->>'next_sequence')::bigint), 0)::bigint "
    "FROM jsonb_array_elements(positions) AS at WHERE at->>'kind' = 'bills')) "
    "FROM watermarks WHERE watermark_id = {watermark})"
)


def append_close(connection: Connection, month: date, watermark_id: int, *, by: str, reason: str) -> Close:
    """Close a month at a watermark of this same transaction. For `workers.periods.close` alone; it commits."""
    last = connection.execute(
        text("SELECT head FROM period_closes ORDER BY month DESC LIMIT 1")
    ).scalar_one_or_none()
    previous = GENESIS if last is None else bytes(last)
    closed_at = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    close = Close(month, watermark_id, closed_at, by, reason)
    connection.execute(
        text(
            "INSERT INTO period_closes (month, watermark_id, closed_at, closed_by, reason, previous_head, head) "
            "VALUES (:month, :watermark_id, :closed_at, :closed_by, :reason, :previous, :head)"
        ),
        {**vars(close), "previous": previous, "head": _head(previous, close)},
    )
    return close


def _head(previous: bytes, close: Close) -> bytes:
    return head(
        "metering period close",
        previous,
        close.month.isoformat(),
        close.watermark_id,
        (close.closed_at - _EPOCH) // timedelta(microseconds=1),
        close.closed_by,
        close.reason,
    )


def first_difference(connection: Connection, scope: Scope = everything) -> tuple[str, str | None]:
    """Months without gaps, watermarks that there are and that grow, heads that follow; and how many were seen."""
    rows = connection.execute(
        text(
            scope(
                "SELECT c.*, w.watermark_id AS pinned FROM period_closes c "
                "LEFT JOIN watermarks w USING (watermark_id) ORDER BY month"
            )
        )
    ).all()
    previous, expected, watermark = GENESIS, None, 0
    difference = None
    for row in rows:
        close = Close(row.month, row.watermark_id, row.closed_at, row.closed_by, row.reason)
        name = f"the close of {row.month:%Y-%m}"
        if expected is not None and row.month != expected:
            difference = f"the close of {expected:%Y-%m} is missing; the next one is of {row.month:%Y-%m}"
        elif row.pinned is None or row.watermark_id <= watermark:
            difference = (
                f"{name} names watermark {row.watermark_id}, which is missing or not after the one before"
            )
        elif (bytes(row.previous_head), bytes(row.head)) != (previous, _head(previous, close)):
            difference = f"{name} does not follow from the one before"
        if difference is not None:
            break
        previous, expected, watermark = bytes(row.head), next_month_start(row.month).date(), row.watermark_id
    return f"{len(rows):,} months", difference
