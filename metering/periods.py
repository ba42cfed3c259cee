"""Spans of time: half-open, UTC, on quarter hours; a period is a month, a day, or FROM..UNTIL."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from metering.errors import BadInput

QUARTER = timedelta(minutes=15)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


def floor_to_quarter(instant: datetime) -> datetime:
    """The quarter hour that holds `instant` (an instant on an edge begins its own quarter)."""
    return instant.replace(minute=instant.minute // 15 * 15, second=0, microsecond=0)


def ceil_to_quarter(instant: datetime) -> datetime:
    """The first quarter-hour edge at or after `instant`."""
    floor = floor_to_quarter(instant)
    return floor if floor == instant else floor + QUARTER


def month_start(day: date) -> datetime:
    """Midnight UTC of the first day of the month of `day`."""
    return datetime(day.year, day.month, 1, tzinfo=UTC)


def next_month_start(day: date) -> datetime:
    """Midnight UTC of the first day of the month after that of `day`."""
    return datetime(day.year + day.month // 12, day.month % 12 + 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Period:
    """A span [start, until) of UTC time under the name by which a person asked for it."""

    name: str
    start: datetime
    until: datetime

    def cut_at(self, complete_until: datetime | None) -> "Period":
        """The part of the period whose input is complete: until the last quarter hour <= complete_until.

        None means that nothing is known to be complete: the cut period is empty.
        """
        if complete_until is None:
            return Period(self.name, self.start, self.start)
        edge = floor_to_quarter(complete_until)
        return Period(self.name, self.start, max(self.start, min(self.until, edge)))

    def runs(self, length: timedelta) -> Iterator["Period"]:
        """The period in parts of at most `length`, in order; an empty one is its own only part."""
        start = self.start
        while True:
            until = min(start + length, self.until)
            yield Period(self.name, start, until)
            if until >= self.until:
                return
            start = until

    def months(self) -> Iterator["Period"]:
        """The period in parts that lie in one UTC calendar month each, in order; an empty one has none."""
        start = self.start
        while start < self.until:
            until = min(next_month_start(start.date()), self.until)
            yield Period(self.name, start, until)
            start = until

    @property
    def minutes(self) -> int:
        """Whole minutes in the span."""
        return int((self.until - self.start) / MINUTE)


_MONTH = re.compile(r"(\d{4})-(\d{2})")
_REMEDY = "give a month (2026-10), a day (2026-10-31) or FROM..UNTIL (2026-10-01..2026-10-08T06:15)"


def _instant(text: str, whole: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(f"'{whole}' is not a period: '{text}' is not a date or time; {_REMEDY}") from None
    if not 1970 <= parsed.year <= 9998:
        raise BadInput(f"'{whole}' is not a period: '{text}' lies outside the years 1970 to 9998; {_REMEDY}")
    instant = parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    if instant != floor_to_quarter(instant):
        raise BadInput(
            f"'{whole}' is not a period: '{text}' is not on a quarter hour; use :00, :15, :30 or :45"
        )
    return instant


def parse_period(text: str) -> Period:
    """Read a month, a day, or FROM..UNTIL (UNTIL is not included). Times without a zone are UTC."""
    if match := _MONTH.fullmatch(text):
        year, month = int(match[1]), int(match[2])
        if not (1 <= month <= 12 and 1970 <= year <= 9998):
            raise BadInput(f"'{text}' is not a period: there is no such month; {_REMEDY}")
        first = date(year, month, 1)
        return Period(text, month_start(first), next_month_start(first))
    if ".." in text:
        left, _, right = text.partition("..")
        start, until = _instant(left, text), _instant(right, text)
        if until <= start:
            raise BadInput(f"'{text}' is not a period: it ends at or before its start; {_REMEDY}")
        return Period(text, start, until)
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        start = _instant(text, text)
        return Period(text, start, start + DAY)
    raise BadInput(f"'{text}' is not a period; {_REMEDY}")
